#!/usr/bin/env python3
"""Mutation testing: changes the code in small ways, one at a time, and checks whether a unit test fails.

    tests/mutants.py abi filters
    tests/mutants.py proxy/src/http/fields.rs proxy/src/tls

`cargo mutants` (cargo install cargo-mutants) lists the mutants; .cargo/mutants.toml excludes some. It would build once per mutant,
which takes days for the proxy. So this script builds all of them at once: in a copy of the workspace in target/mutants/, each
function has a body per mutant, selected by the environment. Each mutant is run with the tests that reach its function, until one
fails. Prints the mutants that no test catches, and a score per file.
"""
import collections, concurrent.futures, hashlib, json, os, re, signal, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TREE = os.path.join(ROOT, "target/mutants")
BAD = os.path.join(TREE, "bad.json")
COVER = os.path.join(TREE, "cover")
# Mutants cause warnings, and a mutant that only lints reject counts, too.
LINTS = "#![allow(warnings, arithmetic_overflow, unconditional_panic)]"
SWITCH = r"""
#[doc(hidden)]
pub fn mutant(function: u32) -> u32 {
    extern crate std;
    use std::{borrow::ToOwned, collections::HashSet, env, fs, io::Write, string::String, sync::{Mutex, OnceLock}, thread};
    static CHOSEN: OnceLock<Option<u32>> = OnceLock::new();
    static SEEN: Mutex<Option<HashSet<(String, u32)>>> = Mutex::new(None);
    if let Some(chosen) = *CHOSEN.get_or_init(|| env::var("MUTANT").ok().and_then(|text| text.parse().ok())) {
        return chosen;
    }
    let name = thread::current().name().unwrap_or("?").to_owned();
    if SEEN.lock().unwrap().get_or_insert_default().insert((name.clone(), function)) {
        let path = env::var_os("COVER").unwrap_or("/dev/null".into());
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(std::format!("{function} {name}\n").as_bytes()).unwrap();
    }
    0
}
"""


def mutants(prefixes):
    """Returns the mutants that `cargo mutants` lists, by file."""
    names = {"abi": "tollgate-abi", "proxy": "tollgate"}
    packages = set()
    for prefix in prefixes:
        parts = prefix.split("/")
        every = set(os.listdir(f"{ROOT}/filters"))
        packages |= {names[parts[0]]} if parts[0] in names else every & set(parts) or every
    command = ["cargo", "mutants", "--list", "--json"] + [a for p in sorted(packages) for a in ("-p", p)]
    found = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    by_file = collections.defaultdict(list)
    for number, mutant in enumerate(found, 1):
        if any(mutant["file"].startswith(prefix) for prefix in prefixes):
            by_file[mutant["file"]].append(dict(mutant, id=number, fate="unviable"))
    return sorted(packages), by_file


def body(text, at):
    """Returns where the body begins of the function at `at`; None if it cannot select a mutant at run time."""
    begin = re.compile(r"\bfn\s+\w+").search(text, at).end()
    depth, here = 0, begin
    while depth or text[here] not in "{;":
        depth += (text[here] in "([") - (text[here] in ")]")
        here += 1
    head = text[at:here]
    return None if text[here] == ";" or re.search(r"\bconst\s+(unsafe\s+)?fn|->\s*impl\b", head) else here


def rewrite(text, found, functions, bad):
    """Returns a file in which each function selects one of its mutants."""
    lines = [0]
    for line in text.split("\n"):
        lines.append(lines[-1] + len(line) + 1)
    place = lambda p: lines[p["line"] - 1] + p["column"] - 1
    spans = collections.defaultdict(list)
    for mutant in found:
        if mutant["function"]:
            span = mutant["function"]["span"]
            spans[place(span["start"]), place(span["end"])].append(mutant)
    for inner in sorted(spans, key=lambda s: s[1] - s[0]):
        outer = [o for o in spans if o != inner and o[0] <= inner[0] and inner[1] <= o[1]]
        if outer:
            spans[max(outer, key=lambda o: o[1] - o[0])] += spans.pop(inner)
    for (begin, end), group in sorted(spans.items(), reverse=True):
        at = body(text, begin)
        arms = ""
        functions.append(group)
        for mutant in group if at is not None else []:
            mutant["function"] = len(functions)
            if mutant["id"] not in bad:
                mutant["fate"] = "missed"
                first, last = place(mutant["span"]["start"]), place(mutant["span"]["end"])
                arms += f"/*@{mutant['id']}@*/ {mutant['id']} => {text[at:first]} {mutant['replacement']} {text[last:end]}\n"
        if arms:
            text = f"{text[:at]}{{ match crate::mutant({len(functions)}) {{\n{arms}/*@0@*/ _ => {text[at:end]}\n}}}}{text[end:]}"
    return text


def copy():
    """Copies the files that git tracks. Unchanged files keep their times, so that they are not rebuilt."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        if os.path.exists(f"{ROOT}/{name}"):
            with open(f"{ROOT}/{name}", "rb") as file:
                put(name, file.read())


def put(name, new):
    path = os.path.join(TREE, name)
    old = open(path, "rb").read() if os.path.exists(path) else None
    if old != new:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(new)


def cargo(*arguments):
    """Returns the messages of a cargo build in the copy. Dependencies are those of ordinary builds."""
    settings = dict(TARGET_DIR=f"{ROOT}/target", INCREMENTAL="0", PROFILE_DEV_DEBUG="0", PROFILE_DEV_OPT_LEVEL="1")
    env = dict(os.environ, **{f"CARGO_{name}": value for name, value in settings.items()})
    command = ["cargo", *arguments, "--message-format=json"]
    done = subprocess.run(command, cwd=TREE, env=env, stdout=subprocess.PIPE, text=True)
    return done.returncode, [json.loads(line) for line in done.stdout.split("\n") if line.startswith("{")]


def culprits(messages):
    """Returns the mutants with compiler errors, and the errors outside of mutants."""
    bad, others = set(), []
    for message in (m["message"] for m in messages if m["reason"] == "compiler-message"):
        if message["level"] != "error":
            continue
        marks = set()
        for span in message["spans"]:
            before = open(os.path.join(TREE, span["file_name"]), "rb").read()[: span["byte_start"] + 1]
            marks |= {int(mark) for mark in re.findall(rb"/\*@(\d+)@\*/", before)[-1:]} - {0}
        bad |= marks
        if not marks:
            others.append(message["rendered"])
    return bad, others


def build(packages, by_file):
    """Builds the tests with all mutants that compile. Returns executables with the folders of their packages."""
    selected = [a for p in packages for a in ("-p", p)]
    selected += ["--lib"] if "tollgate" in packages else ["--lib", "--tests"]
    # In unchanged files, mutants that did not compile before do not compile now.
    known = set(json.load(open(BAD))) if os.path.exists(BAD) else set()
    texts = {name: hashlib.sha256(open(f"{ROOT}/{name}", "rb").read()).hexdigest() for name in by_file}
    key = lambda mutant: f"{texts[mutant['file']]} {mutant['name']}"
    every = [mutant for found in by_file.values() for mutant in found]
    bad = {mutant["id"] for mutant in every if key(mutant) in known}
    while True:
        copy()
        functions, crates = [], set()
        for name, found in by_file.items():
            found = [dict(mutant) for mutant in found]
            put(name, rewrite(open(f"{ROOT}/{name}").read(), found, functions, bad).encode())
            crates.add(name.split("/src/")[0])
        for crate in crates:
            library = f"{TREE}/{crate}/src/lib.rs"
            put(f"{crate}/src/lib.rs", (LINTS + open(library).read() + SWITCH).encode())
        status, messages = cargo("test", "--no-run", *selected)
        if status == 0:
            break
        new, others = culprits(messages)
        if not new:
            sys.exit("".join(others) or "the build failed")
        bad |= new
        known |= {key(mutant) for mutant in every if mutant["id"] in new}
        with open(BAD, "w") as file:
            json.dump(sorted(known), file)
        print(f"{len(bad)} mutants do not compile", flush=True)
    tests = [m for m in messages if m["reason"] == "compiler-artifact" and m["executable"] and m["profile"]["test"]]
    return functions, [(t["executable"], os.path.dirname(t["manifest_path"])) for t in tests]


def run(test, mutant, names, seconds):
    """Returns whether these tests of an executable pass."""
    executable, folder = test
    env = dict(os.environ, MUTANT=str(mutant), COVER=COVER, CARGO_MANIFEST_DIR=folder, RUST_BACKTRACE="0")
    # A mutant may loop and allocate memory in each iteration.
    command = ["prlimit", "--data=4000000000", executable, "--quiet", *(["--exact", *names] if names else [])]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    process = subprocess.Popen(command, cwd=folder, env=env, **quiet)
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def module(mutant):
    return mutant["file"].split("/src/")[1].removesuffix(".rs").removesuffix("/mod").replace("/", "::")


def reached(functions, tests):
    """Returns the tests that reach each function, by executable. Code on other threads counts for all tests of its module."""
    found = collections.defaultdict(lambda: collections.defaultdict(set))
    for test in tests:
        listed = subprocess.run([test[0], "--list"], stdout=subprocess.PIPE, text=True).stdout
        known = set(re.findall(r"^(\S+): test$", listed, re.M))
        open(COVER, "w").close()
        if not run(test, "cover", [], 1800):
            sys.exit(f"{test[0]} fails without a mutant")
        for line in open(COVER):
            function, name = line.rstrip("\n").split(" ", 1)
            own = module(functions[int(function) - 1][0])
            found[int(function)][test] |= {name} if name in known else {k for k in known if k.startswith(own)}
    return found


def survives(mutant, tests):
    for test, names in tests.items():
        # The tests of its own module first: they catch the most.
        names = sorted(names, key=lambda name: (not name.startswith(module(mutant)), name))
        for some in (names[:20], names[20:100], names[100:]):
            if some and not run(test, mutant["id"], some, 30):
                return False
    return True


def main(prefixes):
    if not prefixes:
        sys.exit(__doc__)
    functions, tests = build(*mutants(prefixes))
    reach = reached(functions, tests)

    def judge(mutant):
        tests = reach[mutant["function"]]
        if not survives(mutant, tests):
            mutant["fate"] = "caught"
        else:
            print("missed" if tests else "never reached", mutant["name"], flush=True)

    everything = [mutant for group in functions for mutant in group]
    # More than there are processors: a mutant that makes a test wait costs time, but no processor.
    with concurrent.futures.ThreadPoolExecutor(2 * os.cpu_count()) as pool:
        list(pool.map(judge, [m for m in everything if m["fate"] == "missed"]))
    scores = collections.defaultdict(collections.Counter)
    for mutant in everything:
        scores[mutant["file"]][mutant["fate"]] += 1
    for name, score in sorted(scores.items()):
        print(f"{score['caught']:5} of {score['caught'] + score['missed']:5} caught, {score['unviable']} do not compile: {name}")
    caught, missed = (sum(score[fate] for score in scores.values()) for fate in ("caught", "missed"))
    print(f"{caught} of {caught + missed} caught ({100 * caught / max(caught + missed, 1):.1f} %)")


main(sys.argv[1:])
