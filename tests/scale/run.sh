#!/bin/sh
# Builds the proxy and the demo upstream, and measures the proxy with thousands of resources. Arguments are passed on; for the
# options and the scenarios see
#
#   tests/scale/run.sh --help
#
# TOLLGATE_PROFILE=dev builds faster, for `--small`, which only checks that everything works. `--tollgate FILE` measures another
# executable than the one built here. Needs Linux and Python 3, without further packages.
exec "$(dirname "$0")/../measure/run.sh" scale "$@"
