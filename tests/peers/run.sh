#!/bin/sh
# Builds the proxy, the filters, and the comparison; then compares. Arguments go to the comparison (`tests/peers/run.sh --help`
# says which there are). The first time, on Debian:
#
#   tests/peers/run.sh --install
#
# TOLLGATE_PROFILE=dev builds faster, for `--smoke`, which only shows whether everything works. `--tollgate FILE` measures another
# executable than the one that is built here, such as target/pgo/tollgate; the page then says so.
set -eu
cd "$(dirname "$0")/../.."
. examples/setup.sh

profile=${TOLLGATE_PROFILE:-release}
case $profile in
    dev) bin=${CARGO_TARGET_DIR:-target}/debug ;;
    *) bin=${CARGO_TARGET_DIR:-target}/$profile ;;
esac
cargo filters
cargo portable
case " $* " in
    *" --tollgate"[\ =]*) cargo build --profile "$profile" -p peers ;;
    *)
        cargo build --profile "$profile" -p tollgate -p peers
        set -- --tollgate "$bin/tollgate" "$@"
        ;;
esac
exec "$bin/peers" "$@"
