#!/bin/sh
# Sets up and runs everything that must pass: format, lints, all tests (the ABI's golden file and the end-to-end tests over
# real sockets among them), the examples. Ends with "all passed", or with what did not.
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

step() { printf '\n== %s\n' "$*"; }

step "format"
cargo fmt --all --check

step "filters, compiled to WebAssembly"
cargo filters

step "lints"
cargo clippy --workspace --all-targets --quiet -- -D warnings
# What is for WebAssembly only is not there natively.
cargo clippy --quiet --target "$WASM_TARGET" --target-dir target/filters \
    -p router -p authz -p fault -p ratelimit -p hello -p api-key -p body-transform -p third-party \
    -p third-party-audit -p third-party-body -p third-party-tcp -p third-party-variants -p tcp-token \
    -p conformance-rust-0-2 -p conformance-rust-0-1 -p third-party-same -- -D warnings

step "clients and servers that nobody here wrote"
tests/interop/setup.sh

step "modules in other languages"
tests/conformance/setup.sh

step "tests"
cargo test --workspace
# Features that nothing in the workspace turns on.
cargo test -p tollgate-sdk --features log,tracing

step "instructions on a request's way"
tests/instructions.sh

step "examples: the quick start under load"
TOLLGATE_PROFILE=dev examples/quickstart.sh --check

step "all passed"
