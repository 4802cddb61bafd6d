"""10,000 clusters: start, memory, and the change of one of them, next to Envoy.

Each cluster has ten endpoints with addresses of their own. Requests reach a cluster by its host: the router has as many virtual
hosts as there are clusters. Memory is measured after the start (untouched), after one request to each cluster whose connection the
upstream closes (used), and after one whose connection stays open (connected).
"""

import json
import os
import re
import sys
import time

import client
import configs
import table as markdown
from harness import free_ports, wait_for
from table import spread

# The number of clusters in an included file.
FILE = 100


def run(context):
    count, changes = context.pick((10000, 5), (300, 2))
    ports = free_ports(2)
    context.start([sys.executable, os.path.join(os.path.dirname(__file__), "upstream.py"), *map(str, ports)], "upstream")
    wait_for(lambda: client.status(ports[1], "/") == 200, "the upstream")
    result = {"clusters": count, "rows": {}}
    rows = result["rows"]
    for name in ("one file", "included files", "one file, one route"):
        rows[name] = Tollgate(context, name, count, ports).measure(changes)
    if context.envoy():
        rows["Envoy"] = envoy(context, count, ports)
    else:
        print("*** many: no Envoy, so it is NOT measured (tests/interop/setup.sh brings it)", file=sys.stderr)
    # The baseline: a proxy with a single cluster.
    rows["one cluster"] = Tollgate(context, "one cluster", 1, ports).measure(0)
    for name, row in rows.items():
        context.fact(f"{name}: every request was answered", row["failed_requests"] == 0)
    return result


class Tollgate:
    """A proxy with many clusters."""

    def __init__(self, context, name, count, ports):
        self.context, self.count, self.ports = context, count, ports
        self.folder = name.replace(" ", "-").replace(",", "")
        self.include = name == "included files"
        self.hosts = count if name != "one file, one route" else 1
        self.port, self.admin = free_ports(2)
        # The cluster that changes, and the port that its endpoints have now.
        self.changed = 0 if self.hosts == 1 else count // 2
        self.current = "a"

    def main(self):
        """The main file: everything but the clusters."""
        config = configs.base(self.admin) | {
            "listeners": [configs.listener("public", self.port, configs.FILTERS)],
        }
        filters = configs.filters([])
        filters[-1]["config"] = {"virtual_hosts": configs.hosts(self.hosts)}
        config["filters"] = filters
        if self.include:
            config["include"] = "clusters.d/*.yaml"
        # YAML contains JSON; a person would write these sections in the same way as the clusters.
        return "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items())

    def port_of(self, index):
        return self.ports["ab".index(self.current)] if index == self.changed else self.ports[0]

    def text(self, indices):
        return configs.clusters_yaml(indices, self.port_of)

    def file_of_changed(self):
        """The file with the changed cluster: its name and content."""
        if self.include:
            begin = self.changed // FILE * FILE
            return f"{self.folder}/clusters.d/{begin // FILE:03}.yaml", self.text(range(begin, min(begin + FILE, self.count)))
        return f"{self.folder}/tollgate.yaml", self.main() + self.text(range(self.count))

    def measure(self, changes):
        if self.include:
            for begin in range(0, self.count, FILE):
                name = f"{self.folder}/clusters.d/{begin // FILE:03}.yaml"
                self.context.write(name, self.text(range(begin, min(begin + FILE, self.count))))
            path = self.context.write(f"{self.folder}/tollgate.yaml", self.main())
        else:
            path = self.context.write(*self.file_of_changed())
        proxy = self.context.proxy(path, self.admin, self.folder, seconds=300)
        started = proxy.usage().total
        time.sleep(1)
        row = {"ready_seconds": proxy.ready_seconds, "cpu_seconds": started, "untouched": proxy.memory(), "changes": []}
        row["failed_requests"] = touch(self.port, self.hosts, "/close")
        time.sleep(1)
        row["used"] = proxy.memory()
        row["failed_requests"] += touch(self.port, self.hosts, "/")
        time.sleep(1)
        row["connected"] = proxy.memory()
        for _ in range(changes):
            row["changes"].append(self.change(proxy))
        row["changed"] = proxy.memory()
        row["log"] = [line for line in proxy.last_lines(5).splitlines() if "applied" in line]
        proxy.stop()
        return row

    def change(self, proxy):
        """Moves the endpoints of one cluster to the other port. Returns how long it took until responses came from there."""
        probe = client.Probe(self.port, lambda headers, _: headers["x-upstream"], "/close", f"c{self.changed}.test", pause=0.002)
        try:
            probe.wait(self.current)
            old, self.current = self.current, "b" if self.current == "a" else "a"
            name, content = self.file_of_changed()
            metrics, before = proxy.metrics(), proxy.usage()
            began = time.monotonic()
            self.context.write(name, content)
            written = time.monotonic()
            probe.wait(self.current)
            used = proxy.usage()
        finally:
            probe.stop()
        return {
            "write_seconds": written - began,
            "first_new_seconds": probe.first(self.current) - written,
            "last_old_seconds": probe.last(old) - written,
            "others_cpu_seconds": used.others() - before.others(),
            "update_seconds": proxy.metrics().quantiles("tollgate_cluster_update_seconds", metrics),
            "failures": probe.failures[:3],
        }


def touch(port, hosts, path):
    """Sends one request to each host. Returns the number of failures."""
    connections = [client.Connection(port) for _ in range(8)]
    failed = 0
    for index in range(hosts):
        status, _, _ = connections[index % len(connections)].get(path, f"c{index}.test")
        failed += status != 200
    for connection in connections:
        connection.close()
    return failed


def envoy(context, count, ports):
    """Measures Envoy with the same clusters."""
    port, admin = free_ports(2)
    process = context.start_envoy(configs.envoy(admin, port, count, ports[0]), admin, seconds=600)
    row = {"ready_seconds": process.ready_seconds, "cpu_seconds": process.usage().total, "changes": []}
    time.sleep(1)
    row["untouched"] = process.memory()
    row["failed_requests"] = touch(port, count, "/close")
    time.sleep(1)
    row["used"] = process.memory()
    row["failed_requests"] += touch(port, count, "/")
    time.sleep(1)
    row["connected"] = process.memory()
    process.stop()
    return row


def table(result):
    rows, changes = [], []
    for name, row in result["rows"].items():
        label = name if name == "Envoy" else f"Tollgate, {name}"
        memory = [f"{row[key]['rss']:.0f} MiB" for key in ("untouched", "used", "connected")]
        peak = max(row[key]["peak"] for key in ("untouched", "used", "connected"))
        rows.append([label, f"{row['ready_seconds']:.2f} s", f"{row['cpu_seconds']:.2f} s", *memory, f"{peak:.0f} MiB"])
        if row["changes"]:
            of = lambda key: spread([change[key] * 1000 for change in row["changes"]], 0)
            parts = [spread([float(value) for line in row["log"] for value in re.findall(rf"{part}_ms=([0-9.]+)", line)], 1)
                     for part in ("load", "build", "apply")]
            changes.append([label, of("first_new_seconds"), of("last_old_seconds"), *parts, of("others_cpu_seconds"),
                            f"{row['changed']['rss']:.0f} MiB", f"{row['changed']['peak']:.0f} MiB"])
    text = markdown.table([f"{result['clusters']:,} clusters", "start to ready", "CPU for that", "RSS untouched", "used", "connected", "peak"], rows)
    if changes:
        text += "\nOne cluster changes:\n\n" + markdown.table(
            ["", "rename to the first new response, ms", "to the last old one, ms", "read the files, ms", "build, ms",
             "until the last worker has it, ms", "CPU of other threads, ms", "RSS", "peak"], changes)
    return text
