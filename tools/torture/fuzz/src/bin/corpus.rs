//! The corpus without a fuzzer: `corpus write DIR` cuts inputs out of real stores, `corpus replay DIR [ROUNDS]` runs every
//! input and `ROUNDS` changed ones of each, from `SEED`, or from a new seed.
//!
//! Needs no C++ compiler, so the inputs that a fuzzer once found stay tests on every machine.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aio::{Backend as _, NativeBackend};
use esker_fuzz::{DECODERS, Limited, STORES, Target, corpus};

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// Why a command ended early.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["write", dir] => write(Path::new(dir)),
        ["replay", dir] => replay(Path::new(dir), 0),
        ["replay", dir, rounds] => {
            rounds.parse().map_err(Into::into).and_then(|rounds| replay(Path::new(dir), rounds))
        }
        _ => Err("usage: corpus write DIR | replay DIR [ROUNDS]".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("corpus: {error}");
            ExitCode::FAILURE
        }
    }
}

fn targets() -> impl Iterator<Item = Target> {
    DECODERS.into_iter().chain(STORES)
}

fn write(dir: &Path) -> Result<()> {
    for (target, name, bytes) in corpus()? {
        let target = targets().find(|known| known.name == target).ok_or("an input for no target")?;
        let folder = dir.join(target.name);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), &bytes[..bytes.len().min(target.most_bytes)])?;
    }
    Ok(())
}

fn replay(dir: &Path, rounds: u64) -> Result<()> {
    let drawn = NativeBackend::new().random() >> 32;
    let seed = std::env::var("SEED").map_or(Ok(drawn), |seed| seed.parse())?;
    println!("SEED={seed}");
    let mut total = 0;
    for target in targets() {
        let inputs = inputs(&dir.join(target.name))?;
        if inputs.is_empty() {
            return Err(format!("{} has no inputs in {}", target.name, dir.display()).into());
        }
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut executions = 0_u64;
        for (path, bytes) in &inputs {
            run(&target, bytes, path, None);
            executions += 1;
            for round in 0..rounds {
                let changed = change(bytes, &inputs, target.most_bytes, &mut rng);
                run(&target, &changed, path, Some(round));
                executions += 1;
            }
        }
        println!("{:9} {:4} inputs {executions:9} executions", target.name, inputs.len());
        total += executions;
    }
    println!("{total} executions, no failure");
    Ok(())
}

/// A panic names the input before it continues.
fn run(target: &Target, bytes: &[u8], path: &Path, round: Option<u64>) {
    let result = std::panic::catch_unwind(|| target.fuzz(bytes));
    if let Err(cause) = result {
        eprintln!("{}: {} changed {round:?}: {bytes:02x?}", target.name, path.display());
        std::panic::resume_unwind(cause);
    }
}

fn inputs(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let bytes = std::fs::read(&path)?;
        inputs.push((path, bytes));
    }
    inputs.sort();
    Ok(inputs)
}

/// A few random changes.
fn change(
    bytes: &[u8],
    inputs: &[(PathBuf, Vec<u8>)],
    most_bytes: usize,
    rng: &mut fastrand::Rng,
) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for _ in 0..rng.u8(1..5) {
        let at = rng.usize(0..=changed.len());
        match rng.u8(0..5) {
            0 => changed.insert(at, rng.u8(..)),
            1 => changed.truncate(at),
            2 => {
                let other = rng.choice(inputs).map_or(&[][..], |input| &input.1);
                let from = rng.usize(0..=other.len());
                changed.truncate(at);
                changed.extend_from_slice(&other[from..]);
            }
            3 if at < changed.len() => changed[at] = *rng.choice(&[0, 1, 0x7f, 0x80, 0xff]).unwrap_or(&0),
            _ if at < changed.len() => changed[at] ^= 1 << rng.u8(0..8),
            _ => changed.push(rng.u8(..)),
        }
    }
    changed.truncate(most_bytes);
    changed
}
