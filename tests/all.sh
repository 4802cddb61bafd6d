#!/bin/sh
# Sets up and runs all checks: format, lints, all tests (including the ABI's golden file and the end-to-end tests over real sockets)
# and the examples. Ends with "all passed" and the number of tests, or with the first failure.
#
#   tests/all.sh              skips tests whose programs (nginx, HAProxy, valgrind, ...) are missing: they are counted as not run,
#                             or fail with TOLLGATE_REQUIRE_TOOLS=1. Installs nothing outside this folder, except for the Rust
#                             toolchain that rust-toolchain.toml pins, if rustup does not have it
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
# Everything is built and tested with the oldest Rust that Cargo.toml declares.
channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
oldest=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
version=$(rustc --version)
case $channel in
    "$oldest" | "$oldest".*) echo "$version" ;;
    *) echo "error: rust-toolchain.toml pins $channel, but Cargo.toml has rust-version = \"$oldest\"" >&2; exit 1 ;;
esac

step "format and lints"
tests/lint.sh

step "filters, compiled to WebAssembly"
cargo filters
cargo portable

# Outside CI, run tests/newest-rust.sh by hand.
if [ -n "${CI-}" ]; then
    step "filters and proxy, with the newest stable Rust"
    tests/newest-rust.sh
fi

step "third-party clients and servers"
tests/interop/setup.sh "$@"

step "modules in other languages"
tests/conformance/setup.sh

step "tests"
log=target/tests.log
# Tests record missing programs in this file: see tests/end_to_end/harness/not_run.rs.
TOLLGATE_NOT_RUN=$PWD/target/tests.not-run
export TOLLGATE_NOT_RUN
tested() { { "$@" || touch target/tests.failed; } 2>&1 | tee -a "$log" && ! [ -e target/tests.failed ]; }
rm -f "$log" target/tests.failed
: >"$TOLLGATE_NOT_RUN"
tested cargo test --workspace
# Features that no crate in the workspace enables.
tested cargo test -p tollgate-sdk --features log,tracing

step "instructions per request"
tests/instructions.sh "$@"

step "dependencies"
tests/deny.sh

step "examples: the quick start under load, and its end"
absent=
for program in curl python3; do
    command -v "$program" >/dev/null || absent="$absent $program"
done
if [ -z "$absent" ]; then
    examples/quickstart.sh --check
    tests/quickstart.py
    step "scale: the measurements, small"
    TOLLGATE_PROFILE=quickstart tests/scale/run.sh --small
    step "resilience: the measurements, small"
    TOLLGATE_PROFILE=quickstart tests/resilience/run.sh --small
else
    echo "*** the quick start and the measurements of scale and resilience are NOT checked: missing:$absent; use --install to install the missing programs" >&2
    for program in $absent; do
        printf '%s\tquickstart\n' "$program" >>"$TOLLGATE_NOT_RUN"
    done
fi

step "all passed"
tests/summary.sh "$log" "$TOLLGATE_NOT_RUN"
grep '^differential table:' "$log"
