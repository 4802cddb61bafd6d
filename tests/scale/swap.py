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
    rounds = context.pick(6, 2)
    upstreams = context.upstreams(2, context.other_cpus)
    port, admin = free_ports(2)
    has_module = os.path.exists(MODULE)

    def config(version, module):
        filters = configs.filters([{"cluster": "web", "response_headers": {"set": {"x-version": version}}}])
        filters[-1]["wasm"] = module
        return configs.base(admin, len(context.proxy_cpus)) | {
            "cache_dir": context.path("cache"),
            "listeners": [configs.listener("public", port, configs.FILTERS)],
            "filters": filters,
            "clusters": [configs.cluster("web", upstreams)],
        }

    module = "builtin:router"
    context.write("swap.json", config("0", module))
    proxy = context.proxy(context.path("swap.json"), admin, cpus=context.proxy_cpus)
    load = context.load(f"http://127.0.0.1:{port}/", 600, "--saturate", "-c", "64", "--expect-status", "200",
                        "--tally-header", "x-version", cpus=context.other_cpus, warmup=0.5)
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
                "workers_cpu": used["workers_cpu"] / len(context.proxy_cpus),
                "others_cpu": used["others_cpu"],
            })
    finally:
        probe.stop()
    report = load.finish(interrupt=True)
    result["load"] = {"requests": report["requests"], "failed": report["errors"]["total"], "rate": report["achieved_rate"],
                      "p99_us": report["service_time_us"]["p99"], "max_us": report["service_time_us"]["max"]}
    context.fact("no request failed", report["errors"]["total"] == 0 and not probe.failures)
    context.fact("the load saw several versions", len(report["tally"]["values"]) > 1)
    return result


def table(result):
    rows = []
    for compiled, what in ((False, "configuration"), (True, "module and configuration")):
        runs = [run for run in result["rounds"] if run["compiled"] == compiled]
        if runs:
            of = lambda key: spread([run[key] * 1000 for run in runs], 0)
            rows.append([what, of("first_new_seconds"), of("last_old_seconds"), spread([run["workers_cpu"] * 100 for run in runs], 0)])
    text = markdown.table(["changed", "first new response, ms", "last old response, ms", "a worker, % of a core"], rows)
    load = result["load"]
    return text + f"\n{load['failed']} of {load['requests']:,} requests failed ({load['rate']:,.0f} requests/s, longest {load['max_us'] / 1000:.0f} ms).\n"
