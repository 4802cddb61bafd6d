"""An upstream on every address of the loopback interface: 127.0.0.0/8, at two ports.

Responses carry `x-upstream: a` or `b`, by port. A request for /close is answered with the end of the connection.
"""

import argparse
import asyncio
import resource
import signal
import socket

from server import Requests


class Connection(Requests):
    """A connection of a proxy."""

    def __init__(self, name):
        super().__init__()
        self.kept = f"HTTP/1.1 200 OK\r\nx-upstream: {name}\r\nContent-Length: 0\r\n\r\n".encode()
        self.last = f"HTTP/1.1 200 OK\r\nx-upstream: {name}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()

    def asked(self, head):
        if head.startswith(b"GET /close "):
            self.transport.write(self.last)
            self.transport.close()
        else:
            self.transport.write(self.kept)


def listen(port):
    """Returns a socket for all addresses of the loopback interface, and no others."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    listening.bind(("0.0.0.0", port))
    listening.listen(4096)
    return listening


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ports", type=int, nargs=2)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    for name, port in zip("ab", args.ports):
        await loop.create_server(lambda name=name: Connection(name), sock=listen(port))
    await ended.wait()


asyncio.run(main())
