#!/bin/sh
# Builds the proxy and the demo upstream and runs the measurements of a folder: tests/scale/run.sh, tests/resilience/run.sh.
#
#   tests/measure/run.sh FOLDER [OPTIONS]
set -eu
cd "$(dirname "$0")/../.."
folder=$1
shift

# The modules that measurements share.
PYTHONPATH=$PWD/tests/measure
export PYTHONPATH
case " $* " in
    *" -h "* | *" --help "* | *" --render"*) exec python3 -B "$PWD/tests/$folder/main.py" "$@" ;;
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
exec python3 -B "$PWD/tests/$folder/main.py" --bin "$bin" "$@"
