"""A small HTTP client: connections that stay open, probes for changes, and metrics."""

import collections
import math
import re
import socket
import threading
import time

TIMEOUT = 30


class Connection:
    """An HTTP/1.1 connection on which one request is sent after the other."""

    def __init__(self, port, timeout=TIMEOUT):
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.input = b""

    def get(self, path, host="localhost", close=False):
        """Returns status, headers and body."""
        end = "Connection: close\r\n" if close else ""
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{end}\r\n".encode())
        while b"\r\n\r\n" not in self.input:
            self.receive()
        head, self.input = self.input.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = self.chunks()
        elif "content-length" in headers:
            body = self.take(int(headers["content-length"]))
        else:
            body = self.rest()
        return int(first.split()[1]), headers, body

    def receive(self):
        data = self.socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the connection was closed")
        self.input += data

    def take(self, length):
        parts, missing = [self.input[:length]], length - len(self.input)
        self.input = self.input[length:]
        while missing > 0:
            data = self.socket.recv(1 << 20)
            if not data:
                raise ConnectionError("the connection was closed within a body")
            parts.append(data[:missing])
            self.input = data[missing:]
            missing -= len(data)
        return b"".join(parts)

    def chunks(self):
        body = b""
        while True:
            while b"\r\n" not in self.input:
                self.receive()
            size, self.input = self.input.split(b"\r\n", 1)
            size = int(size.split(b";")[0], 16)
            body += self.take(size)
            self.take(2)
            if not size:
                return body

    def rest(self):
        parts = [self.input]
        self.input = b""
        while data := self.socket.recv(1 << 20):
            parts.append(data)
        return b"".join(parts)

    def close(self):
        self.socket.close()


def get(port, path, host="localhost"):
    """Sends one request on its own connection."""
    connection = Connection(port)
    try:
        return connection.get(path, host, close=True)
    finally:
        connection.close()


def status(port, path):
    """Returns the status of a response, None if there is none."""
    try:
        return get(port, path)[0]
    except (OSError, ValueError, IndexError):
        return None


class Probe:
    """Sends requests on several connections, one after the other on each, and records when their answers change."""

    def __init__(self, port, value, path="/", host="localhost", connections=4, pause=0.001):
        self.value, self.path, self.host, self.pause = value, path, host, pause
        self.answers = collections.defaultdict(list)  # when each value was received
        self.failures = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(port,), daemon=True) for _ in range(connections)]
        for thread in self.threads:
            thread.start()

    def run(self, port):
        connection = None
        while not self.stopped.is_set():
            try:
                connection = connection or Connection(port)
                code, headers, body = connection.get(self.path, self.host)
                if code != 200:
                    self.failures.append(f"{code} {body[:80]}")
                else:
                    self.answers[self.value(headers, body)].append(time.monotonic())
            except OSError as error:
                self.failures.append(str(error))
                connection = None
            time.sleep(self.pause)

    def wait(self, value, seconds=60):
        """Waits until a value has been received, and for half a second nothing else."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            others = [times[-1] for other, times in list(self.answers.items()) if other != value and times]
            if self.answers.get(value) and time.monotonic() > max(others + [0]) + 0.5:
                return
            time.sleep(0.02)
        raise TimeoutError(f"{value!r} was not answered within {seconds} s, but {dict((k, len(v)) for k, v in self.answers.items())}")

    def first(self, value):
        return min(self.answers[value])

    def last(self, value):
        return max(self.answers[value])

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join(TIMEOUT)


class Metrics:
    """The metrics of the proxy at a moment."""

    LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")

    def __init__(self, admin):
        _, _, body = get(admin, "/metrics")
        self.series = collections.defaultdict(list)
        for line in body.decode().splitlines():
            if found := self.LINE.match(line):
                name, labels, value = found.groups()
                self.series[name].append((labels or "", float(value)))

    def sum(self, name, label=""):
        """Returns the sum of all series of a name with a label such as `filter="a"`."""
        return sum(value for labels, value in self.series[name] if label in labels)

    def quantiles(self, name, before, wanted=(0.5, 0.99)):
        """Returns quantiles of a histogram's values since `before`, interpolated within buckets, in seconds; None if empty."""
        def buckets(metrics):
            counts = collections.Counter()
            for labels, value in metrics.series[name + "_bucket"]:
                counts[float(re.search(r'le="([^"]+)"', labels)[1].replace("+Inf", "inf"))] += value
            return counts

        old, new = buckets(before), buckets(self)
        cumulated = [(bound, new[bound] - old[bound]) for bound in sorted(new)]
        total = cumulated[-1][1] if cumulated else 0
        return {f"p{q * 100:g}": quantile(cumulated, q * total) for q in wanted} | {"count": total} if total else None


def quantile(cumulated, rank):
    """Returns the value of a rank in cumulated buckets; the bound below if the value is above all bounds."""
    lower, below = 0.0, 0
    for bound, count in cumulated:
        if count >= rank and count > below:
            return lower if math.isinf(bound) else lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower
