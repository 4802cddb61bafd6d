#!/bin/sh
# Counts the instructions of each step of a request, and fails if one exceeds the baseline in proxy/benches/instructions.txt by more
# than 2 %. UPDATE=1 writes a new baseline: commit it separately, with the reason.
# Needs valgrind; --install installs it, as root, with apt-get (Debian, Ubuntu). Without valgrind nothing is counted, which is an
# error with TOLLGATE_REQUIRE_TOOLS=1.
#
# Uses the tests' build, in which the dependencies are already compiled and optimised, with our crates optimised as well. So the
# numbers are only for comparison: a release build, without the dependencies' assertions and with link-time optimisation, executes
# fewer instructions.
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

tests/baseline.sh

if ! command -v valgrind >/dev/null && [ "${1-}" = --install ]; then
    tests/quiet-install.sh valgrind || echo "*** instructions: apt-get failed" >&2
fi
if ! command -v valgrind >/dev/null; then
    echo "*** instructions are NOT counted: valgrind is missing; use --install to install it, as root, with apt-get" >&2
    [ -z "${TOLLGATE_REQUIRE_TOOLS-}" ] || exit 1
    [ -z "${TOLLGATE_NOT_RUN-}" ] || printf 'valgrind\tinstructions\n' >>"$TOLLGATE_NOT_RUN"
    exit 0
fi

optimised=
for crate in tollgate tollgate-abi tollgate-sdk router; do
    for setting in opt-level=3 codegen-units=1 debug=false debug-assertions=false overflow-checks=false; do
        optimised="$optimised --config profile.dev.package.$crate.$setting"
    done
done
# With the whole workspace, so that the dependencies' features are those already compiled.
# shellcheck disable=SC2086
export CARGO_INCREMENTAL=0
exec cargo bench --quiet --workspace --bench instructions --profile dev $optimised
