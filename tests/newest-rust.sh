#!/bin/sh
# Builds all filters and the proxy with the newest stable Rust that can be had, so that what a new release of Rust breaks is seen here
# first. Warnings are allowed. Builds what is committed, in a clone, with that Rust in a folder of its own, and removes both: toolchains
# that are installed stay as they are (`stable` may be what the pinned version is a link to), and a clone within this folder would
# read its `.cargo/config.toml` too.
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

if ! command -v rustup >/dev/null; then
    echo "error: rustup not found: the newest stable Rust cannot be installed" >&2
    exit 1
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
pinned=$(rustc --version)
export RUSTUP_HOME="$folder/rustup" RUSTUP_TOOLCHAIN=stable
rustup --quiet toolchain install stable --profile minimal --target "$WASM_TARGET" --no-self-update
newest=$(rustc --version)
if [ "$newest" = "$pinned" ]; then
    echo "the newest stable Rust is the pinned one: $newest"
    exit 0
fi
echo "building with $newest"

git clone --quiet . "$folder/clone"
cd "$folder/clone"
cargo filters
cargo portable
examples/quickstart.sh --build-only
