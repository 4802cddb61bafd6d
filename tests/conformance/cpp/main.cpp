// The conformance cases in a module built with clang and wasi-libc (a "reactor": `_initialize`, no `main`). It uses no
// SDK: the host's functions are imported directly, and their results are written to memory from the C library's malloc.
//
// See ../README.md for the module's protocol; ../generate.py writes cases.inc.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

using int32 = int32_t;
using int64 = int64_t;

// A case's script for one callback.
struct Phase {
  int callback;
  int32 (*run)(int32, int32, int32, int32, int32);
};

struct Case {
  const char *name;
  std::vector<Phase> phases;
  size_t done = 0;
  std::string failed = {};
};

// The running or most recently requested case, and its stream.
static Case *current;
static int32 stream;
// Where host functions write their results.
alignas(8) static char memory[4096];

enum { EQ, NE, LT, GT, GE };

static char *address(int32 at) { return reinterpret_cast<char *>(static_cast<uintptr_t>(static_cast<uint32_t>(at))); }
static int32 text(const char *s) { return static_cast<int32>(reinterpret_cast<uintptr_t>(s)); }
static int32 scratch(int32 at) { return text(memory) + at; }

template <typename T> static T load(int32 at) {
  T value;
  memcpy(&value, address(at), sizeof value);
  return value;
}
[[maybe_unused]] static int32 load8(int32 at) { return load<uint8_t>(at); }
[[maybe_unused]] static int32 load16(int32 at) { return load<uint16_t>(at); }
static int32 load32(int32 at) { return load<int32>(at); }
static int64 load64(int32 at) { return load<int64>(at); }
static void store32(int32 at, int32 to) { memcpy(address(at), &to, sizeof to); }
static void ignore(int64) {}

static bool isNot(int line, int comparison, int64 got, int64 wanted) {
  const bool is[] = {got == wanted, got != wanted, got < wanted, got > wanted, got >= wanted};
  if (!is[comparison]) current->failed = "line " + std::to_string(line) + ": got " + std::to_string(got);
  return !is[comparison];
}

static bool differs(int line, int32 at, int32 size, int32 wanted, int32 wantedSize) {
  if (size == wantedSize && memcmp(address(at), address(wanted), size) == 0) return false;
  current->failed = "line " + std::to_string(line) + ": got " + std::string(address(at), size);
  return true;
}

#include "cases.inc"

// Runs the case's next script if it is for this callback.
static int32 next(Case *of, int callback, int32 a, int32 b, int32 c, int32 d, int32 e) {
  if (of->done == of->phases.size() || of->phases[of->done].callback != callback) return 0;
  return of->phases[of->done++].run(a, b, c, d, e);
}

// Handles a callback that precedes any request: every case that expects it runs.
static void early(int callback, int32 a, int32 b) {
  Case *asked = current;
  for (Case &of : cases) {
    current = &of;
    next(&of, callback, a, b, 0, 0, 0);
  }
  current = asked;
}

// Handles any other callback.
static int32 on(int callback, int32 a, int32 b = 0, int32 c = 0, int32 d = 0, int32 e = 0) {
  return current ? next(current, callback, a, b, c, d, e) : 0;
}

// Handles a callback of a stream.
static int32 onStream(int callback, int32 context, int32 b = 0, int32 c = 0) {
  return context == stream ? on(callback, context, b, c) : 0;
}

static bool header(std::string_view name, std::string &value) {
  if (proxy_get_header_map_value(0, text(name.data()), name.size(), scratch(4000), scratch(4004)) != 0) return false;
  char *at = address(load32(scratch(4000)));
  value.assign(at, load32(scratch(4004)));
  free(at);
  return true;
}

static void reply(int32 code, std::string_view body) {
  proxy_send_local_response(code, 0, 0, text(body.data()), body.size(), 0, 0, -1);
}

static Case *find(std::string_view name) {
  for (Case &of : cases)
    if (of.name == name) return &of;
  return nullptr;
}

static void verdict(const Case *of) {
  if (!of) return reply(404, "no such case");
  if (!of->failed.empty()) return reply(500, of->failed);
  if (of->done < of->phases.size()) return reply(404, "only " + std::to_string(of->done) + " of its callbacks came");
  reply(200, "ok");
}

#define EXPORT(name) extern "C" __attribute__((export_name(#name)))

EXPORT(proxy_abi_version_0_2_1) void version() {}

EXPORT(proxy_on_request_headers) int32 onRequestHeaders(int32 context, int32 count, int32 end) {
  std::string name;
  if (header("x-cases", name)) {
    std::string names;
    for (const Case &of : cases) names.append(of.name).append("\n");
    reply(200, names);
    return 0;
  }
  if (header("x-result", name)) {
    verdict(find(name));
    return 0;
  }
  if (header("x-case", name)) {
    current = find(name);
    stream = context;
  }
  return onStream(on_request_headers, context, count, end);
}

// An empty last part of a body does not count as a part.
EXPORT(proxy_on_request_body) int32 onRequestBody(int32 context, int32 size, int32 end) {
  return size ? onStream(on_request_body, context, size, end) : 0;
}
EXPORT(proxy_on_response_body) int32 onResponseBody(int32 context, int32 size, int32 end) {
  return size ? onStream(on_response_body, context, size, end) : 0;
}

EXPORT(proxy_on_request_trailers) int32 onRequestTrailers(int32 context, int32 count) {
  return onStream(on_request_trailers, context, count);
}
EXPORT(proxy_on_response_headers) int32 onResponseHeaders(int32 context, int32 count, int32 end) {
  return onStream(on_response_headers, context, count, end);
}
EXPORT(proxy_on_response_trailers) int32 onResponseTrailers(int32 context, int32 count) {
  return onStream(on_response_trailers, context, count);
}

EXPORT(proxy_on_context_create) void onContextCreate(int32 id, int32 parent) { early(on_context_create, id, parent); }
EXPORT(proxy_on_tick) void onTick(int32 root) { on(on_tick, root); }
EXPORT(proxy_on_queue_ready) void onQueueReady(int32 root, int32 queue) { on(on_queue_ready, root, queue); }
EXPORT(proxy_on_log) void onLog(int32 id) { onStream(on_log, id); }
EXPORT(proxy_on_delete) void onDelete(int32 id) { onStream(on_delete, id); }

EXPORT(proxy_on_vm_start) int32 onVmStart(int32 root, int32 size) {
  early(on_vm_start, root, size);
  return 1;
}
EXPORT(proxy_on_configure) int32 onConfigure(int32 root, int32 size) {
  early(on_configure, root, size);
  return 1;
}
EXPORT(proxy_on_done) int32 onDone(int32 id) {
  onStream(on_done, id);
  return 1;
}

EXPORT(proxy_on_http_call_response)
void onHttpCallResponse(int32 root, int32 call, int32 headers, int32 size, int32 trailers) {
  on(on_http_call_response, root, call, headers, size, trailers);
}
EXPORT(proxy_on_grpc_receive_initial_metadata) void onGrpcReceiveInitialMetadata(int32 root, int32 call, int32 count) {
  on(on_grpc_receive_initial_metadata, root, call, count);
}
EXPORT(proxy_on_grpc_receive) void onGrpcReceive(int32 root, int32 call, int32 size) {
  on(on_grpc_receive, root, call, size);
}
EXPORT(proxy_on_grpc_receive_trailing_metadata) void onGrpcReceiveTrailingMetadata(int32 root, int32 call, int32 count) {
  on(on_grpc_receive_trailing_metadata, root, call, count);
}
EXPORT(proxy_on_grpc_close) void onGrpcClose(int32 root, int32 call, int32 status) {
  on(on_grpc_close, root, call, status);
}
