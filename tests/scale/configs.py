"""Configurations of the proxy and of Envoy."""

import envoy_config

FILTERS = ("access", "limits", "routes")


def base(admin, workers=None):
    """A configuration without listeners."""
    config = {"admin": {"address": f"127.0.0.1:{admin}"}, "drain_timeout": "1s"}
    if workers:
        config["workers"] = workers
    return config


def listener(name, port, chain):
    return {"name": name, "address": f"127.0.0.1:{port}", "chain": list(chain)}


def filters(routes, prefix=""):
    """Three filters that a request passes: access control, a rate limit that is never reached, and the router."""
    policy = {
        "name": "admin", "action": "deny",
        "rules": [{"to": [{"operation": {"paths": ["/admin*"]}}],
                   "when": [{"key": "request.headers[x-token]", "not_values": ["open-sesame"]}]}],
    }
    limit = {"name": "all", "requests": 1_000_000_000, "per": "1s"}
    return [
        {"name": f"{prefix}access", "wasm": "builtin:authz", "config": {"policies": [policy]}},
        {"name": f"{prefix}limits", "wasm": "builtin:ratelimit", "config": {"limits": [limit]}},
        {"name": f"{prefix}routes", "wasm": "builtin:router", "config": {"routes": routes}},
    ]


def cluster(name, ports):
    return {"name": name, "endpoints": [{"address": f"127.0.0.1:{port}"} for port in ports]}


def spread_addresses(index, port):
    """Ten addresses of the loopback interface that no other cluster has."""
    return [f"127.{1 + index // 256}.{index % 256}.{k}:{port}" for k in range(1, 11)]


def clusters_yaml(indices, port_of):
    """The section `clusters`, as a person would write it."""
    lines = ["clusters:"]
    for index in indices:
        lines += [f"  - name: c{index}", "    endpoints:"]
        lines += [f"      - address: {address}" for address in spread_addresses(index, port_of(index))]
    return "\n".join(lines) + "\n"


def hosts(count):
    """A host per cluster, for the router."""
    return [{"name": f"h{index}", "domains": [f"c{index}.test"], "routes": [{"cluster": f"c{index}"}]} for index in range(count)]


def envoy(admin, port, count, upstream):
    """The same clusters and hosts for Envoy."""
    clusters = [envoy_config.cluster(f"c{index}", spread_addresses(index, upstream)) for index in range(count)]
    virtual_hosts = [
        {"name": f"h{index}", "domains": [f"c{index}.test"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": f"c{index}"}}]}
        for index in range(count)
    ]
    return envoy_config.bootstrap(admin, port, virtual_hosts, clusters)
