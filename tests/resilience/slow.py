"""One of three upstreams becomes slow, fails, and hangs.

Requests take 5 ms and an exponentially distributed time of 5 ms on average. Then those of one upstream take 200 ms more (slow), half of
them are answered with 503 at once (failing), none is answered (hanging), and it is as before (after). No retries, no active
checks; the proxies answer 504 after a second. With ejection: five failures in a row eject for 5 s, evaluated every second. The
proxies of a balancer, with and without ejection, are used at the same time. *Share*: the part of the requests that the
upstream gets in the first two seconds of a phase, and in the rest. Times in ms, of all requests, from when a request was due.
"""

import sys

import plot
import proxies
import table as markdown
from table import percent
from traffic import Load, Upstreams, count, lateness, seconds, summary

SERVICE = {"service": 0.005, "spread": 0.005, "delay": 0.0, "fail": 0.0, "hang": False}
PHASES = {
    "normal": {}, "slow": {"delay": 0.2}, "failing": {"fail": 0.5}, "hanging": {"hang": True}, "after": {},
}
OUTLIERS = {"interval": "1s", "base_ejection_time": "5s", "max_ejection_percent": 50}
BALANCERS = {
    "Tollgate, round robin": "round_robin", "Tollgate, random": "random", "Tollgate, least request": "least_request",
    "Tollgate, peak EWMA": "peak_ewma", "Envoy, least request": None,
}
NAMES = {"plain": "", "ejection": ", ejection"}
OURS, PEER = "Tollgate, peak EWMA", "Envoy, least request"
# The first seconds of a phase, in which a balancer notices the change.
FIRST = 2


def run(context):
    rate = context.pick(300, 60)
    first, length = context.pick((5, 15), (1, 1))
    begins = [0] + [first + length * index for index in range(len(PHASES))]
    phases = [[name, begins[index], begins[index + 1]] for index, name in enumerate(PHASES)]
    result = {"rate": rate, "phases": phases, "runs": {}, "late_ms": {}}
    for label, balancer in BALANCERS.items():
        if balancer is None and not context.envoy():
            print("*** slow: no Envoy, so it is NOT measured (tests/interop/setup.sh brings it)", file=sys.stderr)
            continue
        print(f"   {label}, {begins[-1]} s", flush=True)
        upstreams = Upstreams(context, 3)
        upstreams.set(**SERVICE)
        targets = {name: start(context, name, balancer, upstreams.ports, name == "ejection") for name in NAMES}
        targets = {name: port for name, port in targets.items() if port}
        load = Load(context, targets, rate, begins[-1], timeout=3)
        for name, begin, _ in phases:
            load.sleep_until(begin)
            upstreams.set(upstreams.ports[:1], **SERVICE | PHASES[name])
        records, result["late_ms"][label] = load.records()
        times = upstreams.report()["times"]
        for name in targets:
            measured = measure(records[name], times[name], str(upstreams.ports[0]), phases, load.start)
            context.fact(f"{label}{NAMES[name]}: every request has ended", len(records[name]) == load.sent)
            context.fact(f"{label}{NAMES[name]}: no request failed before the upstream did",
                         measured["phases"]["normal"]["failed"] + measured["phases"]["slow"]["failed"] == 0)
            result["runs"].setdefault(label, {})[name] = measured
        context.stop()
    return result


def start(context, name, balancer, ports, ejection):
    outliers = {"outlier_detection": OUTLIERS} if ejection else {}
    if balancer:
        return proxies.tollgate(context, f"{balancer}-{name}", ports, balancer=balancer, response_head_timeout="1s", **outliers)
    return proxies.envoy(context, f"envoy-{name}", ports, cluster={"lb_policy": "LEAST_REQUEST", **outliers}, route={"timeout": "1s"})


def measure(records, times, bad, phases, start):
    """Returns what a proxy's clients noticed, and the bad upstream's share of the requests."""
    every = sorted(time for chunk in times.values() for time in chunk)

    def share(begin, end):
        total = count(every, start, begin, end)
        return count(times.get(bad, []), start, begin, end) / total if total else 0

    length = phases[-1][2]
    by_phase = {
        name: summary(records, begin, end) | {"share_first": share(begin, min(begin + FIRST, end)), "share_rest": share(begin + FIRST, end)}
        for name, begin, end in phases
    }
    by_second = [
        {"share": round(share(at, at + 1), 4), "p50": second["p50"], "p99": second["p99"],
         "failed": round(second["failed"] / max(1, second["requests"]), 4)}
        for at, second in enumerate(seconds(records, length))
    ]
    return {"phases": by_phase, "seconds": by_second}


def table(result):
    parts = [f"{result['rate']} requests/s for each proxy.\n"]
    for phase, begin, end in result["phases"]:
        if phase == "normal":
            continue
        rows = []
        for label, runs in result["runs"].items():
            for name, measured in runs.items():
                row = measured["phases"][phase]
                rows.append([
                    label + NAMES[name], percent(row["share_first"]), percent(row["share_rest"]), f"{row['p50']:.0f}", f"{row['p99']:.0f}",
                    percent(row["failed"] / row["requests"], 2),
                ])
        parts.append(markdown.table([f"{phase}, {end - begin} s", "share, first", "rest", "p50", "p99", "failures"], rows))
    if goals := goals_of(result):
        parts.append(markdown.goals(goals))
    parts.append(lateness(result))
    return "\n".join(parts)


def goals_of(result):
    runs = result["runs"]
    if any("ejection" not in runs.get(label, {}) for label in (OURS, PEER)):
        return []
    ours, peer = (runs[label]["ejection"]["phases"] for label in (OURS, PEER))
    times = (ours["slow"]["p99"], peer["slow"]["p99"])
    goals = [("slow: p99 of peak EWMA with ejection at most half of Envoy's", f"{times[0]:.0f} ms, {times[1]:.0f} ms", times[0] <= times[1] / 2)]
    for phase in ("failing", "hanging"):
        failed = (ours[phase]["failed"], peer[phase]["failed"])
        goals.append((f"{phase}: no more failures than Envoy's", f"{failed[0]}, {failed[1]}", failed[0] <= failed[1]))
    return goals


def pictures(result):
    columns = [
        plot.Column("the upstream's share", "share", [0, 0.25, 0.5], percent=True),
        plot.Column("p99, ms", "p99", [10, 100, 1000], logarithmic=True),
        plot.Column("failures", "failed", [0, 0.25, 0.5], percent=True),
    ]
    rows = []
    for label, runs in result["runs"].items():
        lines = [(css, runs[name]["seconds"]) for name, css in (("plain", "peer"), ("ejection", "ours")) if name in runs]
        rows.append((label.replace(", ", ",\n"), lines))
    # The first phase is too short for its name.
    spans = [("" if name == "normal" else name, begin, end) for name, begin, end in result["phases"]]
    title = "One of three upstreams becomes slow, fails, and hangs"
    return {"slow.svg": plot.panels(title, "grey: without ejection, green: with; seconds", columns, rows, spans)}
