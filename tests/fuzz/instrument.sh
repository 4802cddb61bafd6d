#!/bin/sh
# The compiler, as `run.sh` has cargo call it for the crates of this workspace: counts edges and tells libFuzzer what is compared.
# These options are stable, so the pinned toolchain will do.
case " $* " in
*" --crate-name build_script"* | *" --crate-type proc-macro "*) exec "$@" ;;
*" --crate-name "*)
    exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$@"
