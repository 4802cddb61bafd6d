"""An HTTP/3 client: `h3_client.py HOST PORT CA [CERTIFICATE KEY]`.

Opens one connection, executes the commands on standard input (one JSON object per line; see `Client.do`), and prints the results
on standard output, as JSON, too. Exits when its input or the connection ends.
"""

import asyncio
import hashlib
import json
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import Buffer, BufferReadError
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, StopSendingReceived, StreamDataReceived, StreamReset

from cryptography.hazmat.primitives.serialization import Encoding

REQUEST_CANCELLED = 0x10C
GOAWAY = 0x7


def say(**what):
    print(json.dumps(what), flush=True)


def body_of(command):
    """Returns the body for a command: a text, or a number of bytes with a long period."""
    if "size" in command:
        size = command["size"]
        return b"".join(n.to_bytes(4, "big") for n in range(size // 4 + 1))[:size]
    return command.get("body", "").encode()


class Limited(QuicConnection):
    """A connection that stalls some streams."""

    paused = frozenset()

    def _write_stream_limits(self, builder, space, stream):
        if stream.stream_id not in self.paused:
            super()._write_stream_limits(builder, space, stream)


class Http(H3Connection):
    """aioquic's HTTP/3, except that a response to HEAD may have the length of the omitted body."""

    heads = frozenset()

    def _check_content_length(self, stream):
        if stream.stream_id not in self.heads:
            super()._check_content_length(stream)


class Response:
    def __init__(self, name, sent):
        self.name = name
        self.sent = hashlib.sha256(sent).hexdigest()
        self.said = {"interim": []}
        self.digest = hashlib.sha256()
        self.start = b""
        self.length = 0
        self.ended = asyncio.get_running_loop().create_future()

    def head(self, fields):
        fields = [(name.decode(), value.decode("latin-1")) for name, value in fields]
        status = next((int(value) for name, value in fields if name == ":status"), None)
        if status is None:
            self.said["trailers"] = fields
        elif status < 200:
            self.said["interim"].append(status)
            say(id=self.name, interim=status)
        else:
            self.said |= {"status": status, "fields": fields}
            say(id=self.name, began=status)

    def data(self, data):
        self.digest.update(data)
        self.length += len(data)
        self.start += data[: 4096 - len(self.start)]

    def end(self):
        digest = self.digest.hexdigest()
        body = {"body": self.start.decode("latin-1"), "length": self.length, "echo": digest == self.sent}
        self.ended.set_result(self.said | body)

    def reset(self, code):
        if not self.ended.done():
            self.ended.set_result(self.said | {"reset": code, "length": self.length})


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._quic.__class__ = Limited
        self._quic.paused = set()
        self.http = Http(self._quic)
        self.http.heads = set()
        self.responses = {}
        self.streams = {}
        self.control = {}
        self.loading = False

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            say(closed=event.error_code, reason=event.reason_phrase)
            for response in self.responses.values():
                response.reset(None)
        if isinstance(event, StreamReset) and event.stream_id in self.responses:
            self.responses[event.stream_id].reset(event.error_code)
            return
        if isinstance(event, StopSendingReceived) and event.stream_id in self.responses:
            self.responses[event.stream_id].said["stopped"] = event.error_code
        if isinstance(event, StreamDataReceived) and event.stream_id % 4 == 3:
            self.look_for_goaway(event)
        for event in self.http.handle_event(event):
            response = self.responses.get(event.stream_id)
            if isinstance(event, HeadersReceived):
                response.head(event.headers)
            elif isinstance(event, DataReceived):
                response.data(event.data)
            if event.stream_ended and not response.ended.done():
                response.end()

    def look_for_goaway(self, event):
        seen = self.control.get(event.stream_id, b"") + event.data
        # Stream 3 is the server's first stream, its control stream; the type is one byte.
        while event.stream_id == 3 and len(seen) > 1:
            buf = Buffer(data=seen[1:])
            try:
                kind, payload = buf.pull_uint_var(), buf.pull_bytes(buf.pull_uint_var())
            except BufferReadError:
                break
            if kind == GOAWAY:
                say(goaway=Buffer(data=payload).pull_uint_var())
            seen = seen[:1] + seen[1 + buf.tell() :]
        self.control[event.stream_id] = seen

    def send(self, command):
        stream = self._quic.get_next_available_stream_id()
        body, trailers = body_of(command), command.get("trailers")
        response = Response(command["id"], body)
        self.responses[stream] = response
        self.streams[command["id"]] = stream
        if command.get("paused"):
            self._quic.paused.add(stream)
        if command.get("method") == "HEAD":
            self.http.heads.add(stream)
        if "head" in command:
            head = command["head"]
        else:
            head = [
                (":method", command.get("method", "GET")),
                (":scheme", "https"),
                (":authority", "web.test"),
                (":path", command.get("path", "/")),
            ]
        head = head + command.get("fields", [])
        head = [(name.encode(), value.encode("latin-1")) for name, value in head]
        more = trailers is not None or command.get("open", False)
        self.http.send_headers(stream, head, end_stream=not body and not more)
        if body:
            self.http.send_data(stream, body, end_stream=not more)
        if trailers is not None:
            self.http.send_headers(stream, [(n.encode(), v.encode()) for n, v in trailers], end_stream=True)
        self.transmit()
        return response

    async def tell(self, response):
        say(id=response.name, **await response.ended)

    async def load(self, command):
        """Sends one request after the other until stopped. Then prints the number of 200 responses and all other results."""
        answered, else_ = 0, []
        while self.loading:
            response = await self.send(command).ended
            if response.get("status") == 200:
                answered += 1
            else:
                else_.append(response)
        say(id=command["id"], answered=answered, others=else_)

    async def do(self, command):
        stream = self.streams.get(command.get("id"))
        match command["do"]:
            case "send":
                asyncio.ensure_future(self.tell(self.send(command)))
            case "data":
                self.http.send_data(stream, body_of(command), command.get("end", False))
                self.transmit()
            case "load":
                self.loading = True
                asyncio.ensure_future(self.load(command))
            case "stop":
                self.loading = False
            case "cancel":
                if not self._quic._streams[stream].sender.is_finished and command.get("reset", True):
                    self._quic.reset_stream(stream, REQUEST_CANCELLED)
                self._quic.stop_stream(stream, REQUEST_CANCELLED)
                self.transmit()
            case "resume":
                self._quic.paused.discard(stream)
                self._quic.send_ping(0)
                self.transmit()


async def main(host, port, ca, certificate=None, key=None):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name="web.test")
    configuration.load_verify_locations(ca)
    if certificate:
        configuration.load_cert_chain(certificate, key)
    lines = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    try:
        async with connect(host, int(port), configuration=configuration, create_protocol=Client) as client:
            shown = client._quic.tls._peer_certificate.public_bytes(Encoding.DER)
            say(ready=hashlib.sha256(shown).hexdigest())
            closed = asyncio.ensure_future(client.wait_closed())
            while True:
                line = asyncio.ensure_future(lines.readline())
                await asyncio.wait([line, closed], return_when=asyncio.FIRST_COMPLETED)
                if not line.done() or not line.result():
                    return
                await client.do(json.loads(line.result()))
    except ConnectionError:
        say(refused=True)


asyncio.run(main(*sys.argv[1:]))
