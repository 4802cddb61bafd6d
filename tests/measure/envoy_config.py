"""Configurations of Envoy: listeners for HTTP/1.1, with clusters of fixed endpoints."""

EXTENSIONS = "type.googleapis.com/envoy.extensions"


def typed(name, kind, **fields):
    """An extension: its name, its type without the common part, and its fields."""
    return {"name": name, "typed_config": {"@type": f"{EXTENSIONS}.{kind}", **fields}}


def address(text):
    host, port = text.split(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def cluster(name, addresses, **fields):
    endpoints = [{"endpoint": {"address": address(text)}} for text in addresses]
    return {
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    } | fields


def bootstrap(admin, port, virtual_hosts, clusters, http_filters=()):
    """One listener, whose filters end with the router."""
    manager = typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="public", codec_type="HTTP1",
        http_filters=[*http_filters, typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
        route_config={"virtual_hosts": virtual_hosts},
    )
    listener = {"name": "public", "address": address(f"127.0.0.1:{port}"), "filter_chains": [{"filters": [manager]}]}
    return {
        "admin": {"address": address(f"127.0.0.1:{admin}")},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }
