"""A WebSocket on a stream of HTTP/2 (RFC 8441): `websocket_over_h2.py ADDRESS`. Uses `h2` for HTTP/2, and
`websockets` for the messages."""

import os
import socket
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader


def check(is_so, *what):
    if not is_so:
        raise AssertionError(what)


class Tunnel:
    """A stream and its received data."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.flush()
        self.read = StreamReader()
        self.head = None
        self.ended = False
        setting = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL
        while not self.h2.remote_settings.get(setting):
            self.receive()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def receive(self):
        data = self.socket.recv(65536)
        check(data, "the connection ended")
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.ResponseReceived():
                    self.head = dict(event.headers)
                case h2.events.DataReceived():
                    self.read.feed_data(event.data)
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    self.ended = True
                case h2.events.StreamReset():
                    raise AssertionError(f"reset with {event.error_code}")
        self.flush()

    def open(self, path):
        self.stream = self.h2.get_next_available_stream_id()
        fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", path)]
        fields += [(":authority", "web.test"), ("sec-websocket-version", "13"), ("sec-websocket-protocol", "chat")]
        self.h2.send_headers(self.stream, fields)
        self.flush()
        while self.head is None:
            self.receive()

    def send(self, opcode, payload):
        data = Frame(opcode, payload).serialize(mask=True)
        while data:
            window = min(self.h2.local_flow_control_window(self.stream), self.h2.max_outbound_frame_size)
            if window:
                self.h2.send_data(self.stream, data[:window])
                data = data[window:]
                self.flush()
            else:
                self.receive()

    def message(self):
        parse = Frame.parse(self.read.read_exact, mask=False)
        while True:
            try:
                next(parse)
            except StopIteration as done:
                return done.value
            self.receive()


def main(address):
    tunnel = Tunnel(address)
    tunnel.open("/chat?room=1")
    check(tunnel.head[":status"] == "200", tunnel.head)
    check("sec-websocket-accept" not in tunnel.head, tunnel.head)
    check(tunnel.head.get("sec-websocket-protocol") == "chat", tunnel.head)
    tunnel.send(Opcode.TEXT, b"path")
    check(tunnel.message().data == b"/chat?room=1")
    for size in [1, 126, 70_000, 1 << 20]:
        payload = os.urandom(size)
        tunnel.send(Opcode.BINARY, payload)
        check(bytes(tunnel.message().data) == payload, size)
    tunnel.send(Opcode.PING, b"there?")
    pong = tunnel.message()
    check((pong.opcode, bytes(pong.data)) == (Opcode.PONG, b"there?"), pong)
    tunnel.send(Opcode.TEXT, b"close")
    close = tunnel.message()
    check(close.opcode == Opcode.CLOSE and bytes(close.data)[:2] == (4001).to_bytes(2, "big"), close)
    tunnel.send(Opcode.CLOSE, bytes(close.data))
    while not tunnel.ended:
        tunnel.receive()
    print("ok", flush=True)


main(*sys.argv[1:])
