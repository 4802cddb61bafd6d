#!/bin/sh
# Builds all filters and the proxy with the newest stable Rust, to detect early what a new release breaks. Warnings are allowed.
# Builds the committed state in a temporary clone with a temporary toolchain. Installed toolchains are not touched (the pinned
# version may be a link to `stable`), and the clone is outside this folder because it would otherwise read this folder's
# `.cargo/config.toml`, too.
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

if ! command -v rustup >/dev/null; then
    echo "error: rustup not found: cannot install the newest stable Rust" >&2
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
