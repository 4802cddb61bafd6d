// Framework for the cases: a case, its scripts, its verdict.

import { GrpcStatusValues, send_local_response } from "@solo-io/proxy-runtime";

export enum Callback {
  VmStart, Configure, ContextCreate, Tick, QueueReady, HttpCallResponse, RequestHeaders, RequestBody, RequestTrailers, ResponseHeaders,
  ResponseBody, ResponseTrailers, Done, Log, Delete,
}

/** A case, with one script per callback, in the expected order. */
export class Case {
  private callbacks: Callback[] = [];
  private scripts: Array<(a: u32, b: u32) => void> = [];
  private done: i32 = 0;
  checks: i32 = 0;
  failed: string = "";

  constructor(public name: string) {}

  on(callback: Callback, script: (a: u32, b: u32) => void): Case {
    this.callbacks.push(callback);
    this.scripts.push(script);
    return this;
  }

  next(callback: Callback, a: u32, b: u32): void {
    if (this.done == this.scripts.length || this.callbacks[this.done] != callback) return;
    this.done++;
    const script = this.scripts[this.done - 1];
    script(a, b);
  }

  tell(): void {
    if (this.failed != "") reply(500, this.failed);
    else if (this.scripts.length == 0 || this.done < this.scripts.length) reply(404, "no verdict");
    else reply(200, "ok");
  }
}

export const cases: Case[] = [];
const nothing = new Case("");
let current: Case = nothing;
let stream: u32 = 0;
let pausing: bool = false;

export function test(name: string): Case {
  const one = new Case(name);
  cases.push(one);
  return one;
}

export function find(name: string): Case {
  for (let i = 0; i < cases.length; i++) {
    if (cases[i].name == name) return cases[i];
  }
  return nothing;
}

/** Begins the case that a request asks for. */
export function begin(name: string, context: u32): void {
  current = find(name);
  stream = context;
}

/** Runs the current case's script for this callback; `context` is 0 for the root's. */
export function run(callback: Callback, context: u32, a: u32, b: u32): void {
  pausing = false;
  if (context == 0 || context == stream) current.next(callback, a, b);
}

/** Handles a callback that precedes any request: every case that expects it runs. */
export function runEarly(callback: Callback, a: u32, b: u32): void {
  const asked = current;
  for (let i = 0; i < cases.length; i++) {
    current = cases[i];
    current.next(callback, a, b);
  }
  current = asked;
}

/** Makes the callback pause. */
export function pause(): void {
  pausing = true;
}

export function pauses(): bool {
  return pausing;
}

export function ok(good: bool, what: string): void {
  current.checks++;
  if (!good && current.failed == "") current.failed = "check " + current.checks.toString() + ": " + what;
}

export function is(got: u64, wanted: u64): void {
  ok(got == wanted, "got " + got.toString());
}

export function says(got: string, wanted: string): void {
  ok(got == wanted, "got " + got);
}

export function reply(status: u32, body: string): void {
  send_local_response(status, "", String.UTF8.encode(body), [], GrpcStatusValues.InvalidCode);
}
