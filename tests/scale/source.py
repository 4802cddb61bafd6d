"""An HTTP source of clusters and their endpoints, as docs/sources.md describes: a full state first, then changes.

It reads commands from standard input: {"batch": 20, "rate": 1000, "seconds": 60} supplies 1,000 updates a second, 20 in an answer,
for 60 s. An update moves one of a cluster's endpoints to another port. When the proxy has asked for more after the last of them,
it prints a line with the results. HTTP is spoken on the raw socket, because a server that answers 1,000 times a second should
leave the processor to what is measured.
"""

import argparse
import asyncio
import collections
import json
import signal
import sys
import time

from server import Requests

# The number of a cluster's ports.
WIDTH = 10
# How long a request may wait, in seconds: less than the `wait` of the proxy's configuration.
HOLD = 25


class State:
    """The clusters, and the versions that the proxy can have."""

    def __init__(self, clusters, ports):
        self.ports = ports
        self.shifts = [0] * clusters
        self.version = 0
        self.next = 0

    def endpoints(self, cluster):
        """The endpoints of a cluster: each update drops the first and appends one."""
        begin = cluster + self.shifts[cluster]
        ports = (self.ports[(begin + k) % len(self.ports)] for k in range(WIDTH))
        return {"name": f"c{cluster}", "endpoints": [{"address": f"127.0.0.1:{port}"} for port in ports]}

    def full(self):
        every = range(len(self.shifts))
        clusters = [{"name": f"c{cluster}", "discovery": {"source": "plane"}} for cluster in every]
        return {"clusters": clusters, "endpoints": [self.endpoints(cluster) for cluster in every]}

    def change(self, count):
        """Changes some clusters and returns what has changed."""
        changed = []
        for _ in range(count):
            self.shifts[self.next] += 1
            changed.append(self.endpoints(self.next))
            self.next = (self.next + 1) % len(self.shifts)
        self.version += 1
        return {"endpoints": changed}


class Schedule:
    """Updates that are to be supplied at a constant rate."""

    def __init__(self, state, batch, rate, seconds):
        self.batch, self.interval = batch, batch / rate
        self.left = round(seconds / self.interval)
        self.total = self.left
        self.begin = time.monotonic()
        self.due = self.begin
        self.late = []
        self.turnarounds = []
        # Encoded in advance, so that answering takes little time.
        self.answers = collections.deque()
        for _ in range(self.left):
            before = state.version
            body = json.dumps(state.change(batch), separators=(",", ":")).encode()
            head = (f"HTTP/1.1 226 IM Used\r\nIM: resources\r\nDelta-Base: \"{before}\"\r\nETag: \"{state.version}\"\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")
            self.answers.append((before, head.encode() + body))
        self.begin = self.due = time.monotonic()

    def result(self, now):
        late, turnarounds = sorted(self.late), sorted(self.turnarounds)
        at = lambda values, q: round(values[min(len(values) - 1, int(q * len(values)))] * 1000, 2) if values else None
        elapsed = now - self.begin
        return {
            "answers": self.total, "updates": self.total * self.batch, "seconds": round(elapsed, 3),
            "updates_per_second": round(self.total * self.batch / elapsed, 1),
            "late_ms": {"p50": at(late, 0.5), "p99": at(late, 0.99), "max": at(late, 1)},
            "turnaround_ms": {"p50": at(turnarounds, 0.5), "p99": at(turnarounds, 0.99), "max": at(turnarounds, 1)},
        }


class Server:
    """The state, the schedule, and the request that waits for an answer."""

    def __init__(self, state):
        self.state = state
        self.schedule = None
        self.waiting = None
        self.sent = None
        self.problems = collections.Counter()
        self.errors = []

    def begin(self, batch, rate, seconds):
        self.schedule = Schedule(self.state, batch, rate, seconds)
        self.resume()

    def resume(self):
        if self.waiting:
            waiting, self.waiting = self.waiting, None
            self.asked(*waiting)

    def asked(self, connection, version):
        """Answers a request, now or when there is something to answer."""
        schedule, now = self.schedule, time.monotonic()
        if schedule and self.sent is not None:
            schedule.turnarounds.append(now - self.sent)
        self.sent = None
        if schedule and not schedule.answers and version == str(self.state.version):
            report(**schedule.result(now), problems=dict(self.problems), errors=self.errors)
            self.schedule = schedule = None
        if schedule and schedule.answers:
            expected, answer = schedule.answers[0]
            if version == str(expected):
                wait = schedule.due - now
                if wait > 0:
                    asyncio.get_running_loop().call_later(wait, self.send, connection, schedule, answer)
                else:
                    self.send(connection, schedule, answer)
                return
        if version == str(self.state.version):
            self.waiting = (connection, version)
            asyncio.get_running_loop().call_later(HOLD, self.expire, self.waiting)
            return
        # The proxy has nothing, or a state that has no successor.
        if version is not None:
            self.problems["full states after the first"] += 1
            if schedule:
                schedule.answers.clear()
        body = json.dumps(self.state.full()).encode()
        head = f"HTTP/1.1 200 OK\r\nETag: \"{self.state.version}\"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.transport.write(head.encode() + body)

    def expire(self, waiting):
        """Answers a request that has waited in vain."""
        if self.waiting is waiting:
            self.waiting = None
            waiting[0].transport.write(f"HTTP/1.1 304 Not Modified\r\nETag: \"{waiting[1]}\"\r\n\r\n".encode())

    def send(self, connection, schedule, answer):
        now = time.monotonic()
        schedule.late.append(max(0.0, now - schedule.due))
        schedule.due += schedule.interval
        schedule.answers.popleft()
        self.sent = now
        connection.transport.write(answer)


class Connection(Requests):
    """A connection of the proxy."""

    def __init__(self, server):
        super().__init__()
        self.server = server

    def asked(self, head):
        headers = {}
        for line in head.decode("latin-1").split("\r\n")[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if "tollgate-refused" in headers:
            self.server.problems["refused resources"] += 1
            self.server.errors = [headers["tollgate-refused"][:200]]
        version = headers.get("if-none-match")
        self.server.asked(self, version and version.strip('"'))

    def connection_lost(self, error):
        self.server.problems["closed connections"] += 1
        if self.server.waiting and self.server.waiting[0] is self:
            self.server.waiting = None


def report(**result):
    print(json.dumps(result), flush=True)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clusters", type=int, required=True)
    parser.add_argument("--ports", required=True, help="ports that endpoints move between")
    args = parser.parse_args()
    loop = asyncio.get_running_loop()
    server = Server(State(args.clusters, [int(port) for port in args.ports.split(",")]))
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", args.port)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    loop.add_signal_handler(signal.SIGTERM, commands.feed_eof)
    report(listening=args.port)
    while line := await commands.readline():
        server.begin(**json.loads(line))
    listener.close()


asyncio.run(main())
