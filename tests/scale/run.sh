#!/bin/sh
# Builds the proxy and the demo upstream, and measures the proxy with thousands of resources. Arguments are passed on; for the
# options and the scenarios see
#
#   tests/scale/run.sh --help
#
# TOLLGATE_PROFILE=dev builds faster, for `--small`, which only checks that everything works. `--tollgate FILE` measures another
# executable than the one built here. Needs Linux and Python 3, without further packages.
set -eu
cd "$(dirname "$0")/../.."

case " $* " in
    *" -h "* | *" --help "* | *" --render"*) exec python3 -B tests/scale/main.py "$@" ;;
esac
profile=${TOLLGATE_PROFILE:-release}
case $profile in
    dev) bin=${CARGO_TARGET_DIR:-target}/debug ;;
    *) bin=${CARGO_TARGET_DIR:-target}/$profile ;;
esac
case " $* " in
    *" --no-build "*) ;;
    *)
        . examples/setup.sh
        cargo build --quiet --profile "$profile" -p tollgate -p demo-upstream
        ;;
esac
exec python3 -B tests/scale/main.py --bin "$bin" "$@"
