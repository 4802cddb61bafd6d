#!/bin/sh
# Compiles the AssemblyScript modules; `tests/conformance/setup.sh` installs the compiler and the SDK.
set -eu
cd "$(dirname "$0")/../../.."

here=tests/conformance/assemblyscript
out=target/conformance/assemblyscript

# The compiler looks for libraries next to the sources.
rm -rf "$out/assembly" && cp -r "$here/assembly" "$out/"

# build FILE SOURCE IMPORTED [OPTION]: does nothing if the file is newer than everything that it depends on.
build() {
    [ ! -e "$1" ] || [ -n "$(cd "$here" && find build.sh package-lock.json "assembly/$2.ts" $3 -newer "$OLDPWD/$1")" ] || return 0
    # memoryBase: the SDK (0.1.8) mistakes the configuration's size for an address and lets the host write there.
    (cd "$out" && node_modules/.bin/asc "assembly/$2.ts" --binaryFile "$2.new" --use abort=abort_proc_exit --memoryBase 65536 $4)
    mv "$out/$2.new" "$1"
}

build "$out/gate.wasm" gate assembly/options.ts --optimize
build "$out/verify.wasm" verify assembly/options.ts --optimize
build "$out/meter.wasm" meter assembly/options.ts --optimize
# Optimizing it takes longer than all others together.
build "$out.wasm" conformance "assembly/suite.ts assembly/cases.ts" ""
