// Measures requests and their bodies over all workers, and rejects bodies that contain a forbidden word. The totals are
// published at each tick.
//
//     refuse: attack          the word; bodies are held until complete
//     period: 100             milliseconds between ticks

export * from "@solo-io/proxy-runtime/proxy";
import {
  Context, Counter, FilterDataStatusValues, FilterHeadersStatusValues, FilterTrailersStatusValues, Gauge, GrpcStatusValues,
  Histogram, LogLevelValues, RootContext, WasmResultValues, log, registerRootContext, send_local_response, stream_context,
} from "@solo-io/proxy-runtime";
// Part of the SDK, but not exported in its index.
import {
  BufferTypeValues, Reference, get_buffer_bytes, get_buffer_status, get_current_time_nanoseconds, get_property,
  set_tick_period_milliseconds,
} from "@solo-io/proxy-runtime/runtime";
// These use the host's functions directly: the SDK's functions for shared data (0.1.8) mix up their arguments.
import { proxy_get_shared_data, proxy_set_shared_data } from "@solo-io/proxy-runtime/imports";
import { free } from "@solo-io/proxy-runtime/malloc";
import { Options } from "./options";

const TOTAL = String.UTF8.encode("meter.total");

/** A total that all workers share. */
class Total {
  private data: Reference<usize> = new Reference<usize>();
  private size: Reference<usize> = new Reference<usize>();
  private cas: Reference<u32> = new Reference<u32>();

  read(): u64 {
    const status = proxy_get_shared_data(
      changetype<usize>(TOTAL), TOTAL.byteLength, this.data.ptr(), this.size.ptr(), this.cas.ptr(),
    );
    if (status != WasmResultValues.Ok || this.size.data != 8) {
      this.cas.data = 0;
      return 0;
    }
    const value = load<u64>(this.data.data);
    free(this.data.data);
    return value;
  }

  /** Retries until no other worker has changed the value first. */
  add(count: u64): void {
    const value = new ArrayBuffer(8);
    let status: u32;
    do {
      store<u64>(changetype<usize>(value), this.read() + count);
      status = proxy_set_shared_data(
        changetype<usize>(TOTAL), TOTAL.byteLength, changetype<usize>(value), 8, this.cas.data,
      );
    } while (status == WasmResultValues.CasMismatch);
    if (status != WasmResultValues.Ok) log(LogLevelValues.error, "cannot store the total: " + status.toString());
  }
}

class Root extends RootContext {
  word: string = "";
  total: Total = new Total();
  requests: Counter = new Counter("meter.requests");
  active: Gauge = new Gauge("meter.active");
  published: Gauge = new Gauge("meter.bytes");
  sizes: Histogram = new Histogram("meter.body_size");
  ticks: Counter = new Counter("meter.ticks");

  onConfigure(size: u32): bool {
    if (!super.onConfigure(size)) return false;
    const options = new Options(this.getConfiguration());
    this.word = options.get("refuse");
    set_tick_period_milliseconds(<u32>parseInt(options.get("period", "1000")));
    return true;
  }

  onTick(): void {
    this.ticks.increment(1);
    this.published.record(this.published.metric_id, this.total.read());
  }

  createContext(id: u32): Context {
    return new Meter(id, this);
  }
}

class Meter extends Context {
  private root: Root;
  private size: u64 = 0;
  private began: u64 = 0;

  constructor(id: u32, root: Root) {
    super(id, root);
    this.root = root;
  }

  onRequestHeaders(_count: u32, _end: bool): FilterHeadersStatusValues {
    this.began = get_current_time_nanoseconds();
    this.root.requests.increment(1);
    this.root.active.increment(1);
    return FilterHeadersStatusValues.Continue;
  }

  onRequestBody(size: usize, end: bool): FilterDataStatusValues {
    if (!end && this.root.word != "") return FilterDataStatusValues.StopIterationAndBuffer;
    return this.passes(<u32>size) ? FilterDataStatusValues.Continue : FilterDataStatusValues.StopIterationNoBuffer;
  }

  onRequestTrailers(_count: u32): FilterTrailersStatusValues {
    // The kept part of the body: with trailers, no part of it is the last one.
    const held = get_buffer_status(BufferTypeValues.HttpRequestBody);
    const size = held.result == WasmResultValues.Ok ? <u32>held.length : 0;
    if (!this.passes(size)) return FilterTrailersStatusValues.StopIteration;
    stream_context.trailers.request.add("x-metered", this.size.toString());
    return FilterTrailersStatusValues.Continue;
  }

  /** Reports whether this part of the body, or the whole body, may continue. */
  private passes(size: u32): bool {
    const body = String.UTF8.decode(get_buffer_bytes(BufferTypeValues.HttpRequestBody, 0, size));
    if (this.root.word != "" && body.includes(this.root.word)) {
      send_local_response(422, "bad word", String.UTF8.encode("forbidden word\n"), [], GrpcStatusValues.InvalidArgument);
      return false;
    }
    this.size += size;
    return true;
  }

  onLog(): void {
    this.root.active.increment(-1);
    this.root.sizes.record(this.root.sizes.metric_id, this.size);
    if (this.size > 0) this.root.total.add(this.size);
    const code = load<u64>(changetype<usize>(get_property("response\0code")));
    const path = stream_context.headers.request.get(":path");
    const took = get_current_time_nanoseconds() - this.began;
    log(LogLevelValues.info, path + " was answered with " + code.toString() + (took > 0 ? "" : " in no time"));
  }
}

registerRootContext((id: u32) => new Root(id), "meter");
