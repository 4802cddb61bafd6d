#!/bin/sh
# Compiles the C++ modules; `tests/conformance/setup.sh` installs the compiler, which is Zig's clang.
set -eu
cd "$(dirname "$0")/../../.."

here=tests/conformance/cpp
out=target/conformance

newer() { [ ! -e "$1" ] || [ -n "$(find "$here" tests/conformance/cases tests/conformance/*.py abi/src -newer "$1")" ]; }
newer "$out/cpp.wasm" || exit 0

mkdir -p "$out/cpp"
python3 tests/conformance/generate.py cpp "$out/cpp/cases.inc"
compile() {
    # Nothing in the module refers to malloc by name, so it must be exported explicitly.
    ZIG_GLOBAL_CACHE_DIR="$PWD/$out/cache/zig" ZIG_LOCAL_CACHE_DIR="$PWD/$out/cache/zig" \
        "$out/venv/bin/python" -m ziglang c++ --target=wasm32-wasi -mexec-model=reactor -std=c++20 -Oz -fno-exceptions \
        -Wall -Wextra -Wno-unused-parameter -I "$out/cpp" -Wl,--export=malloc "$1" -o "$2"
}
compile "$here/cors.cpp" "$out/cpp/cors.wasm"
compile "$here/main.cpp" "$out/cpp.wasm"
