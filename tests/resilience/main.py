"""Measures what clients notice of upstreams that are slow, fail, hang, restart or are overloaded.

tests/resilience/run.sh builds the executables and runs this script. tests/measure/runner.py says what a scenario consists of.
"""

import sys

import hedging
import overload
import restarts
import shedding
import slow
from runner import Suite

INTRODUCTION = """# Resilience

What clients notice of upstreams that are slow, fail, hang, restart or are overloaded, with Tollgate, Envoy and nginx in front of them.
One command measures this and writes this page; it needs Linux and Python 3, and for the comparison nginx and Envoy (`tests/interop/setup.sh`):

```console
$ tests/resilience/run.sh --out docs/resilience/results.json --markdown docs/resilience.md
$ tests/resilience/run.sh slow hedging   # only these scenarios
$ tests/resilience/run.sh --help
```

Requests are sent at a constant rate, whether or not earlier ones were answered. Upstreams and the load generator are programs in Python, which share the
processors with the proxies, so compare within a table only. Each proxy has a worker for each processor.
"""

SUITE = Suite(
    "tests/resilience/run.sh",
    "Measure what clients notice of upstreams that are slow, fail, hang, restart or are overloaded.",
    (slow, restarts, overload, shedding, hedging),
    INTRODUCTION,
)

if __name__ == "__main__":
    sys.exit(SUITE.main())
