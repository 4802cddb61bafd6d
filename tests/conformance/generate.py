#!/usr/bin/env python3
"""Generates Go or C++ source text from tests/conformance/cases, and writes the cases' names to the language's `cases.txt`.

    generate.py go|cpp OUT

script.rs documents the language of the case files. Cases that a module in these languages cannot express (WebAssembly text,
functions outside of Proxy-Wasm) are left out. The output also contains the imports, from the tables in abi/src. Statements
are written in the common subset of both languages; the differences are in `Go` and `Cpp`.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CALLBACKS = """vm_start configure context_create tick queue_ready http_call_response grpc_receive_initial_metadata
grpc_receive grpc_receive_trailing_metadata grpc_close request_headers request_body request_trailers response_headers
response_body response_trailers done log delete""".split()

# Needs a certain memory address.
LEFT_OUT = ["environ_get/ok"]

# The other files test the fast lane, TCP, old modules, and limits.
FILES = "basics buffers callbacks calls headers properties shared streams wasi".split()

COMPARISONS = {"=": "EQ", "!=": "NE", "<": "LT", ">": "GT", ">=": "GE"}


class LeftOut(Exception):
    """A case that these modules cannot express."""


def functions(path):
    """Parses the host functions of a table in abi/src: name, parameters as (name, type), result."""
    found = {}
    for name, parameters, result in re.findall(r"fn (proxy_(?!on_)\w+|[a-z]\w+)\(([^)]*)\)(?: -> (i32|i64))?;", path.read_text()):
        if not name.startswith("proxy_on_"):
            found[name] = ([tuple(p.split(": ")) for p in parameters.split(", ") if p], result)
    return found


def constants():
    """Returns the names of numbers: those of script.rs, WASI's error numbers, statuses."""
    script = (ROOT / "tests/conformance/script.rs").read_text()
    errnos = dict(re.findall(r"pub const (\w+): i32 = (\d+);", (ROOT / "abi/src/wasi.rs").read_text()))
    statuses = re.findall(r"^    (\w+) = (\d+),$", (ROOT / "abi/src/proxy_wasm.rs").read_text(), re.M)
    named = re.findall(r'\("(\w+)", (\d+|wasi::errno::\w+)\)', script)
    pairs = [(name, errnos.get(value.removeprefix("wasi::errno::"), value)) for name, value in named]
    return {name: int(value) for name, value in pairs + statuses}


STANDARD = functions(ROOT / "abi/src/proxy_wasm.rs")
WASI = functions(ROOT / "abi/src/wasi.rs")
CONSTANTS = constants()


def split(text, at):
    """Splits at a character, except within quotes or brackets."""
    parts, depth, quoted, escaped = [""], 0, False, False
    for sign in text:
        if sign == '"' and not escaped:
            quoted = not quoted
        depth += (sign in "({") - (sign in ")}") if not quoted else 0
        escaped = sign == "\\" and not escaped
        if sign == at and not quoted and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def unescaped(source):
    """Decodes `\\0`, `\\n`, `\\xNN`; a backslash before any other character yields that character."""
    signs = {b"0": b"\0", b"n": b"\n"}
    one = lambda m: bytes([int(m[1][1:], 16)]) if len(m[1]) == 3 else signs.get(m[1], m[1])
    return re.sub(rb"\\(x..|.)", one, source.encode())


def text(source):
    """Returns the bytes of `"text"`, `3 * "text"` or `pairs{a: b}`; None for anything else."""
    if source.startswith("pairs{"):
        fields = [[unescaped(part) for part in field.rsplit(": ", 1)] for field in source[6:-1].split(", ")]
        number = lambda n: n.to_bytes(4, "little")
        sizes = b"".join(number(len(n)) + number(len(v)) for n, v in fields)
        return number(len(fields)) + sizes + b"".join(n + b"\0" + v + b"\0" for n, v in fields)
    many = re.fullmatch(r'(?:(\d+) \* )?"(.*)"', source)
    return unescaped(many[2]) * int(many[1] or 1) if many else None


def literal(data):
    """A text that Go and C++ read alike."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\\\' else f"\\{b:03o}" for b in data) + '"'


class Case:
    def __init__(self, number, name):
        self.number, self.name = number, name
        self.phases, self.names, self.problem = [], [], None

    def value(self, word, kind="i32", address=False):
        """Translates a word. Small numbers used as addresses refer to the scratch memory."""
        sign, bare = (-1, word[1:]) if word.startswith("-") else (1, word)
        number = CONSTANTS.get(bare)
        if number is None and re.fullmatch(r"\d+|0x[0-9a-f]+", bare):
            number = int(bare, 0)
        if number is not None:
            number *= sign
            if address and 0 < number < 4096:
                return f"scratch({number})"
            if kind == "i32":
                number = (number + 2**31) % 2**32 - 2**31
            return f"{Language.types[kind]}({number})"
        load = re.fullmatch(r"(u8|u16|u64|)\[(.*)\]", word)
        if load:
            code, has = f"load{load[1][1:] or 32}({self.value(load[2], address=True)})", "i64" if load[1] == "u64" else "i32"
        elif re.fullmatch(r"arg[0-4]|i", word):
            code, has = word, "i32"
        elif word in self.names:
            code, has = f"v{self.number}_{word}", "i32"
        else:
            raise LeftOut(f"what is `{word}`?")
        return code if has == kind else f"{Language.types[kind]}({code})"

    def operand(self, source, wide=False):
        """Translates a call or a value to a 64-bit number; `wide`: it already is one."""
        call = re.fullmatch(r"(\w+)\((.*)\)", source, re.S)
        if not call:
            return f"int64({self.value(source, 'i64' if wide else 'i32')})"
        parameters, _ = STANDARD.get(call[1]) or WASI.get(call[1]) or (None, None)
        if parameters is None:
            raise LeftOut(f"`{call[1]}` is not a Proxy-Wasm function")
        slots = []
        for word in split(call[2], ",") if call[2] else []:
            data = text(word)
            slots += [word] if data is None else [f"text({literal(data)})", str(len(data))]
        words = []
        for slot, (name, kind) in zip(slots, parameters, strict=True):
            address = name.endswith(("out", "ptr"))
            words.append(slot if slot.startswith("text(") else self.value(slot, kind, address))
        return f"int64({call[1]}({', '.join(words)}))"

    def statement(self, number, line, code):
        word, _, rest = line.partition(" ")
        left, _, right = rest.partition(" = ")
        if word in ("given", "bytes"):
            at = self.value(left, address=True)
            size, at = (f"load32({at} + 4)", f"load32({at})") if word == "given" else (str(len(text(right))), at)
            code.append(f"if (differs({number}, {at}, {size}, text({literal(text(right))}), {len(text(right))})) {{ return 0; }}")
        elif word == "let":
            code.append(f"__{left} = int32({self.operand(right)});")
            if left not in self.names:
                self.names.append(left)
            code[-1] = code[-1].replace(f"__{left}", f"v{self.number}_{left}")
        elif word == "put":
            code.append(f"store32({self.value(left, address=True)}, int32({self.operand(right)}));")
        elif word == "do":
            code.append(f"ignore({self.operand(rest)});")
        elif word == "repeat":
            code.append(f"{Language.loop.format(rest)} {{")
        elif word == "end":
            code.append("}")
        elif word == "return":
            return int(rest)
        elif line.startswith("("):
            raise LeftOut("WebAssembly text")
        else:
            parts = split(line, " ")
            at = next(i for i, part in enumerate(parts) if part in COMPARISONS)
            sides = [" ".join(side) for side in (parts[:at], parts[at + 1 :])]
            wide = any(side.startswith("u64[") for side in sides)
            left, right = [self.operand(side, wide) for side in sides]
            code.append(f"if (isNot({number}, {COMPARISONS[parts[at]]}, {left}, {right})) {{ return 0; }}")
        return None


def parse(path, cases):
    case = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        if not line.startswith(" "):
            if "/" in line:
                case = Case(len(cases), line)
                cases.append(case)
            elif line.startswith("abi 0.1") or line == "wasi unstable":
                return
            continue
        line = line.strip()
        word, _, rest = line.partition(" ")
        try:
            if word == "on":
                if rest not in CALLBACKS:
                    raise LeftOut(f"callback {rest}")
                case.phases.append([rest, [], 0])
            elif word not in ("request", "header", "body", "client", "upstream", "log", "metric", "access"):
                phase = case.phases[-1] if case.phases else [None, [], 0]
                phase[2] = case.statement(number, line, phase[1]) or phase[2]
        except LeftOut as reason:
            case.problem = case.problem or reason


class Go:
    types = {"i32": "int32", "i64": "int64"}
    loop = "for i := int32({}); i > 0; i--"

    def file(self, cases):
        yield "// Written by tests/conformance/generate.py.\npackage main\n"
        for module, table in (("env", STANDARD), ("wasi_snapshot_preview1", WASI)):
            for name, (parameters, result) in table.items():
                names = ", ".join(f"p{i} {self.types[kind]}" for i, (_, kind) in enumerate(parameters))
                yield f"\n//go:wasmimport {module} {name}\nfunc {name}({names}) {self.types[result] if result else ''}"
        for nth, name in enumerate(CALLBACKS):
            yield f"const on_{name} = {nth}"
        for case in cases:
            for name in case.names:
                yield f"var v{case.number}_{name} int32"
            for nth, (_, code, result) in enumerate(case.phases):
                yield f"func case{case.number}_{nth}(arg0, arg1, arg2, arg3, arg4 int32) int32 {{"
                yield from code
                yield f"return {result}\n}}"
        yield "var cases = []Case{"
        for case in cases:
            phases = ", ".join(f"{{on_{name}, case{case.number}_{nth}}}" for nth, (name, _, _) in enumerate(case.phases))
            yield f"{{name: {literal(case.name.encode())}, phases: []Phase{{{phases}}}}},"
        yield "}"


class Cpp:
    types = {"i32": "int32", "i64": "int64"}
    loop = "for (int32 i = {}; i > 0; i--)"

    def file(self, cases):
        yield "// Written by tests/conformance/generate.py.\nextern \"C\" {"
        for module, table in (("env", STANDARD), ("wasi_snapshot_preview1", WASI)):
            for name, (parameters, result) in table.items():
                kinds = ", ".join(self.types[kind] for _, kind in parameters)
                yield f'__attribute__((import_module("{module}"), import_name("{name}")))'
                yield f"{self.types[result] if result else 'void'} {name}({kinds});"
        yield "}\nenum {"
        for name in CALLBACKS:
            yield f"on_{name},"
        yield "};"
        for case in cases:
            for name in case.names:
                yield f"static int32 v{case.number}_{name};"
            for nth, (_, code, result) in enumerate(case.phases):
                yield f"static int32 case{case.number}_{nth}(int32 arg0, int32 arg1, int32 arg2, int32 arg3, int32 arg4) {{"
                yield from code
                yield f"return {result};\n}}"
        yield "static Case cases[] = {"
        for case in cases:
            phases = ", ".join(f"{{on_{name}, case{case.number}_{nth}}}" for nth, (name, _, _) in enumerate(case.phases))
            yield f"{{{literal(case.name.encode())}, {{{phases}}}}},"
        yield "};"


def main(language, out):
    global Language
    Language = {"go": Go, "cpp": Cpp}[language]()
    cases = []
    for name in FILES:
        parse(ROOT / f"tests/conformance/cases/{name}.case", cases)
    cases = [case for case in cases if case.phases and not case.problem and case.name not in LEFT_OUT]
    Path(out).write_text("\n".join(Language.file(cases)) + "\n")
    names = "".join(f"{name}\n" for name in sorted(case.name for case in cases))
    listed = ROOT / f"tests/conformance/{language}/cases.txt"
    if not listed.exists() or listed.read_text() != names:
        listed.write_text(names)


main(*sys.argv[1:])
