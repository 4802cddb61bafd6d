"""Starts and ends the processes of a scenario: the proxy, upstreams, load generators, Envoy and nginx.

All of them listen on the loopback interface. They end with the scenario, whether it succeeds or not, and with this process.
"""

import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import client
import procfs

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PR_SET_PDEATHSIG = 1
ENVOYS = ("target/interop/envoy/envoy/_bin/envoy", "target/peers/cache/envoy/_bin/envoy")
LIBC = ctypes.CDLL(None)


class Failed(Exception):
    """A measurement that could not be made."""


class Context:
    """What a scenario works with. Ends all of its processes at the end."""

    def __init__(self, args, name):
        self.args = args
        self.small = args.small
        self.facts = []
        self.processes = []
        self.folder = os.path.join(args.keep, name) if args.keep else tempfile.mkdtemp(prefix=f"tollgate-{name}-")
        os.makedirs(self.folder, exist_ok=True)
        self.tollgate = os.path.abspath(args.tollgate or os.path.join(args.bin, "tollgate"))
        self.demo_upstream = os.path.abspath(os.path.join(args.bin, "demo-upstream"))
        every = sorted(os.sched_getaffinity(0))
        # With pinned processes, the proxy has the first half of the processors.
        half = max(1, len(every) // 2)
        self.proxy_cpus, self.other_cpus = every[:half], every[half:] or every

    def __enter__(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return self

    def __exit__(self, *_):
        self.stop()
        if not self.args.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self):
        """Ends all processes."""
        for process in reversed(self.processes):
            process.stop()
        self.processes.clear()

    def pick(self, full, small):
        """Returns the value for this size of the scenario."""
        return small if self.small else full

    def fact(self, text, holds):
        """Records a fact that must hold."""
        print(f"   {'ok  ' if holds else 'FAIL'} {text}", flush=True)
        self.facts.append((text, bool(holds)))

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, content):
        """Writes a file atomically: text, or anything else as JSON. Returns its path."""
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        beside = os.path.join(os.path.dirname(path), "." + os.path.basename(path))
        with open(beside, "w") as file:
            file.write(content) if isinstance(content, str) else json.dump(content, file)
        os.replace(beside, path)
        return path

    def envoy(self):
        """Returns the path of Envoy's executable, None if there is none."""
        places = [self.args.envoy] if self.args.envoy else [os.path.join(ROOT, place) for place in ENVOYS]
        return next((place for place in places if place and os.access(place, os.X_OK)), None)

    def start(self, command, name, **options):
        return self.own(Process(command, self.path(f"{name}.log"), **options))

    def own(self, process):
        """Ends a process with the scenario. Returns it."""
        self.processes.append(process)
        return process

    def upstreams(self, count, cpus=None):
        """Starts demo upstreams and returns their ports."""
        ports = free_ports(count)
        for port in ports:
            command = [self.demo_upstream, "--name", f"u{port}", "--listen", f"127.0.0.1:{port}"]
            self.start(command, f"upstream-{port}", cpus=cpus)
        for port in ports:
            wait_for(lambda: client.status(port, "/") == 200, f"the upstream at port {port}")
        return ports

    def proxy(self, config, admin, name="tollgate", executable=None, cpus=None, seconds=120):
        """Starts the proxy and waits until it is ready."""
        began = time.monotonic()
        process = self.start([executable or self.tollgate, "run", config], name, cpus=cpus)
        process.admin = admin
        process.wait_ready("/ready", seconds)
        process.ready_seconds = time.monotonic() - began
        return process

    def start_envoy(self, config, admin, name="envoy", seconds=120):
        """Starts Envoy and waits until it is ready."""
        began = time.monotonic()
        path = self.write(f"{name}.json", config)
        command = [self.envoy(), "-c", path, "--disable-hot-restart", "-l", "error",
                   "--concurrency", str(len(os.sched_getaffinity(0)))]
        process = self.start(command, name)
        process.admin = admin
        process.wait_ready("/ready", seconds)
        process.ready_seconds = time.monotonic() - began
        return process

    def load(self, url, seconds, *options, cpus=None, warmup=1.0):
        """Starts the load generator. `finish()` of the result waits for it and returns its report."""
        command = [self.tollgate, "bench", "load", "--json", "-d", f"{seconds}s", "--warmup", f"{warmup}s", *options, url]
        process = self.start(command, f"load-{len(self.processes)}", cpus=cpus, stdout=subprocess.PIPE)
        process.limit = seconds + warmup + 30
        return process


class Process:
    """A process that ends with this one."""

    def __init__(self, command, log, cpus=None, nice=0, **options):
        def prepare():
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.nice(nice)
            if cpus:
                os.sched_setaffinity(0, cpus)

        self.command, self.log = command, log
        with open(log, "ab") as file:
            settings = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, **options}
            self.child = subprocess.Popen(command, preexec_fn=prepare, cwd=os.path.dirname(log), **settings)
        self.pid = self.child.pid

    def wait_ready(self, path, seconds):
        """Waits until the admin listener answers 200."""
        def ready():
            if self.child.poll() is not None:
                raise Failed(f"{self.command[0]} ended:\n{self.last_lines()}")
            return client.status(self.admin, path) == 200

        wait_for(ready, f"{self.command[0]} to be ready", seconds, 0.002)

    def last_lines(self, count=20):
        with open(self.log, errors="replace") as file:
            return "".join(file.readlines()[-count:])

    def output(self, interrupt=False):
        """Waits for the end, or brings it about, and returns the JSON that the process has printed."""
        if interrupt:
            self.child.send_signal(signal.SIGINT)
        try:
            out, _ = self.child.communicate(timeout=self.limit)
        except subprocess.TimeoutExpired:
            self.stop()
            raise Failed(f"{self.command[:3]} did not end in time") from None
        if self.child.returncode not in ((0, 128 + signal.SIGINT) if interrupt else (0,)):
            raise Failed(f"{' '.join(self.command)} failed:\n{self.last_lines()}")
        return json.loads(out)

    def finish(self, interrupt=False):
        """Returns the report of the proxy's load generator."""
        report = self.output(interrupt)
        errors = report["errors"]
        # What was due at the interruption is no failure.
        report["failed"] = errors["total"] - (errors["by_kind"]["unsent"] if interrupt else 0)
        return report

    def usage(self):
        return procfs.Usage(self.pid)

    def memory(self):
        return procfs.memory(self.pid)

    def metrics(self):
        return client.Metrics(self.admin)

    def stop(self, seconds=10):
        """Ends the process, if necessary by force."""
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        for stream in (self.child.stdin, self.child.stdout):
            if stream:
                stream.close()


class Commanded(Process):
    """A process that is told what to do over its standard input: a line of JSON for each command, and one for each answer."""

    def __init__(self, command, log, **options):
        super().__init__(command, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, **options)

    def tell(self, **command):
        self.child.stdin.write(json.dumps(command) + "\n")

    def answer(self):
        """Waits for the next answer."""
        line = self.child.stdout.readline()
        if not line:
            raise Failed(f"{' '.join(self.command)} ended:\n{self.last_lines()}")
        return json.loads(line)


def free_ports(count):
    """Returns ports that no process listens on."""
    sockets = []
    for _ in range(count):
        taken = socket.socket()
        taken.bind(("127.0.0.1", 0))
        sockets.append(taken)
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def wait_for(condition, what, seconds=60, pause=0.01):
    """Waits until a condition holds and returns its value."""
    end = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise Failed(f"waited {seconds} s for {what}")
        time.sleep(pause)
