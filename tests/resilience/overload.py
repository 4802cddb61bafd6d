"""Twice as many requests as the upstream can process.

The upstream processes ten requests at a time, each in 50 ms: 200/s. It queues all others, and notices no client that has left. Clients send 400
requests/s and leave after a second. *Goodput*: responses with 200 in that time, relative to the upstream's capacity.
"""

import sys

import proxies
import table as markdown
from envoy_config import typed
from table import percent
from traffic import Load, Upstreams, lateness, seconds, summary

SLOTS, SERVICE = 10, 0.05
CAPACITY = round(SLOTS / SERVICE)
# The requests that a fixed limit admits: those that are processed, and as many that wait.
LIMIT = 2 * SLOTS
GOAL = 0.9
OURS = "Tollgate, adaptive concurrency"
# As in the example of Envoy's documentation.
PERCENTILE, JITTER, REQUESTS = 90, 10, 50
TOLLGATE = {
    "Tollgate": {},
    "Tollgate, `limits.requests`": {"limits": {"requests": LIMIT}},
    OURS: {"adaptive_concurrency": {
        "sample_aggregate_percentile": PERCENTILE,
        "concurrency_limit_params": {"concurrency_update_interval": "100ms"},
        "min_rtt_calc_params": {"interval": "60s", "jitter": JITTER, "request_count": REQUESTS},
    }},
}
ADAPTIVE = typed(
    "envoy.filters.http.adaptive_concurrency", "filters.http.adaptive_concurrency.v3.AdaptiveConcurrency",
    enabled={"default_value": True, "runtime_key": "adaptive_concurrency.enabled"},
    gradient_controller_config={
        "sample_aggregate_percentile": {"value": PERCENTILE},
        "concurrency_limit_params": {"concurrency_update_interval": "0.1s"},
        "min_rtt_calc_params": {"interval": "60s", "jitter": {"value": JITTER}, "request_count": REQUESTS},
    },
)
ENVOY = {
    "Envoy": {},
    "Envoy, `max_requests`": {"cluster": {"circuit_breakers": {"thresholds": [{"max_requests": LIMIT}]}}},
    "Envoy, adaptive concurrency": {"filters": [ADAPTIVE]},
}


def run(context):
    length, warmup = context.pick((25, 5), (4, 2))
    result = {"capacity": CAPACITY, "offered": 2 * CAPACITY, "length": length - warmup, "runs": {}, "late_ms": {}}
    starts = {
        label: lambda ports, cluster=cluster: proxies.tollgate(context, "tollgate", ports, **cluster)
        for label, cluster in TOLLGATE.items()
    }
    if context.envoy():
        starts |= {label: lambda ports, fields=fields: proxies.envoy(context, "envoy", ports, **fields) for label, fields in ENVOY.items()}
    else:
        print("*** overload: no Envoy, so it is NOT measured (tests/interop/setup.sh brings it)", file=sys.stderr)
    for label, start in starts.items():
        print(f"   {label}, {length} s", flush=True)
        upstreams = Upstreams(context)
        upstreams.set(service=SERVICE, slots=SLOTS)
        if port := start(upstreams.ports):
            load = Load(context, {"proxy": port}, 2 * CAPACITY, length, timeout=1)
            records, result["late_ms"][label] = load.records()
            own = records["proxy"]
            context.fact(f"{label}: every request has ended", len(own) == load.sent)
            good = [record for record in own if record[2] == 200]
            row = summary(own, warmup)
            row |= {"good": summary(good, warmup), "goodput": sum(due >= warmup for due, _, _ in good) / (length - warmup) / CAPACITY}
            row["seconds"] = [second["requests"] for second in seconds(good, length)]
            result["runs"][label] = row
        context.stop()
    return result


def table(result):
    rows = []
    for label, row in result["runs"].items():
        rejected = row["failures"].get("503", 0)
        part = lambda number: percent(number / row["requests"])
        time = lambda value: "–" if value is None else f"{value:.0f}"
        rows.append([label, percent(row["goodput"]), part(rejected), part(row["failed"] - rejected),
                     time(row["good"]["p50"]), time(row["good"]["p99"])])
    header = [f"{result['offered']} requests/s, {result['length']} s", "goodput", "rejected (503)", "no response", "p50 of good ones, ms", "p99"]
    parts = [markdown.table(header, rows)]
    if ours := result["runs"].get(OURS):
        parts.append(markdown.goals([("goodput with adaptive concurrency at least 90 %", percent(ours["goodput"]), ours["goodput"] >= GOAL)]))
    parts.append(lateness(result))
    return "\n".join(parts)
