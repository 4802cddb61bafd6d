#!/bin/sh
# Builds the proxy, and measures what clients notice of upstreams that are slow, fail, hang, restart or are overloaded. Arguments are
# passed on; for the options and the scenarios see
#
#   tests/resilience/run.sh --help
#
# This rewrites docs/resilience.md:
#
#   tests/resilience/run.sh --out docs/resilience/results.json --markdown docs/resilience.md
#
# TOLLGATE_PROFILE=dev builds faster, for `--small`, which only checks that everything works. `--tollgate FILE` measures another
# executable than the one built here. Needs Linux and Python 3, without further packages, and for the comparison nginx and Envoy
# (tests/interop/setup.sh).
exec "$(dirname "$0")/../measure/run.sh" resilience "$@"
