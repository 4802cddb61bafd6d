# Sourced by the scripts from the repository's root: finds cargo, and installs the Rust toolchain of rust-toolchain.toml
# and its WebAssembly target if missing. RUSTUP_TOOLCHAIN selects another toolchain.

WASM_TARGET=wasm32-unknown-unknown

if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then
    . "$HOME/.cargo/env"
fi
if ! command -v cargo >/dev/null; then
    echo "error: cargo not found: install Rust with https://rustup.rs, then run this again" >&2
    exit 1
fi
# Rust links with it, and the TLS library contains C code.
if ! command -v "${CC:-cc}" >/dev/null; then
    echo "error: no C compiler (${CC:-cc}) found: install one (Debian, Ubuntu: apt-get install build-essential), then run this again" >&2
    exit 1
fi

# Toolchain requirements besides the compiler: set `needs=fmt,clippy` before sourcing this for more.
has_toolchain() {
    [ -d "$(rustc --print sysroot 2>/dev/null)/lib/rustlib/$WASM_TARGET/lib" ] || return 1
    for tool in $(echo "${needs-}" | tr , ' '); do
        cargo "$tool" --version >/dev/null 2>&1 || return 1
    done
}
if ! has_toolchain; then
    if ! command -v rustup >/dev/null; then
        echo "error: this Rust lacks the target $WASM_TARGET${needs:+ or a tool ($needs)}, and there is no rustup to install it; see https://rustup.rs" >&2
        exit 1
    fi
    toolchain=${RUSTUP_TOOLCHAIN:-$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)}
    components=$(echo "${needs-}" | sed 's/fmt/rustfmt/; s/[a-z][a-z]*/--component &/g; s/,/ /g')
    echo "installing Rust $toolchain with the target $WASM_TARGET (rustup; about 20 s)" >&2
    # shellcheck disable=SC2086
    rustup --quiet toolchain install "$toolchain" --profile minimal --target "$WASM_TARGET" $components --no-self-update
fi
