# The verbs of this repository. CI calls them and nothing else.

# List the verbs
default:
    @just --list

# Format, lints, documentation, rules of the house
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --locked
    cargo test -p kvtool --test tidy --locked

# All tests
test:
    cargo test --workspace --locked

# Crashes only: the simulated disk at every I/O, and real processes killed
crash:
    cargo test -p esker --locked crash
    cargo test -p kvtool --test kill --locked

# Check, the long variants of the random tests, and the torture
deep: check
    ESKER_DEEP=1 cargo test --workspace --locked
    just torture 600

# Crashes, models and failing calls on the simulated machine, SECONDS for the crashes and half of that for the models
torture SECONDS="60":
    cargo build --release --locked -p kvtool --bin kvtorture
    target/release/kvtorture sim --time {{SECONDS}} --json
    target/release/kvtorture model --time $(({{SECONDS}} / 2)) --json
    target/release/kvtorture errors --workloads 10 --json

# Which planted bugs the torture finds; NAME is a filter
planted NAME="":
    RUSTFLAGS="--cfg planted" cargo run --release --locked --target-dir target/planted -p kvtool --bin kvtorture -- planted --only "{{NAME}}"

# The tests of asynchronous I/O under AddressSanitizer: a buffer freed or touched in flight
asan:
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS=detect_leaks=0 \
        cargo test -p esker-aio --lib --tests --target x86_64-unknown-linux-gnu --target-dir target/asan --locked

# The same under ThreadSanitizer
tsan:
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread -Zunstable-options -Cunsafe-allow-abi-mismatch=sanitizer" \
        cargo test -p esker-aio --lib --tests --target x86_64-unknown-linux-gnu --target-dir target/tsan --locked

# Benches; NAME is a filter
bench NAME="":
    cargo bench -p esker-benches --locked -- {{NAME}}

# Write the golden files of today's format anew; the difference shows in the next commit
golden:
    GOLDEN=write cargo test -p esker --test golden --locked the_same_calls_write_the_same_bytes
    cargo test -p esker --test golden --locked
