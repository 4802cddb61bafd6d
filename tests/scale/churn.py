"""1,000 endpoint updates a second from an HTTP source, under load.

1,000 clusters of 10 endpoints come from the source. Requests pass three filters and are shared out to 20 of the clusters, which
change once a second like all others. Updates arrive in batches of 20, or each in an answer of its own. The proxy has half of the
processors; the load generator, the upstreams and the source have the others. Rounds without and with updates alternate. A round
in which the load generator itself was late says nothing about the proxy, and is repeated.
"""

import os
import sys
import time

import client
import configs
import table as markdown
from harness import Commanded, free_ports, wait_for
from table import milliseconds, percent, spread

MODES = {"no updates": None, "in batches of 20": 20, "one at a time": 1}
# More than the endpoints of a cluster, so that updates have ports to move to.
UPSTREAMS = 12
# The lateness of the load generator at the 99th percentile (it counts only while a connection is free) from which a round is repeated,
# and how many rounds there are at most for each that is wanted.
LATE_US, ATTEMPTS = 1000, 4


def run(context):
    clusters, used = context.pick(1000, 40), context.pick(20, 10)
    updates, requests = context.pick(1000, 100), context.pick(2000, 100)
    rounds, seconds, long = context.pick((context.args.rounds, 8, context.args.seconds), (1, 1, 2))
    ports = context.upstreams(UPSTREAMS, context.other_cpus)
    plane, port, admin = free_ports(3)
    # It has the lowest priority, since what is measured is the proxy, and not a source that takes a processor from the load generator.
    source = context.own(Commanded(
        [sys.executable, os.path.join(os.path.dirname(__file__), "source.py"), "--port", str(plane),
         "--clusters", str(clusters), "--ports", ",".join(map(str, ports))],
        context.path("source.log"), cpus=context.other_cpus, nice=19))
    source.answer()

    config = configs.base(admin, len(context.proxy_cpus))
    split = [{"cluster": f"c{index}"} for index in range(used)]
    config |= {
        "sources": [{"name": "plane", "http": {"url": f"http://127.0.0.1:{plane}/resources", "wait": "30s"}}],
        "listeners": [configs.listener("public", port, configs.FILTERS)],
        "filters": configs.filters([{"name": "all", "split": {"clusters": split}}]),
    }
    proxy = context.proxy(context.write("churn.json", config), admin, cpus=context.proxy_cpus)
    # Until the source has answered, requests get 503.
    wait_for(lambda: proxy.metrics().sum("tollgate_clusters_missing") == 0, "the clusters of the source")
    wait_for(lambda: all(client.status(port, "/") == 200 for _ in range(10)), "answers of the clusters")

    def measure(batch, seconds):
        load = context.load(f"http://127.0.0.1:{port}/", seconds, "--rate", str(requests), "-c", "32",
                            "--expect-status", "200", cpus=context.other_cpus)
        time.sleep(0.5)
        if batch:
            source.tell(batch=batch, rate=updates, seconds=seconds + 1)
        time.sleep(0.5)
        metrics, usage = proxy.metrics(), proxy.usage()
        time.sleep(seconds - 0.2)
        used = proxy.usage().since(usage)
        after = proxy.metrics()
        report = load.finish()
        supplied = source.answer() if batch else None
        answered = after.sum("tollgate_requests_total") - metrics.sum("tollgate_requests_total")
        created = "tollgate_filter_instances_created_total"
        return {
            "requests": report["requests"],
            "failed": report["failed"], "errors": report["errors"],
            "new_instances": after.sum(created) - metrics.sum(created),
            "p50_us": report["latency_us"]["p50"],
            "p99_us": report["latency_us"]["p99"],
            "generator_lag_p99_us": report["generator"]["lag_us"]["p99"],
            "cpu_us_per_request": used["workers_cpu"] * used["seconds"] / answered * 1e6 if answered else None,
            "workers_cpu": used["workers_cpu"],
            "others_cpu": used["others_cpu"],
            "threads": used["threads"],
            "update_seconds": after.quantiles("tollgate_cluster_update_seconds", metrics),
            "source": supplied,
        }

    measure(None, min(seconds, 3))  # Opens the connections.
    result = {"clusters": clusters, "updates_per_second": updates, "requests_per_second": requests,
              "pairs": {mode: [] for mode in MODES}, "long": {}}
    result["repeated"] = []
    strict = context.pick(True, False)
    for attempt in range(1, ATTEMPTS * rounds + 1):
        runs = {mode: measure(batch, seconds) for mode, batch in MODES.items()}
        needed = len(result["pairs"]["no updates"]) + ATTEMPTS * rounds - attempt < rounds
        if needed or not strict or all(run["generator_lag_p99_us"] <= LATE_US for run in runs.values()):
            for mode, run in runs.items():
                result["pairs"][mode].append(run)
        else:
            result["repeated"].append(runs)
        if len(result["pairs"]["no updates"]) == rounds:
            break
    for mode, batch in MODES.items():
        if batch:
            result["long"][mode] = measure(batch, long)
    every = [run for runs in result["pairs"].values() for run in runs] + list(result["long"].values())
    every += [run for runs in result["repeated"] for run in runs.values()]
    with_updates = [run for run in every if run["source"]]
    context.fact("no request failed", all(run["failed"] == 0 for run in every))
    context.fact("no filter got a new instance", all(run["new_instances"] == 0 for run in every))
    context.fact("every update was taken, and the full state was requested once",
                 not any(run["source"]["problems"] for run in with_updates))
    context.fact("workers have applied updates", all(run["update_seconds"] for run in with_updates))
    result["memory"] = proxy.memory()
    return result


def table_of_pairs(result):
    quiet = result["pairs"]["no updates"]
    rows = []
    for mode, runs in result["pairs"].items():
        ratio = lambda key: [run[key] / base[key] for run, base in zip(runs, quiet) if run[key] and base[key]]
        rows.append([
            mode, spread([run["cpu_us_per_request"] for run in runs], 1), spread(ratio("cpu_us_per_request")),
            spread([run["p50_us"] for run in runs], 0), spread([run["p99_us"] for run in runs], 0), spread(ratio("p99_us")),
            spread([run["others_cpu"] * 100 for run in runs], 1),
        ])
    return markdown.table(["updates", "workers' CPU per request, µs", "ratio", "p50, µs", "p99, µs", "ratio", "other threads, % of a core"], rows)


def table_of_long(result):
    rows = []
    for mode, run in result["long"].items():
        lag, source = run["update_seconds"] or {}, run["source"]
        rows.append([
            mode, f"{source['updates']:,} in {source['seconds']:.1f} s", f"{run['failed']} of {run['requests']:,}",
            f"{run['new_instances']:.0f}", percent(run["others_cpu"]),
            milliseconds(lag.get("p50"), 2), milliseconds(lag.get("p99"), 2),
        ])
    return markdown.table(["updates", "supplied", "failed requests", "new instances", "other threads, of a core",
                  "until a worker uses it: p50", "p99"], rows)


def table(result):
    repeated = len(result["repeated"])
    note = f"{repeated} rounds of each kind were repeated, because the load generator itself was late by over {LATE_US / 1000:.0f} ms."
    return table_of_pairs(result) + "\n" + table_of_long(result) + (f"\n{note}\n" if repeated else "")
