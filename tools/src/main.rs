//! `kvtool`: look into, load, check and compact an Esker store.
//!
//! Invariants: an error is one line on standard error and an exit code of the table in [`error::EXIT_CODES`]; this
//! file only parses the command line and routes.
#![forbid(unsafe_code)]

mod commands;
mod error;
mod input;
mod render;
mod store;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::error::{Failure, Kind, Result};
use crate::store::Common;

/// Look into, load, check and compact an Esker store.
#[derive(Debug, Parser)]
#[command(name = "kvtool", version, after_help = error::EXIT_CODES, after_long_help = error::EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load JSON lines; makes the store if there is none
    Load(commands::Load),
    /// Write one value; makes the store if there is none
    Put(commands::Put),
    /// Print one value
    Get(commands::Get),
    /// Delete one key
    Del(commands::Del),
    /// Print records in the order of their keys
    Scan(commands::Scan),
    /// Print figures of the store: files, memory, jobs, I/O, keyspaces
    Stats(commands::Stats),
    /// Compact until nothing is left to do
    Compact(commands::Compact),
    /// Check every checksum and every rule between files
    Verify(commands::Verify),
    /// Say what is damaged; with --cut, end a damaged log there so that the store opens again
    Repair(commands::Repair),
    /// Load a sample, kill the loader with SIGKILL again and again, and compare every acknowledged value
    Demo(commands::Demo),
    /// The loader that `demo` kills
    #[command(hide = true)]
    DemoLoader(commands::DemoLoader),
}

/// Number of SIGXFSZ on every supported machine. A write beyond the limit on file sizes raises it.
const SIGXFSZ: i32 = 25;

fn main() -> ExitCode {
    // Blocked in all threads, which inherit it: the write fails with an error that names the limit, instead of ending the
    // process without a word.
    aio::SignalSet::none().with(SIGXFSZ).block();
    match Cli::try_parse() {
        Ok(cli) => finish(run(&cli)),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            finish(error.print().map_err(|error| Failure::output(&error)))
        }
        Err(error) => finish(Err(usage(&error))),
    }
}

fn run(cli: &Cli) -> Result<()> {
    let common = &cli.common;
    let mut out = common.out();
    let result = match &cli.command {
        Command::Load(command) => command.run(common, &mut out),
        Command::Put(command) => command.run(common, &mut out),
        Command::Get(command) => command.run(common, &mut out),
        Command::Del(command) => command.run(common, &mut out),
        Command::Scan(command) => command.run(common, &mut out),
        Command::Stats(command) => command.run(common, &mut out),
        Command::Compact(command) => command.run(common, &mut out),
        Command::Verify(command) => command.run(common, &mut out),
        Command::Repair(command) => command.run(common, &mut out),
        Command::Demo(command) => command.run(&mut out),
        Command::DemoLoader(command) => command.run(&mut out),
    };
    result.and(out.flush())
}

fn finish(result: Result<()>) -> ExitCode {
    let Err(failure) = result else { return ExitCode::SUCCESS };
    if failure.kind() != Kind::Quiet {
        render::note(failure.message());
    }
    failure.exit_code()
}

/// The message of the command-line parser, without its usage summary.
fn usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let what = text.split("\n\nUsage:").next().unwrap_or(&text);
    let what = what.split("\n\nFor more information").next().unwrap_or(what);
    let what = what.strip_prefix("error: ").unwrap_or(what);
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Failure::input("a command is missing: see `kvtool --help`");
    }
    Failure::input(format!("{what}: see `kvtool --help`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_usage_error_is_one_line() {
        for line in [
            &["kvtool"][..],
            &["kvtool", "get"],
            &["kvtool", "frob", "x"],
            &["kvtool", "load", "a", "b", "c"],
        ] {
            let failure = usage(&Cli::try_parse_from(line).expect_err("nonsense"));
            assert_eq!(failure.kind(), Kind::Input);
            assert!(failure.message().ends_with("see `kvtool --help`"), "{}", failure.message());
        }
    }
}
