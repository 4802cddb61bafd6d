"""Twice as many requests as the proxy can process.

One worker on a processor of its own runs a filter that takes some milliseconds of processor time for each request; the upstream answers at once.
The capacity is one second divided by the processor time that a request takes, measured before and after each run; the highest counts. Clients send twice as many requests, and leave
after a second. *Goodput*: responses with 200 in that time, relative to the capacity.
"""

import busy
import client
import proxies
import table as markdown
from table import percent
from traffic import Load, Upstreams, lateness, summary

VARIANTS = {"without": {}, "`overload: {max_lag: 50ms}`": {"overload": {"max_lag": "50ms"}}}
ITERATIONS = 2_500_000
GOAL = 0.9
SHED = "`overload: {max_lag: 50ms}`"


def run(context):
    length, warmup = context.pick((20, 5), (4, 2))
    result = {"length": length - warmup, "capacities": [], "runs": {}, "late_ms": {}}
    module = context.path("busy.wasm")
    with open(module, "wb") as file:
        file.write(busy.module(ITERATIONS))
    for label, listener in VARIANTS.items():
        upstreams = Upstreams(context)
        port = start(context, upstreams.ports, module, listener)
        if not port:
            continue
        proxy = context.processes[-1]
        result["capacities"].append(measure_capacity(context, proxy, port))
        rate = result.setdefault("rate", 2 * result["capacities"][0])
        print(f"   {label}: {rate:.0f} requests/s, {length} s", flush=True)
        load = Load(context, {"proxy": port}, rate, length, timeout=1, cpus=context.other_cpus)
        load.sleep_until(length - 1)
        context.fact(f"{label}: the admin listener answers during the overload", client.status(proxy.admin, "/ready") == 200)
        records, result["late_ms"][label] = load.records()
        own = records["proxy"]
        context.fact(f"{label}: every request has ended", len(own) == load.sent)
        good = [record for record in own if record[2] == 200]
        row = result["runs"][label] = summary(own, warmup)
        row["good"] = summary(good, warmup)
        result["capacities"].append(measure_capacity(context, proxy, port))
        context.stop()
    return result


def measure_capacity(context, proxy, port):
    """Returns how many requests take a second of the worker's processor time."""
    before = proxy.usage()
    url = f"http://127.0.0.1:{port}/capacity/0"
    report = context.load(url, context.pick(4, 1), "--saturate", "-c", "4", cpus=context.other_cpus, warmup=0).finish()
    return report["requests"] / (proxy.usage().workers() - before.workers())


def start(context, ports, module, listener):
    top = {
        "workers": 1, "cache_dir": context.path("cache"),
        "filters": [{"name": "busy", "wasm": module}],
    }
    return proxies.tollgate(context, "tollgate", ports, {"chain": ["busy"], **listener}, top, context.proxy_cpus[:1])


def goodput(result, row):
    return row["good"]["requests"] / result["length"] / max(result["capacities"])


def table(result):
    rows = []
    for label, row in result["runs"].items():
        rejected = row["failures"].get("503", 0)
        time = lambda value: "–" if value is None else f"{value:.0f}"
        rows.append([label, percent(goodput(result, row)), percent(rejected / row["requests"]), percent((row["failed"] - rejected) / row["requests"]),
                     time(row["good"]["p50"]), time(row["good"]["p99"])])
    title = f"{result['rate']:.0f} requests/s, {result['length']} s" if rows else ""
    parts = [markdown.table([title, "goodput", "rejected (503)", "no response", "p50 of good ones, ms", "p99"], rows)]
    if shed := result["runs"].get(SHED):
        reached = goodput(result, shed)
        parts.append(markdown.goals([("goodput with shedding at least 90 %", percent(reached), reached >= GOAL)]))
    parts.append(lateness(result))
    return "\n".join(parts)
