#!/bin/sh
# Sets up and runs everything that must pass: format, lints, all tests (the ABI's golden file and the end-to-end tests over
# real sockets among them), the examples. Ends with "all passed" and how many tests there were, or with what did not pass.
#
#   tests/all.sh              without the tests whose programs (nginx, HAProxy, valgrind, ...) are missing: they are counted as
#                             not run, or fail if TOLLGATE_REQUIRE_TOOLS=1 is set. Nothing is installed outside this folder, but
#                             for the Rust toolchain that rust-toolchain.toml pins, if rustup does not have it
#   tests/all.sh --install    first installs these programs (Debian and Ubuntu, as root, with apt-get)
set -eu
case $* in
    "" | --install) ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
cd "$(dirname "$0")/.."
needs=fmt,clippy
. examples/setup.sh

step() { printf '\n== %s\n' "$*"; }

step "toolchain"
# The oldest Rust that Cargo.toml declares is the one that everything here is built and tested with.
channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
oldest=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
version=$(rustc --version)
case $channel in
    "$oldest" | "$oldest".*) echo "$version" ;;
    *) echo "error: rust-toolchain.toml pins $channel, but Cargo.toml says rust-version = \"$oldest\"" >&2; exit 1 ;;
esac

step "format and lints"
tests/lint.sh

step "filters, compiled to WebAssembly"
cargo filters
cargo portable

# Elsewhere: tests/newest-rust.sh.
if [ -n "${CI-}" ]; then
    step "filters and proxy, with the newest stable Rust"
    tests/newest-rust.sh
fi

step "clients and servers that nobody here wrote"
tests/interop/setup.sh "$@"

step "modules in other languages"
tests/conformance/setup.sh

step "tests"
log=target/tests.log
# Tests that find something missing write it here: see tests/end_to_end/harness/not_run.rs.
TOLLGATE_NOT_RUN=$PWD/target/tests.not-run
export TOLLGATE_NOT_RUN
tested() { { "$@" || touch target/tests.failed; } 2>&1 | tee -a "$log" && ! [ -e target/tests.failed ]; }
rm -f "$log" target/tests.failed
: >"$TOLLGATE_NOT_RUN"
tested cargo test --workspace
# Features that nothing in the workspace turns on.
tested cargo test -p tollgate-sdk --features log,tracing

step "instructions that a request executes"
tests/instructions.sh "$@"

step "dependencies"
tests/deny.sh

step "examples: the quick start under load, and how it ends"
absent=
for program in curl python3; do
    command -v "$program" >/dev/null || absent="$absent $program"
done
if [ -z "$absent" ]; then
    examples/quickstart.sh --check
    tests/quickstart.py
else
    echo "*** the quick start is NOT checked: missing:$absent; --install installs what is missing" >&2
    for program in $absent; do
        printf '%s\tquickstart\n' "$program" >>"$TOLLGATE_NOT_RUN"
    done
fi

step "all passed"
tests/summary.sh "$log" "$TOLLGATE_NOT_RUN"
grep '^differential table:' "$log"
