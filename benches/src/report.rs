//! The report: plain rows, and tables and pictures that need no explanation.
//!
//! A figure of a table is that of the median round by throughput. `~` marks figures with other work on the machine in any
//! round. The ratio compares Esker with the best of the other stores.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::child::DEVICE;
use crate::error::{Error, Result};
use crate::options::Options;
use crate::result::{FOREIGN_LIMIT, QUANTILES, Row, Run};
use crate::store::Kind;
use crate::svg::{self, Panel, Series, short};
use crate::workload::{ALL, Family, Size, Workload};

/// The store whose ratios are shown.
const OURS: &str = "esker";

/// The text above the tables.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Lines of the list at the top.
    pub lines: Vec<String>,
    /// Each store with version and setting.
    pub stores: Vec<String>,
}

impl Header {
    /// Collects it from the machine and the options.
    pub fn collect(options: &Options, limit: &str, (took, shortest): (Duration, f64)) -> Header {
        let first_line = |path: &str, label: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(label)).unwrap_or_default();
            line.split_once(':').map_or(line, |(_, value)| value).trim().to_owned()
        };
        let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let file_system = aio::probe(&options.out).map_or("unknown", |probe| probe.file_system);
        let scale = |family| {
            let scale = options.size.scale(family);
            format!("{family:?} {} records in {} MiB", scale.records, scale.memory_bytes >> 20)
        };
        let families = [Family::Hot, Family::Cold, Family::Ycsb, Family::Overwrite].map(scale).join(", ");
        let fresh = options.size.scale(Family::Fresh).memory_bytes >> 20;
        let kind = match options.size {
            Size::Full => "full",
            Size::Quick => "quick: a first impression, not a result",
            Size::Smoke => "smoke test: the figures mean nothing",
        };
        let lines = vec![
            format!(
                "date: {}",
                date(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs())
            ),
            format!("machine: {cpus} CPUs ({}), {}", first_line("/proc/cpuinfo", "model name"), memory()),
            format!(
                "kernel: Linux {}; file system: {file_system}",
                first_line("/proc/sys/kernel/osrelease", "")
            ),
            format!(
                "kind: {kind}; {} rounds of at least {} s{}, took {} min in all",
                options.rounds,
                options.seconds,
                if shortest < options.seconds {
                    format!(" (shortened to {shortest:.2} s at least, for all stores alike, to end in time)")
                } else {
                    String::new()
                },
                short(took.as_secs_f64() / 60.0)
            ),
            format!("data and memory: {families}; durable_put, put and load begin empty, in {fresh} MiB"),
            format!("memory: {limit}"),
        ];
        let of = |kind: &Kind| format!("**{}** {}: {}", kind.name, version(kind.package), kind.setting);
        Header { lines, stores: options.stores.iter().map(of).collect() }
    }
}

fn memory() -> String {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.map_or("memory unknown".to_owned(), |kib| format!("{} GiB", kib >> 20))
}

/// The version of a package that this was built with.
fn version(package: &str) -> &'static str {
    let lock = include_str!("../../Cargo.lock");
    let name = format!("name = \"{package}\"");
    let after = lock.split_once(&name).map_or("", |(_, after)| after);
    after.split('"').nth(1).unwrap_or("of unknown version")
}

/// Seconds since 1970 as a date (Gregorian, UTC).
fn date(seconds: u64) -> String {
    // Days since 0000-03-01, in eras of 400 years.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600 % 24, seconds / 60 % 60)
}

/// Bytes in MiB.
#[expect(clippy::cast_precision_loss, reason = "memory of a process")]
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Writes `results.jsonl` and `details.jsonl`.
///
/// # Errors
/// A file could not be written.
pub fn write_rows(out: &Path, runs: &[Run]) -> Result<()> {
    let mut rows = String::new();
    let mut details = String::new();
    for run in runs {
        let json = |error: serde_json::Error| Error::Usage(error.to_string());
        rows = rows + &serde_json::to_string(&run.row).map_err(json)? + "\n";
        details = details + &serde_json::to_string(run).map_err(json)? + "\n";
    }
    save(out, "results.jsonl", &rows)?;
    save(out, "details.jsonl", &details)
}

fn save(out: &Path, name: &str, text: &str) -> Result<()> {
    let path = out.join(name);
    fs::write(&path, text).map_err(Error::io("write", &path))
}

/// Writes everything: rows, report, pictures.
///
/// # Errors
/// A file could not be written.
pub fn write(out: &Path, header: &Header, runs: &[Run], failures: &[String]) -> Result<()> {
    write_rows(out, runs)?;
    let table = Table::of(runs);
    save(out, "throughput.svg", &throughput_picture(&table))?;
    save(out, "latency.svg", &latency_picture(&table))?;
    save(out, "pauses.svg", &pauses_picture(&table))?;
    save(out, "report.md", &text(header, &table, failures))
}

/// The median run of each workload and store.
struct Table {
    workloads: Vec<Workload>,
    /// Without the device.
    stores: Vec<String>,
    cells: Vec<Cell>,
}

/// All rounds of a store in a workload.
struct Cell {
    median: Run,
    lowest: f64,
    highest: f64,
    is_disturbed: bool,
    notes: BTreeSet<String>,
}

impl Table {
    fn of(runs: &[Run]) -> Table {
        let mut stores: Vec<String> = Vec::new();
        let mut cells = Vec::new();
        for run in runs {
            if run.row.store != DEVICE && !stores.contains(&run.row.store) {
                stores.push(run.row.store.clone());
            }
        }
        let is_there = |workload: &Workload| runs.iter().any(|run| run.row.workload == workload.name);
        let workloads: Vec<_> = ALL.into_iter().filter(is_there).collect();
        for workload in &workloads {
            for store in stores.iter().map(String::as_str).chain([DEVICE]) {
                let mut rounds: Vec<&Run> = runs
                    .iter()
                    .filter(|run| run.row.store == store && run.row.workload == workload.name)
                    .collect();
                rounds.sort_by(|a, b| a.row.ops_per_s.total_cmp(&b.row.ops_per_s));
                cells.extend(Cell::of(&rounds));
            }
        }
        Table { workloads, stores, cells }
    }

    fn cell(&self, workload: &Workload, store: &str) -> Option<&Cell> {
        let is_it = |row: &Row| row.workload == workload.name && row.store == store;
        self.cells.iter().find(|cell| is_it(&cell.median.row))
    }

    /// The fastest of the other stores.
    fn best_rival(&self, workload: &Workload) -> Option<&Row> {
        let rivals = self.stores.iter().filter(|store| *store != OURS);
        let rows = rivals.filter_map(|store| self.cell(workload, store)).map(|cell| &cell.median.row);
        rows.max_by(|a, b| a.ops_per_s.total_cmp(&b.ops_per_s))
    }

    /// A table with a column for each store; `cell` makes the content of a cell.
    fn markdown(&self, filter: impl Fn(&Workload) -> bool, cell: impl Fn(&Cell) -> String) -> String {
        let mut text = format!("| workload | {} |\n|---|", self.stores.join(" | "));
        text += &"---:|".repeat(self.stores.len());
        text.push('\n');
        for workload in self.workloads.iter().filter(|workload| filter(workload)) {
            let cells: Vec<_> = self
                .stores
                .iter()
                .map(|store| self.cell(workload, store).map_or("-".to_owned(), &cell))
                .collect();
            line(&mut text, format_args!("| {} | {} |", workload.name, cells.join(" | ")));
        }
        text
    }
}

impl Cell {
    fn of(sorted: &[&Run]) -> Option<Cell> {
        let median = sorted.get(sorted.len() / 2)?;
        Some(Cell {
            median: (*median).clone(),
            lowest: sorted.first()?.row.ops_per_s,
            highest: sorted.last()?.row.ops_per_s,
            is_disturbed: sorted.iter().any(|run| run.row.foreign_cpu >= FOREIGN_LIMIT),
            notes: sorted.iter().flat_map(|run| run.notes.iter().cloned()).collect(),
        })
    }

    fn mark(&self) -> &'static str {
        if self.is_disturbed { "~" } else { "" }
    }
}

/// Writing to a string cannot fail.
fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(what);
    text.push('\n');
}

/// A rate in short form.
fn rate(per_second: f64) -> String {
    match per_second {
        high if high >= 1e6 => format!("{:.2}M", high / 1e6),
        middle if middle >= 1e5 => format!("{:.0}k", middle / 1e3),
        middle if middle >= 1e3 => format!("{:.1}k", middle / 1e3),
        low => format!("{low:.0}"),
    }
}

fn text(header: &Header, table: &Table, failures: &[String]) -> String {
    let mut text = "# Esker and others, side by side\n\n".to_owned();
    for entry in &header.lines {
        line(&mut text, format_args!("* {entry}"));
    }
    if !failures.is_empty() {
        text += "\n## Failed\n\nThese runs have no row:\n\n";
        for failure in failures {
            line(&mut text, format_args!("* {failure}"));
        }
    }
    text += "\n## Throughput\n\nOperations in a second, the final sync included; the median of the rounds. `~`: other \
             processes used 10 % of the CPUs or more in some round. Ratio: Esker to the best of the others.\n\n";
    text += &ratios(table);
    text += "\n![Throughput](throughput.svg)\n\n## Against the device itself\n\nRaw loops on native AIO in the same \
             rounds: 4 KiB reads with as many in flight as the workload has threads (64 for multi_get_cold and get_async_cold), and a \
             group commit that does nothing else; how many a second, and the CPU time of each.\n\n";
    text += &device_table(table);
    text += "\n## Latency\n\nMicroseconds of a step: p50 / p99 / p99.9 / longest. A step of load is a batch of 1000, \
             of multi_get 64 keys (1024 where they are not in memory), of scan_all the whole scan.\n\n";
    text += &table.markdown(|_| true, latency_cell);
    text += "\n![Latency](latency.svg)\n\n![Pauses](pauses.svg)\n\n## Cost\n\nCPU of the process for one operation, \
             microseconds:\n\n";
    text += &table.markdown(|_| true, |cell| short(cell.median.row.cpu_us_per_op));
    text += "\nBytes made dirty / bytes on the device / space, for each user byte. Dirty bytes are `write_bytes` of \
             `/proc/self/io` over the timed part: direct writes, page cache and mappings; data that a store keeps in memory \
             until after the end is not in it. Device bytes are those of the whole machine. Space is the store's files \
             at the end for each byte of live keys and values.\n\n";
    text += &table.markdown(Workload::writes, |cell| {
        let row = &cell.median.row;
        let (dirtied, device) = (row.bytes_dirtied_per_user_byte, row.device_bytes_per_user_byte);
        format!("{} / {} / {}", short(dirtied), short(device), short(row.space_per_user_byte))
    });
    text += "\nThe most memory of the process in MiB, mapped files included (LMDB maps its data; the page cache of the \
             others is not in it, but under the same limit):\n\n";
    text += &table.markdown(|_| true, |cell| format!("{:.0}", mebibytes(cell.median.row.peak_rss_bytes)));
    text += "\n## Spread and notes\n\n";
    text += &notes(table);
    text += "\n## How each store was set\n\n";
    for store in &header.stores {
        line(&mut text, format_args!("* {store}"));
    }
    text + "\nA durable put is acknowledged when it is on stable media, for every store. A wrong value would have ended \
            the comparison: every read checked its value. Data sets are loaded without a memory limit and without \
            being timed; ycsb and overwrite go on with the data of the round before.\n"
}

fn ratios(table: &Table) -> String {
    let mut text = format!("| workload | {} | ratio | goal |\n|---|", table.stores.join(" | "));
    text += &"---:|".repeat(table.stores.len() + 2);
    text.push('\n');
    for workload in &table.workloads {
        let best = table.best_rival(workload);
        let cells = table.stores.iter().map(|store| {
            let Some(cell) = table.cell(workload, store) else { return "-".to_owned() };
            let figure = rate(cell.median.row.ops_per_s) + cell.mark();
            if best.is_some_and(|best| best.store == *store) { format!("**{figure}**") } else { figure }
        });
        let cells = cells.collect::<Vec<_>>().join(" | ");
        let ours = table.cell(workload, OURS).map(|cell| cell.median.row.ops_per_s);
        let ratio = ours.zip(best).map(|(ours, best)| ours / best.ops_per_s.max(f64::MIN_POSITIVE));
        let verdict = match ratio {
            Some(ratio) if ratio >= workload.goal => format!("{} ok", short(ratio)),
            Some(ratio) => short(ratio),
            None => "-".to_owned(),
        };
        line(
            &mut text,
            format_args!("| {} | {cells} | {verdict} | {} |", workload.name, short(workload.goal)),
        );
    }
    text
}

fn device_table(table: &Table) -> String {
    let mut text = format!("| workload | device | {} |\n|---|---:|", table.stores.join(" | "));
    text += &"---:|".repeat(table.stores.len());
    text.push('\n');
    for workload in &table.workloads {
        let Some(device) = table.cell(workload, DEVICE) else { continue };
        let raw = device.median.row.ops_per_s;
        let cells: Vec<_> = table
            .stores
            .iter()
            .map(|store| {
                let ours = table.cell(workload, store).map(|cell| cell.median.row.ops_per_s);
                ours.map_or("-".to_owned(), |ours| format!("{:.2}", ours / raw.max(f64::MIN_POSITIVE)))
            })
            .collect();
        let figure = format!("{}{}, {} us", rate(raw), device.mark(), short(device.median.row.cpu_us_per_op));
        line(&mut text, format_args!("| {} | {figure} | {} |", workload.name, cells.join(" | ")));
    }
    text
}

fn latency_cell(cell: &Cell) -> String {
    let row = &cell.median.row;
    [row.p50_us, row.p99_us, row.p999_us, row.max_us].map(short).join(" / ")
}

fn notes(table: &Table) -> String {
    let mut text = String::new();
    for cell in &table.cells {
        let row = &cell.median.row;
        let spread = (cell.highest - cell.lowest) / row.ops_per_s.max(f64::MIN_POSITIVE);
        let mut notes: Vec<String> = cell.notes.iter().cloned().collect();
        if spread > 0.15 {
            notes.insert(0, format!("rounds from {} to {}", rate(cell.lowest), rate(cell.highest)));
        }
        if cell.is_disturbed {
            notes.push(format!("other processes used {:.0} % of the CPUs", row.foreign_cpu * 100.0));
        }
        if !notes.is_empty() {
            line(&mut text, format_args!("* {} {}: {}", row.workload, row.store, notes.join("; ")));
        }
    }
    if text.is_empty() { "Nothing.\n".to_owned() } else { text }
}

fn throughput_picture(table: &Table) -> String {
    let panels = table.workloads.iter().map(|workload| {
        let names = table.stores.iter().map(String::as_str).chain([DEVICE]);
        let cells = names.filter_map(|store| table.cell(workload, store));
        let bar = |cell: &Cell| {
            let row = &cell.median.row;
            (row.store.clone(), row.ops_per_s, rate(row.ops_per_s) + cell.mark())
        };
        Panel::Bars {
            title: format!("{} ({}/s)", workload.name, workload.unit),
            bars: cells.map(bar).collect(),
        }
    });
    let explanation =
        "Longer is better. ~ : other processes used the CPUs meanwhile. device: a raw AIO loop.";
    svg::draw("Throughput", explanation, &panels.collect::<Vec<_>>())
}

fn latency_picture(table: &Table) -> String {
    // Each further nine takes the same room.
    let place = |quantile: f64| (-(1.0 - quantile).max(1e-5).log10() / 5.0).clamp(0.0, 1.0);
    let marks =
        [(0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"), (1.0, "max")];
    let marks: Vec<_> =
        marks.iter().map(|(quantile, label)| (place(*quantile), (*label).to_owned())).collect();
    let panels = table.workloads.iter().map(|workload| {
        let names = table.stores.iter().map(String::as_str).chain([DEVICE]);
        let line = |cell: &Cell| Series {
            name: cell.median.row.store.clone(),
            points: QUANTILES
                .iter()
                .map(|at| place(*at))
                .zip(cell.median.latency_us.iter().copied())
                .collect(),
        };
        let series = names.filter_map(|store| table.cell(workload, store)).map(line).collect();
        Panel::Lines { title: workload.name.to_owned(), marks: marks.clone(), series }
    });
    let explanation =
        "So many of all steps took at most so long. Lower is better; each line of the grid is ten times.";
    svg::draw("Latency", explanation, &panels.collect::<Vec<_>>())
}

fn pauses_picture(table: &Table) -> String {
    let writers = table.workloads.iter().filter(|workload| workload.fills_memory());
    let panels = writers.map(|workload| {
        let cells: Vec<_> = table.stores.iter().filter_map(|store| table.cell(workload, store)).collect();
        let longest = cells.iter().map(|cell| cell.median.pauses_us.len()).max().unwrap_or(0).max(2);
        let part = |at: usize| fraction(at, longest - 1);
        let line = |cell: &&Cell| Series {
            name: cell.median.row.store.clone(),
            points: cell
                .median
                .pauses_us
                .iter()
                .enumerate()
                .map(|(at, us)| (part(at), us.max(0.1)))
                .collect(),
        };
        let seconds = longest / 10;
        let every = (seconds / 6).max(1);
        let marks = (0..=seconds).step_by(every).map(|second| (part(second * 10), format!("{second} s")));
        let marks = marks.filter(|mark| mark.0 <= 1.0).collect();
        Panel::Lines { title: workload.name.to_owned(), marks, series: cells.iter().map(line).collect() }
    });
    let explanation = "The longest step that ended in each tenth of a second. Lower is better.";
    svg::draw("Pauses while writing", explanation, &panels.collect::<Vec<_>>())
}

#[expect(clippy::cast_precision_loss, reason = "tenths of a second")]
fn fraction(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(store: &str, workload: &str, ops_per_s: f64) -> Run {
        let row = Row {
            store: store.to_owned(),
            workload: workload.to_owned(),
            threads: 1,
            value_bytes: 100,
            ops_per_s,
            p50_us: 10.0,
            max_us: 1234.0,
            ..Row::default()
        };
        Run { row, round: 1, latency_us: vec![10.0; 12], pauses_us: vec![5.0, 50.0], ..Run::default() }
    }

    #[test]
    fn the_median_round_is_compared_with_the_best_rival() {
        let mut runs = Vec::new();
        for (esker, lmdb, fjall) in [(90.0, 50.0, 1.0), (100.0, 40.0, 2.0), (999.0, 60.0, 3.0)] {
            runs.push(sample("device", "durable_put/1", 200.0));
            runs.push(sample("esker", "durable_put/1", esker));
            runs.push(sample("lmdb", "durable_put/1", lmdb));
            runs.push(sample("fjall", "durable_put/1", fjall));
        }
        runs[1].row.foreign_cpu = 0.5;
        let text = text(&Header::default(), &Table::of(&runs), &["x".to_owned()]);
        assert!(text.contains("| durable_put/1 | 100~ | **50** | 2 | 2 ok | 1 |"), "{text}");
        assert!(text.contains("| durable_put/1 | 200, 0 us | 0.50 | 0.25 | 0.01 |"), "{text}");
        assert!(text.contains("rounds from 90 to 999"), "{text}");
        assert!(text.contains("\n* x\n"), "{text}");
    }

    #[test]
    fn a_row_has_the_fields_that_are_promised() {
        let json = serde_json::to_value(Row::default()).expect("plain data");
        let fields: Vec<_> = json.as_object().expect("an object").keys().map(String::as_str).collect();
        let promised = "store workload threads value_bytes ops_per_s p50_us p99_us p999_us max_us cpu_us_per_op \
                        bytes_dirtied_per_user_byte device_bytes_per_user_byte space_per_user_byte peak_rss_bytes \
                        foreign_cpu";
        assert_eq!(fields.join(" "), promised.split_whitespace().collect::<Vec<_>>().join(" "));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_795_000_000), "2026-11-18 11:06 UTC");
    }

    #[test]
    fn the_pictures_draw_every_result() {
        let runs = [sample("esker", "overwrite", 10.0), sample("lmdb", "get_hot/1", 3.0)];
        let table = Table::of(&runs);
        for picture in [throughput_picture(&table), latency_picture(&table), pauses_picture(&table)] {
            assert!(picture.contains("overwrite"));
            assert!(!picture.contains("NaN") && !picture.contains("inf"));
        }
    }
}
