#!/bin/sh
# Counts the results of the tests: tests/summary.sh LOG NOT_RUN, where LOG is the output of `cargo test`, and NOT_RUN has a line for
# each test that ended early because a program was missing: the program, a tab, and the test. `cargo test` counts these as passed.
set -eu
awk -F '\t' '
    FILENAME == ARGV[1] { if (split($0, word, " ") && /^test result:/) { passed += word[4]; failed += word[6]; ignored += word[8] }; next }
    !seen[$1, $2]++ { wanted[$1]++ }
    # A name without a module is a step of tests/all.sh, which `cargo test` does not count.
    !test[$2]++ { not_run++; tests += $2 ~ /::/ }
    END {
        for (what in wanted) list = list (list ? ", " : ", missing: ") what " (" wanted[what] ")"
        printf "%d passed, %d failed, %d ignored, %d not run%s\n", passed - tests, failed, ignored, not_run, list
    }' "$1" "$2"
