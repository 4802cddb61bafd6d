// Admits requests with a known key. It replaces the key by its owner's name in the request to the upstream, strips a
// path prefix that only clients use, and removes headers from responses that reveal the upstream.
//
//     header: x-api-key       header with the key
//     prefix: /api            path prefix that is stripped
//     key s3cret: alice       one line per key

export * from "@solo-io/proxy-runtime/proxy";
import {
  Context, FilterHeadersStatusValues, GrpcStatusValues, HeaderPair, LogLevelValues, RootContext, log, registerRootContext,
  send_local_response, stream_context,
} from "@solo-io/proxy-runtime";
import { Options } from "./options";

class Root extends RootContext {
  header: string = "x-api-key";
  prefix: string = "";
  users: Map<string, string> = new Map();

  onConfigure(size: u32): bool {
    if (!super.onConfigure(size)) return false;
    const options = new Options(this.getConfiguration());
    this.header = options.get("header", "x-api-key");
    this.prefix = options.get("prefix");
    const names = options.names();
    for (let i = 0; i < names.length; i++) {
      if (names[i].startsWith("key ")) this.users.set(names[i].slice(4), options.get(names[i]));
    }
    if (this.users.size == 0) {
      log(LogLevelValues.error, "no keys are configured, so every request would be rejected");
      return false;
    }
    return true;
  }

  createContext(id: u32): Context {
    return new Gate(id, this);
  }
}

class Gate extends Context {
  private root: Root;
  private passed: bool = false;

  constructor(id: u32, root: Root) {
    super(id, root);
    this.root = root;
  }

  onRequestHeaders(_count: u32, _end: bool): FilterHeadersStatusValues {
    const request = stream_context.headers.request;
    const key = request.get(this.root.header);
    if (!this.root.users.has(key)) {
      const challenge = new HeaderPair(String.UTF8.encode("www-authenticate"), String.UTF8.encode("Key"));
      const body = String.UTF8.encode(key == "" ? "missing key\n" : "unknown key\n");
      send_local_response(401, "no key", body, [challenge], GrpcStatusValues.Unauthenticated);
      return FilterHeadersStatusValues.StopIteration;
    }
    this.passed = true;
    request.remove(this.root.header);
    request.replace("x-user", this.root.users.get(key));
    const path = request.get(":path");
    if (this.root.prefix != "" && path.startsWith(this.root.prefix + "/")) {
      request.replace(":path", path.slice(this.root.prefix.length));
      request.add("x-original-path", path);
    }
    return FilterHeadersStatusValues.Continue;
  }

  onResponseHeaders(_count: u32, _end: bool): FilterHeadersStatusValues {
    const response = stream_context.headers.response;
    const headers = response.get_headers();
    for (let i = 0; i < headers.length; i++) {
      const name = String.UTF8.decode(headers[i].key);
      if (name == "server" || name.startsWith("x-internal-")) response.remove(name);
    }
    response.add("x-gate", this.passed ? "passed" : "shut");
    return FilterHeadersStatusValues.Continue;
  }
}

registerRootContext((id: u32) => new Root(id), "gate");
