#!/bin/sh
# Compiles the Go modules; `tests/conformance/setup.sh` installs the toolchain.
set -eu
cd "$(dirname "$0")/../../.."

here=tests/conformance/go
out=target/conformance
go=$PWD/$out/venv/bin/go

# A missing file counts as older.
newer() { [ ! -e "$1" ] || [ -n "$(find "$here" tests/conformance/cases tests/conformance/*.py abi/src -newer "$1")" ]; }
newer "$out/go.wasm" || exit 0

rm -rf "$out/go" && cp -r "$here" "$out/go"
python3 tests/conformance/generate.py go "$out/go/cases.go"
# Downloads nothing: there are no dependencies, and the toolchain is the installed one.
export GOOS=wasip1 GOARCH=wasm GOPROXY=off GOTOOLCHAIN=local GOFLAGS= GOCACHE="$PWD/$out/cache/go"
cd "$out/go"
"$go" build -buildmode=c-shared -ldflags=-s -o signature.wasm ./signature
"$go" build -buildmode=c-shared -ldflags=-s -o ../go.wasm .
