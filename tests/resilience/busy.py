"""A Proxy-Wasm filter that takes processor time for each request, as a module in WebAssembly's binary format.

It is encoded here, because compilers for WebAssembly may be missing where this runs.
"""

I32, FUNCTION = b"\x7f", b"\x60"
END, LOOP, BRANCH_IF = b"\x0b", b"\x03\x40", b"\x0d"
CONST, SUBTRACT, GET, SET, TEE = b"\x41", b"\x6b", b"\x20", b"\x21", b"\x22"


def number(value):
    """A constant that is not negative (LEB128, signed)."""
    encoded = b""
    while True:
        low, value = value & 0x7F, value >> 7
        if value == 0 and not low & 0x40:
            return encoded + bytes([low])
        encoded += bytes([low | 0x80])


def unsigned(value):
    """An index or a length (LEB128)."""
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + unsigned(value >> 7)


def sized(content):
    return unsigned(len(content)) + content


def vector(items):
    return unsigned(len(items)) + b"".join(items)


def section(kind, items):
    return bytes([kind]) + sized(vector(items))


def module(iterations):
    """Returns a module whose filter runs an empty loop this often for each request's head."""
    # The loop counts its only local, which follows the three parameters, down to 0.
    local = unsigned(3)
    count_down = LOOP + GET + local + CONST + number(1) + SUBTRACT + TEE + local + BRANCH_IF + unsigned(0) + END
    no_locals = unsigned(0)
    functions = {
        "proxy_abi_version_0_2_1": (0, 0, no_locals),
        "proxy_on_context_create": (2, 0, no_locals),
        "proxy_on_vm_start": (2, 1, no_locals + CONST + number(1)),
        "proxy_on_configure": (2, 1, no_locals + CONST + number(1)),
        "malloc": (1, 1, no_locals + CONST + number(1024)),
        "proxy_on_request_headers": (
            3, 1, vector([unsigned(1) + I32]) + CONST + number(iterations) + SET + local + count_down + CONST + number(0)),
    }
    types = [FUNCTION + vector([I32] * takes) + vector([I32] * gives) for takes, gives, _ in functions.values()]
    exports = [sized(name.encode()) + b"\x00" + unsigned(index) for index, name in enumerate(functions)]
    exports.append(sized(b"memory") + b"\x02" + unsigned(0))
    return b"\x00asm\x01\x00\x00\x00" + b"".join([
        section(1, types),
        section(3, [unsigned(index) for index in range(len(functions))]),
        # A page of memory, without a maximum.
        section(5, [b"\x00" + unsigned(1)]),
        section(7, exports),
        section(10, [sized(body + END) for _, _, body in functions.values()]),
    ])
