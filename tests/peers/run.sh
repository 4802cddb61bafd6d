#!/bin/sh
# Builds the proxy, the filters, and the comparison; then compares. Arguments go to the comparison (`tests/peers/run.sh --help`
# says which there are). The first time, on Debian:
#
#   tests/peers/run.sh --install
#
# TOLLGATE_PROFILE=dev builds faster, for `--smoke`, which only shows whether everything works.
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
cargo build --profile "$profile" -p tollgate -p peers
exec "$bin/peers" --tollgate "$bin/tollgate" "$@"
