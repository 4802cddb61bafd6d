"""What /proc tells about a process: processor time by thread, wake-ups, memory."""

import os
import re
import time

TICK = 0.01
# The workers are named tollgate-0, tollgate-1, …
WORKER = re.compile(r"tollgate-\d+$")
CPUCLOCK_SCHED = 2


def read(path):
    with open(path) as file:
        return file.read()


def process_seconds(pid):
    """Returns the processor time of all threads, also of those that have ended, in nanosecond resolution."""
    # The clock of another process: see clock_getcpuclockid(3) and MAKE_PROCESS_CPUCLOCK in Linux.
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


class Usage:
    """The processor time and the wake-ups of a process's threads at a moment."""

    def __init__(self, pid):
        self.at = time.monotonic()
        self.total = process_seconds(pid)
        self.threads = {}
        for thread in os.listdir(f"/proc/{pid}/task"):
            folder = f"/proc/{pid}/task/{thread}"
            try:
                name = read(f"{folder}/comm").strip()
                self.threads[thread] = (name, thread_seconds(folder), wake_ups(folder))
            except (FileNotFoundError, ProcessLookupError):
                pass  # It has ended.

    def workers(self):
        """The seconds of the workers."""
        return sum(seconds for name, seconds, _ in self.threads.values() if WORKER.match(name))

    def others(self):
        """The seconds of all other threads, also of those that have ended."""
        return self.total - self.workers()

    def since(self, before):
        """Returns what has happened since an earlier moment, per second."""
        elapsed = self.at - before.at
        threads = {}
        for thread, (name, seconds, woken) in self.threads.items():
            _, old_seconds, old_woken = before.threads.get(thread, (name, 0, 0))
            entry = threads.setdefault(name, {"cpu": 0, "wake_ups": 0})
            entry["cpu"] += (seconds - old_seconds) / elapsed
            entry["wake_ups"] += (woken - old_woken) / elapsed
        return {
            "seconds": elapsed,
            "cpu": (self.total - before.total) / elapsed,
            "workers_cpu": (self.workers() - before.workers()) / elapsed,
            "others_cpu": (self.others() - before.others()) / elapsed,
            "threads": threads,
        }


def thread_seconds(folder):
    """Returns a thread's processor time: exactly if the kernel shows it, otherwise in ticks of 10 ms."""
    try:
        found = re.search(r"sum_exec_runtime\s*:\s*([\d.]+)", read(f"{folder}/sched"))
        if found:
            return float(found[1]) / 1000
    except FileNotFoundError:
        pass
    fields = read(f"{folder}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def wake_ups(folder):
    return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", read(f"{folder}/status"), re.M)[1])


def memory(pid):
    """Returns resident memory in MiB: now, proportionally to how it is shared, and the maximum so far."""
    def field(text, name):
        return round(int(re.search(rf"^{name}:\s*(\d+) kB", text, re.M)[1]) / 1024, 1)

    rollup, status = read(f"/proc/{pid}/smaps_rollup"), read(f"/proc/{pid}/status")
    return {"rss": field(rollup, "Rss"), "pss": field(rollup, "Pss"), "peak": field(status, "VmHWM")}
