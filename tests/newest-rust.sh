#!/bin/sh
# Builds all filters and the proxy with the newest stable Rust that can be had, so that what a new release of Rust breaks is seen here
# first. Warnings are allowed. Builds what is committed, in a clone in target/newest-rust/, and leaves other build folders alone.
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

if ! command -v rustup >/dev/null; then
    echo "error: rustup not found: the newest stable Rust cannot be installed" >&2
    exit 1
fi
rustup --quiet toolchain install stable --profile minimal --target "$WASM_TARGET" --no-self-update ||
    echo "warning: the toolchain \`stable\` could not be updated; using the one that is here" >&2
newest=$(rustc +stable --version)
if [ "$newest" = "$(rustc --version)" ]; then
    echo "no stable Rust newer than the pinned one can be had: $newest"
    exit 0
fi
echo "building with $newest"

clone=target/newest-rust
if [ -d "$clone/.git" ]; then
    git -C "$clone" fetch --quiet ../..
    git -C "$clone" checkout --quiet --detach FETCH_HEAD
else
    git clone --quiet . "$clone"
fi
cd "$clone"
export RUSTUP_TOOLCHAIN=stable
cargo filters
cargo portable
examples/quickstart.sh --build-only
