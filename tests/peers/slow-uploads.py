#!/usr/bin/env python3
"""Measures the effect of clients that never finish their uploads on other clients: Tollgate and nginx, alternately.

    tests/peers/slow-uploads.py --tollgate target/release/tollgate

Each run starts a proxy in front of an upstream that reads a request's body before it responds, attacks it, and counts the
responses that another client gets meanwhile to GET requests (and POST requests with a short body) at a steady rate. Needs python3 and
nginx; everything is on loopback. nginx's configuration is configs/slow-uploads-nginx.conf.
"""

import argparse
import asyncio
import contextlib
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

CONFIGS = pathlib.Path(__file__).parent / "configs"
HTTP1, HTTP2, UPSTREAM = 18601, 18602, 18603
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


async def serve_upstream():
    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if b"transfer-encoding: chunked" in head:
                    while size := int(await reader.readuntil(b"\r\n"), 16):
                        await reader.readexactly(size + 2)
                    await reader.readuntil(b"\r\n")
                elif b"content-length: " in head:
                    await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", UPSTREAM, backlog=4096)
    await server.serve_forever()


async def slow_post(head, pause):
    """Sends the head, then one byte after each pause (none with chunked encoding)."""
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", HTTP1)
        writer.write(b"POST /slow HTTP/1.1\r\nHost: test\r\n" + head)
        while True:
            await writer.drain()
            await asyncio.sleep(pause)
            if b"chunked" not in head:
                writer.write(b"x")


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


async def slow_streams(count):
    """Opens a connection with `count` streams, each with one byte and no end. Answers PINGs."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection("127.0.0.1", HTTP2)
        writer.write(PREFACE + frame(4, 0, 0))
        # POST http://test/, encoded with the static table except for the host.
        head = b"\x83\x86\x84\x01\x04test"
        for stream in range(1, 2 * count, 2):
            writer.write(frame(1, 4, stream, head) + frame(0, 0, stream, b"x"))
        while True:
            length, kind, flags = int.from_bytes(await reader.readexactly(3), "big"), *await reader.readexactly(2)
            await reader.readexactly(4)
            payload = await reader.readexactly(length)
            if kind in (4, 6) and not flags & 1:
                writer.write(frame(kind, 1, 0, payload if kind == 6 else b""))


ATTACKS = {
    "none": lambda: [],
    "short": lambda: [slow_post(b"Content-Length: 10\r\n\r\nx", 3600) for _ in range(2100)],
    "long": lambda: [slow_post(b"Content-Length: 1000000\r\n\r\nx", 3) for _ in range(2000)],
    "chunked": lambda: [slow_post(b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", 3600) for _ in range(2000)],
    # Each from a different client.
    "spread": lambda: [slow_post(b"X-Forwarded-For: 198.18.%d.%d\r\nContent-Length: 1000000\r\n\r\nx" % divmod(n, 256), 3) for n in range(2000)],
    "http2": lambda: [slow_streams(100) for _ in range(11)],
}


async def ask(method, free, took, failed):
    start = time.monotonic()
    try:
        async with asyncio.timeout(5):
            if free:
                reader, writer = free.pop()
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", HTTP1)
            body = b"Content-Length: 5\r\n\r\nhello" if method == "POST" else b"\r\n"
            writer.write(f"{method} / HTTP/1.1\r\nHost: test\r\n".encode() + body)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise OSError(head.split(b"\r\n")[0].decode())
            await reader.readexactly(5)
            free.append((reader, writer))
            took.append(time.monotonic() - start)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        failed.append(repr(error))


async def measure(attack, method, seconds, rate):
    attackers = [asyncio.create_task(attacker) for attacker in ATTACKS[attack]()]
    # Until all of them are connected, and the proxy has handled them.
    await asyncio.sleep(2)
    free, took, failed, asking = [], [], [], []
    for n in range(seconds * rate):
        asking.append(asyncio.create_task(ask(method, free, took, failed)))
        await asyncio.sleep(0 if n % 4 else 4 / rate)
    await asyncio.gather(*asking)
    for attacker in attackers:
        attacker.cancel()
    await asyncio.gather(*attackers, return_exceptions=True)
    for _, writer in free:
        writer.close()
    return took, failed


@contextlib.contextmanager
def proxy(name, tollgate):
    with tempfile.TemporaryDirectory() as folder:
        template = CONFIGS / {"nginx": "slow-uploads-nginx.conf", "tollgate": "slow-uploads.yaml"}[name]
        file = pathlib.Path(folder) / template.name
        text = template.read_text().replace("@dir@", folder)
        for port, number in (("http1", HTTP1), ("http2", HTTP2), ("upstream", UPSTREAM)):
            text = text.replace(f"@{port}@", str(number))
        file.write_text(text)
        command = ["nginx", "-p", folder, "-c", str(file)] if name == "nginx" else [tollgate, "run", str(file)]
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            time.sleep(1)
            yield
        finally:
            child.terminate()
            try:
                child.wait(3)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tollgate", default="target/release/tollgate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS))
    parser.add_argument("--methods", nargs="*", default=["GET", "POST"])
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20000), hard))
    if args.upstream:
        return asyncio.run(serve_upstream())
    upstream = subprocess.Popen([sys.executable, __file__, "--upstream"])
    results = {}
    try:
        for _ in range(args.rounds):
            for attack in args.attacks:
                for method in args.methods:
                    for name in ("nginx", "tollgate"):
                        with proxy(name, args.tollgate):
                            measured = asyncio.run(measure(attack, method, args.seconds, args.rate))
                        results.setdefault((attack, method, name), []).append(measured)
    finally:
        upstream.terminate()
    print(f"{'attack':8} {'asks':5} {'proxy':9} {'answered':>14} {'p50 ms':>7} {'p99 ms':>7}  (median of {args.rounds} runs)")
    for (attack, method, name), runs in results.items():
        answered = sum(len(took) for took, _ in runs)
        total = answered + sum(len(failed) for _, failed in runs)
        at = lambda share: statistics.median(1000 * sorted(took)[int(share * len(took))] if took else 0 for took, _ in runs)
        print(f"{attack:8} {method:5} {name:9} {answered:6} of {total:5} {at(0.5):7.2f} {at(0.99):7.2f}")
        for why in sorted({why for _, failed in runs for why in failed})[:3]:
            print(f"{'':24} {why}")


if __name__ == "__main__":
    main()
