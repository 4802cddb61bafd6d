#!/bin/bash
# Runs a target under libFuzzer, guided by coverage, from its inputs in the tree:
#
#   tests/fuzz/run.sh TARGET [SECONDS] [OPTION OF LIBFUZZER...]
#
# Needs a C++ compiler beside the pinned toolchain. What is found new goes to target/fuzz/corpus/TARGET, where the next run goes on;
# what fails to target/fuzz/failures/TARGET. `-seed=N`, as it is printed, has a run again. See src/lib.rs for what to do with both.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${1:?which target?} seconds=${2:-60}
shift $(($# < 2 ? $# : 2))
cd "$here/../.."
work=${TOLLGATE_FUZZ_WORK:-target/fuzz}
mkdir -p "$work/corpus/$target" "$work/failures/$target"
given=()
for folder in corpus regressions; do
    [ ! -d "$here/$folder/$target" ] || given+=("$here/$folder/$target")
done
# As in tests, arithmetic that overflows panics; dependencies are those that tests have compiled.
CARGO_PROFILE_DEV_OPT_LEVEL=2 RUSTC_WORKSPACE_WRAPPER="$here/instrument.sh" \
    cargo build --quiet --package fuzz --features guided --bin guided
TOLLGATE_FUZZ_TARGET=$target exec target/debug/guided "$work/corpus/$target" "${given[@]}" \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -artifact_prefix="$work/failures/$target/" "$@"
