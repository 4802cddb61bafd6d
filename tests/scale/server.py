"""The server's side of an HTTP/1.1 connection whose requests have no bodies."""

import asyncio


class Requests(asyncio.Protocol):
    """Calls `asked(head)` for each request, until the connection is closed."""

    def __init__(self):
        self.input = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.input += data
        while b"\r\n\r\n" in self.input and not self.transport.is_closing():
            head, self.input = self.input.split(b"\r\n\r\n", 1)
            self.asked(head)
