"""A filter is swapped while the workers are saturated.

The proxy has half of the processors, so that its workers are the limit. The router's configuration changes under a closed loop of
connections; in every second round another module is swapped in too, which must be compiled. The time is from the rename of the
configuration file to the first response of the new version, and to the last one of the old.
"""

import os
import shutil
import time

import client
import configs
import table as markdown
from harness import ROOT, free_ports
from table import spread

MODULE = os.path.join(ROOT, "target/filters/wasm32-unknown-unknown/filter/router.wasm")


def run(context):
    result = {"runs": {}}
    apart = (context.proxy_cpus, context.other_cpus)
    for place, cpus in {"processors of its own": apart, "all processors": (None, None)}.items():
        result["runs"][place] = swaps(context, *cpus)
    return result


def swaps(context, own, others):
    """Swaps the filter several times. The proxy runs on the processors `own`, the load generator and the upstreams on `others`."""
    rounds = context.pick(4, 2)
    upstreams = context.upstreams(2, others)
    port, admin = free_ports(2)
    has_module = os.path.exists(MODULE)

    def config(version, module):
        filters = configs.filters([{"cluster": "web", "response_headers": {"set": {"x-version": version}}}])
        filters[-1]["wasm"] = module
        return configs.base(admin, len(own) if own else None) | {
            "cache_dir": context.path("cache"),
            "listeners": [configs.listener("public", port, configs.FILTERS)],
            "filters": filters,
            "clusters": [configs.cluster("web", upstreams)],
        }

    module = "builtin:router"
    context.write("swap.json", config("0", module))
    proxy = context.proxy(context.path("swap.json"), admin, cpus=own)
    pace = context.pick(["--saturate"], ["--rate", "200"])
    load = context.load(f"http://127.0.0.1:{port}/", 600, *pace, "-c", "64", "--expect-status", "200",
                        "--tally-header", "x-version", cpus=others, warmup=0.5)
    probe = client.Probe(port, lambda headers, _: headers.get("x-version"))
    result = {"rounds": []}
    try:
        probe.wait("0")
        time.sleep(1)
        for number in range(1, rounds + 1):
            compiled = has_module and number % 2 == 0
            if compiled:
                # The same code with another custom section is a different module.
                module = context.path(f"router-{number}.wasm")
                shutil.copyfile(MODULE, module)
                with open(module, "ab") as file:
                    file.write(b"\0\x0d\4note" + os.urandom(8))
            before = proxy.usage()
            context.write("swap.json", config(str(number), module))
            written = time.monotonic()
            probe.wait(str(number))
            used = proxy.usage().since(before)
            result["rounds"].append({
                "compiled": compiled,
                "first_new_seconds": probe.first(str(number)) - written,
                "last_old_seconds": probe.last(str(number - 1)) - written,
                "workers_cpu": used["workers_cpu"],
                "others_cpu": used["others_cpu"],
            })
    finally:
        probe.stop()
    report = load.finish(interrupt=True)
    latency = report["latency_us"] or report["service_time_us"]
    result["probe_failures"] = probe.failures[:3]
    result["load"] = {"requests": report["requests"], "failed": report["failed"], "errors": report["errors"], "rate": report["achieved_rate"],
                      "p99_us": latency["p99"], "max_us": latency["max"]}
    context.fact("no request failed", report["failed"] == 0 and not probe.failures)
    context.fact("the load saw several versions", len(report["tally"]["values"]) > 1)
    proxy.stop()
    return result


def table(result):
    rows = []
    for place, run in result["runs"].items():
        for compiled, what in ((False, "configuration"), (True, "module and configuration")):
            rounds = [one for one in run["rounds"] if one["compiled"] == compiled]
            if rounds:
                of = lambda key, scale, digits: spread([one[key] * scale for one in rounds], digits)
                load = run["load"]
                rows.append([f"{what}, {place}", of("first_new_seconds", 1, 2), of("last_old_seconds", 1, 2), of("workers_cpu", 100, 0),
                             f"{load['failed']} of {load['requests']:,}", f"{load['rate']:,.0f}", f"{load['max_us'] / 1000:.0f}"])
    return markdown.table(["changed", "first new response, s", "last old response, s", "workers, % of a core", "failed requests",
                           "requests/s", "longest, ms"], rows)
