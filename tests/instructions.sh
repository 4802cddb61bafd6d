#!/bin/sh
# Counts the instructions that each step of a request executes, and fails if one has grown by more than 2 % over the baseline in
# proxy/benches/instructions.txt. UPDATE=1 writes a new baseline: in a commit that does nothing else and says why.
# Needs valgrind, which --install installs, as root, with apt-get (Debian, Ubuntu). Where it is missing, nothing is counted, which
# with TOLLGATE_REQUIRE_TOOLS=1 is an error.
#
# The build is the tests' own (dependencies are optimised in it, and compiled already), with our crates optimised as well. So
# the figures are for comparison: a release build, without the dependencies' assertions and with link-time optimisation,
# needs fewer.
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

tests/baseline.sh

if ! command -v valgrind >/dev/null && [ "${1-}" = --install ]; then
    tests/quiet-install.sh valgrind || echo "*** instructions: apt-get has failed" >&2
fi
if ! command -v valgrind >/dev/null; then
    echo "*** instructions are NOT counted: valgrind is missing; --install installs it, as root, with apt-get" >&2
    [ -z "${TOLLGATE_REQUIRE_TOOLS-}" ] || exit 1
    [ -z "${TOLLGATE_NOT_RUN-}" ] || printf 'valgrind\tinstructions\n' >>"$TOLLGATE_NOT_RUN"
    exit 0
fi

optimised=
for crate in tollgate tollgate-abi tollgate-sdk router; do
    for setting in opt-level=3 codegen-units=16 debug=false debug-assertions=false overflow-checks=false; do
        optimised="$optimised --config profile.dev.package.$crate.$setting"
    done
done
# With the whole workspace, so that dependencies have the features that they are compiled with already.
# shellcheck disable=SC2086
export CARGO_INCREMENTAL=0
exec cargo bench --quiet --workspace --bench instructions --profile dev $optimised
