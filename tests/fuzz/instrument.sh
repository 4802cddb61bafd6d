#!/bin/sh
# The compiler wrapper that `run.sh` uses for this workspace's crates: it adds the counters and the traced comparisons for libFuzzer.
# These options are stable, so the pinned toolchain suffices.
case " $* " in
*" --crate-name build_script"* | *" --crate-type proc-macro "*) exec "$@" ;;
*" --crate-name "*)
    exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$@"
