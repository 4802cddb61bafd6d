"""Measures the proxy with thousands of resources and writes the results as JSON and Markdown.

tests/scale/run.sh builds the executables and runs this script. tests/measure/runner.py says what a scenario consists of.
"""

import sys

import churn
import idle
import listeners
import lookups
import many
import routes
import swap
from runner import Suite


def options(parser):
    parser.add_argument("--before", metavar="FILE", help="an older executable, measured next to it where that is possible")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of `churn` (default: 5)")
    parser.add_argument("--seconds", type=float, default=60, help="the length of a long measurement (default: 60)")


SUITE = Suite(
    "tests/scale/run.sh",
    "Measure the proxy with thousands of clusters, routes and listeners, and with frequent updates.",
    (churn, many, idle, listeners, lookups, routes, swap),
    options=options,
)

if __name__ == "__main__":
    sys.exit(SUITE.main())
