"""A WebSocket client: `websocket_client.py URL [--ca FILE] CASE...` runs the cases (functions of this file). Exits with 0
on success."""

import os
import ssl
import sys

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect


def check(is_so, *what):
    if not is_so:
        raise AssertionError(what)


def echo(open):
    with open() as socket:
        socket.send("hello")
        check(socket.recv() == "hello")
        for size in [0, 1, 125, 126, 65535, 65536, 1 << 20, 5 << 20]:
            message = os.urandom(size)
            socket.send(message)
            check(socket.recv() == message, size)
        # Many messages before any is read.
        for n in range(200):
            socket.send(str(n))
        check([socket.recv() for _ in range(200)] == [str(n) for n in range(200)])


def handshake(open):
    with open(subprotocols=["other", "chat"]) as socket:
        check(socket.subprotocol == "chat", socket.subprotocol)
        socket.send("path")
        check(socket.recv() == "/chat?room=1")


def pings(open):
    with open() as socket:
        check(socket.ping().wait(30))
        socket.send("ping")
        check(socket.recv() == "pong")


def closes(open):
    with open() as socket:
        socket.send("close")
        try:
            socket.recv()
            check(False, "it was not closed")
        except ConnectionClosed as closed:
            check((closed.rcvd.code, closed.rcvd.reason) == (4001, "as you like"), closed)
    socket = open()
    socket.close(4002, "enough")
    check(socket.protocol.close_code == 4002, socket.protocol.close_code)


def breaks(open):
    with open() as socket:
        socket.send("break")
        try:
            socket.recv()
            check(False, "it was not closed")
        except ConnectionClosed as closed:
            check(closed.rcvd is None, closed)


def idle(open):
    """The proxy closes it when it is idle."""
    with open() as socket:
        socket.send("hello")
        check(socket.recv() == "hello")
        try:
            socket.recv()
            check(False, "it was not closed")
        except ConnectionClosed as closed:
            check(closed.rcvd is None, closed)


def stays(open):
    """Continues until standard input ends."""
    with open() as socket:
        socket.send("hello")
        check(socket.recv() == "hello")
        print("begun", flush=True)
        sys.stdin.read()
        socket.send("still")
        check(socket.recv() == "still")


def refused(open):
    try:
        open()
        check(False, "it was let in")
    except InvalidStatus as error:
        check(error.response.status_code == 403, error)


def main(url, *cases):
    context = None
    if cases[0] == "--ca":
        context, cases = ssl.create_default_context(cafile=cases[1]), cases[2:]
    more = {"ssl": context, "server_hostname": "web.test"} if context else {}

    def open(**options):
        return connect(url, max_size=None, ping_interval=None, proxy=None, **more, **options)

    for case in cases:
        globals()[case](open)
        print("ok", case, flush=True)


main(*sys.argv[1:])
