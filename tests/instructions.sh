#!/bin/sh
# Counts the instructions that each step of a request executes, and fails if one has grown by more than 2 % over the baseline in
# proxy/benches/instructions.txt. UPDATE=1 writes a new baseline: in a commit that does nothing else and says why.
# Needs valgrind, which TOLLGATE_INSTALL=1 installs, as root, on Debian. Where it is missing, continuous integration fails; elsewhere
# the count is skipped.
#
# The build is the tests' own (dependencies are optimised in it, and compiled already), with our crates optimised as well. So
# the figures are for comparison: a release build, without the dependencies' assertions and with link-time optimisation,
# needs fewer.
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

if ! command -v valgrind >/dev/null && [ "${TOLLGATE_INSTALL:-}" = 1 ]; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends valgrind; } >/dev/null 2>&1 || true
fi
if ! command -v valgrind >/dev/null; then
    echo "error: valgrind not found (apt-get install valgrind), so instructions cannot be counted" >&2
    [ -n "${CI-}" ] && exit 1
    echo "skipped: instructions are NOT counted" >&2
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
