"""A router with 5,000 routes, one of which changes.

The time is from the rename of the configuration file to the first response of the changed route, and to the last one of the old.
"""

import time

import client
import configs
import table as markdown
from harness import free_ports
from table import spread


def run(context):
    count, rounds = context.pick(5000, 50), context.pick(5, 2)
    upstream, = context.upstreams(1)
    port, admin = free_ports(2)
    changed = count // 2

    def config(version):
        routes = [{"name": f"r{index}", "match": {"path": {"exact": f"/r/{index}"}}, "cluster": "web"} for index in range(count)]
        routes[changed]["response_headers"] = {"set": {"x-version": version}}
        return configs.base(admin) | {
            "listeners": [configs.listener("public", port, configs.FILTERS)],
            "filters": configs.filters(routes + [{"name": "rest", "cluster": "web"}]),
            "clusters": [configs.cluster("web", [upstream])],
        }

    context.write("routes.json", config("0"))
    proxy = context.proxy(context.path("routes.json"), admin)
    probe = client.Probe(port, lambda headers, _: headers.get("x-version"), f"/r/{changed}", pause=0.005)
    load = context.load(f"http://127.0.0.1:{port}/", 600, "--rate", context.pick("500", "50"),
                        "-c", "16", "--expect-status", "200")
    result = {"routes": count, "rounds": []}
    created = "tollgate_filter_instances_created_total"
    try:
        probe.wait("0")
        for version in map(str, range(1, rounds + 1)):
            quiet = proxy.usage()
            time.sleep(context.pick(2, 0.2))
            # What the probe and the load take is subtracted.
            rate = proxy.usage().since(quiet)
            metrics, before = proxy.metrics(), proxy.usage()
            began = time.monotonic()
            context.write("routes.json", config(version))
            written = time.monotonic()
            probe.wait(version)
            used = proxy.usage()
            elapsed = used.at - before.at
            result["rounds"].append({
                "written_seconds": written - began,
                "first_new_seconds": probe.first(version) - written,
                "last_old_seconds": probe.last(str(int(version) - 1)) - written,
                "others_cpu_seconds": used.others() - before.others() - rate["others_cpu"] * elapsed,
                "workers_cpu_seconds": used.workers() - before.workers() - rate["workers_cpu"] * elapsed,
                "new_instances": proxy.metrics().sum(created) - metrics.sum(created),
            })
    finally:
        probe.stop()
    report = load.finish(interrupt=True)
    result["load"] = {"requests": report["requests"], "failed": report["failed"], "errors": report["errors"], "p99_us": report["latency_us"]["p99"],
                      "max_us": report["latency_us"]["max"]}
    context.fact("no request failed", report["failed"] == 0 and not probe.failures)
    only = max(run["new_instances"] for run in result["rounds"])
    context.fact("only the router got new instances", 0 < only <= 8 or len(context.proxy_cpus) > 4)
    return result


def table(result):
    of = lambda key: spread([run[key] * 1000 for run in result["rounds"]], 0)
    rows = [
        ["rename to the first new response, ms", of("first_new_seconds")],
        ["rename to the last old response, ms", of("last_old_seconds")],
        ["CPU of other threads than workers, ms", of("others_cpu_seconds")],
        ["CPU of the workers, ms", of("workers_cpu_seconds")],
        ["new instances", spread([run["new_instances"] for run in result["rounds"]], 0)],
        ["failed requests meanwhile", f"{result['load']['failed']} of {result['load']['requests']:,}"],
        ["longest request meanwhile, ms", f"{result['load']['max_us'] / 1000:.1f}"],
    ]
    return markdown.table([f"One of {result['routes']:,} routes", ""], rows)
