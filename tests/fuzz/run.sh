#!/bin/bash
# Runs a target under libFuzzer, guided by coverage, starting from the inputs in the repository:
#
#   tests/fuzz/run.sh TARGET [SECONDS] [OPTION OF LIBFUZZER...]
#
# Needs a C++ compiler in addition to the pinned toolchain. New inputs are written to target/fuzz/corpus/TARGET, from which the next
# run continues; failing inputs to target/fuzz/failures/TARGET. `-seed=N` with the printed number repeats a run. See src/lib.rs for
# how to use these files.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${1:?usage: run.sh TARGET [SECONDS] [OPTION OF LIBFUZZER...]} seconds=${2:-60}
shift $(($# < 2 ? $# : 2))
cd "$here/../.."
work=${TOLLGATE_FUZZ_WORK:-target/fuzz}
mkdir -p "$work/corpus/$target" "$work/failures/$target"
given=()
for folder in corpus regressions; do
    [ ! -d "$here/$folder/$target" ] || given+=("$here/$folder/$target")
done
# As in tests, overflowing arithmetic panics, and the dependencies compiled for tests are reused.
CARGO_PROFILE_DEV_OPT_LEVEL=2 RUSTC_WORKSPACE_WRAPPER="$here/instrument.sh" \
    cargo build --quiet --package fuzz --features guided --bin guided
TOLLGATE_FUZZ_TARGET=$target exec target/debug/guided "$work/corpus/$target" "${given[@]}" \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -artifact_prefix="$work/failures/$target/" "$@"
