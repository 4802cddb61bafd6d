#!/bin/sh
# Builds the modules in other languages, from the folders here, in target/conformance/. The toolchains come from npm and
# PyPI, and so does npm itself if missing. A toolchain that cannot be installed is reported, and its tests do not run;
# with TOLLGATE_REQUIRE_TOOLS=1 this is an error. A failed build is always an error.
set -eu
cd "$(dirname "$0")/../.."

out=target/conformance
venv=$out/venv

missing= languages= failed=
without() {
    missing="$missing $1"
    rm -rf "$out/$1" "$out/$1.wasm"
    printf '\n*** conformance: no %s (%s): its tests do NOT run\n' "$1" "$2" >&2
}

mkdir -p "$out"

if ! command -v python3 >/dev/null; then
    without go "python3 not found, which installs its toolchain from PyPI"
    without cpp "python3 not found, which installs its toolchain from PyPI"
elif ! cmp -s tests/conformance/requirements.txt "$venv/requirements.txt" &&
    ! { rm -rf "$venv" && python3 -m venv "$venv" &&
        "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/conformance/requirements.txt &&
        cp tests/conformance/requirements.txt "$venv/"; }; then
    rm -rf "$venv"
    without go "pip failed, see above"
    without cpp "pip failed, see above"
else
    languages="go cpp"
fi

# Node.js, if the machine has none. Its npm runs `node` by name.
if ! command -v npm >/dev/null && [ -x "$venv/bin/pip" ]; then
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/conformance/node.txt || echo "*** conformance: pip failed" >&2
    PATH="$PATH:$PWD/$venv/bin"
fi
if ! command -v npm >/dev/null; then
    without assemblyscript "npm is not installed, and could not be installed from PyPI"
elif ! cmp -s tests/conformance/assemblyscript/package-lock.json "$out/assemblyscript/package-lock.json" &&
    ! { rm -rf "$out/assemblyscript" && mkdir "$out/assemblyscript" &&
        cp tests/conformance/assemblyscript/package*.json "$out/assemblyscript/" &&
        (cd "$out/assemblyscript" && npm ci --silent --no-audit --no-fund --no-update-notifier); }; then
    without assemblyscript "npm failed, see above"
else
    languages="$languages assemblyscript"
fi

# Concurrently: each compiler leaves cores idle.
jobs=
for language in $languages; do
    "tests/conformance/$language/build.sh" &
    jobs="$jobs $!"
done
for job in $jobs; do
    wait "$job" || failed=1
done
if [ "$failed" = 1 ]; then
    echo "error: conformance: cannot build a module, see above" >&2
    exit 1
fi

if [ -n "$missing" ] && [ -n "${TOLLGATE_REQUIRE_TOOLS-}" ]; then
    echo "error: missing:$missing (see above); TOLLGATE_REQUIRE_TOOLS is set" >&2
    exit 1
fi
