#!/bin/sh
# Checks the format and the lints of all code. Other releases of Rust format differently and have more warnings, so nothing is checked
# unless the release is the one that rust-toolchain.toml pins.
set -eu
cd "$(dirname "$0")/.."
needs=fmt,clippy
. examples/setup.sh

channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
case $(rustc --version) in
    "rustc $channel "*) ;;
    *) echo "skipped: format and lints need Rust $channel" && exit 0 ;;
esac

cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- -D warnings
# Code only for WebAssembly is not compiled natively. The packages are those of `cargo filters`.
cargo clippy --quiet --target "$WASM_TARGET" --target-dir target/filters --workspace \
    --exclude tollgate --exclude demo-upstream --exclude fuzz --exclude peers -- -D warnings
cargo clippy --quiet --target "$WASM_TARGET" --target-dir target/portable -p tollgate-sdk --features portable -- -D warnings
