"""An idle proxy with filters: processor time and wake-ups.

Some requests run first, so that everything that a request creates exists. The proxy then gets neither requests nor changes.
"""

import time

import client
import configs
import table as markdown
from harness import free_ports


def run(context):
    seconds = context.pick(context.args.seconds, 3)
    upstream, = context.upstreams(1)
    result = {"runs": {}}
    executables = {"Tollgate": context.tollgate}
    if context.args.before:
        executables["before"] = context.args.before
    for name, executable in executables.items():
        port, admin = free_ports(2)
        config = configs.base(admin)
        config |= {
            "listeners": [configs.listener("public", port, configs.FILTERS)],
            "filters": configs.filters([{"cluster": "web"}]),
            "clusters": [configs.cluster("web", [upstream])],
        }
        proxy = context.proxy(context.write(f"{name}.json", config), admin, name, executable)
        statuses = {client.status(port, "/") for _ in range(100)}
        context.fact(f"{name}: requests are answered", statuses == {200})
        time.sleep(context.pick(10, 1))
        before = proxy.usage()
        time.sleep(seconds)
        result["runs"][name] = proxy.usage().since(before)
        proxy.stop()
    return result


def table(result):
    rows = []
    for name, run in result["runs"].items():
        rows.append([name, "all", f"{run['cpu'] * 100:.3f} %", f"{sum(t['wake_ups'] for t in run['threads'].values()):.1f}"])
        for thread, used in sorted(run["threads"].items(), key=lambda item: -item[1]["wake_ups"]):
            if used["wake_ups"] > 0:
                rows.append(["", f"`{thread}`", f"{used['cpu'] * 100:.3f} %", f"{used['wake_ups']:.1f}"])
    return markdown.table(["", "thread", "of a core", "wake-ups a second"], rows)
