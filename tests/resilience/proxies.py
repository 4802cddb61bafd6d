"""Starts the compared proxies, which listen on a port each and forward everything to the same upstreams."""

import os
import shutil
import socket
import subprocess
import sys

import envoy_config
from envoy_config import typed
from harness import Failed, free_ports, wait_for

NGINX = """
user root;
daemon off;
worker_processes {workers};
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
    uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
    upstream web {{
        zone web 64k;
        {servers}
        keepalive 64;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://web;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            {options}
        }}
    }}
}}
"""


def tollgate(context, name, ports, listener=None, top=None, cpus=None, **cluster):
    """Starts Tollgate with additional fields of the listener, of the top level, and of the cluster.

    Returns its port; None if it does not accept the configuration, because it is older than one of the fields.
    """
    port, admin = free_ports(2)
    config = {
        "admin": {"address": f"127.0.0.1:{admin}"}, "drain_timeout": "1s",
        "listeners": [{"name": "public", "address": f"127.0.0.1:{port}", "cluster": "web"} | (listener or {})],
        "clusters": [{"name": "web", "endpoints": [f"127.0.0.1:{port}" for port in ports]} | cluster],
    } | (top or {})
    path = context.write(f"{name}.json", config)
    checked = subprocess.run([context.tollgate, "check", path], capture_output=True, text=True)
    if checked.returncode:
        print(f"*** {name} is NOT measured: {checked.stderr or checked.stdout}", file=sys.stderr)
        context.fact(f"{name}: the configuration is accepted", False)
        return None
    context.proxy(path, admin, name, cpus=cpus)
    return port


def envoy(context, name, ports, cluster=None, route=None, filters=()):
    """Starts Envoy with additional fields of the cluster and the route, and filters before the router. Returns its port."""
    port, admin = free_ports(2)
    clusters = [envoy_config.cluster("web", [f"127.0.0.1:{port}" for port in ports], **(cluster or {}))]
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "web", **(route or {})}}]
    hosts = [{"name": "web", "domains": ["*"], "routes": routes}]
    context.start_envoy(envoy_config.bootstrap(admin, port, hosts, clusters, filters), admin, name)
    return port


def envoy_checks(interval, unhealthy, healthy):
    """Active checks of /health, in Envoy's form. Those of Tollgate are in `checks`."""
    return {"health_checks": [{
        "interval": interval, "no_traffic_interval": interval, "timeout": "1s",
        "unhealthy_threshold": unhealthy, "healthy_threshold": healthy, "http_health_check": {"path": "/health"},
    }]}


def checks(interval, unhealthy, healthy):
    return {"health_check": {
        "interval": interval, "timeout": "1s",
        "unhealthy_threshold": unhealthy, "healthy_threshold": healthy, "check": {"http": {"path": "/health"}},
    }}


def envoy_retries(attempts, percent=20):
    """Retries at hosts that the request has not tried, with a budget: by default that of Tollgate. Fields of route and cluster."""
    predicate = typed("envoy.retry_host_predicates.previous_hosts", "retry.host.previous_hosts.v3.PreviousHostsPredicate")
    policy = {
        "retry_on": "connect-failure,reset,gateway-error", "num_retries": attempts,
        "retry_host_predicate": [predicate], "host_selection_retry_max_attempts": 5,
    }
    budget = {"budget_percent": {"value": percent}, "min_retry_concurrency": 3}
    return {"retry_policy": policy}, {"circuit_breakers": {"thresholds": [{"retry_budget": budget}]}}


def nginx(context, name, ports, server="", options=""):
    """Starts nginx with parameters of each server and directives for all requests. Returns its port."""
    port, = free_ports(1)
    folder = context.path(name)
    os.makedirs(folder, exist_ok=True)
    servers = " ".join(f"server 127.0.0.1:{port} {server};" for port in ports)
    config = NGINX.format(workers=os.cpu_count(), folder=folder, port=port, servers=servers, options=options)
    path = context.write(f"{name}.conf", config)
    process = context.start([find_nginx(), "-e", "stderr", "-p", folder, "-c", path], name)

    def listens():
        if process.child.poll() is not None:
            raise Failed(f"nginx ended:\n{process.last_lines()}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens, "nginx to listen")
    return port


def find_nginx():
    """Returns the path of nginx, which may be in a folder that PATH lacks; None if there is none."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
