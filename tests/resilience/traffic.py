"""Upstreams and load for a scenario, and statistics about the requests."""

import json
import os
import subprocess
import sys
import time

from harness import Commanded, free_ports

HERE = os.path.dirname(os.path.abspath(__file__))


class Upstreams:
    """A process with upstreams, see upstream.py, that can be ended and started again."""

    def __init__(self, context, count=1):
        self.context = context
        self.ports = free_ports(count)
        self.start()

    def start(self):
        command = [sys.executable, "-B", os.path.join(HERE, "upstream.py"), *map(str, self.ports)]
        self.process = self.context.own(Commanded(command, self.context.path(f"upstream-{self.ports[0]}.log")))
        self.process.answer()

    def set(self, ports=None, **behaviour):
        """Changes the behaviour of some ports, by default of all."""
        return self.command(set={str(port): behaviour for port in ports or self.ports})

    def report(self):
        return self.command(report=True)

    def command(self, **command):
        self.process.tell(**command)
        return self.process.answer()

    def end(self, kill=False):
        """Ends the process, at once or with SIGTERM, and waits for its end."""
        if kill:
            self.process.child.kill()
        self.process.stop()


class Load:
    """Load on proxies, given as their ports by name; see load.py."""

    def __init__(self, context, targets, rate, seconds, timeout, post_every=0, cpus=None):
        self.sent, self.timeout, self.seconds = round(rate * seconds), timeout, seconds
        # The time that the generator needs to start.
        self.start = time.monotonic() + 1.0
        targets = [{"name": name, "port": port} for name, port in targets.items()]
        spec = {"targets": targets, "rate": rate, "seconds": seconds, "timeout": timeout, "post_every": post_every, "start": self.start}
        command = [sys.executable, "-B", os.path.join(HERE, "load.py"), json.dumps(spec)]
        self.process = context.start(command, f"load-{len(context.processes)}", cpus=cpus, stdout=subprocess.PIPE)
        self.process.limit = seconds + timeout + 60

    def sleep_until(self, seconds):
        """Waits for a moment, in seconds since the start."""
        time.sleep(max(0, self.start + seconds - time.monotonic()))

    def records(self):
        """Returns the records of each proxy, and by how many milliseconds the generator was late, at the 99th percentile."""
        report = self.process.output()
        return report["records"], report["late_ms"]["p99"]


def summary(records, begin=0, end=float("inf")):
    """Counts the requests that were due in a period, their failures by kind, and quantiles of their time in milliseconds."""
    chosen = [record for record in records if begin <= record[0] < end]
    took = sorted(record[1] for record in chosen)
    failures = {}
    for _, _, outcome in chosen:
        if outcome != 200:
            failures[str(outcome)] = failures.get(str(outcome), 0) + 1
    return {
        "requests": len(chosen), "failed": sum(failures.values()), "failures": failures,
        "p50": quantile(took, 0.5), "p99": quantile(took, 0.99),
    }


def lateness(result):
    """Says how far the load generator was behind, of which latencies are a part."""
    late = max(result["late_ms"].values(), default=0)
    return f"The load generator sent 99 % of the requests at most {late:.0f} ms too late.\n"


def quantile(ordered, share):
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def seconds(records, length):
    """Returns the summaries of each second."""
    by_second = [[] for _ in range(length)]
    for record in records:
        by_second[min(int(record[0]), length - 1)].append(record)
    return [summary(chunk) for chunk in by_second]


def count(times, start, begin, end):
    """Returns how many of the upstream's times are within a period, in seconds since the start."""
    return sum(begin <= time - start < end for time in times)
