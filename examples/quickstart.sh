#!/bin/sh
# Builds the proxy and its filters, starts three demo upstreams and the proxy with examples/quickstart.yaml in front of
# them, and demonstrates it. Ctrl-C stops everything.
#
#   examples/quickstart.sh                 build (some minutes the first time), run, and print what to try
#   examples/quickstart.sh --build-only    build only
#   examples/quickstart.sh --check         run under load, swap a filter meanwhile, and fail if a request is lost
#
# The profile `quickstart` compiles in a quarter of the time of a release build, and runs slower. Use
# TOLLGATE_PROFILE=release for benchmarks.
set -eu
cd "$(dirname "$0")/.."

profile=${TOLLGATE_PROFILE:-quickstart}
case ${1-} in
    "" | --build-only | --check) mode=${1-} ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
target=${CARGO_TARGET_DIR:-target}
filters=target/filters/wasm32-unknown-unknown/filter
case $profile in
    dev) bin=$target/debug ;;
    *) bin=$target/$profile ;;
esac
if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else bold='' plain=''; fi
say() { printf '%s\n' "$bold$*$plain"; }

# Background processes, newest first: a leading `-` denotes a process group.
children=
# Stops everything, at any point of the script.
stop() {
    trap '' HUP INT TERM PIPE
    trap - EXIT
    # The proxy first, while its upstreams still answer.
    for child in $children; do
        kill -s TERM -- "$child" 2>/dev/null && wait "${child#-}" 2>/dev/null || :
    done
}
trap stop EXIT
trap 'stop; exit 129' HUP
trap 'stop; exit 130' INT
trap 'stop; exit 141' PIPE
trap 'stop; exit 143' TERM

# Runs a long command in the background and waits for it: the shell handles signals only between commands and during
# `wait`. The command gets its own session if possible, so that its children (rustc, the C compiler) end with it.
run() {
    if command -v setsid >/dev/null; then
        setsid "$@" &
        children="-$! $children"
    else
        "$@" &
        children="$! $children"
    fi
    wait "$!" || exit
    children=${children#* }
}

. examples/setup.sh

cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
[ "$cores" -le 4 ] || cores=4
# CPU minutes of a first build.
case $profile in release) minutes=30 ;; *) minutes=8 ;; esac
say "== building four filters, the proxy and a demo upstream (profile: $profile)"
echo "   The first time, this takes about $(((minutes + cores - 1) / cores)) minutes here."
run cargo filter router -p authz -p fault -p ratelimit
# The quick start needs neither Consul nor Kubernetes.
case $profile in quickstart) features="--no-default-features --features tollgate/http3" ;; *) features= ;; esac
# shellcheck disable=SC2086 # The options are words.
run cargo build --profile "$profile" $features -p tollgate -p demo-upstream
[ "$mode" = --build-only ] && exit 0

logs=target/quickstart/logs
mkdir -p "$logs"
rm -f "$logs"/*.log

# Tests whether a URL answers 200.
answers() {
    "$bin/tollgate" bench load "$1" --connections 1 --rate 100 --warmup 0s --duration 10ms --expect-status 200 \
        --fail-on-error >/dev/null 2>&1
}

# Waits until a URL of a started process answers. The proxy compiles its filters first.
started() { # NAME PID URL
    for _ in $(seq 1200); do
        kill -0 "$2" 2>/dev/null || break
        ! answers "$3" || return 0
        sleep 0.1
    done
    echo "error: $1 did not start:" >&2
    cat "$logs/$1.log" >&2
    exit 1
}

for port in 9001 9002 9003 9901; do
    ! answers "http://127.0.0.1:$port/" || { echo "error: another program answers at port $port" >&2; exit 1; }
done
say "== starting three upstreams and the proxy (their logs are in $logs/)"
for n in 1 2 3; do
    "$bin/demo-upstream" --name "upstream-$n" --listen "127.0.0.1:900$n" >"$logs/upstream-$n.log" 2>&1 &
    children="$! $children"
    started "upstream-$n" "$!" "http://127.0.0.1:900$n/"
done
"$bin/tollgate" run examples/quickstart.yaml >"$logs/access.log" 2>"$logs/tollgate.log" &
proxy=$!
children="$proxy $children"
started tollgate "$proxy" http://127.0.0.1:9901/ready

if [ "$mode" = --check ]; then
    say "== load for 5 s, with a filter replaced every second"
    "$bin/tollgate" bench load http://127.0.0.1:8080/ --rate 500 --connections 8 --duration 5s \
        --expect-status 200 --fail-on-error &
    load=$!
    children="$load $children"
    while kill -0 "$load" 2>/dev/null; do
        sleep 1
        # The same code with another name section is a different module.
        cp "$filters/fault.wasm" "$logs/fault.wasm"
        printf '\000\005\004note' >>"$logs/fault.wasm"
        cp "$filters/fault.wasm" "$logs/fault.orig" && mv "$logs/fault.wasm" "$filters/fault.wasm"
        sleep 1
        mv "$logs/fault.orig" "$filters/fault.wasm"
    done
    wait "$load"
    children=${children#* }
    swaps=$(curl -sf http://127.0.0.1:9901/metrics | sed -n 's/^tollgate_config_reloads_total{result="applied"} //p')
    [ "${swaps:-0}" -ge 2 ] || { echo "error: the proxy has applied only ${swaps:-0} swaps" >&2; exit 1; }
    say "== no request was lost, and the filter was swapped $swaps times"
    exit 0
fi

# Prints a command and runs it.
show() {
    echo
    say "\$ $*"
    eval "$*"
}
if command -v curl >/dev/null; then
    show "curl -s http://127.0.0.1:8080/"
    show "curl -s http://127.0.0.1:8080/api/orders"
    show "curl -s -H 'x-canary: 1' http://127.0.0.1:8080/api/orders"
    show "curl -s -o /dev/null -w '%{http_code}\n' http://127.0.0.1:8080/admin/users"
    show "curl -s -o /dev/null -w '%{http_code}\n' -H 'x-token: open-sesame' http://127.0.0.1:8080/admin/users"
    show "curl -s -o /dev/null -w '%{http_code} after %{time_total} s\n' -H 'x-envoy-fault-delay-request: 300' http://127.0.0.1:8080/"
    show 'for i in 1 2 3 4 5 6 7; do curl -s -o /dev/null -w "%{http_code} " http://127.0.0.1:8080/login; done; echo'
fi

cat <<END

${bold}The proxy runs on http://127.0.0.1:8080. In another terminal:${plain}

  curl -i http://127.0.0.1:8080/                     through four filters to one of three upstreams
  tail -f $logs/access.log         a line for each request: flags, route, endpoint, times
  curl http://127.0.0.1:9901/filters                 the filters: state, calls, memory, last error
  curl http://127.0.0.1:9901/metrics                 for Prometheus

  $bin/tollgate bench load http://127.0.0.1:8080/ --rate 1000 --duration 60s
      puts load on it. While it runs, edit examples/quickstart.yaml, or a filter's source followed by
  cargo filter NAME
      (authz, fault, ratelimit or router) and see the behaviour change while no request is lost (a mistake changes nothing; $logs/tollgate.log says why).

  $bin/tollgate bench chain examples/quickstart.yaml
      what each filter costs.

Ctrl-C ends all of it.
END
wait "$proxy"
