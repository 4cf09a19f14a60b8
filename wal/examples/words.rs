//! Counts words and never loses an acknowledged line: a complete program around the log.
//!
//! ```sh
//! cargo run --release -p esker-wal --example words -- DIR < some.txt     # kill it whenever you like
//! cargo run --release -p esker-wal --example words -- DIR < /dev/null    # and see the counts
//! ```
//!
//! A log does not record its own files, incarnations and positions. They stand in a manifest, here a text file that is
//! replaced as a whole. It also holds the counts as of position `from`. A replay adds the records of the log from there
//! on.
#![expect(clippy::print_stdout, reason = "a program")]
#![expect(clippy::disallowed_methods, reason = "its manifest is an ordinary file")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aio::{Backend, NativeBackend};
use wal::{ActiveFile, Host, Log, LogOptions, RecordBuf, ReplayInput, Seq, log_file_path, replay};

/// Lines between two saves of the counts. After a save the log can retire its files.
const LINES: u64 = 100_000;

type AnyError = Box<dyn std::error::Error>;

/// The content of the manifest: needed before the log can be read.
#[derive(Clone, Debug, Default)]
struct Saved {
    store_id: u64,
    incarnation: u32,
    start: u64,
    from: u64,
    next_file: u64,
    next_epoch: u32,
    /// Size of the ring file in bytes.
    ring_file_bytes: u64,
    files: Vec<ActiveFile>,
    words: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Manifest {
    dir: PathBuf,
    saved: Mutex<Saved>,
}

impl Manifest {
    fn load(dir: &Path) -> Result<Option<Saved>, AnyError> {
        let text = match std::fs::read_to_string(dir.join("manifest")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let mut saved = Saved::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            match fields[..] {
                ["log", store_id, incarnation, start, from, next_file, next_epoch, ring_file_bytes] => {
                    (saved.store_id, saved.incarnation) = (store_id.parse()?, incarnation.parse()?);
                    (saved.start, saved.from) = (start.parse()?, from.parse()?);
                    (saved.next_file, saved.next_epoch) = (next_file.parse()?, next_epoch.parse()?);
                    saved.ring_file_bytes = ring_file_bytes.parse()?;
                }
                ["file", id, epoch, start] => {
                    let (id, epoch, start) = (id.parse()?, epoch.parse()?, Seq::new(start.parse()?));
                    saved.files.push(ActiveFile { id, epoch, start });
                }
                ["word", count, word] => drop(saved.words.insert(word.to_owned(), count.parse()?)),
                _ => return Err(format!("not a line of a manifest: {line}").into()),
            }
        }
        Ok(Some(saved))
    }

    /// Changes the content, and replaces the file durably and as a whole.
    fn save(&self, change: impl FnOnce(&mut Saved)) -> Result<(), std::io::Error> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut saved);
        let Saved { store_id, incarnation, start, from, next_file, next_epoch, ring_file_bytes, .. } =
            &*saved;
        let mut text = format!(
            "log {store_id} {incarnation} {start} {from} {next_file} {next_epoch} {ring_file_bytes}\n"
        );
        for ActiveFile { id, epoch, start } in &saved.files {
            let _ = writeln!(text, "file {id} {epoch} {start}");
        }
        for (word, count) in &saved.words {
            let _ = writeln!(text, "word {count} {word}");
        }
        let new = self.dir.join("manifest.new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(new, self.dir.join("manifest"))?;
        std::fs::File::open(&self.dir)?.sync_all()
    }
}

impl Host for Manifest {
    fn new_file_id(&self) -> u64 {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        saved.next_file += 1;
        saved.next_file
    }

    fn activate(&self, id: u64, start: Seq) -> wal::Result<u32> {
        let mut epoch = 0;
        let saved = self.save(|saved| {
            saved.next_epoch += 1;
            epoch = saved.next_epoch;
            saved.files.push(ActiveFile { id, epoch, start });
        });
        saved.map(|()| epoch).map_err(|error| wal::Error::Host { message: error.to_string() })
    }

    fn ring_grown(&self, file_bytes: u64) -> wal::Result<()> {
        let saved = self.save(|saved| saved.ring_file_bytes = file_bytes);
        saved.map_err(|error| wal::Error::Host { message: error.to_string() })
    }
}

fn options(dir: &Path, saved: &Saved) -> LogOptions {
    LogOptions {
        ring_path: dir.join("ring"),
        ring_file_bytes: usize::try_from(saved.ring_file_bytes).unwrap_or(usize::MAX),
        ..LogOptions::new(dir, saved.store_id, saved.incarnation, Seq::new(saved.start))
    }
}

fn count(words: &mut BTreeMap<String, u64>, line: &str) {
    for word in line.split_whitespace() {
        *words.entry(word.to_owned()).or_default() += 1;
    }
}

/// Replays the last incarnation. Returns the manifest for the next one, with the counts of every acknowledged line.
fn recover(backend: &NativeBackend, dir: &Path, mut saved: Saved) -> Result<Saved, AnyError> {
    if saved.incarnation > 0 {
        let options = options(dir, &saved);
        let input = ReplayInput {
            directory: options.directory,
            store_id: saved.store_id,
            incarnation: saved.incarnation,
            incarnation_start: options.start,
            from: Seq::new(saved.from),
            files: saved.files.clone(),
            file_bytes: options.file_bytes,
            ring_path: options.ring_path,
            ring_bytes: options.ring_bytes,
            ring_file_bytes: options.ring_file_bytes,
        };
        let words = &mut saved.words;
        let mut queue = backend.queue(1)?;
        let replayed = replay(backend, &mut *queue, &input, &mut |_, payload| {
            count(words, &String::from_utf8_lossy(payload));
            Ok(())
        })?;
        println!("replayed {} lines, {:?}", replayed.records, replayed.verdict);
        (saved.start, saved.from) = (replayed.end.get(), replayed.end.get());
    }
    saved.incarnation += 1;
    saved.files.clear();
    Ok(saved)
}

fn remove_logs(dir: &Path) -> Result<(), AnyError> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn main() -> Result<(), AnyError> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("usage: words DIR < TEXT")?);
    let backend = NativeBackend::new();
    if std::fs::create_dir(&dir).is_ok() {
        // The name of the directory must be durable before a line in it is reported as safe.
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        backend.sync_dir(parent.unwrap_or(Path::new(".")))?;
    }
    // Two programs at once would remove each other's files.
    let _lock = backend.lock(&dir.join("LOCK"))?;
    let loaded = Manifest::load(&dir)?;
    if loaded.is_none() && dir.join("ring").exists() {
        // A crash before the first save left this ring. It may be incomplete.
        std::fs::remove_file(dir.join("ring"))?;
    }
    let loaded = loaded.unwrap_or_else(|| Saved { store_id: backend.random(), ..Saved::default() });
    let saved = recover(&backend, &dir, loaded)?;
    let mut words = saved.words.clone();

    // The ring is durable when the open returns, so the manifest may name the incarnation. The old files are obsolete as
    // soon as that manifest is durable.
    let options = options(&dir, &saved);
    let host = Arc::new(Manifest { dir: dir.clone(), saved: Mutex::new(saved) });
    let log = Log::open(Arc::new(backend), options, Arc::clone(&host) as Arc<dyn Host>)?;
    host.save(|_| ())?;
    remove_logs(&dir)?;

    let mut record = RecordBuf::new();
    let mut lines = 0;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        record.clear();
        record.push(line.as_bytes());
        log.append(&mut record)?;
        count(&mut words, &line);
        lines += 1;
        if lines % LINES == 0 {
            save_counts(&log, &host, &dir, &words)?;
            println!("{lines} lines are safe");
        }
    }
    log.sync()?;
    println!("{lines} lines are safe, in {} syncs", log.metrics().syncs);
    log.close()?;
    let mut most: Vec<_> = words.iter().collect();
    most.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (word, count) in most.into_iter().take(10) {
        println!("{count:8} {word}");
    }
    Ok(())
}

/// Makes the counts durable and retires the log files below them: first the manifest, then the files.
fn save_counts(
    log: &Log,
    host: &Manifest,
    dir: &Path,
    words: &BTreeMap<String, u64>,
) -> Result<(), AnyError> {
    log.sync()?;
    let end = log.durable();
    let retired = log.retirable(end);
    host.save(|saved| {
        saved.from = end.get();
        saved.words.clone_from(words);
        saved.files.retain(|file| !retired.contains(&file.id));
    })?;
    log.retire(&retired)?;
    // Retired files were recycled or removed.
    debug_assert!(log.active_files().iter().all(|file| log_file_path(dir, file.id).exists()));
    Ok(())
}
