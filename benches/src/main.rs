//! `compare`: Esker and other stores, side by side. See `README.md` of this package.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use esker_benches::compare;
use esker_benches::error::{Error, Result};
use esker_benches::options::Options;
use esker_benches::workload::{self, Size};
use esker_benches::{child, stores};

/// Compares stores on this machine and writes a report.
#[derive(Debug, Parser)]
#[command(name = "compare", version)]
struct Args {
    /// Stores, separated by commas; all but esker need their feature (`peer-NAME`).
    #[arg(long, default_value = "esker")]
    stores: String,
    /// Workloads, separated by commas, or `all`.
    #[arg(long, default_value = "all")]
    workloads: String,
    /// Where results.jsonl, report.md and the pictures go.
    #[arg(long, default_value = "report")]
    out: PathBuf,
    /// Where the stores stand while they are compared: a disk with enough room. Default: below the output.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Repetitions of each workload, stores taking turns. Default: 3, with --quick 1.
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds of each run at least. Default: 2.5, with --quick 1. Less if the time is too short.
    #[arg(long)]
    seconds: Option<f64>,
    /// Minutes that all of it takes at most. Default: 57; with --quick 6, or 2 for each store if there are more.
    #[arg(long)]
    minutes: Option<f64>,
    /// A first impression: smaller data, one short round.
    #[arg(long)]
    quick: bool,
    /// Only to see that everything works: tiny data, a fraction of a second each.
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// Lists stores and workloads.
    #[arg(long)]
    list: bool,
    /// One run in its own process; the program starts itself with this.
    #[arg(long, hide = true)]
    child: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is closed too: the failure cannot be reported.
            let _ = writeln!(std::io::stderr(), "compare: {error}");
            ExitCode::from(if matches!(error, Error::Wrong { .. }) { child::WRONG } else { 1 })
        }
    }
}

fn run(args: Args) -> Result<()> {
    if let Some(job) = args.child {
        return child::run(&job);
    }
    if args.list {
        let listed = write!(std::io::stdout(), "{}", list());
        return listed.map_err(|source| Error::Io { what: "write the list".to_owned(), source });
    }
    let stores = stores::parse(&args.stores)?;
    let count = u32::try_from(stores.len()).map_or(f64::MAX, f64::from);
    let (size, seconds, rounds, minutes) = match (args.smoke, args.quick) {
        (true, _) => (Size::Smoke, 0.2, 1, 57.0),
        (_, true) => (Size::Quick, 1.0, 1, 6.0_f64.max(2.0 * count)),
        _ => (Size::Full, 2.5, 3, 57.0),
    };
    let seconds = args.seconds.unwrap_or(seconds);
    let rounds = args.rounds.unwrap_or(rounds);
    let minutes = args.minutes.unwrap_or(minutes);
    if !(0.01..=3600.0).contains(&seconds) || rounds == 0 || !(0.1..=10_000.0).contains(&minutes) {
        let what = "at least one round, of 0.01 to 3600 seconds, in 0.1 to 10000 minutes";
        return Err(Error::Usage(what.to_owned()));
    }
    compare::run(&Options {
        stores,
        workloads: workload::parse(&args.workloads)?,
        dir: args.dir.unwrap_or_else(|| args.out.join("stores")),
        out: args.out,
        rounds,
        seconds,
        minutes,
        size,
    })
}

fn list() -> String {
    let mut lines = vec!["stores:".to_owned()];
    lines.extend(stores::all().iter().map(|kind| match kind {
        Ok(kind) => format!("  {}", kind.name),
        Err((name, feature)) => format!("  {name} (needs --features {feature})"),
    }));
    lines.push("workloads:".to_owned());
    lines.extend(workload::ALL.iter().map(|workload| {
        let (threads, value) = (workload.threads, workload.value_bytes);
        format!("  {:<16} {threads:>2} threads, values of {value} bytes", workload.name)
    }));
    lines.join("\n") + "\n"
}
