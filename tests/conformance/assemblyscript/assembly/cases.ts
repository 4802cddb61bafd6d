// The cases. Their names and steps are those of the case files.

import {
  BaseContext, GrpcStatusValues, HeaderPair, Headers, LogLevelValues, RootContext, WasmResultValues, log,
  proxy_set_effective_context, send_local_response, stream_context,
} from "@solo-io/proxy-runtime";
import * as host from "@solo-io/proxy-runtime/imports";
import {
  BufferTypeValues, HeaderMapTypeValues, MetricTypeValues, Reference, continue_request, continue_response, define_metric,
  done, enqueue_shared_queue, get_buffer_bytes, get_buffer_status, get_current_time_nanoseconds, get_header_map_size, get_property,
  get_status, increment_metric, record_metric, register_shared_queue, resolve_shared_queue, set_property, set_tick_period_milliseconds,
} from "@solo-io/proxy-runtime/runtime";
import { Callback, is, ok, pause, run, says, test } from "./suite";

let root: BaseContext | null = null;
let stream: BaseContext | null = null;

export function setRoot(context: BaseContext): void {
  root = context;
}

export function setStream(context: BaseContext): void {
  stream = context;
}

// Where the host's functions write their results.
const out = new Reference<u32>();
const size = new Reference<u32>();
const cas = new Reference<u32>();
const wide = new Reference<u64>();

// State that one callback leaves for a later one.
let kept: u32 = 0;

function text(bytes: ArrayBuffer): string {
  return String.UTF8.decode(bytes);
}

function bytes(from: string): ArrayBuffer {
  return String.UTF8.encode(from);
}

function pair(name: string, value: string): HeaderPair {
  return new HeaderPair(bytes(name), bytes(value));
}

function request(): Headers {
  return [pair(":method", "GET"), pair(":path", "/call"), pair(":authority", "x")];
}

function property(path: string): string {
  return text(get_property(path));
}

function number(path: string): u64 {
  return load<u64>(changetype<usize>(get_property(path)));
}

function propertyStatus(path: string): u32 {
  const name = bytes(path);
  return host.proxy_get_property(changetype<usize>(name), name.byteLength, out.ptr(), size.ptr());
}

function valueStatus(map: i32, key: string): u32 {
  const name = bytes(key);
  return host.proxy_get_header_map_value(map, changetype<usize>(name), name.byteLength, out.ptr(), size.ptr());
}

function bufferStatus(buffer: i32, start: u32, max: u32): u32 {
  return host.proxy_get_buffer_bytes(buffer, start, max, out.ptr(), size.ptr());
}

function setShared(key: string, value: string, version: u32): u32 {
  const name = bytes(key), data = bytes(value);
  return host.proxy_set_shared_data(
    changetype<usize>(name), name.byteLength, changetype<usize>(data), data.byteLength, version,
  );
}

function getShared(key: string): u32 {
  const name = bytes(key);
  return host.proxy_get_shared_data(changetype<usize>(name), name.byteLength, out.ptr(), size.ptr(), cas.ptr());
}

function dequeue(queue: u32): u32 {
  return host.proxy_dequeue_shared_queue(queue, out.ptr(), size.ptr());
}

/** What the host has given. */
function given(): string {
  return String.UTF8.decodeUnsafe(out.data, size.data);
}

function metric(kind: MetricTypeValues, name: string): u32 {
  const defined = define_metric(kind, name);
  is(defined.result, WasmResultValues.Ok);
  return defined.metric_id;
}

function metricValue(id: u32): u64 {
  is(host.proxy_get_metric(id, wide.ptr()), WasmResultValues.Ok);
  return wide.data;
}

function call(cluster: string, headers: Headers, body: string, timeout: u32): u32 {
  return (root as RootContext).httpCall(
    cluster, headers, bytes(body), [pair("x-last", "1")], timeout, stream as BaseContext,
    (_origin: BaseContext, headers: u32, size: usize, trailers: u32): void => {
      kept = trailers;
      run(Callback.HttpCallResponse, 0, headers, <u32>size);
    },
  );
}

export function registerCases(): void {
  headers();
  basics();
  buffers();
  callbacks();
  calls();
  properties();
  shared();
  metrics();
  streams();
}

const REQUEST = HeaderMapTypeValues.RequestHeaders;
const RESPONSE = HeaderMapTypeValues.ResponseHeaders;

function headers(): void {
  test("proxy_get_header_map_value/ok").on(Callback.RequestHeaders, () => {
    says(stream_context.headers.request.get("x-one"), "1");
    says(stream_context.headers.request.get("X-ONE"), "1");
  });
  test("proxy_get_header_map_value/first-of-several").on(Callback.RequestHeaders, () => {
    says(stream_context.headers.request.get("x-two"), "a");
  });
  test("proxy_get_header_map_value/empty-value").on(Callback.RequestHeaders, () => {
    says(stream_context.headers.request.get("x-empty"), "");
    is(valueStatus(REQUEST, "x-empty"), WasmResultValues.Ok);
  });
  test("proxy_get_header_map_value/pseudo-headers").on(Callback.RequestHeaders, () => {
    const request = stream_context.headers.request;
    says(request.get(":method"), "POST");
    says(request.get(":path"), "/conformance?a=b");
    says(request.get(":authority"), "test");
    says(request.get("host"), "test");
    says(request.get(":scheme"), "http");
  }).on(Callback.ResponseHeaders, () => {
    says(stream_context.headers.response.get(":status"), "200");
    says(stream_context.headers.request.get(":method"), "POST");
  });
  test("proxy_get_header_map_value/every-map-in-its-phase").on(Callback.RequestHeaders, () => {
    says(stream_context.headers.request.get("x-one"), "1");
  }).on(Callback.RequestTrailers, () => {
    says(stream_context.trailers.request.get("x-trailer"), "end");
  }).on(Callback.ResponseHeaders, () => {
    says(stream_context.headers.response.get("x-up"), "yes");
  }).on(Callback.ResponseTrailers, () => {
    says(stream_context.trailers.response.get("x-up-trailer"), "end");
  }).on(Callback.Log, () => {
    says(stream_context.headers.request.get("x-one"), "1");
    says(stream_context.headers.response.get("x-up"), "yes");
  });
  test("proxy_get_header_map_value/not-found").on(Callback.RequestHeaders, () => {
    says(stream_context.headers.request.get("x-none"), "");
    is(valueStatus(REQUEST, "x-none"), WasmResultValues.NotFound);
    is(valueStatus(REQUEST, ""), WasmResultValues.NotFound);
  });
  test("proxy_get_header_map_value/not-found-in-this-phase").on(Callback.Configure, () => {
    is(valueStatus(REQUEST, "x-one"), WasmResultValues.NotFound);
  }).on(Callback.RequestHeaders, () => {
    is(valueStatus(RESPONSE, "x-one"), WasmResultValues.NotFound);
    is(valueStatus(HeaderMapTypeValues.RequestTrailers, "x-one"), WasmResultValues.NotFound);
    is(valueStatus(HeaderMapTypeValues.HttpCallResponseHeaders, "x-one"), WasmResultValues.NotFound);
  });
  test("proxy_get_header_map_value/bad-argument-no-such-map").on(Callback.RequestHeaders, () => {
    is(valueStatus(8, "x-one"), WasmResultValues.BadArgument);
    is(valueStatus(-1, "x-one"), WasmResultValues.BadArgument);
  });
  test("proxy_get_header_map_pairs/ok").on(Callback.RequestHeaders, (count: u32) => {
    const all = stream_context.headers.request.get_headers();
    is(all.length, count);
    says(text(all[0].key).charAt(0), ":");
  }).on(Callback.ResponseTrailers, () => {
    const all = stream_context.trailers.response.get_headers();
    is(all.length, 1);
    says(text(all[0].key), "x-up-trailer");
    says(text(all[0].value), "end");
  });
  test("proxy_get_header_map_pairs/ok-empty-in-other-phases").on(Callback.RequestHeaders, () => {
    is(stream_context.headers.http_callback.get_headers().length, 0);
  });
  test("proxy_get_header_map_size/ok").on(Callback.RequestTrailers, () => {
    is(get_header_map_size(HeaderMapTypeValues.RequestTrailers), 12);
  });
  test("proxy_get_header_map_size/ok-nothing-in-other-phases").on(Callback.RequestHeaders, () => {
    is(get_header_map_size(RESPONSE), 0);
  });
  test("proxy_add_header_map_value/ok").on(Callback.RequestHeaders, () => {
    stream_context.headers.request.add("X-New", "n");
    says(stream_context.headers.request.get("x-new"), "n");
    stream_context.headers.request.add(":path", "/conformance/added");
    says(stream_context.headers.request.get(":path"), "/conformance/added");
  }).on(Callback.RequestTrailers, () => {
    stream_context.trailers.request.add("x-trailer", "more");
    is(stream_context.trailers.request.get_headers().length, 2);
  }).on(Callback.ResponseHeaders, () => {
    stream_context.headers.response.add("x-up", "again");
    says(stream_context.headers.response.get("x-up"), "yes");
  });
  test("proxy_replace_header_map_value/ok").on(Callback.RequestHeaders, () => {
    const request = stream_context.headers.request;
    request.replace("x-two", "c");
    says(request.get("x-two"), "c");
    request.replace("x-new", "n");
    says(request.get("x-new"), "n");
    request.replace(":method", "PUT");
    says(request.get(":method"), "PUT");
  }).on(Callback.ResponseHeaders, () => {
    stream_context.headers.response.replace(":status", "202");
    says(stream_context.headers.response.get(":status"), "202");
  });
  // The SDK throws at any status except Ok.
  test("proxy_replace_header_map_value/ok-but-rejected-and-logged").on(Callback.RequestHeaders, () => {
    stream_context.headers.request.replace(":path", "no slash");
    says(stream_context.headers.request.get(":path"), "/conformance?a=b");
    stream_context.headers.response.replace("x-early", "1");
  });
  test("proxy_remove_header_map_value/ok").on(Callback.RequestHeaders, () => {
    stream_context.headers.request.remove("X-Two");
    stream_context.headers.request.remove("x-none");
    is(valueStatus(REQUEST, "x-two"), WasmResultValues.NotFound);
  });
  test("proxy_remove_header_map_value/ok-but-rejected-and-logged").on(Callback.RequestHeaders, () => {
    stream_context.headers.request.remove("bad name");
    stream_context.headers.response.remove("x-up");
  });
}

function basics(): void {
  test("proxy_log/ok").on(Callback.Configure, () => {
    log(LogLevelValues.debug, "while it is configured");
  }).on(Callback.RequestHeaders, () => {
    log(LogLevelValues.trace, "trace");
    log(LogLevelValues.info, "a message of a case");
    log(LogLevelValues.warn, "");
    log(LogLevelValues.critical, "critical");
  });
  test("proxy_log/bad-argument-no-such-level").on(Callback.RequestHeaders, () => {
    is(host.proxy_log(6, 0, 0), WasmResultValues.BadArgument);
  });
  test("proxy_get_current_time_nanoseconds/ok").on(Callback.RequestHeaders, () => {
    ok(get_current_time_nanoseconds() > 1700000000000000000, "too early");
  });
  test("proxy_set_tick_period_milliseconds/ok").on(Callback.RequestHeaders, () => {
    set_tick_period_milliseconds(1);
  }).on(Callback.Tick, () => {}).on(Callback.Tick, () => {
    set_tick_period_milliseconds(0);
  });
  test("proxy_set_effective_context/ok").on(Callback.RequestHeaders, () => {
    set_tick_period_milliseconds(1);
    pause();
  }).on(Callback.Tick, () => {
    set_tick_period_milliseconds(0);
    is(valueStatus(REQUEST, "x-one"), WasmResultValues.NotFound);
    is(proxy_set_effective_context((stream as BaseContext).context_id), WasmResultValues.Ok);
    says(stream_context.headers.request.get("x-one"), "1");
    is(continue_request(), WasmResultValues.Ok);
  }).on(Callback.ResponseHeaders, () => {});
  test("proxy_set_effective_context/bad-argument-no-such-stream").on(Callback.RequestHeaders, () => {
    is(proxy_set_effective_context(0), WasmResultValues.BadArgument);
    is(proxy_set_effective_context(0x7fffffff), WasmResultValues.BadArgument);
    says(stream_context.headers.request.get("x-one"), "1");
  });
  test("proxy_done/not-found").on(Callback.RequestHeaders, () => {
    is(done(), WasmResultValues.NotFound);
  }).on(Callback.Done, () => {
    is(done(), WasmResultValues.NotFound);
  });
  test("proxy_get_status/ok").on(Callback.RequestHeaders, () => {
    is(call("nowhere", request(), "", 5000), WasmResultValues.Ok);
  }).on(Callback.HttpCallResponse, (headers: u32) => {
    is(headers, 0);
    const status = get_status();
    is(status.status, 14);
    says(text(status.data), "reset");
  });
  test("proxy_call_foreign_function/ok").on(Callback.RequestHeaders, () => {
    const name = bytes("clear_route_cache");
    const status = host.proxy_call_foreign_function(changetype<usize>(name), name.byteLength, 0, 0, out.ptr(), size.ptr());
    is(status, WasmResultValues.Ok);
    is(size.data, 0);
  });
  test("proxy_call_foreign_function/not-found").on(Callback.RequestHeaders, () => {
    const name = bytes("no_such_function");
    const status = host.proxy_call_foreign_function(changetype<usize>(name), name.byteLength, 0, 0, out.ptr(), size.ptr());
    is(status, WasmResultValues.NotFound);
  });
}

function buffers(): void {
  test("proxy_get_buffer_bytes/ok").on(Callback.Configure, () => {
    says((root as RootContext).getConfiguration(), "the plugin");
    says(text(get_buffer_bytes(BufferTypeValues.VmConfiguration, 0, 100)), "the vm");
  }).on(Callback.RequestBody, () => {
    says(text(get_buffer_bytes(BufferTypeValues.HttpRequestBody, 0, 100)), "hello");
    says(text(get_buffer_bytes(BufferTypeValues.HttpRequestBody, 1, 3)), "ell");
  }).on(Callback.ResponseBody, () => {
    says(text(get_buffer_bytes(BufferTypeValues.HttpResponseBody, 0, 0x7fffffff)), "world");
  });
  test("proxy_get_buffer_bytes/ok-nothing-after-the-end").on(Callback.RequestBody, () => {
    is(get_buffer_bytes(BufferTypeValues.HttpRequestBody, 5, 10).byteLength, 0);
    is(get_buffer_bytes(BufferTypeValues.HttpRequestBody, 1000, 10).byteLength, 0);
    is(get_buffer_bytes(BufferTypeValues.HttpRequestBody, 0, 0).byteLength, 0);
  });
  test("proxy_get_buffer_bytes/not-found-in-this-phase").on(Callback.RequestHeaders, () => {
    is(get_buffer_bytes(BufferTypeValues.HttpRequestBody, 0, 100).byteLength, 0);
    for (let buffer = 0; buffer < 9; buffer++) {
      if (buffer == BufferTypeValues.VmConfiguration || buffer == BufferTypeValues.PluginConfiguration) continue;
      is(bufferStatus(buffer, 0, 100), WasmResultValues.NotFound);
    }
  });
  test("proxy_get_buffer_bytes/bad-argument-no-such-buffer").on(Callback.RequestBody, () => {
    is(bufferStatus(9, 0, 100), WasmResultValues.BadArgument);
  });
  test("proxy_get_buffer_bytes/bad-argument-overflow").on(Callback.RequestBody, () => {
    is(bufferStatus(BufferTypeValues.HttpRequestBody, 1, u32.MAX_VALUE), WasmResultValues.BadArgument);
  });
  test("proxy_get_buffer_status/ok").on(Callback.RequestBody, (length: u32) => {
    const status = get_buffer_status(BufferTypeValues.HttpRequestBody);
    is(status.result, WasmResultValues.Ok);
    is(status.length, 5);
    is(status.flags, 0);
    is(length, 5);
  }).on(Callback.ResponseBody, () => {
    is(get_buffer_status(BufferTypeValues.HttpResponseBody).length, 5);
  });
  test("proxy_get_buffer_status/not-found-in-this-phase").on(Callback.RequestHeaders, () => {
    is(get_buffer_status(BufferTypeValues.HttpRequestBody).result, WasmResultValues.NotFound);
  });
  test("proxy_get_buffer_status/bad-argument-no-such-buffer").on(Callback.RequestBody, () => {
    is(get_buffer_status(9 as BufferTypeValues).result, WasmResultValues.BadArgument);
  });
}

function callbacks(): void {
  test("proxy_on_vm_start/ok").on(Callback.VmStart, (id: u32, length: u32) => {
    is(id, 1);
    is(length, 6);
  }).on(Callback.Configure, () => {});
  test("proxy_on_configure/ok").on(Callback.Configure, (id: u32, length: u32) => {
    is(id, 1);
    is(length, 10);
  });
  test("proxy_on_context_create/root").on(Callback.ContextCreate, (id: u32, parent: u32) => {
    is(id, 1);
    is(parent, 0);
  }).on(Callback.VmStart, () => {});
  test("proxy_on_context_create/stream").on(Callback.Configure, () => {}).on(Callback.ContextCreate, (id: u32, parent: u32) => {
    ok(id > 1, "the root again");
    is(parent, 1);
  });
  test("proxy_on_request_headers/ok").on(Callback.RequestHeaders, (count: u32, end: u32) => {
    ok(count > 5, "too few");
    is(end, 0);
  });
  test("proxy_on_request_headers/end-of-stream").on(Callback.RequestHeaders, (_count: u32, end: u32) => {
    is(end, 1);
  });
  test("proxy_on_request_body/ok").on(Callback.RequestBody, (length: u32) => {
    is(length, 5);
  });
  test("proxy_on_request_trailers/ok").on(Callback.RequestTrailers, (count: u32) => {
    is(count, 1);
  });
  test("proxy_on_response_headers/ok").on(Callback.ResponseHeaders, (count: u32, end: u32) => {
    ok(count >= 2, "too few");
    is(end, 0);
  });
  test("proxy_on_response_body/ok").on(Callback.ResponseBody, (length: u32) => {
    is(length, 5);
  });
  test("proxy_on_response_trailers/ok").on(Callback.ResponseTrailers, (count: u32) => {
    is(count, 1);
  });
  // In this order.
  test("proxy_on_log/ok").on(Callback.RequestHeaders, () => {}).on(Callback.RequestBody, () => {})
    .on(Callback.RequestTrailers, () => {}).on(Callback.ResponseHeaders, () => {}).on(Callback.ResponseBody, () => {})
    .on(Callback.ResponseTrailers, () => {}).on(Callback.Done, () => {}).on(Callback.Log, () => {})
    .on(Callback.Delete, () => {});
  test("proxy_on_done/ok").on(Callback.Done, () => {
    says(stream_context.headers.response.get(":status"), "200");
  });
  test("proxy_on_delete/ok").on(Callback.Delete, () => {});
  test("proxy_on_tick/ok").on(Callback.RequestHeaders, () => {
    set_tick_period_milliseconds(1);
  }).on(Callback.Tick, () => {
    set_tick_period_milliseconds(0);
  });
  test("proxy_on_queue_ready/ok").on(Callback.RequestHeaders, () => {
    is(register_shared_queue("ready", <u32>out.ptr()), WasmResultValues.Ok);
    kept = out.data;
    is(enqueue_shared_queue(kept, bytes("x")), WasmResultValues.Ok);
  }).on(Callback.QueueReady, (queue: u32) => {
    is(queue, kept);
  });
  test("proxy_on_http_call_response/ok").on(Callback.RequestHeaders, () => {
    is(call("web", request(), "", 5000), WasmResultValues.Ok);
  }).on(Callback.HttpCallResponse, (headers: u32, length: u32) => {
    ok(headers >= 2, "too few");
    is(length, 6);
    is(kept, 1);
  });
}

function calls(): void {
  test("proxy_http_call/ok").on(Callback.RequestHeaders, () => {
    is(call("web", request(), "question", 5000), WasmResultValues.Ok);
    pause();
  }).on(Callback.HttpCallResponse, () => {
    const answer = stream_context.headers.http_callback;
    says(answer.get(":status"), "200");
    says(answer.get("x-answer"), "42");
    says(stream_context.trailers.http_callback.get("x-end"), "yes");
    says(text(get_buffer_bytes(BufferTypeValues.HttpCallResponseBody, 0, 100)), "answer");
    is(get_status().status, 0);
    // The SDK has selected the stream that made the call.
    says(stream_context.headers.request.get("x-one"), "1");
    is(continue_request(), WasmResultValues.Ok);
  }).on(Callback.ResponseHeaders, () => {
    says(stream_context.headers.http_callback.get("x-answer"), "");
  });
  test("proxy_http_call/ok-but-it-fails").on(Callback.RequestHeaders, () => {
    is(call("nowhere", request(), "", 0), WasmResultValues.Ok);
  }).on(Callback.HttpCallResponse, (headers: u32) => {
    is(headers, 0);
    says(stream_context.headers.http_callback.get(":status"), "");
  });
  test("proxy_http_call/bad-argument").on(Callback.RequestHeaders, () => {
    is(call("nobody", request(), "", 0), WasmResultValues.BadArgument);
    is(call("web", [pair(":method", "GET"), pair(":path", "/")], "", 0), WasmResultValues.BadArgument);
    is(call("web", [], "", 0), WasmResultValues.BadArgument);
  });
  test("proxy_grpc_send/not-found").on(Callback.RequestHeaders, () => {
    is(host.proxy_grpc_send(0, 0, 0, 1), WasmResultValues.NotFound);
  });
  test("proxy_grpc_close/not-found").on(Callback.RequestHeaders, () => {
    is(host.proxy_grpc_close(0), WasmResultValues.NotFound);
  });
  test("proxy_grpc_cancel/not-found").on(Callback.RequestHeaders, () => {
    is(host.proxy_grpc_cancel(0), WasmResultValues.NotFound);
  });
}

function properties(): void {
  test("proxy_get_property/ok").on(Callback.RequestHeaders, () => {
    says(property("request\0path"), "/conformance?a=b");
  });
  test("proxy_get_property/plugin").on(Callback.ContextCreate, () => {
    says(property("plugin_root_id"), "conformance");
    says(property("plugin_name"), "conformance");
    says(property("plugin_vm_id"), "conformance");
  });
  test("proxy_get_property/request").on(Callback.RequestHeaders, () => {
    says(property("request\0url_path"), "/conformance");
    says(property("request\0query"), "a=b");
    says(property("request\0host"), "test");
    says(property("request\0scheme"), "http");
    says(property("request\0method"), "POST");
    says(property("request\0protocol"), "HTTP/1.1");
    says(property("request\0useragent"), "conformance");
    says(property("request\0headers\0x-one"), "1");
    ok(number("request\0time") > 1700000000000000000, "too early");
  }).on(Callback.Log, () => {
    is(number("request\0size"), 5);
  });
  test("proxy_get_property/response").on(Callback.ResponseHeaders, () => {
    is(number("response\0code"), 200);
    says(property("response\0headers\0x-up"), "yes");
  }).on(Callback.ResponseTrailers, () => {
    says(property("response\0trailers\0x-up-trailer"), "end");
  }).on(Callback.Log, () => {
    is(number("response\0flags"), 0);
    is(number("response\0size"), 5);
  });
  test("proxy_get_property/connection").on(Callback.RequestHeaders, () => {
    ok(property("source\0address").startsWith("127.0.0.1:"), "not a loopback address");
    ok(number("source\0port") > 0, "no port");
    is(get_property("connection\0mtls").byteLength, 1);
    says(property("connection\0requested_server_name"), "");
    says(property("xds\0filter_chain_name"), "main");
  });
  test("proxy_get_property/upstream").on(Callback.RequestHeaders, () => {
    is(propertyStatus("cluster_name"), WasmResultValues.NotFound);
  }).on(Callback.ResponseHeaders, () => {
    is(number("upstream\0request_attempt_count"), 1);
    says(property("cluster_name"), "web");
  });
  test("proxy_get_property/not-found").on(Callback.Configure, () => {
    is(propertyStatus("request\0path"), WasmResultValues.NotFound);
  }).on(Callback.RequestHeaders, () => {
    is(propertyStatus("none"), WasmResultValues.NotFound);
    is(propertyStatus("response\0code"), WasmResultValues.NotFound);
  });
  test("proxy_set_property/ok").on(Callback.RequestHeaders, () => {
    is(set_property("mine", bytes("value")), WasmResultValues.Ok);
    says(property("mine"), "value");
    is(set_property("a\0path", bytes("2")), WasmResultValues.Ok);
  }).on(Callback.ResponseHeaders, () => {
    says(property("a\0path"), "2");
  });
  test("proxy_set_property/ok-no-stream").on(Callback.Configure, () => {
    is(set_property("mine", bytes("value")), WasmResultValues.Ok);
  });
}

function shared(): void {
  test("proxy_set_shared_data/ok").on(Callback.RequestHeaders, () => {
    is(setShared("key", "one", 0), WasmResultValues.Ok);
    is(getShared("key"), WasmResultValues.Ok);
    says(given(), "one");
    is(setShared("key", "two", cas.data), WasmResultValues.Ok);
    is(getShared("key"), WasmResultValues.Ok);
    says(given(), "two");
  });
  test("proxy_set_shared_data/cas-mismatch").on(Callback.RequestHeaders, () => {
    is(setShared("compared", "one", 0), WasmResultValues.Ok);
    is(getShared("compared"), WasmResultValues.Ok);
    const old = cas.data;
    is(setShared("compared", "two", old), WasmResultValues.Ok);
    is(setShared("compared", "three", old), WasmResultValues.CasMismatch);
  });
  test("proxy_get_shared_data/ok").on(Callback.Configure, () => {
    is(setShared("early", "bird", 0), WasmResultValues.Ok);
  }).on(Callback.RequestHeaders, () => {
    is(getShared("early"), WasmResultValues.Ok);
    says(given(), "bird");
  });
  test("proxy_get_shared_data/not-found").on(Callback.RequestHeaders, () => {
    is(getShared("nothing here"), WasmResultValues.NotFound);
  });
  test("proxy_register_shared_queue/ok").on(Callback.RequestHeaders, () => {
    is(register_shared_queue("first", <u32>out.ptr()), WasmResultValues.Ok);
    const first = out.data;
    is(register_shared_queue("first", <u32>out.ptr()), WasmResultValues.Ok);
    is(out.data, first);
    is(register_shared_queue("second", <u32>out.ptr()), WasmResultValues.Ok);
    ok(out.data != first, "the same queue");
  });
  test("proxy_resolve_shared_queue/ok").on(Callback.RequestHeaders, () => {
    is(register_shared_queue("resolved", <u32>out.ptr()), WasmResultValues.Ok);
    const queue = out.data;
    is(resolve_shared_queue("conformance", "resolved", <u32>out.ptr()), WasmResultValues.Ok);
    is(out.data, queue);
    is(resolve_shared_queue("", "resolved", <u32>out.ptr()), WasmResultValues.Ok);
    is(out.data, queue);
  });
  test("proxy_resolve_shared_queue/not-found").on(Callback.RequestHeaders, () => {
    is(resolve_shared_queue("conformance", "nowhere", <u32>out.ptr()), WasmResultValues.NotFound);
  });
  test("proxy_enqueue_shared_queue/ok").on(Callback.Configure, () => {
    is(register_shared_queue("told", <u32>out.ptr()), WasmResultValues.Ok);
  }).on(Callback.RequestHeaders, () => {
    is(register_shared_queue("told", <u32>out.ptr()), WasmResultValues.Ok);
    is(enqueue_shared_queue(out.data, bytes("news")), WasmResultValues.Ok);
  }).on(Callback.QueueReady, (queue: u32) => {
    is(dequeue(queue), WasmResultValues.Ok);
    says(given(), "news");
    is(dequeue(queue), WasmResultValues.Empty);
  });
  test("proxy_enqueue_shared_queue/not-found").on(Callback.RequestHeaders, () => {
    is(enqueue_shared_queue(0x7fffffff, bytes("x")), WasmResultValues.NotFound);
  });
  test("proxy_dequeue_shared_queue/ok").on(Callback.RequestHeaders, () => {
    is(register_shared_queue("taken", <u32>out.ptr()), WasmResultValues.Ok);
    const queue = out.data;
    is(enqueue_shared_queue(queue, bytes("one")), WasmResultValues.Ok);
    is(enqueue_shared_queue(queue, bytes("two")), WasmResultValues.Ok);
    is(dequeue(queue), WasmResultValues.Ok);
    says(given(), "one");
    is(dequeue(queue), WasmResultValues.Ok);
    says(given(), "two");
  });
  test("proxy_dequeue_shared_queue/empty").on(Callback.RequestHeaders, () => {
    is(register_shared_queue("never filled", <u32>out.ptr()), WasmResultValues.Ok);
    is(dequeue(out.data), WasmResultValues.Empty);
  });
  test("proxy_dequeue_shared_queue/not-found").on(Callback.RequestHeaders, () => {
    is(dequeue(0x7fffffff), WasmResultValues.NotFound);
  });
}

function metrics(): void {
  test("proxy_define_metric/ok").on(Callback.RequestHeaders, () => {
    const counter = metric(MetricTypeValues.Counter, "conformance_counter");
    ok(metric(MetricTypeValues.Gauge, "conformance_gauge") != counter, "the same metric");
    metric(MetricTypeValues.Histogram, "conformance_histogram");
  });
  test("proxy_define_metric/bad-argument").on(Callback.RequestHeaders, () => {
    is(define_metric(3 as MetricTypeValues, "conformance_none").result, WasmResultValues.BadArgument);
    is(define_metric(MetricTypeValues.Counter, "").result, WasmResultValues.BadArgument);
  });
  test("proxy_increment_metric/ok").on(Callback.RequestHeaders, () => {
    const counter = metric(MetricTypeValues.Counter, "conformance_incremented");
    is(increment_metric(counter, 3), WasmResultValues.Ok);
    is(metricValue(counter), 3);
    const gauge = metric(MetricTypeValues.Gauge, "conformance_up_and_down");
    is(increment_metric(gauge, 5), WasmResultValues.Ok);
    is(increment_metric(gauge, -2), WasmResultValues.Ok);
    is(metricValue(gauge), 3);
  });
  test("proxy_increment_metric/bad-argument").on(Callback.RequestHeaders, () => {
    is(increment_metric(metric(MetricTypeValues.Counter, "conformance_never_down"), -1), WasmResultValues.BadArgument);
  });
  test("proxy_increment_metric/not-found").on(Callback.RequestHeaders, () => {
    is(increment_metric(100000, 1), WasmResultValues.NotFound);
  });
  test("proxy_record_metric/ok").on(Callback.RequestHeaders, () => {
    const gauge = metric(MetricTypeValues.Gauge, "conformance_set");
    is(record_metric(gauge, 7), WasmResultValues.Ok);
    is(metricValue(gauge), 7);
    is(record_metric(metric(MetricTypeValues.Histogram, "conformance_values"), 12), WasmResultValues.Ok);
  });
  test("proxy_record_metric/not-found").on(Callback.RequestHeaders, () => {
    is(record_metric(100000, 1), WasmResultValues.NotFound);
  });
  test("proxy_get_metric/ok").on(Callback.RequestHeaders, () => {
    is(metricValue(metric(MetricTypeValues.Counter, "conformance_read")), 0);
  });
}

function streams(): void {
  test("proxy_continue_stream/ok").on(Callback.RequestHeaders, () => {
    set_tick_period_milliseconds(1);
    pause();
  }).on(Callback.Tick, () => {
    set_tick_period_milliseconds(0);
    is(proxy_set_effective_context((stream as BaseContext).context_id), WasmResultValues.Ok);
    is(continue_request(), WasmResultValues.Ok);
  }).on(Callback.ResponseHeaders, () => {
    is(continue_response(), WasmResultValues.Ok);
    pause();
  });
  test("proxy_continue_stream/ok-nothing-to-continue").on(Callback.Configure, () => {
    is(continue_request(), WasmResultValues.Ok);
  }).on(Callback.RequestHeaders, () => {
    is(continue_request(), WasmResultValues.Ok);
    is(continue_response(), WasmResultValues.Ok);
  });
  test("proxy_continue_stream/bad-argument-no-such-stream").on(Callback.RequestHeaders, () => {
    is(host.proxy_continue_stream(4), WasmResultValues.BadArgument);
  });
  test("proxy_close_stream/ok").on(Callback.RequestHeaders, () => {
    is(host.proxy_close_stream(0), WasmResultValues.Ok);
  }).on(Callback.Done, () => {});
  test("proxy_close_stream/bad-argument-no-such-stream").on(Callback.RequestHeaders, () => {
    is(host.proxy_close_stream(4), WasmResultValues.BadArgument);
  });
  test("proxy_send_local_response/ok").on(Callback.RequestHeaders, () => {
    const status = send_local_response(403, "not you", bytes("go away"), [pair("x-own", "1")], GrpcStatusValues.InvalidCode);
    is(status, WasmResultValues.Ok);
    pause();
  }).on(Callback.ResponseHeaders, () => {
    says(stream_context.headers.response.get(":status"), "403");
    says(stream_context.headers.response.get("x-own"), "1");
  });
  test("proxy_send_local_response/ok-in-a-response-callback").on(Callback.ResponseHeaders, () => {
    is(send_local_response(404, "", bytes("mine"), [], GrpcStatusValues.InvalidCode), WasmResultValues.Ok);
  });
  test("proxy_send_local_response/ok-of-a-grpc-request").on(Callback.RequestHeaders, () => {
    is(send_local_response(403, "", bytes("denied"), [], GrpcStatusValues.PermissionDenied), WasmResultValues.Ok);
  });
}
