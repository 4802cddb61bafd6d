#!/bin/sh
# Counts the instructions of the pieces of a request's way, and fails if one has grown by more than 5 % over the baseline in
# proxy/benches/instructions.txt. UPDATE=1 writes that anew. Without valgrind nothing is counted, and that is said.
#
# The build is the tests' own (dependencies are optimised in it, and compiled already), with our crates optimised as well. So
# the figures are for comparison: a release build, without the dependencies' assertions and with link-time optimisation,
# needs fewer.
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

if ! command -v valgrind >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get install -y --no-install-recommends valgrind >/dev/null 2>&1 || true
fi
if ! command -v valgrind >/dev/null; then
    echo "!!! There is no valgrind (apt-get install valgrind): instructions are NOT counted." >&2
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
