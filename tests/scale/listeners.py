"""300 listeners with the same three filters.

The filters are entries of the configuration that all listeners name, or three entries per listener with equal code and
configuration.
"""

import client
import configs
import table as markdown
from harness import free_ports


def run(context):
    count = context.pick(300, 6)
    upstream, = context.upstreams(1)
    result = {"listeners": count, "runs": {}}
    executables = {"Tollgate": context.tollgate}
    if context.args.before:
        executables["before"] = context.args.before
    for program, executable in executables.items():
        for entries in ("three entries", "three entries per listener"):
            name = f"{program}, {entries}"
            admin, *ports = free_ports(count + 1)
            config = configs.base(admin)
            routes = [{"cluster": "web"}]
            if entries == "three entries":
                filters = configs.filters(routes)
                prefixes = [""] * count
            else:
                prefixes = [f"f{index}-" for index in range(count)]
                filters = [filter for prefix in prefixes for filter in configs.filters(routes, prefix)]
            config |= {
                "listeners": [
                    configs.listener(f"l{index}", port, [prefix + filter for filter in configs.FILTERS])
                    for index, (port, prefix) in enumerate(zip(ports, prefixes))
                ],
                "filters": filters,
                "clusters": [configs.cluster("web", [upstream])],
            }
            path = context.write(f"{name.replace(' ', '-').replace(',', '')}.json", config)
            proxy = context.proxy(path, admin, name.replace(" ", "-"), executable, seconds=300)
            threads = proxy.usage().threads.values()
            workers = sum(1 for thread, _, _ in threads if thread.removeprefix("tollgate-").isdigit())
            fresh = proxy.memory()
            statuses = {client.status(port, "/") for port in ports}
            context.fact(f"{name}: every listener answers", statuses == {200})
            metrics = proxy.metrics()
            result["runs"][name] = {
                "workers": workers,
                "ready_seconds": proxy.ready_seconds,
                # Without the metric, the sum over the filters' names, which counts no instance twice there.
                "created": metrics.sum("tollgate_filter_instances_created_total") or metrics.sum("tollgate_filter_instances"),
                "wasm_memory_mib": metrics.sum("tollgate_filter_memory_bytes") / (1 << 20),
                "untouched": fresh,
                "used": proxy.memory(),
            }
            proxy.stop()
    for entries, fact in [
        ("three entries", "listeners share the instances of a filter"),
        ("three entries per listener", "equal filters share instances"),
    ]:
        run = result["runs"][f"Tollgate, {entries}"]
        # One for each worker, and a spare for each filter.
        context.fact(fact, 0 < run["created"] <= 3 * (run["workers"] + 1))
    return result


def table(result):
    rows = [
        [name, f"{run['ready_seconds']:.2f} s", f"{run['created']:.0f}", f"{run['created'] / run['workers']:.1f}",
         f"{run['untouched']['rss']:.0f} MiB", f"{run['used']['rss']:.0f} MiB", f"{run['used']['peak']:.0f} MiB"]
        for name, run in result["runs"].items()
    ]
    return markdown.table(["", "start to ready", "instances created", "per worker", "RSS untouched", "used", "peak"], rows)
