"""1,000 clusters with host names whose answers are valid for 5 seconds: lookups, processor time, memory.

unbound answers with four addresses per name, then falls silent, and answers again. The same clusters with addresses instead of names
show what the lookups add.
"""

import os
import shutil
import signal
import sys
import time

import configs
import table as markdown
from harness import free_ports, wait_for

TTL = 5
ADDRESSES = 4


def run(context):
    count, seconds = context.pick((1000, context.args.seconds), (100, 10))
    result = {"clusters": count, "rows": {}}
    program = shutil.which("unbound", path=os.environ["PATH"] + ":/usr/sbin")
    if not program:
        print("*** lookups: no unbound, so it is NOT measured (tests/interop/setup.sh brings it)", file=sys.stderr)
        return result
    server, upstream = free_ports(2)
    unbound = context.start([program, "-d", "-c", context.write("unbound.conf", zone(server, count))], "unbound")
    addresses = measure(context, "addresses", seconds, [
        {"name": f"c{index}", "endpoints": [f"{ip}:{upstream}" for ip in ips(index)]} for index in range(count)
    ], server)
    names = measure(context, "host names", seconds, [
        {"name": f"c{index}", "endpoints": [f"c{index}.test.:{upstream}"]} for index in range(count)
    ], server, unbound)
    result["rows"] = {"addresses": addresses, "host names": names}
    lookups = names["lookups"]
    context.fact("each name is looked up once per TTL and up to a tenth later", count / TTL * 0.85 < mean(lookups) <= count / TTL * 1.02)
    context.fact("no second has more than three times the mean", max(lookups) <= 3 * mean(lookups))
    context.fact("no lookup failed while the name server answered", names["failed"] == 0)
    context.fact("all endpoints stay while it is silent", names["endpoints_in_silence"] == count * ADDRESSES)
    return result


def ips(index):
    return [f"127.{1 + index // 256}.{index % 256}.{k}" for k in range(1, 1 + ADDRESSES)]


def zone(port, count):
    """unbound's configuration with all names."""
    lines = [
        "server:", "  interface: 127.0.0.1", f"  port: {port}", "  access-control: 127.0.0.0/8 allow", '  username: ""', '  chroot: ""',
        '  directory: "/"', '  pidfile: ""', "  use-syslog: no", "  do-daemonize: no", "  num-threads: 1", "  so-rcvbuf: 0",
        '  module-config: "iterator"', '  local-zone: "test." static',
    ]
    lines += [f"  local-data: 'c{index}.test. {TTL} IN A {ip}'" for index in range(count) for ip in ips(index)]
    return "\n".join(lines + ["remote-control:", "  control-enable: no", ""])


def measure(context, name, seconds, clusters, server, unbound=None):
    """Measures a proxy with these clusters; with `unbound`, also what happens while that is silent."""
    port, admin = free_ports(2)
    config = configs.base(admin) | {
        "dns": {"name_servers": [f"127.0.0.1:{server}"], "timeout": "500ms", "initial_wait": "60s"},
        "listeners": [{"name": "public", "address": f"127.0.0.1:{port}", "cluster": "c0"}],
        "clusters": clusters,
    }
    folder = name.replace(" ", "-")
    proxy = context.proxy(context.write(f"{folder}.json", config), admin, folder)
    lookups = lambda: proxy.metrics().sum("tollgate_dns_lookups_total")
    row = {"ready_seconds": proxy.ready_seconds, "lookups": []}
    time.sleep(context.pick(30, 5))
    before, known = proxy.usage(), lookups()
    for _ in range(round(seconds)):
        time.sleep(max(0, before.at + len(row["lookups"]) + 1 - time.monotonic()))
        now = lookups()
        row["lookups"].append(now - known)
        known = now
    row["used"] = proxy.usage().since(before)
    row["memory"] = proxy.memory()
    row["failed"] = proxy.metrics().sum("tollgate_dns_lookups_total", 'result="failed"')
    if unbound:
        unbound.child.send_signal(signal.SIGSTOP)
        attempts = lambda: proxy.metrics().sum("tollgate_cluster_discovery_attempts")
        wait_for(lambda: attempts() >= len(clusters), "failures of all names", 120, 1)
        row["endpoints_in_silence"] = proxy.metrics().sum("tollgate_cluster_endpoints")
        unbound.child.send_signal(signal.SIGCONT)
        began = time.monotonic()
        wait_for(lambda: attempts() == 0, "answers about all names", 120, 1)
        row["recovery_seconds"] = time.monotonic() - began
    proxy.stop()
    return row


def mean(values):
    return sum(values) / len(values)


def table(result):
    rows = []
    for name, row in result["rows"].items():
        discovery = row["used"]["threads"].get("tollgate-discov", {"cpu": 0, "wake_ups": 0})
        recovery = f"{row['recovery_seconds']:.0f} s" if "recovery_seconds" in row else "–"
        rows.append([
            name, f"{row['ready_seconds']:.2f} s", f"{mean(row['lookups']):.0f} ({min(row['lookups']):.0f}–{max(row['lookups']):.0f})",
            f"{row['used']['cpu'] * 100:.2f} %", f"{discovery['cpu'] * 100:.2f} %", f"{row['memory']['rss']:.1f} MiB", recovery,
        ])
    head = [f"{result['clusters']:,} clusters with", "start to ready", "lookups a second", "of a core", "of it, discovery", "RSS", "all known again after silence"]
    return markdown.table(head, rows)
