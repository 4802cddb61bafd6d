"""One of ten upstreams is slow, with and without hedging.

Requests take 5 ms and an exponentially distributed time of 5 ms on average. One upstream takes 200 ms more: for every request, or for one of four.
Round robin, 150 requests/s for each proxy, all at the same time; every seventh request is a POST with a short body, which may not be repeated.
*Extra load*: attempts that the upstreams received beyond one for each request. Times in ms, from when a request was due.
"""

import sys

import proxies
import table as markdown
from table import percent
from traffic import Load, Upstreams, count, lateness, quantile

# Not a divisor of the number of upstreams: with round robin, each should get some.
POST_EVERY = 7
CASES = {"each request": 1, "one of four": 4}
DELAY = 0.03
# The seconds in which connections are opened, and which do not count.
WARMUP = 4
VARIANTS = {
    "without": {}, "`hedging: {}`": {"hedging": {}}, "`hedging: {delay: 30ms}`": {"hedging": {"delay": "30ms"}},
}
ENVOY = "Envoy, `hedge_on_per_try_timeout`, 30 ms"


def run(context):
    rate, length = context.pick((150, 24), (50, WARMUP + 2))
    result = {"rate": rate, "length": length - WARMUP, "cases": {}, "late_ms": {}}
    for case, every in CASES.items():
        print(f"   slow: {case}, {length} s", flush=True)
        upstreams = Upstreams(context, 10)
        upstreams.set(service=0.005, spread=0.005)
        upstreams.set(upstreams.ports[:1], service=0.005, spread=0.005, delay=0.2, every=every)
        labels, targets = {}, {}
        for number, (label, cluster) in enumerate(VARIANTS.items()):
            if port := proxies.tollgate(context, f"hedging-{number}", upstreams.ports, **cluster):
                labels[f"p{number}"], targets[f"p{number}"] = label, port
        if context.envoy():
            labels["envoy"], targets["envoy"] = ENVOY, envoy(context, upstreams.ports)
        else:
            print("*** hedging: no Envoy, so it is NOT measured (tests/interop/setup.sh brings it)", file=sys.stderr)
        load = Load(context, targets, rate, length, timeout=5, post_every=POST_EVERY)
        records, result["late_ms"][case] = load.records()
        report = upstreams.report()
        rows = result["cases"].setdefault(case, {})
        for name, label in labels.items():
            own = records[name]
            row = rows[label] = measure(own, report["times"][name], load.start, length)
            received, different = report["methods"][name]["POST"]
            row["posts"], row["repeated_posts"] = different, received - different
            context.fact(f"{label}, {case}: every request was answered with 200", row["failed"] == 0 and len(own) == load.sent)
            if name != "envoy":
                context.fact(f"{label}, {case}: no POST was repeated", received == different == len(own[::POST_EVERY]))
        context.stop()
    return result


def envoy(context, ports):
    """Envoy hedges what it may retry, whatever the method."""
    route, budget = proxies.envoy_retries(1)
    route["retry_policy"] |= {"per_try_timeout": f"{DELAY}s"}
    route["hedge_policy"] = {"hedge_on_per_try_timeout": True}
    return proxies.envoy(context, "envoy", ports, budget, route)


def measure(records, times, start, length):
    """Statistics of the requests after the warm-up. A request's number is its place in the records."""
    def times_of(posts):
        return sorted(took for number, (due, took, _) in enumerate(records)
                      if due >= WARMUP and (number % POST_EVERY == 0) == posts)

    requests = sum(record[0] >= WARMUP for record in records)
    # The last attempts belong to requests that were due before the end.
    attempts = sum(count(chunk, start, WARMUP, length + 5) for chunk in times.values())
    gets, posts = times_of(False), times_of(True)
    return {
        "requests": requests, "failed": sum(record[2] != 200 for record in records), "extra": attempts / requests - 1,
        "get_p50": quantile(gets, 0.5), "get_p99": quantile(gets, 0.99), "post_p99": quantile(posts, 0.99),
    }


def table(result):
    parts = []
    for case, runs in result["cases"].items():
        rows = [[label, f"{row['get_p50']:.0f}", f"{row['get_p99']:.0f}", f"{row['post_p99']:.0f}", percent(row["extra"]),
                 f"{row['repeated_posts']} of {row['posts']}"] for label, row in runs.items()]
        parts.append(markdown.table([f"slow: {case}", "GET: p50", "p99", "POST: p99", "extra load", "repeated POSTs"], rows))
    parts.append(lateness(result))
    return "\n".join(parts)
