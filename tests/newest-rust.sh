#!/bin/sh
# Builds all filters and the proxy with the newest stable Rust that can be had, so that what a new release of Rust breaks is seen here
# first. Warnings are allowed. Builds what is committed, in a clone. The clone and that Rust are in target/newest-rust/: toolchains
# that are installed stay as they are (`stable` may be what the pinned version is a link to).
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

folder=$PWD/target/newest-rust
if ! command -v rustup >/dev/null; then
    echo "error: rustup not found: the newest stable Rust cannot be installed" >&2
    exit 1
fi
mkdir -p "$folder"
pinned=$(rustc --version)
export RUSTUP_HOME="$folder/rustup" RUSTUP_TOOLCHAIN=stable
rustup --quiet toolchain install stable --profile minimal --target "$WASM_TARGET" --no-self-update
newest=$(rustc --version)
if [ "$newest" = "$pinned" ]; then
    echo "the newest stable Rust is the pinned one: $newest"
    exit 0
fi
echo "building with $newest"

clone=$folder/clone
if [ -d "$clone/.git" ]; then
    git -C "$clone" fetch --quiet "$PWD"
    git -C "$clone" checkout --quiet --detach FETCH_HEAD
else
    git clone --quiet . "$clone"
fi
cd "$clone"
cargo filters
cargo portable
examples/quickstart.sh --build-only
