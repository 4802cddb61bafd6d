"""The server's side of an HTTP/1.1 connection."""

import asyncio
import re

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)


class Requests(asyncio.Protocol):
    """Calls `asked(head)` for each request, until the connection is closed. Bodies need a Content-Length, and are dropped."""

    def __init__(self):
        self.input = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.input += data
        while not self.transport.is_closing():
            head, end, rest = self.input.partition(b"\r\n\r\n")
            length = int(found[1]) if (found := LENGTH.search(head)) else 0
            if not end or len(rest) < length:
                return
            self.input = rest[length:]
            self.asked(head)
