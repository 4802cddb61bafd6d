# Sourced by the scripts: finds cargo, and installs the WebAssembly target where it is missing.

if ! command -v cargo >/dev/null; then
    [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
fi
if ! command -v cargo >/dev/null; then
    echo "error: there is no cargo; install Rust by https://rustup.rs, then try again" >&2
    exit 1
fi

WASM_TARGET=wasm32-unknown-unknown
if ! [ -d "$(rustc --print sysroot 2>/dev/null)/lib/rustlib/$WASM_TARGET/lib" ]; then
    if ! command -v rustup >/dev/null; then
        echo "error: rustc has no target $WASM_TARGET, and there is no rustup to install it; see https://rustup.rs" >&2
        exit 1
    fi
    # The channel of rust-toolchain.toml, whether or not rustup may install toolchains by itself.
    toolchain=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
    rustup toolchain install "$toolchain" --profile minimal --component rustfmt --component clippy \
        --target "$WASM_TARGET" --no-self-update
fi
