//! Seeds with which a run of `kvtorture` once failed. Each is replayed in every run of the tests.

use crate::short_runs::torture_with;

/// Seed, command, and the failure of its day. The shortest command that reaches the failing part.
const FAILED: [(u64, &[&str], &str); 2] = [
    (10743, &["sweep", "--piece", "0"], "the store to damage had no deletes in its segments"),
    (10744, &["sweep", "--piece", "0"], "the store to damage had three segments only"),
];

#[test]
fn seeds_that_failed_once_fail_no_more() {
    for (seed, args, failure) in FAILED {
        if let Err(again) = torture_with(seed, args) {
            panic!("it failed before, because {failure}; now: {again}");
        }
    }
}

#[test]
fn a_seed_comes_from_the_environment_and_is_printed_before_anything_else() {
    let run = |seed: Option<&str>, args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kvtorture"));
        command.args(["model", "--sequences", "1", "--json"]).args(args).env_remove("SEED");
        if let Some(seed) = seed {
            command.env("SEED", seed);
        }
        let output = command.output().expect("the tool runs");
        let first = String::from_utf8(output.stderr).expect("text").lines().next().map(str::to_owned);
        first.and_then(|line| line.strip_prefix("SEED=").map(str::to_owned)).expect("the seed")
    };
    assert_eq!(run(Some("77"), &[]), "77");
    assert_eq!(run(Some("77"), &["--seed", "78"]), "78");
    assert_ne!(run(None, &[]), run(None, &[]));
}
