//! Envoy with Proxy-Wasm filters, to compare its behaviour with Tollgate's.

use std::{fs, net::SocketAddr, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Client, peer::Peer, reserve};

/// The access log format, with filters' log fields.
const LOG: &str = "%REQ(:PATH)% %RESPONSE_CODE% flags=%FILTER_STATE(wasm.tollgate_flags:PLAIN)% \
    dry_run=%FILTER_STATE(wasm.authz_dry_run:PLAIN)%\n";

/// One listener with a chain of filters. Requests go to the cluster `web`, or to the one in a filter's
/// `x-tollgate-cluster`.
#[derive(Default)]
pub struct Site {
    filters: Vec<Value>,
    clusters: Vec<Value>,
    dir: Option<TempDir>,
    routed: bool,
}

impl Site {
    /// Creates a site without filters and clusters.
    pub fn new() -> Site {
        Site { dir: Some(TempDir::new().expect("a folder")), ..Site::default() }
    }

    /// Lets filters choose the cluster.
    pub fn routed(mut self) -> Site {
        self.routed = true;
        self
    }

    /// Adds a filter to the end of the chain.
    pub fn filter(mut self, name: &str, module: &[u8], config: &Value) -> Site {
        let dir = self.dir.as_ref().expect("it is not started yet");
        let file = dir.path().join(name).with_extension("wasm");
        fs::write(&file, module).expect("a file can be written");
        self.filters.push(json!({
            "name": name,
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                "config": {
                    "name": name,
                    "vm_config": {
                        "vm_id": name,
                        "runtime": "envoy.wasm.runtime.v8",
                        "code": {"local": {"filename": file}},
                    },
                    "configuration": {
                        "@type": "type.googleapis.com/google.protobuf.StringValue",
                        "value": config.to_string(),
                    },
                },
            },
        }));
        self
    }

    /// Adds a cluster with one endpoint.
    pub fn cluster(mut self, name: &str, endpoint: SocketAddr) -> Site {
        self.clusters.push(json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "10s",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(endpoint)}}]}],
            },
        }));
        self
    }

    /// The same for an HTTP/2 endpoint.
    pub fn h2_cluster(mut self, name: &str, endpoint: SocketAddr) -> Site {
        self = self.cluster(name, endpoint);
        let cluster = self.clusters.last_mut().expect("it was added");
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        });
        self
    }

    /// Starts Envoy with two workers, and waits until it accepts connections.
    pub fn start(self, program: &Path) -> Envoy {
        let Site { mut filters, clusters, dir, routed } = self;
        let (dir, address) = (dir.expect("it is not started yet"), reserve());
        filters.push(json!({
            "name": "router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }));
        let to = if routed { json!({"cluster_header": "x-tollgate-cluster"}) } else { json!({"cluster": "web"}) };
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "main",
            "http_filters": filters,
            "access_log": [{
                "name": "stdout",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
                    "log_format": {"text_format_source": {"inline_string": LOG}},
                },
            }],
            "route_config": {
                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": to}]}],
            },
        });
        let listener = json!({
            "name": "main",
            "address": socket(*address),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        });
        let config = json!({"static_resources": {"listeners": [listener], "clusters": clusters}});
        let file = dir.path().join("envoy.json");
        fs::write(&file, config.to_string()).expect("a file can be written");
        let file = file.to_str().expect("a path");
        let args = ["-c", file, "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"];
        Envoy { peer: Peer::serve_at(address, program, &args), _dir: dir }
    }
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

impl Envoy {
    /// Waits until it has written this line, for example to its access log.
    pub fn wait_for(&self, line: &str) {
        self.peer.wait_for(line);
    }
}

/// A running Envoy. It is killed when dropped; its output is shown if the test has failed.
pub struct Envoy {
    peer: Peer,
    _dir: TempDir,
}

impl Envoy {
    /// Opens a connection to its listener.
    pub fn client(&self) -> Client {
        Client::connect(self.peer.address)
    }
}
