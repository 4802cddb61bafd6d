"""Sends requests to proxies at a constant rate, whether or not earlier ones have been answered (an open loop).

The argument is JSON:

    {"targets": [{"name": "a", "port": 8080}], "rate": 100, "seconds": 10, "start": 1234.5, "timeout": 2, "post_every": 0}

`rate` is requests a second for each target, which take turns; `start` is when the first is due, on the clock of time.monotonic();
`timeout` is how many seconds a request may take; every `post_every`-th request is a POST with a short body, the others are GET.
Prints {"records": {NAME: [[due, milliseconds, outcome], …]}, "late_ms": {"p50": …, "p99": …}}: when the request was due, in seconds
since the start; how long it took from then on; and its status, or `refused`, `closed` or `timeout`. `late_ms` is by how much
requests were sent too late, which the latencies include.
"""

import asyncio
import gc
import json
import re
import sys

from server import LENGTH

CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.I)
CLOSE = re.compile(rb"\r\nconnection: *close", re.I)


class Target:
    """A proxy, and the connections to it that are idle."""

    def __init__(self, name, port):
        self.name, self.port = name, port
        self.idle = []
        self.open = 0  # How many requests are under way.
        self.records = []

    def message(self, number, post):
        method, body = ("POST", "Content-Length: 2\r\n\r\nhi") if post else ("GET", "\r\n")
        return f"{method} /{self.name}/{number} HTTP/1.1\r\nHost: test\r\n{body}".encode()


class Request:
    """A request that is under way."""

    def __init__(self, target, message, due, begun, timeout):
        self.target, self.message, self.due, self.begun = target, message, due, begun
        self.connection = None
        self.done = False
        self.loop = asyncio.get_running_loop()
        self.timer = self.loop.call_at(due + timeout, self.expire)
        target.open += 1

    def send(self, connection):
        self.connection = connection
        connection.request = self
        connection.transport.write(self.message)

    async def connect(self):
        try:
            _, connection = await self.loop.create_connection(lambda: Connection(self.target), "127.0.0.1", self.target.port)
        except OSError:
            self.finish("refused")
            return
        if self.done:
            self.target.idle.append(connection)
        else:
            self.send(connection)

    def finish(self, outcome):
        if not self.done:
            took = self.loop.time() - self.due
            self.target.records.append([round(self.due - self.begun, 3), round(took * 1000, 2), outcome])
            self.timer.cancel()
            self.done = True
            self.target.open -= 1

    def expire(self):
        self.finish("timeout")
        if self.connection:
            self.connection.transport.abort()


class Connection(asyncio.Protocol):
    """A connection to a proxy, with at most one request at a time."""

    def __init__(self, target):
        self.target = target
        self.request = None
        self.input = b""

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, error):
        if self in self.target.idle:
            self.target.idle.remove(self)
        if self.request:
            self.request.finish("closed")

    def data_received(self, data):
        self.input += data
        head, end, body = self.input.partition(b"\r\n\r\n")
        if not end:
            return
        if found := LENGTH.search(head):
            if len(body) < int(found[1]):
                return
        elif not CHUNKED.search(head) or not body.endswith(b"0\r\n\r\n"):
            return
        request, self.request, self.input = self.request, None, b""
        if request:
            request.finish(int(head[9:12]))
        if not request or CLOSE.search(head):
            self.transport.close()
        else:
            self.target.idle.append(self)


async def main(spec):
    loop = asyncio.get_running_loop()
    targets = [Target(**target) for target in spec["targets"]]
    start, pace = spec["start"], spec["rate"] * len(targets)
    connecting, late = set(), []
    for index in range(round(pace * spec["seconds"])):
        due = start + index / pace
        if (wait := due - loop.time()) > 0:
            await asyncio.sleep(wait)
        elif index % 16 == 0:
            # Responses must be read even if requests are late.
            await asyncio.sleep(0)
        late.append(loop.time() - due)
        number, which = divmod(index, len(targets))
        target = targets[which]
        post = spec["post_every"] and number % spec["post_every"] == 0
        request = Request(target, target.message(number, post), due, start, spec["timeout"])
        # Connections that the proxy has closed in the meantime are noticed in the next turn of the loop.
        while target.idle and target.idle[-1].transport.is_closing():
            target.idle.pop()
        if target.idle:
            request.send(target.idle.pop())
        else:
            task = loop.create_task(request.connect())
            connecting.add(task)
            task.add_done_callback(connecting.discard)
    while any(target.open for target in targets):
        await asyncio.sleep(0.01)
    late = sorted(late)
    at = lambda share: round(late[int(share * (len(late) - 1))] * 1000, 2)
    records = {target.name: sorted(target.records, key=lambda record: record[0]) for target in targets}
    print(json.dumps({"records": records, "late_ms": {"p50": at(0.5), "p99": at(0.99)}}))


# A collection would delay requests. There are few cycles.
gc.disable()
asyncio.run(main(json.loads(sys.argv[1])))
