#!/bin/sh
# Builds the proxy with profile-guided optimization: builds it with instrumentation, runs load on it (examples/pgo.yaml,
# ports 18480 to 18486), then rebuilds it with the profile. Takes two builds and three minutes.
#
#   examples/pgo.sh          the result is target/pgo/tollgate
#   examples/pgo.sh --help   this text
#
# Needs llvm-profdata of the compiler's own LLVM: `rustup component add llvm-tools`. The load includes HTTP/2 and TLS
# only if h2load is installed (Debian's nghttp2-client). TOLLGATE_PGO_SECONDS sets how long each kind of load lasts (5);
# TOLLGATE_PROFILE=dev builds faster, for testing the script.
set -eu
cd "$(dirname "$0")/.."

case ${1-} in
    "") ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; [ "$1" = --help ] && exit 0 || exit 2 ;;
esac
. examples/setup.sh

profile=${TOLLGATE_PROFILE:-release}
seconds=${TOLLGATE_PGO_SECONDS:-5}
host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
folder=$PWD/target/pgo
case $profile in dev) built=debug ;; *) built=$profile ;; esac

# The profile format changes with LLVM; a tool of another version misreads it or fails.
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
[ -x "$profdata" ] || profdata=$(command -v "llvm-profdata-$llvm" || true)
if [ -z "$profdata" ]; then
    echo "error: llvm-profdata of LLVM $llvm not found: run \`rustup component add llvm-tools\`" >&2
    exit 1
fi

# Naming the target keeps the flags from build scripts, which must not be instrumented.
build() { # FLAGS
    RUSTFLAGS="${RUSTFLAGS-} $1" cargo build --profile "$profile" -p tollgate --target "$host" --target-dir "$2"
}

cargo filter third-party -q
echo "== with counters"
rm -rf "$folder/raw"
mkdir -p "$folder/raw"
build "-Cprofile-generate=$folder/raw" "$folder/counting"
counting=$folder/counting/$host/$built/tollgate

echo "== under load"
rm -rf "$folder/tls"
LLVM_PROFILE_FILE=/dev/null "$counting" ca init --dir "$folder/tls/ca" >/dev/null
LLVM_PROFILE_FILE=/dev/null "$counting" ca issue --dir "$folder/tls/ca" --spiffe spiffe://mesh.local/pgo --dns localhost \
    --out "$folder/tls/server" >/dev/null
"$counting" run examples/pgo.yaml >"$folder/tollgate.log" 2>&1 &
proxy=$!
# On SIGTERM it writes its profile.
trap 'kill "$proxy" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
# The load generator is instrumented too; discard its profile.
load() { LLVM_PROFILE_FILE=/dev/null "$counting" bench load --saturate --warmup 0s --fail-on-error "$@" >>"$folder/load.log"; }
h2() {
    command -v h2load >/dev/null || return 0
    h2load -t1 "-D$seconds" "$@" >"$folder/h2load.log"
    cat "$folder/h2load.log" >>"$folder/load.log"
    # h2load exits with success whatever the responses are.
    grep -q '^status codes: [1-9][0-9]* 2xx, 0 3xx, 0 4xx, 0 5xx' "$folder/h2load.log" || { cat "$folder/h2load.log" >&2; exit 1; }
}
: >"$folder/load.log"
for _ in $(seq 100); do
    LLVM_PROFILE_FILE=/dev/null "$counting" bench load --rate 10 -c 1 -d 100ms --warmup 0s --fail-on-error \
        http://127.0.0.1:18482/ >/dev/null 2>&1 && break
    kill -0 "$proxy" 2>/dev/null || { cat "$folder/tollgate.log" >&2; exit 1; }
    sleep 0.1
done
for url in http://127.0.0.1:18481/items/42 http://127.0.0.1:18482/api/items/42 http://127.0.0.1:18483/items/42; do
    load -c 32 -d "${seconds}s" "$url"
    load -c 8 -d "${seconds}s" --method POST --body @Cargo.lock "$url"
    load -c 8 -d "${seconds}s" --header 'connection: close' "$url"
    h2 -c4 -m32 "$url"
done
for url in https://127.0.0.1:18484/items/42 https://127.0.0.1:18485/api/items/42; do
    h2 --h1 -c32 "$url"
    # For handshakes: each run opens a new connection.
    for _ in $(seq $((seconds * 10))); do
        h2 --h1 -c16 -n16 -D0 "$url"
    done
    h2 -c4 -m32 "$url"
    h2 -c4 -m8 -d Cargo.lock "$url"
done
kill "$proxy"
wait "$proxy" || true
trap - EXIT
"$profdata" merge -o "$folder/merged.profdata" "$folder/raw"

echo "== building with the profile"
build "-Cprofile-use=$folder/merged.profdata" "$folder/optimised"
cp "$folder/optimised/$host/$built/tollgate" "$folder/tollgate"
echo "== done: $folder/tollgate"
