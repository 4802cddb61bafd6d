#!/bin/sh
# Builds the proxy and its filters, starts three demo upstreams and the proxy with examples/quickstart.yaml in front of
# them, and shows it working. Ctrl-C ends all of it.
#
#   examples/quickstart.sh                 build (a few minutes the first time), run, and say what to try
#   examples/quickstart.sh --build-only    build, and stop there
#   examples/quickstart.sh --check         run, put load on it, swap a filter meanwhile, and fail if a request is lost
#
# TOLLGATE_PROFILE=dev builds faster and runs slower.
set -eu
cd "$(dirname "$0")/.."
. examples/setup.sh

profile=${TOLLGATE_PROFILE:-release}
case ${1-} in
    "" | --build-only | --check) mode=${1-} ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
case $profile in
    dev) bin=${CARGO_TARGET_DIR:-target}/debug ;;
    *) bin=${CARGO_TARGET_DIR:-target}/$profile ;;
esac
filters=target/filters/wasm32-unknown-unknown/filter
if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else bold='' plain=''; fi
say() { printf '%s\n' "$bold$*$plain"; }

say "== building the filters and the proxy (profile: $profile)"
cargo filters
cargo build --profile "$profile" -p tollgate -p demo-upstream
[ "$mode" = --build-only ] && exit 0

logs=target/quickstart
mkdir -p "$logs"
rm -f "$logs"/*.log
children=
stop() {
    trap - EXIT INT TERM
    # The proxy first, while its upstreams can still answer.
    for child in $children; do kill "$child" 2>/dev/null && wait "$child" 2>/dev/null || true; done
}
trap stop EXIT
trap 'stop; exit 130' INT TERM

# Waits until the log of something that was started says that it runs.
started() { # NAME PID TEXT
    for _ in $(seq 100); do
        grep -q "$3" "$logs/$1.log" && return
        kill -0 "$2" 2>/dev/null || break
        sleep 0.1
    done
    echo "error: $1 did not start:" >&2
    cat "$logs/$1.log" >&2
    exit 1
}

say "== starting three upstreams and the proxy (their logs are in $logs/)"
upstreams=
for n in 1 2 3; do
    "$bin/demo-upstream" --name "upstream-$n" --listen "127.0.0.1:900$n" >"$logs/upstream-$n.log" 2>&1 &
    upstreams="$upstreams $!"
    children=$upstreams
    started "upstream-$n" "$!" "listens on"
done
"$bin/tollgate" run examples/quickstart.yaml >"$logs/access.log" 2>"$logs/tollgate.log" &
proxy=$!
children="$proxy$upstreams"
started tollgate "$proxy" " ready "

if [ "$mode" = --check ]; then
    say "== load for 5 s, with a filter replaced every second"
    "$bin/tollgate" bench load http://127.0.0.1:8080/ --rate 500 --connections 8 --duration 5s \
        --expect-status 200 --fail-on-error &
    load=$!
    while kill -0 "$load" 2>/dev/null; do
        sleep 1
        # The same code with another name section is another module.
        cp "$filters/fault.wasm" "$logs/fault.wasm"
        printf '\000\005\004note' >>"$logs/fault.wasm"
        cp "$filters/fault.wasm" "$logs/fault.orig" && mv "$logs/fault.wasm" "$filters/fault.wasm"
        sleep 1
        mv "$logs/fault.orig" "$filters/fault.wasm"
    done
    wait "$load"
    swaps=$(grep -c 'in force cause="file"' "$logs/tollgate.log" || true)
    [ "$swaps" -ge 2 ] || { echo "error: the proxy has noticed $swaps swaps only" >&2; exit 1; }
    say "== no request was lost, and the filter was swapped $swaps times"
    exit 0
fi

# Runs what it prints.
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

  $bin/tollgate bench load http://127.0.0.1:8080/ --rate 2000 --duration 60s
      puts load on it. While it runs, edit examples/quickstart.yaml, or a filter's source followed by
  cargo filters
      and see the behaviour change while no request is lost (a mistake changes nothing; $logs/tollgate.log says why).

  $bin/tollgate bench chain examples/quickstart.yaml
      what each filter costs.

Ctrl-C ends all of it.
END
wait "$proxy"
