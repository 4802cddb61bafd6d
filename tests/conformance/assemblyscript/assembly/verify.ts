// Asks a service about each request and holds the request meanwhile. The service receives the method, the path and the
// `authorization` header; a 200 admits the request, and the answer's data is added to it.
//
//     cluster: decisions      the service's cluster
//     path: /check            path of the call
//     timeout: 500            in milliseconds
//     fail: closed            or `open`: requests pass if the service does not answer

export * from "@solo-io/proxy-runtime/proxy";
import {
  BaseContext, Context, FilterHeadersStatusValues, GrpcStatusValues, HeaderPair, Headers, LogLevelValues, RootContext,
  WasmResultValues, continue_request, log, registerRootContext, send_local_response, stream_context,
} from "@solo-io/proxy-runtime";
// Part of the SDK, but not exported in its index.
import { BufferTypeValues, get_buffer_bytes } from "@solo-io/proxy-runtime/runtime";
import { Options } from "./options";

class Root extends RootContext {
  options: Options = new Options("");

  onConfigure(size: u32): bool {
    if (!super.onConfigure(size)) return false;
    this.options = new Options(this.getConfiguration());
    return this.options.get("cluster") != "";
  }

  createContext(id: u32): Context {
    return new Verify(id, this);
  }
}

function pair(name: string, value: string): HeaderPair {
  return new HeaderPair(String.UTF8.encode(name), String.UTF8.encode(value));
}

function refuse(status: u32, why: string): void {
  send_local_response(status, why, String.UTF8.encode(why + "\n"), [], GrpcStatusValues.PermissionDenied);
}

class Verify extends Context {
  options: Options;

  constructor(id: u32, root: Root) {
    super(id, root);
    this.options = root.options;
  }

  onRequestHeaders(_count: u32, _end: bool): FilterHeadersStatusValues {
    const request = stream_context.headers.request;
    request.remove("x-scope");
    const headers: Headers = [
      pair(":method", "POST"),
      pair(":path", this.options.get("path", "/")),
      pair(":authority", this.options.get("cluster")),
      pair("authorization", request.get("authorization")),
    ];
    const question = String.UTF8.encode(request.get(":method") + " " + request.get(":path"));
    const timeout = <u32>parseInt(this.options.get("timeout", "1000"));
    const asked = this.root_context.httpCall(
      this.options.get("cluster"), headers, question, [], timeout, this,
      (origin: BaseContext, headers: u32, size: usize, _trailers: u32): void => {
        (origin as Verify).answered(headers, size);
      },
    );
    if (asked != WasmResultValues.Ok) {
      log(LogLevelValues.error, "cannot ask: " + asked.toString());
      refuse(500, "cannot ask");
    }
    return FilterHeadersStatusValues.StopIteration;
  }

  answered(headers: u32, size: usize): void {
    // A call that has failed or timed out has no headers.
    if (headers == 0) {
      log(LogLevelValues.warn, "the service does not answer");
      if (this.options.get("fail") == "open") continue_request();
      else refuse(503, "no decision");
      return;
    }
    const answer = stream_context.headers.http_callback;
    const body = String.UTF8.decode(get_buffer_bytes(BufferTypeValues.HttpCallResponseBody, 0, <u32>size));
    if (answer.get(":status") != "200") {
      // No `? :` here: with a constant and a variable, this compiler frees the variable twice.
      if (body == "") refuse(403, "refused");
      else refuse(403, body);
      return;
    }
    stream_context.headers.request.replace("x-scope", body);
    const ttl = answer.get("x-ttl");
    if (ttl != "") stream_context.headers.request.replace("x-scope-ttl", ttl);
    continue_request();
  }
}

registerRootContext((id: u32) => new Root(id), "verify");
