"""A gRPC client: `grpc_client.py ADDRESS [--ca FILE] CASE...` runs the cases (functions of this file) against the service that
grpc_server.py serves. Exits with 0 on success."""

import os
import sys
import threading
import time

import grpc

OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # Each channel has its own connection.
    ("grpc.use_local_subchannel_pool", 1),
    # Retries are up to the proxy.
    ("grpc.enable_retries", 0),
]


class Service:
    """The methods, by the kind of call."""

    def __init__(self, address, ca, *options):
        options = OPTIONS + list(options)
        if ca:
            credentials = grpc.ssl_channel_credentials(open(ca, "rb").read())
            options.append(("grpc.ssl_target_name_override", "web.test"))
            self.channel = grpc.secure_channel(address, credentials, options)
        else:
            self.channel = grpc.insecure_channel(address, options)

    def __getattr__(self, name):
        kind = {
            "ClientStream": "stream_unary",
            "ServerStream": "unary_stream",
            "FailLate": "unary_stream",
            "HeldStream": "unary_stream",
            "Bidi": "stream_stream",
        }.get(name, "unary_unary")
        path = name if name.startswith("/") else f"/test.Echo/{name}"
        call = getattr(self.channel, kind)(path)
        return lambda message, timeout=30, **more: call(message, timeout=timeout, **more)


def check(is_so, *what):
    if not is_so:
        raise AssertionError(what)


def fails(call, code):
    """Makes a call that must fail with this status. Returns the error."""
    try:
        call()
    except grpc.RpcError as error:
        check(error.code() == code, error.code(), error.details())
        return error
    raise AssertionError(f"it did not fail with {code}")


def unary(service):
    for message in [b"", b"x", os.urandom(100_000)]:
        check(service.Unary(message) == message)


def streams(service):
    parts = [str(n).encode() * n for n in range(100)]
    check(service.ClientStream(iter(parts)) == b"".join(parts))
    call = service.ServerStream(b"100")
    check([int(m) for m in call] == list(range(100)))
    check(dict(call.trailing_metadata())["x-count"] == "100")
    check(list(service.ServerStream(b"0")) == [])


def bidi(service):
    """Sends each message only after the previous one was echoed, so nothing may be buffered."""
    back = threading.Semaphore(1)

    def messages():
        for n in range(50):
            back.acquire()
            yield f"message {n}".encode()

    got = []
    for message in service.Bidi(messages()):
        got.append(message[::-1].decode())
        back.release()
    check(got == [f"message {n}" for n in range(50)], got)


def metadata(service):
    raw = bytes(range(256))
    call = service.channel.unary_unary("/test.Echo/Metadata")
    answer, call = call.with_call(b"m", metadata=(("x-text", "some text"), ("x-raw-bin", raw)), timeout=30)
    before, after = dict(call.initial_metadata()), dict(call.trailing_metadata())
    check(before["x-text"] == "some text" and before["x-raw-bin"] == raw, before)
    check(after["x-after"] == "some text" and after["x-after-bin"] == raw, after)


def errors(service):
    for code in grpc.StatusCode:
        if code != grpc.StatusCode.OK:
            error = fails(lambda: service.Fail(code.name.encode()), code)
            check(error.details() == "it went wrong: ä %", error.details())
            check(dict(error.trailing_metadata())["x-why"] == "because")
    got = []
    try:
        for message in service.FailLate(b""):
            got.append(message)
    except grpc.RpcError as error:
        check(error.code() == grpc.StatusCode.DATA_LOSS and error.details() == "in the middle", error)
    check(got == [b"some", b"more"], got)
    unknown = service.channel.unary_unary("/test.Echo/Nothing")
    fails(lambda: unknown(b"", timeout=30), grpc.StatusCode.UNIMPLEMENTED)


def deadline(service):
    """The server learns the remaining time, and the client gets DEADLINE_EXCEEDED."""
    left = float(service.Remaining(b"", timeout=20))
    # The library rounds up to three digits.
    check(0 < left < 21, left)
    fails(lambda: service.Held(b"deadline", timeout=1), grpc.StatusCode.DEADLINE_EXCEEDED)


def shrunk(service):
    """The proxy's filters use up a part of the deadline."""
    call = service.channel.unary_unary("/test.Echo/Remaining")
    left = float(call(b"", timeout=20, metadata=(("x-envoy-fault-delay-request", "3000"),)))
    check(0 < left < 18, left)


def cancel(service):
    call = service.channel.unary_unary("/test.Echo/Held").future(b"unary", timeout=30)
    time.sleep(0.5)
    call.cancel()
    check(call.code() == grpc.StatusCode.CANCELLED)
    call = service.HeldStream(b"stream")
    check(next(call) == b"tick")
    call.cancel()
    # A client that disconnects silently.
    call = service.HeldStream(b"gone")
    check(next(call) == b"tick")
    service.channel.close()


def large(service):
    message = os.urandom(4 << 20)
    check(service.Unary(message) == message)
    check(service.Length(message * 4) == str(len(message) * 4).encode())
    check(b"".join(service.Bidi(iter([message] * 3))) == message[::-1] * 3)


def many(service):
    """A hundred concurrent calls on one connection, all of which make progress."""
    calls = [service.HeldStream(f"many {n}".encode()) for n in range(100)]
    for call in calls:
        check(next(call) == b"tick")
    for call in calls:
        check(next(call) == b"tick")
        call.cancel()


def load(service):
    """Makes calls of all kinds until standard input ends, none of which may fail. One stream stays open throughout."""
    over = threading.Event()

    def long():
        while not over.is_set():
            yield b"tick"
            time.sleep(0.01)

    answers = 0
    stream = service.Bidi(long(), timeout=120)

    def read():
        nonlocal answers
        for message in stream:
            check(message == b"kcit")
            answers += 1

    broken = []

    def guarded(what):
        try:
            what()
        except BaseException as error:
            broken.append(error)

    calls = 0

    def call():
        nonlocal calls
        while not over.is_set():
            check(service.Unary(b"message") == b"message")
            check(len(list(service.ServerStream(b"20"))) == 20)
            calls += 2

    threads = [threading.Thread(target=guarded, args=(what,)) for what in [read, call, call, call]]
    for thread in threads:
        thread.start()
    print("begun", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    check(not broken, broken)
    check(answers > 20 and calls > 20, answers, calls)


def keepalive(service):
    """Pings while idle; the connection is kept."""
    options = [
        ("grpc.keepalive_time_ms", 300),
        ("grpc.keepalive_timeout_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    service = Service(*service.target, *options)
    states = []
    service.channel.subscribe(states.append)
    check(service.Unary(b"x") == b"x")
    time.sleep(2)
    check(service.Unary(b"x") == b"x")
    ready = [state for state in states if state == grpc.ChannelConnectivity.READY]
    check(len(ready) == 1, states)


def retried(service):
    message = str(time.time()).encode()
    check(service.FailOnce(message) == message)


def refused(service):
    """The proxy's own responses are gRPC statuses."""
    def call(path, *metadata):
        return lambda: service.channel.unary_unary(path)(b"", metadata=metadata, timeout=30)

    fails(call("/admin.Service/Method"), grpc.StatusCode.PERMISSION_DENIED)
    fails(call("/nowhere.Service/Method"), grpc.StatusCode.UNIMPLEMENTED)
    error = fails(call("/test.Echo/Unary", ("x-envoy-fault-abort-request", "503")), grpc.StatusCode.UNAVAILABLE)
    check(service.Unary(b"x") == b"x", error)
    limited = call("/limited.Service/Unary")
    codes = []
    for _ in range(3):
        try:
            limited()
            codes.append(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            codes.append(error.code())
    # The server does not know the service, which shows that the call reached it.
    unknown, unavailable = grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE
    check(codes == [unknown, unknown, unavailable], codes)


def unavailable(service):
    fails(lambda: service.Unary(b"x"), grpc.StatusCode.UNAVAILABLE)


def main(address, *cases):
    ca = None
    if cases[0] == "--ca":
        ca, cases = cases[1], cases[2:]
    for case in cases:
        service = Service(address, ca)
        service.target = (address, ca)
        globals()[case](service)
        service.channel.close()
        print("ok", case, flush=True)


main(*sys.argv[1:])
