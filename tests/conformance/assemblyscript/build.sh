#!/bin/sh
# Compiles the AssemblyScript modules; `tests/conformance/setup.sh` has brought the compiler and the SDK.
set -eu
cd "$(dirname "$0")/../../.."

here=tests/conformance/assemblyscript
out=target/conformance/assemblyscript

for source in conformance gate meter verify; do
    wasm=$out/$source.wasm
    [ "$source" != conformance ] || wasm=$out.wasm
    [ -n "$(find "$here" "$out/package-lock.json" -newer "$wasm" 2>&1)" ] || continue
    # The compiler looks for libraries beside the sources.
    rm -rf "$out/assembly" && cp -r "$here/assembly" "$out/"
    # memoryBase: the SDK (0.1.8) takes the configuration's size for an address, and lets the host write there.
    (cd "$out" && node_modules/.bin/asc "assembly/$source.ts" --binaryFile module.wasm \
        --use abort=abort_proc_exit --optimize --memoryBase 65536)
    mv "$out/module.wasm" "$wasm"
done
