"""Two upstreams are restarted in turn, under load.

Every eight seconds one of the two ends, and starts again a second later: with SIGTERM, after which it answers the requests that it has
received; with SIGKILL; or its health check fails for 3.5 s, then SIGTERM. Requests (GET) take 20 ms, and an exponentially distributed time of 20 ms on
average. All proxies are used at the same time. Checks: every second, two failures, one success. Retries: up to two, after connection failures, resets, 502,
503 and 504, at another endpoint. Ejection: five failures in a row eject for 2 s, evaluated every half second. Apart from that the proxies
have their defaults: without a section for retries, Tollgate still tries another endpoint if no connection could be established, and nginx does so after
any error of a connection. Envoy has the retry budget that Tollgate has by default (20 %, at least three); in Envoy it covers tries after
connection failures as well, so *unlimited* stands for the same without this limit.
"""

import os
import sys
import time

import proxies
import table as markdown
from traffic import Load, Upstreams, lateness, summary

KINDS = ("SIGTERM", "SIGKILL", "check first")
# Seconds: from one restart to the next, without a process, and with a failing check.
PERIOD, DOWN, UNHEALTHY = 8, 1.0, 3.5
OUTLIERS = {"outlier_detection": {"interval": "0.5s", "base_ejection_time": "2s", "max_ejection_percent": 50}}
CHECKS = ("1s", 2, 1)
ATTEMPTS = 2
OPTIONS = ("checks", "retries", "ejection")
GOAL = "Tollgate, retries and ejection"


def variants(context):
    """Returns a function for each variant, which starts its proxy with the upstreams' ports and returns the proxy's port."""
    found = {}
    for number in range(8):
        chosen = [option for index, option in enumerate(OPTIONS) if number >> index & 1]
        found[label("Tollgate", chosen)] = lambda name, ports, chosen=chosen: tollgate(context, name, ports, chosen)
    if context.envoy():
        unlimited = "unlimited retries"
        for chosen in ([], ["retries"], [unlimited], ["checks", "retries"], ["retries", "ejection"], [unlimited, "ejection"]):
            found[label("Envoy", chosen)] = lambda name, ports, chosen=chosen: envoy(context, name, ports, chosen)
    else:
        print("*** restarts: no Envoy, so it is NOT measured (tests/interop/setup.sh brings it)", file=sys.stderr)
    if proxies.find_nginx():
        found["nginx"] = lambda name, ports: proxies.nginx(context, name, ports, "fail_timeout=2s")
        found["nginx, no other upstream"] = lambda name, ports: proxies.nginx(context, name, ports, "fail_timeout=2s", "proxy_next_upstream off;")
    else:
        print("*** restarts: no nginx, so it is NOT measured", file=sys.stderr)
    return found


def label(proxy, options):
    return f"{proxy}, {' and '.join(options)}" if options else proxy


def tollgate(context, name, ports, options):
    cluster = {}
    if "checks" in options:
        cluster |= proxies.checks(*CHECKS)
    if "retries" in options:
        cluster |= {"retry": {"on": ["connect_failure", "reset", "gateway_error"], "attempts": ATTEMPTS}}
    if "ejection" in options:
        cluster |= OUTLIERS
    return proxies.tollgate(context, name, ports, **cluster)


def envoy(context, name, ports, options):
    cluster, route = {}, {}
    if "checks" in options:
        cluster |= proxies.envoy_checks(*CHECKS)
    for percent, option in ((20, "retries"), (100, "unlimited retries")):
        if option in options:
            route, budget = proxies.envoy_retries(ATTEMPTS, percent)
            cluster |= budget
    if "ejection" in options:
        cluster |= OUTLIERS
    return proxies.envoy(context, name, ports, cluster, route)


def run(context):
    rate, seconds = context.pick((65, 108), (20, PERIOD))
    result = {"requests": rate * seconds, "restarts": seconds // PERIOD, "runs": {}, "late_ms": {}}
    for kind in KINDS:
        print(f"   {kind}, {seconds} s", flush=True)
        upstreams = [Upstreams(context) for _ in range(2)]
        for upstream in upstreams:
            behave(upstream)
        ports = [upstream.ports[0] for upstream in upstreams]
        targets = {}
        for number, (variant, start) in enumerate(variants(context).items()):
            if port := start(f"proxy-{number}", ports):
                targets[variant] = port
                result["runs"].setdefault(variant, {})
        # A generator for each processor.
        split = min(2, os.cpu_count())
        names = {f"p{number}": variant for number, variant in enumerate(targets)}
        loads = [Load(context, {name: targets[names[name]] for name in list(names)[part::split]}, rate, seconds, timeout=5)
                 for part in range(split)]
        for number in range(result["restarts"]):
            loads[0].sleep_until(1 + number * PERIOD)
            restart(upstreams[number % 2], kind)
        for load in loads:
            records, late = load.records()
            result["late_ms"][kind] = max(late, result["late_ms"].get(kind, 0))
            for name, own in records.items():
                context.fact(f"{names[name]}, {kind}: every request has ended", len(own) == load.sent)
                result["runs"][names[name]][kind] = summary(own)
        context.stop()
    return result


def behave(upstream):
    upstream.set(service=0.02, spread=0.02)


def restart(upstream, kind):
    if kind == "check first":
        upstream.set(healthy=False)
        time.sleep(UNHEALTHY)
    upstream.end(kill=kind == "SIGKILL")
    time.sleep(DOWN)
    upstream.start()
    behave(upstream)


def table(result):
    rows = [[variant, *(f"{runs[kind]['failed']}" if kind in runs else "–" for kind in KINDS)] for variant, runs in result["runs"].items()]
    header = [f"failures of {result['requests']:,} requests, {result['restarts']} restarts", *KINDS]
    parts = [markdown.table(header, rows)]
    if goal := result["runs"].get(GOAL):
        failed = [goal[kind]["failed"] for kind in KINDS]
        parts.append(markdown.goals([("retries and ejection, no active checks: no failure", ", ".join(map(str, failed)), not any(failed))]))
    parts.append(lateness(result))
    return "\n".join(parts)
