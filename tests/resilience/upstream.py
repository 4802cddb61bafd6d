"""Upstreams on one or more ports, whose behaviour is changed while they are used.

Standard input has commands, and each is answered with a line of JSON:

    {"set": {"9001": {"delay": 0.2}}}   changes the behaviour of ports, see `Behaviour`
    {"report": true}                    {"times": {NAME: {PORT: [seconds, …]}}, "methods": {NAME: {METHOD: [received, different]}}}

Requests are for /NAME/NUMBER, where NAME is the measured proxy; the report has the times at which they were received, on the clock of
time.monotonic(), and how many had different numbers. /health is for health checks. After SIGTERM, idle connections are closed,
requests that were received are answered, and the process ends.
"""

import argparse
import asyncio
import collections
import heapq
import json
import random
import resource
import signal
import sys
import time

from server import Requests


class Behaviour:
    """How the upstream at a port behaves."""

    def __init__(self):
        self.service = 0.0  # The least time that a request takes, in seconds.
        self.spread = 0.0  # The mean of a random time in addition, distributed exponentially.
        self.delay = 0.0  # A further time, for one of `every` requests.
        self.every = 1
        self.fail = 0.0  # The share of requests that are answered with 503, at once.
        self.hang = False  # Whether requests are never answered.
        self.healthy = True  # Whether /health is answered with 200 or 503.
        self.slots = 0  # How many requests are processed at the same time, while the others wait; 0: any number.


class Upstream:
    """The upstream at one port."""

    def __init__(self, port, log):
        self.port, self.log = port, log
        self.behaviour = Behaviour()
        self.count = 0
        self.free = []  # When each slot becomes free.

    def set(self, **fields):
        for name, value in fields.items():
            getattr(self.behaviour, name)  # There are no others.
            setattr(self.behaviour, name, value)
        self.free = [0.0] * self.behaviour.slots

    def answer(self, connection, method, path):
        """Answers a request, now or later."""
        behaviour = self.behaviour
        if path == "/health":
            return connection.respond(200 if behaviour.healthy else 503)
        self.log.received(self.port, method, path)
        if behaviour.hang:
            return None
        if behaviour.fail and random.random() < behaviour.fail:
            return connection.respond(503)
        took = behaviour.service + (random.expovariate(1 / behaviour.spread) if behaviour.spread else 0)
        self.count += 1
        if self.count % behaviour.every == 0:
            took += behaviour.delay
        if self.free:
            # The time is reserved, also if the client has left when it comes: like a server that does not notice that.
            now = time.monotonic()
            end = max(now, self.free[0]) + took
            heapq.heapreplace(self.free, end)
            took = end - now
        asyncio.get_running_loop().call_later(took, connection.respond, 200)


class Connection(Requests):
    """A connection of a proxy. It sends one request after the other."""

    open = set()
    last = False  # Whether all connections end with their next response.

    def __init__(self, upstream):
        super().__init__()
        self.upstream = upstream
        self.busy = False

    def connection_made(self, transport):
        super().connection_made(transport)
        Connection.open.add(self)

    def connection_lost(self, error):
        Connection.open.discard(self)

    def asked(self, head):
        self.busy = True
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        self.upstream.answer(self, method, path)

    def respond(self, status):
        self.busy = False
        if self.transport.is_closing():
            return
        end = "Connection: close\r\n" if Connection.last else ""
        self.transport.write(f"HTTP/1.1 {status} Demo\r\n{end}Content-Length: 3\r\n\r\nok\n".encode())
        if Connection.last:
            self.transport.close()


class Log:
    """The requests that were received."""

    def __init__(self):
        self.times = collections.defaultdict(lambda: collections.defaultdict(list))
        self.counts = collections.defaultdict(collections.Counter)
        self.numbers = collections.defaultdict(lambda: collections.defaultdict(set))

    def received(self, port, method, path):
        _, name, number = path.split("/")
        self.times[name][port].append(round(time.monotonic(), 3))
        self.counts[name][method] += 1
        self.numbers[name][method].add(number)

    def report(self):
        methods = {name: {method: [count, len(self.numbers[name][method])] for method, count in counts.items()}
                   for name, counts in self.counts.items()}
        return {"times": self.times, "methods": methods}


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ports", type=int, nargs="+")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    loop, log = asyncio.get_running_loop(), Log()
    upstreams = {port: Upstream(port, log) for port in args.ports}
    servers = [
        await loop.create_server(lambda upstream=upstream: Connection(upstream), "127.0.0.1", port, backlog=4096)
        for port, upstream in upstreams.items()
    ]
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    loop.add_signal_handler(signal.SIGTERM, commands.feed_eof)
    print("{}", flush=True)
    while line := await commands.readline():
        command = json.loads(line)
        for port, fields in command.get("set", {}).items():
            upstreams[int(port)].set(**fields)
        print(json.dumps(log.report() if "report" in command else {}), flush=True)
    for server in servers:
        server.close()
    Connection.last = True
    for connection in list(Connection.open):
        if not connection.busy:
            connection.transport.close()
    while Connection.open:
        await asyncio.sleep(0.005)


asyncio.run(main())
