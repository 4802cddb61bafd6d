"""Measures the proxy with thousands of resources and writes the results as JSON and Markdown.

tests/scale/run.sh builds the executables and runs this script. Each scenario is a module with `run(context)`, which returns its
results as a dictionary, and `table(results)`, which renders them as Markdown. A scenario also checks facts, such as "no request
failed": these decide about the exit status, times do not.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time

import churn
import idle
import listeners
import lookups
import many
import routes
import swap
from harness import Context

SCENARIOS = {module.__name__: module for module in (churn, many, idle, listeners, lookups, routes, swap)}


def arguments():
    lines = ["scenarios, in the order in which they run:"]
    lines += [f"  {name:10} {module.__doc__.splitlines()[0]}" for name, module in SCENARIOS.items()]
    parser = argparse.ArgumentParser(
        prog="tests/scale/run.sh",
        description="Measure the proxy with thousands of clusters, routes and listeners, and with frequent updates.",
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="the scenarios to run (default: all)")
    parser.add_argument("--small", action="store_true", help="run with little load and few resources; only the facts count")
    parser.add_argument("--out", metavar="FILE", help="the results (JSON); other scenarios in the file are kept")
    parser.add_argument("--markdown", metavar="FILE", help="the tables (Markdown) of all results in --out")
    parser.add_argument("--render", metavar="FILE", help="measure nothing; print the tables of these results")
    parser.add_argument("--tollgate", metavar="FILE", help="the proxy's executable")
    parser.add_argument("--before", metavar="FILE", help="an older executable, measured next to it where that is possible")
    parser.add_argument("--envoy", metavar="FILE", help="Envoy's executable (default: the one of tests/interop/setup.sh)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of `churn` (default: 5)")
    parser.add_argument("--seconds", type=float, default=60, help="the length of a long measurement (default: 60)")
    parser.add_argument("--keep", metavar="FOLDER", help="keep configurations and logs here")
    parser.add_argument("--no-build", action="store_true", help="use executables that exist")
    parser.add_argument("--bin", default="target/release", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in SCENARIOS]:
        parser.error(f"unknown scenario: {', '.join(unknown)}")
    return args


def render(results):
    """Returns the tables of all results."""
    machine = results["machine"]
    parts = [f"Measured with `tests/scale/run.sh` on {machine['processors']} processors ({machine['model']}), Linux {machine['kernel']}.\n"]
    for name, module in SCENARIOS.items():
        if name in results:
            failed = [text for text, holds in results[name]["facts"] if not holds]
            parts += [f"## {module.__doc__.splitlines()[0].rstrip('.')}\n", module.table(results[name])]
            parts += [f"**Failed: {text}**\n" for text in failed]
    return "\n".join(parts)


def machine():
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return {"processors": os.cpu_count(), "model": models[0] if models else "unknown", "kernel": platform.release()}


def main():
    args = arguments()
    if args.render:
        with open(args.render) as file:
            print(render(json.load(file)))
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
    for name in args.names or SCENARIOS:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        with Context(args, name) as context:
            result = SCENARIOS[name].run(context)
            result.update(small=args.small, facts=context.facts, seconds=round(time.monotonic() - began, 1))
        result["load_average"] = os.getloadavg()[0]
        results[name] = result
        passed = passed and all(holds for _, holds in context.facts)
        if args.out:
            with open(args.out + ".new", "w") as file:
                json.dump(results, file, indent=1)
                file.write("\n")
            os.replace(args.out + ".new", args.out)
        print(SCENARIOS[name].table(result), flush=True)
    if args.markdown:
        with open(args.markdown, "w") as file:
            file.write(render(results))
    print("all facts hold" if passed else "error: a fact does not hold (see above)")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
