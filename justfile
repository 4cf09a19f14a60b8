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

# Every source file in import order, each with its first line
map:
    @grep -v '^#' tools/tests/tidy/order | while read -r file; do printf '%s - %s\n' "$file" "$(sed -n '1s|^//! *||p' "$file")"; done

# All tests
test:
    cargo test --workspace --locked

# Crashes only: the simulated disk at every I/O, killed processes, and, where root allows, power cuts below a real file system
crash:
    cargo test -p esker-wal --test it --locked crash::
    cargo test -p esker --lib --test it --locked -- crash power_cuts::
    cargo test -p kvtorture --test it --locked -- kill:: survives

# Check, and all long tests, in about 40 minutes on two cores: processes killed, schedules, the torture, every planted bug, failing and refused system calls, limits, below the kernel (where root allows), the soak, fuzzers, sanitizers
deep: check && loom schedules torture planted planted-schedules planted-units planted-kernel (kernel "3000" "--where-possible") (strace "4") seccomp limits aio-max soak (fuzz "20") asan tsan
    ESKER_DEEP=1 cargo test -p kvtorture --test it --locked kill:: -- --nocapture

# Without this the allocator returns memory to the kernel with every simulated machine, which takes a third of the time.
tunables := "GLIBC_TUNABLES=glibc.malloc.trim_threshold=268435456:glibc.malloc.mmap_threshold=268435456:glibc.malloc.top_pad=16777216"

# SEED=n, before any verb that draws random numbers, repeats a run. Each prints its seed first.

# The simulated machine: this many crash states, model sequences in proportion, failing calls and damages
torture STATES="2000000":
    cargo build --release --locked -p kvtorture
    {{tunables}} target/release/kvtorture sim --states {{STATES}} --json
    {{tunables}} target/release/kvtorture model --sequences $(({{STATES}} * 3 / 20)) --json
    {{tunables}} target/release/kvtorture errors --workloads 10 --json
    {{tunables}} target/release/kvtorture sweep --json

# A real store on the disk below target, MINUTES long: killed, its device failing now and then, compared after each
soak MINUTES="5":
    cargo build --release --locked -p kvtorture
    rm -rf target/soak
    target/release/kvtorture soak --minutes {{MINUTES}} --dir target/soak --json

# A real store whose system calls go wrong, every STEP-th in every way: in memory, every 40th on the disk below target, and every 6th "not now"
strace STEP="1":
    cargo build --release --locked -p kvtorture
    target/release/kvtorture strace --step {{STEP}} --dir /dev/shm --json
    target/release/kvtorture strace --step 40 --dir target --json
    target/release/kvtorture strace --not-now --step 6 --dir /dev/shm --json

# A real store under limits, TIMES each at another moment: file sizes, handles, memory, full and frozen disks, signals; root tries more
limits TIMES="5":
    cargo build --release --locked -p kvtorture
    target/release/kvtorture limits --times {{TIMES}} --dir target --json

# The machine's limit on asynchronous I/O falls under a running store, TIMES, and is put back: alone, and as root
aio-max TIMES="3":
    cargo build --release --locked -p kvtorture
    target/release/kvtorture limits --only aio-max-nr --times {{TIMES}} --dir target --json

# A real store whose system calls a seccomp filter refuses: each of them, with each answer, from the start and in the middle, TIMES each
seccomp TIMES="3":
    cargo build --release --locked -p kvtorture
    target/release/kvtorture seccomp --times {{TIMES}} --dir target --json

# Power cuts, sick disks and shutdowns below ext4, XFS and btrfs of the running kernel: qualifies a machine. Needs root, FUSE and loop devices
kernel STATES="3000" *ARGS="":
    cargo build --release --locked -p kvtorture
    target/release/kvtorture kernel --states {{STATES}} --json {{ARGS}}

# Which planted bugs the torture finds; NAME is a filter
planted NAME="":
    {{tunables}} RUSTFLAGS="--cfg planted" cargo run --release --locked --target-dir target/planted -p kvtorture -- planted --json --only "{{NAME}}"

# Missing syncs: power cuts below real file systems must find each. Needs root, too
planted-kernel:
    RUSTFLAGS="--cfg planted" cargo run --release --locked --target-dir target/planted -p kvtorture -- planted --kernel --json

# Which planted bugs the schedules find: those that one thread cannot notice, and four of the others; or all whose name contains NAME
planted-schedules NAME="":
    ONLY="{{NAME}}" {{tunables}} RUSTFLAGS="--cfg shuttle --cfg planted" cargo test --release --target-dir target/shuttle-planted -p esker --test schedules \
        --locked -- --nocapture --exact planted::every_planted_bug_is_found

# Which planted bugs the tests of engine and log find: those that no job of the store can reach yet
planted-units:
    RUSTFLAGS="--cfg planted" cargo test --release --locked --target-dir target/planted -p esker --lib -- --nocapture --exact tree::scan::tests::every_planted_bug_is_found
    RUSTFLAGS="--cfg planted" cargo test --release --locked --target-dir target/planted -p esker-wal --test it -- --nocapture --exact voids::every_planted_bug_is_found

# Every schedule of the lock-free parts of log, memtable and cache and of the flush token, within a bound
loom:
    RUSTFLAGS="--cfg loom" cargo test --release --target-dir target/loom -p esker-wal --test loom --locked -- --nocapture
    RUSTFLAGS="--cfg loom" cargo test --release --target-dir target/loom -p esker --lib --locked models:: -- --nocapture

# The whole store on the simulated machine, its threads scheduled and the machine crashed by EACH seeds from SEED= on; NAME is a filter
schedules NAME="" EACH="20000":
    SCHEDULES={{EACH}} {{tunables}} RUSTFLAGS="--cfg shuttle" cargo test --release --target-dir target/shuttle -p esker --test schedules --locked -- \
        --nocapture "{{NAME}}"

# Under AddressSanitizer: buffers that are freed or touched in flight, blocks and memory of memtables with readers
asan:
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS=detect_leaks=0 \
        cargo test -p esker-aio --lib --tests --target x86_64-unknown-linux-gnu --target-dir target/asan --locked
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS=detect_leaks=0 \
        cargo test -p esker --lib --target x86_64-unknown-linux-gnu --target-dir target/asan --locked
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS=detect_leaks=0 \
        cargo test -p esker --test it --target x86_64-unknown-linux-gnu --target-dir target/asan --locked -- \
        get_async:: multi_get:: paged:: warm_cache:: read_ahead::

# Tests with threads under ThreadSanitizer. It must instrument the standard library, too: otherwise `Arc` looks like a race
tsan:
    rustup component add rust-src
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread" \
        cargo test -Zbuild-std -p esker-aio --lib --tests --target x86_64-unknown-linux-gnu --target-dir target/tsan --locked
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread" \
        cargo test -Zbuild-std -p esker --lib --target x86_64-unknown-linux-gnu --target-dir target/tsan --locked -- memtable cache
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread" TSAN_OPTIONS=suppressions=tests/thread_sanitizer.supp \
        cargo test -Zbuild-std -p esker --test it --target x86_64-unknown-linux-gnu --target-dir target/tsan --locked -- \
        get_async:: multi_get::

# Every decoder and whole stores under libFuzzer, T seconds each, two at a time (or only NAMES); needs a C++ compiler
fuzz T="60" *NAMES="":
    tools/torture/fuzz/run {{T}} {{NAMES}}

# The inputs that fuzzers start from, and N changed ones of each, without a fuzzer and on any machine
fuzz-replay N="500":
    cargo fmt --manifest-path tools/torture/fuzz/Cargo.toml --check
    RUSTFLAGS="--cfg fuzzing" cargo run --release --locked --manifest-path tools/torture/fuzz/Cargo.toml --target-dir target/fuzz --bin corpus -- \
        replay tools/torture/fuzz/corpus {{N}}

# Lints of the fuzzers, which `check` does not cover
fuzz-lints:
    RUSTFLAGS="--cfg fuzzing" cargo clippy --locked --manifest-path tools/torture/fuzz/Cargo.toml --target-dir target/fuzz --bin corpus -- -D warnings

# The inputs that fuzzers start from, cut out of real stores anew
fuzz-corpus:
    RUSTFLAGS="--cfg fuzzing" cargo run --release --locked --manifest-path tools/torture/fuzz/Cargo.toml --target-dir target/fuzz --bin corpus -- \
        write tools/torture/fuzz/corpus

# Benches; NAME is a filter
bench NAME="":
    cargo bench -p esker-benches --locked -- {{NAME}}

# Write the golden store anew; the difference shows in the next commit
golden:
    GOLDEN=write cargo test -p esker --test it --locked golden::the_same_calls_write_the_same_bytes
    cargo test -p esker --test it --locked golden::

# Two rivals built, one small workload each: shows that the comparison works, and no figures
smoke-peers:
    cargo run --locked -p esker-benches --features peer-fjall,peer-lmdb --bin compare -- \
        --stores esker,fjall,lmdb --workloads put/1 --smoke --out target/smoke-peers

# Esker and all rivals side by side, about an hour; RocksDB needs clang and libclang-dev
bench-peers OUT="report" *ARGS="":
    cargo run --release --locked -p esker-benches \
        --features peer-fjall,peer-redb,peer-lmdb,peer-surrealkv,peer-rocksdb,peer-canopydb --bin compare -- \
        --stores esker,fjall,redb,lmdb,surrealkv,rocksdb,canopydb --out {{OUT}} {{ARGS}}
