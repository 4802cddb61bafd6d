//! Portable filters: modules built with the SDK's feature `portable` import only the standard's functions, and behave
//! the same in Envoy and in Tollgate. Each test runs the same requests against three proxies: Tollgate with the shipped
//! filter, Tollgate with the portable one, and Envoy with the same file.

mod examples;
mod standard;

use std::{collections::BTreeSet, net::SocketAddr, path::Path};

use serde_json::Value;
use tollgate::builtins;
use tollgate_abi::{proxy_wasm, wasi};
use wasmparser::{Parser, Payload};

use crate::harness::{Client, Config, Message, Proxy, envoy, wasm};

/// The examples that `cargo portable` compiles, in addition to the built-in filters.
const EXAMPLES: [&str; 5] = ["hello", "api-key", "body-transform", "grpc-health", "lookup"];

/// A chain and its clusters, for either proxy.
#[derive(Default)]
struct Site {
    /// Filters, whose names are those of their modules, and their configurations.
    chain: Vec<(&'static str, Value)>,
    clusters: Vec<(&'static str, SocketAddr)>,
    /// HTTP/2 clusters.
    h2_clusters: Vec<(&'static str, SocketAddr)>,
    routed: bool,
}

/// A running proxy.
enum Running {
    Tollgate(Box<Proxy>),
    Envoy(envoy::Envoy),
}

impl Site {
    /// Requests that no filter routes elsewhere go to this cluster, `web`.
    fn to(web: SocketAddr) -> Site {
        Site::default().cluster("web", web)
    }

    /// Filters choose the cluster.
    fn routed() -> Site {
        Site { routed: true, ..Site::default() }
    }

    fn cluster(mut self, name: &'static str, endpoint: SocketAddr) -> Site {
        self.clusters.push((name, endpoint));
        self
    }

    fn h2_cluster(mut self, name: &'static str, endpoint: SocketAddr) -> Site {
        self.h2_clusters.push((name, endpoint));
        self
    }

    fn filter(mut self, name: &'static str, config: Value) -> Site {
        self.chain.push((name, config));
        self
    }

    fn tollgate(&self, module: fn(&str) -> Vec<u8>) -> Running {
        let mut config = Config::new();
        if !self.routed {
            config = config.listener("cluster: web");
        }
        let mut files = Vec::new();
        for (name, options) in &self.chain {
            config = config.filter(name, &format!("{name}.wasm"), &format!("config: {options}"));
            files.push((format!("{name}.wasm"), module(name)));
        }
        for (name, endpoint) in &self.clusters {
            config = config.cluster(name, &[endpoint], "");
        }
        for (name, endpoint) in &self.h2_clusters {
            config = config.cluster(name, &[endpoint], "protocol: h2");
        }
        let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        Running::Tollgate(Box::new(Proxy::start_with(config, &files)))
    }

    fn envoy(&self, program: &Path) -> Running {
        let mut site = envoy::Site::new();
        if self.routed {
            site = site.routed();
        }
        for (name, options) in &self.chain {
            site = site.filter(name, &wasm::portable(name), options);
        }
        for (name, endpoint) in &self.clusters {
            site = site.cluster(name, *endpoint);
        }
        for (name, endpoint) in &self.h2_clusters {
            site = site.h2_cluster(name, *endpoint);
        }
        Running::Envoy(site.start(program))
    }

    /// Runs the test against all three. State that must not be shared (such as a counting service) must be created by
    /// `site`, so that each has its own.
    fn each(envoy: &Path, site: impl Fn() -> Site, ask: impl Fn(&Running)) {
        for (what, run) in [
            ("Tollgate", site().tollgate(wasm::example)),
            ("Tollgate, portable", site().tollgate(wasm::portable)),
            ("Envoy", site().envoy(envoy)),
        ] {
            eprintln!("--- {what}");
            ask(&run);
        }
    }
}

impl Running {
    fn client(&self) -> Client {
        match self {
            Running::Tollgate(proxy) => proxy.client(),
            Running::Envoy(envoy) => envoy.client(),
        }
    }

    /// Sends a request on a new connection and returns its response.
    fn request(&self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Message {
        self.client().request(method, target, fields, body)
    }

    /// `GET`.
    fn get(&self, target: &str, fields: &[(&str, &str)]) -> Message {
        self.request("GET", target, fields, b"")
    }

    /// The statuses of requests, sent one after the other.
    fn statuses(&self, asked: &[(&str, &[(&str, &str)])]) -> Vec<u16> {
        asked.iter().map(|(target, fields)| self.get(target, fields).status()).collect()
    }
}

#[test]
fn portable_modules_import_nothing_but_the_standard() {
    let env: BTreeSet<_> = proxy_wasm::HOSTCALLS.iter().map(|f| f.name).collect();
    let wasi_names: BTreeSet<_> = wasi::HOSTCALLS.iter().map(|f| f.name).collect();
    for name in EXAMPLES.iter().chain(builtins::NAMES) {
        let module = wasm::portable(name);
        let sections = Parser::new(0).parse_all(&module).map(|section| section.expect("a module"));
        let imports =
            sections.filter_map(|s| if let Payload::ImportSection(imports) = s { Some(imports) } else { None });
        let mut count = 0;
        for import in imports.flat_map(|imports| imports.into_imports()).map(|import| import.expect("an import")) {
            let known = match import.module {
                "env" => env.contains(import.name),
                "wasi_snapshot_preview1" => wasi_names.contains(import.name),
                _ => false,
            };
            assert!(known, "{name} imports {}.{}", import.module, import.name);
            count += 1;
        }
        assert!(count > 0, "{name} imports nothing");
    }
}

/// Every host shows a configuration error in the log.
#[test]
fn a_configuration_error_is_logged_with_its_location() {
    let config = Config::to("127.0.0.1:1").filter("fault", "fault.wasm", "config: {abort: {status: 99, percent: 1}}");
    let Err(output) = Proxy::try_start(config, &[("fault.wasm", &wasm::portable("fault"))]) else {
        panic!("it must be rejected")
    };
    assert!(output.contains("abort.status: 99 is not a response status"), "{output}");
}
