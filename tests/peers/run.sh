#!/bin/sh
# Builds the proxy, the filters and the comparison, and runs it. Arguments are passed to the comparison (see
# `tests/peers/run.sh --help`). The first time, on Debian:
#
#   tests/peers/run.sh --install
#
# TOLLGATE_PROFILE=dev builds faster, for `--smoke`, which only checks that everything works. `--tollgate FILE` measures another
# executable than the one built here, such as target/pgo/tollgate; the page then names it.
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
