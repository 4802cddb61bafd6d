// The conformance cases in a module of the AssemblyScript SDK; see ../../README.md. Where the SDK (0.1.8) throws at a
// status other than Ok, mixes up arguments (shared data, `get_metric`), or does not compile (`dequeue_shared_queue`,
// `set_headers`), this module calls the host's functions directly, as the SDK imports them.
//
// It has no cases for features that the SDK lacks: setting buffers, gRPC calls, replacing all headers.

export * from "@solo-io/proxy-runtime/proxy";
import {
  Context, FilterDataStatusValues, FilterHeadersStatusValues, FilterTrailersStatusValues, RootContext, registerRootContext,
  stream_context,
} from "@solo-io/proxy-runtime";
import { Callback, begin, cases, find, pauses, reply, run, runEarly } from "./suite";
import { registerCases, setRoot, setStream } from "./cases";

class Root extends RootContext {
  constructor(id: u32) {
    super(id);
    setRoot(this);
    registerCases();
    runEarly(Callback.ContextCreate, id, 0);
  }

  onStart(size: usize): bool {
    runEarly(Callback.VmStart, this.context_id, <u32>size);
    return true;
  }

  onConfigure(size: u32): bool {
    if (!super.onConfigure(size)) return false;
    runEarly(Callback.Configure, this.context_id, size);
    return true;
  }

  onTick(): void {
    run(Callback.Tick, 0, 0, 0);
  }

  onQueueReady(token: u32): void {
    run(Callback.QueueReady, 0, token, 0);
  }

  createContext(id: u32): Context {
    runEarly(Callback.ContextCreate, id, this.context_id);
    return new Stream(id, this);
  }
}

class Stream extends Context {
  onRequestHeaders(count: u32, end: bool): FilterHeadersStatusValues {
    const request = stream_context.headers.request;
    if (request.get("x-cases") != "") {
      const names: string[] = [];
      for (let i = 0; i < cases.length; i++) names.push(cases[i].name);
      reply(200, names.join("\n"));
      return FilterHeadersStatusValues.Continue;
    }
    const asked = request.get("x-result");
    if (asked != "") {
      find(asked).tell();
      return FilterHeadersStatusValues.Continue;
    }
    const name = request.get("x-case");
    if (name != "") {
      setStream(this);
      begin(name, this.context_id);
    }
    run(Callback.RequestHeaders, this.context_id, count, end ? 1 : 0);
    return pauses() ? FilterHeadersStatusValues.StopIteration : FilterHeadersStatusValues.Continue;
  }

  onRequestBody(size: usize, end: bool): FilterDataStatusValues {
    // An empty last part of a body does not count as a part.
    if (size > 0) run(Callback.RequestBody, this.context_id, <u32>size, end ? 1 : 0);
    return FilterDataStatusValues.Continue;
  }

  onRequestTrailers(count: u32): FilterTrailersStatusValues {
    run(Callback.RequestTrailers, this.context_id, count, 0);
    return FilterTrailersStatusValues.Continue;
  }

  onResponseHeaders(count: u32, end: bool): FilterHeadersStatusValues {
    run(Callback.ResponseHeaders, this.context_id, count, end ? 1 : 0);
    return pauses() ? FilterHeadersStatusValues.StopIteration : FilterHeadersStatusValues.Continue;
  }

  onResponseBody(size: usize, end: bool): FilterDataStatusValues {
    if (size > 0) run(Callback.ResponseBody, this.context_id, <u32>size, end ? 1 : 0);
    return FilterDataStatusValues.Continue;
  }

  onResponseTrailers(count: u32): FilterTrailersStatusValues {
    run(Callback.ResponseTrailers, this.context_id, count, 0);
    return FilterTrailersStatusValues.Continue;
  }

  onDone(): bool {
    run(Callback.Done, this.context_id, 0, 0);
    return true;
  }

  onLog(): void {
    run(Callback.Log, this.context_id, 0, 0);
  }

  onDelete(): void {
    run(Callback.Delete, this.context_id, 0, 0);
  }
}

registerRootContext((id: u32) => new Root(id), "conformance");
