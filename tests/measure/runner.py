"""Runs the scenarios of a folder of measurements, and writes their results as JSON and Markdown.

Each scenario is a module with `run(context)`, which returns its results as a dictionary, and `table(results)`, which renders them as
Markdown; one that draws pictures has `pictures(results)`, which returns SVG texts by file name. A scenario also checks facts, such as
"no request failed": these decide about the exit status, times do not.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time

from harness import Context


class Suite:
    """The scenarios of a folder, in the order in which they run."""

    def __init__(self, program, description, modules, introduction="", options=None):
        """`introduction` begins the Markdown text; `options` adds arguments to a parser."""
        self.program, self.description, self.introduction, self.options = program, description, introduction, options
        self.scenarios = {module.__name__: module for module in modules}

    def arguments(self):
        lines = ["scenarios, in the order in which they run:"]
        lines += [f"  {name:10} {module.__doc__.splitlines()[0]}" for name, module in self.scenarios.items()]
        parser = argparse.ArgumentParser(
            prog=self.program,
            description=self.description,
            epilog="\n".join(lines),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("names", nargs="*", metavar="NAME", help="the scenarios to run (default: all)")
        parser.add_argument("--small", action="store_true", help="run with little load and few resources; only the facts count")
        parser.add_argument("--out", metavar="FILE", help="the results (JSON); other scenarios in the file are kept")
        parser.add_argument("--markdown", metavar="FILE", help="the tables (Markdown) of all results in --out; pictures go to the folder of the same name")
        parser.add_argument("--render", metavar="FILE", help="measure nothing; print the tables of these results, or write them to --markdown")
        parser.add_argument("--tollgate", metavar="FILE", help="the proxy's executable")
        parser.add_argument("--envoy", metavar="FILE", help="Envoy's executable (default: the one of tests/interop/setup.sh)")
        parser.add_argument("--keep", metavar="FOLDER", help="keep configurations and logs here")
        parser.add_argument("--note", metavar="TEXT", help="a remark about the conditions, which is shown with the results")
        parser.add_argument("--no-build", action="store_true", help="use executables that exist")
        parser.add_argument("--bin", default="target/release", help=argparse.SUPPRESS)
        if self.options:
            self.options(parser)
        args = parser.parse_args()
        if unknown := [name for name in args.names if name not in self.scenarios]:
            parser.error(f"unknown scenario: {', '.join(unknown)}")
        return args

    def render(self, results, folder=""):
        """Returns the tables of all results. `folder` is where their pictures are."""
        machine = results["machine"]
        measured = f"Measured with `{self.program}` on {machine['processors']} processors ({machine['model']}), Linux {machine['kernel']}.\n"
        parts = [self.introduction, measured] if self.introduction else [measured]
        for name, module in self.scenarios.items():
            if name in results:
                title, _, text = module.__doc__.partition("\n")
                failed = [text for text, holds in results[name]["facts"] if not holds]
                parts.append(f"## {title.rstrip('.')}\n")
                if text := text.strip():
                    parts.append(text + "\n")
                parts.append(module.table(results[name]))
                parts += [f"![{title.rstrip('.')}]({folder}{file})\n" for file in pictures(module, results[name])]
                parts += [f"**Failed: {text}**\n" for text in failed]
                if note := results[name].get("note"):
                    parts.append(f"*{note}*\n")
                if results[name]["small"]:
                    parts.append("**A small run: only the facts count.**\n")
        return "\n".join(parts)

    def write(self, results, path):
        """Writes the tables and the pictures."""
        folder = os.path.splitext(path)[0]
        for name, module in self.scenarios.items():
            for file, drawing in pictures(module, results.get(name)).items():
                os.makedirs(folder, exist_ok=True)
                replace(os.path.join(folder, file), drawing)
        replace(path, self.render(results, os.path.basename(folder) + "/"))

    def main(self):
        args = self.arguments()
        if args.render:
            with open(args.render) as file:
                results = json.load(file)
            if args.markdown:
                self.write(results, args.markdown)
            else:
                print(self.render(results))
            return 0
        # A signal must end the started processes too.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        results = {}
        if args.out and os.path.exists(args.out):
            with open(args.out) as file:
                results = json.load(file)
        results["machine"] = machine()
        passed = True
        for name in args.names or self.scenarios:
            print(f"== {name}", flush=True)
            began = time.monotonic()
            with Context(args, name) as context:
                result = self.scenarios[name].run(context)
                result.update(small=args.small, note=args.note, facts=context.facts, seconds=round(time.monotonic() - began, 1))
            result["load_average"] = os.getloadavg()[0]
            results[name] = result
            passed = passed and all(holds for _, holds in context.facts)
            if args.out:
                os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
                replace(args.out, json.dumps(results, indent=1) + "\n")
            print(self.scenarios[name].table(result), flush=True)
        if args.markdown:
            self.write(results, args.markdown)
        print("all facts hold" if passed else "error: a fact does not hold (see above)")
        return 0 if passed else 1


def pictures(module, result):
    """Returns a scenario's drawings, if it has any."""
    return module.pictures(result) if result and hasattr(module, "pictures") else {}


def replace(path, text):
    """Writes a file atomically."""
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)


def machine():
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return {"processors": os.cpu_count(), "model": models[0] if models else "unknown", "kernel": platform.release()}
