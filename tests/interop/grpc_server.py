"""A gRPC server: `grpc_server.py ADDRESS [CERTIFICATE KEY]`. Messages are bytes, so nothing is generated.

Prints cancellations and deadlines, one per line."""

import sys
import threading
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

failures = {}


def say(*words):
    # In one write, because other threads print, too.
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def unary(message, context):
    return message


def length(message, context):
    return str(len(message)).encode()


def client_stream(messages, context):
    return b"".join(messages)


def server_stream(message, context):
    for n in range(int(message)):
        yield str(n).encode()
    context.set_trailing_metadata((("x-count", message.decode()),))


def bidi(messages, context):
    for message in messages:
        yield message[::-1]


def metadata(message, context):
    """Echoes the request's metadata, a text field and a binary one, before and after the message."""
    sent = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-text", sent["x-text"]), ("x-raw-bin", sent["x-raw-bin"])))
    context.set_trailing_metadata((("x-after", sent["x-text"]), ("x-after-bin", sent["x-raw-bin"])))
    return message


def fail(message, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode[message.decode()], "it went wrong: ä %")


def fail_once(message, context):
    """Fails the first call with each message."""
    if failures.setdefault(message, 0) == 0:
        failures[message] = 1
        context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
    return message


def fail_late(message, context):
    yield b"some"
    yield b"more"
    context.abort(grpc.StatusCode.DATA_LOSS, "in the middle")


def remaining(message, context):
    left = context.time_remaining()
    return b"none" if left is None or left > 1e6 else str(left).encode()


def awaited(message, context):
    """Returns an event that is set when the call ends."""
    over = threading.Event()

    def end():
        say("over", message.decode())
        over.set()

    context.add_callback(end)
    return over


def held(message, context):
    """Ends only when the client or the test ends it."""
    over = awaited(message, context)
    over.wait()
    return b""


def held_stream(message, context):
    over = awaited(message, context)
    while not over.is_set():
        yield b"tick"
        time.sleep(0.02)


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Length": grpc.unary_unary_rpc_method_handler(length),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    "Metadata": grpc.unary_unary_rpc_method_handler(metadata),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "FailOnce": grpc.unary_unary_rpc_method_handler(fail_once),
    "FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
    "Remaining": grpc.unary_unary_rpc_method_handler(remaining),
    "Held": grpc.unary_unary_rpc_method_handler(held),
    "HeldStream": grpc.unary_stream_rpc_method_handler(held_stream),
}


def main(address, *pair):
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
    server = grpc.server(futures.ThreadPoolExecutor(160), options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", METHODS),))
    state = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    state.set("", health_pb2.HealthCheckResponse.SERVING)
    if pair:
        certificate, key = (open(path, "rb").read() for path in pair)
        server.add_secure_port(address, grpc.ssl_server_credentials(((key, certificate),)))
    else:
        server.add_insecure_port(address)
    server.start()
    say("ready")
    # Lines on standard input change the health status.
    for line in sys.stdin:
        state.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(line.strip()))
        say("health", line.strip())


main(*sys.argv[1:])
