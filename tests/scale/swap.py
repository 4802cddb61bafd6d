"""Filters are swapped while the workers are saturated, and at half of that load.

The proxy has half of the processors, so that its workers are the limit, and then shares all of them with the load generator. The
router's configuration changes in every round. Some rounds also swap in another module, which must be compiled: of a filter of
ordinary size, or the router's, which contains an engine for regular expressions. The time is from the rename of the configuration
file to the first response of the new version, and to the last one of the old.
"""

import os
import shutil
import time

import client
import configs
import table as markdown
from harness import ROOT, free_ports
from table import spread

MODULES = os.path.join(ROOT, "target/filters/wasm32-unknown-unknown/filter")
# What is swapped in a round, and the filter whose module that is.
KINDS = [("configuration", None), ("module of authz", "authz"), ("module of router", "router")]


def run(context):
    result = {"runs": {}}
    apart = (context.proxy_cpus, context.other_cpus)
    full = context.pick(["--saturate"], ["--rate", "200"])
    for place, cpus in {"processors of its own": apart, "all processors": (None, None)}.items():
        last = result["runs"][f"{place}, saturated"] = swaps(context, *cpus, full)
    half = ["--rate", str(max(100, int(last["load"]["rate"] / 2)))]
    result["runs"]["all processors, half of that load"] = swaps(context, None, None, half)
    return result


def swaps(context, own, others, pace):
    """Swaps filters several times. The proxy runs on the processors `own`, the load generator and the upstreams on `others`."""
    kinds = [(what, name) for what, name in KINDS if not name or os.path.exists(os.path.join(MODULES, f"{name}.wasm"))]
    upstreams = context.upstreams(2, others)
    port, admin = free_ports(2)
    modules = {name: f"builtin:{name}" for _, name in KINDS if name}

    def config(version):
        filters = configs.filters([{"cluster": "web", "response_headers": {"set": {"x-version": version}}}])
        filters[0]["wasm"], filters[-1]["wasm"] = modules["authz"], modules["router"]
        return configs.base(admin, len(own) if own else None) | {
            "cache_dir": context.path("cache"),
            "listeners": [configs.listener("public", port, configs.FILTERS)],
            "filters": filters,
            "clusters": [configs.cluster("web", upstreams)],
        }

    context.write("swap.json", config("0"))
    proxy = context.proxy(context.path("swap.json"), admin, cpus=own)
    load = context.load(f"http://127.0.0.1:{port}/", 600, *pace, "-c", "64", "--expect-status", "200",
                        "--tally-header", "x-version", cpus=others, warmup=0.5)
    probe = client.Probe(port, lambda headers, _: headers.get("x-version"))
    result = {"rounds": []}
    try:
        probe.wait("0")
        time.sleep(1)
        for number in range(1, len(kinds) * context.pick(3, 1) + 1):
            what, name = kinds[number % len(kinds)]
            if name:
                # The same code with another custom section is a different module.
                modules[name] = context.path(f"{name}-{number}.wasm")
                shutil.copyfile(os.path.join(MODULES, f"{name}.wasm"), modules[name])
                with open(modules[name], "ab") as file:
                    file.write(b"\0\x0d\4note" + os.urandom(8))
            before = proxy.usage()
            context.write("swap.json", config(str(number)))
            written = time.monotonic()
            probe.wait(str(number))
            used = proxy.usage().since(before)
            result["rounds"].append({
                "changed": what,
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
        load = run["load"]
        for what, _ in KINDS:
            rounds = [one for one in run["rounds"] if one["changed"] == what]
            if rounds:
                of = lambda key, scale, digits: spread([one[key] * scale for one in rounds], digits)
                rows.append([f"{what}, {place}", of("first_new_seconds", 1, 2), of("last_old_seconds", 1, 2), of("workers_cpu", 100, 0)])
        loads = f"{load['failed']} of {load['requests']:,} failed; {load['rate']:,.0f}/s; p99 {load['p99_us'] / 1000:.1f} ms; longest {load['max_us'] / 1000:.0f} ms"
        rows.append([f"*requests, {place}: {loads}*", "", "", ""])
    return markdown.table(["changed", "first new response, s", "last old response, s", "workers, % of a core"], rows)
