#!/bin/sh
# Builds the proxy, the filter that Tollgate and Envoy both run, and the comparison; then compares. Arguments go to the
# comparison (`tests/peers/run.sh --help` says which there are). The first time, on Debian:
#
#   tests/peers/run.sh --install
set -eu
cd "$(dirname "$0")/../.."
. examples/setup.sh

cargo filters
cargo build --release -p tollgate -p peers
exec "${CARGO_TARGET_DIR:-target}/release/peers" --tollgate "${CARGO_TARGET_DIR:-target}/release/tollgate" "$@"
