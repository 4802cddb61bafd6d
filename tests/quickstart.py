#!/usr/bin/env python3
"""Tests that the quick start leaves nothing running, however it is started and ended: Ctrl-C, TERM, a closed terminal, a closed
pipe, during the build and while running. Builds first, to keep the waits short. Linux only (/proc)."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SCRIPT = "examples/quickstart.sh"
RUNNING = b"Ctrl-C ends all of it."
BUILDING = b"Compiling"
MARK = "QUICKSTART_TEST"


def left(mark):
    """Returns the processes that were started with this mark in their environment, except for zombies and this process."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as environ, open(f"/proc/{pid}/cmdline", "rb") as cmdline:
                if f"{MARK}={mark}".encode() in environ.read().split(b"\0"):
                    found.append((int(pid), cmdline.read().replace(b"\0", b" ").decode(errors="replace")))
        except OSError:
            pass  # It has ended meanwhile, or belongs to another user.
    return found


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"error: {what}, after {seconds} s")
        time.sleep(0.05)


def read_until(fd, text):
    seen = b""
    while text not in seen:
        try:
            piece = os.read(fd, 4096)
        except OSError:  # A terminal whose other end is closed.
            piece = b""
        if not piece:
            raise SystemExit(f"error: the quick start ended before it printed {text!r}:\n{seen.decode(errors='replace')}")
        seen += piece


def on_terminal(environ):
    """Starts it as the leader of a terminal's session, as a login shell or a terminal window does."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe(SCRIPT, [SCRIPT], environ)
    return pid, fd


def on_pipe(environ):
    """Starts it in this process's group, with a pipe for its output, as other programs do."""
    read, write = os.pipe()
    process = subprocess.Popen([SCRIPT], env=environ, stdin=subprocess.DEVNULL, stdout=write, stderr=write)
    os.close(write)
    return process.pid, read


def ctrl_c(_, fd):
    os.write(fd, b"\x03")


def close(_, fd):
    os.close(fd)


def send(number):
    return lambda pid, _: os.kill(pid, number)


CASES = [
    ("Ctrl-C on a terminal", on_terminal, ctrl_c),
    ("a closed terminal", on_terminal, close),
    ("TERM on a terminal", on_terminal, send(signal.SIGTERM)),
    ("TERM with a pipe", on_pipe, send(signal.SIGTERM)),
    ("INT with a pipe", on_pipe, send(signal.SIGINT)),
]


def case(name, start, end, phase, target=None):
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    environ = {**os.environ, MARK: mark}
    if target:
        environ["CARGO_TARGET_DIR"] = target
    pid, fd = start(environ)
    read_until(fd, phase)
    end(pid, fd)
    status = os.waitpid(pid, 0)[1]
    if os.waitstatus_to_exitcode(status) == 0:
        raise SystemExit(f"error: {name}: the quick start ended with status 0")
    # Killed processes may take a moment to end.
    wait_until(lambda: not left(mark), 20, f"{name}: still running: {left(mark)}")
    if end is not close:
        os.close(fd)
    print(f"ok: {name}, while it {'builds' if target else 'runs'}")


def main():
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    # These may be ignored if this runs in the background, and the quick start would inherit that.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    subprocess.run([SCRIPT, "--build-only"], check=True)
    for name, start, end in CASES:
        case(name, start, end, RUNNING)
    for name, start, end in CASES:
        target = tempfile.mkdtemp(prefix="tollgate-quickstart-")
        try:
            case(name, start, end, BUILDING, target)
        finally:
            shutil.rmtree(target, ignore_errors=True)
    print("the quick start leaves nothing running")


if __name__ == "__main__":
    sys.exit(main())
