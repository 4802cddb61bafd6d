#!/bin/sh
# Builds the modules in other languages, from the folders here, in target/conformance/. The toolchains come from npm and PyPI; what
# cannot be had is said, and its tests are skipped; with TOLLGATE_REQUIRE_INTEROP=1 it is an error. A build that fails is one too.
set -eu
cd "$(dirname "$0")/../.."

out=target/conformance
venv=$out/venv

missing=
without() {
    missing="$missing $1"
    rm -rf "$out/$1" "$out/$1.wasm"
    printf '\n*** conformance: no %s (%s): its tests are SKIPPED\n' "$1" "$2" >&2
}

mkdir -p "$out"

if ! command -v npm >/dev/null; then
    without assemblyscript "npm is not installed"
elif ! cmp -s tests/conformance/assemblyscript/package-lock.json "$out/assemblyscript/package-lock.json" &&
    ! { mkdir -p "$out/assemblyscript" && cp tests/conformance/assemblyscript/package.json "$out/assemblyscript/" &&
        cp tests/conformance/assemblyscript/package-lock.json "$out/assemblyscript/.lock" &&
        mv "$out/assemblyscript/.lock" "$out/assemblyscript/package-lock.json" &&
        (cd "$out/assemblyscript" && npm ci --silent --no-audit --no-fund); }; then
    without assemblyscript "npm has failed, see above"
else
    tests/conformance/assemblyscript/build.sh
fi

if [ -n "$missing" ] && [ "${TOLLGATE_REQUIRE_INTEROP:-}" = 1 ]; then
    echo "error: conformance:$missing missing, and TOLLGATE_REQUIRE_INTEROP=1" >&2
    exit 1
fi
