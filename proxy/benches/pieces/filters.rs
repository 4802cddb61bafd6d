//! Filters: a chain's calls into WebAssembly (a minimal filter, built with the third-party SDK and with ours, see
//! tests/chain), and the router's route lookup (compiled natively, because only its algorithm is of interest).

use std::{
    hint::black_box,
    path::Path,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use http::{HeaderValue, StatusCode, Version};
use router::Router;
use serde_json::{Value as Json, json};
use tokio::task::LocalSet;
use tollgate::{
    chain::{
        Chain, Direction, Filter, ResponseHead, Stream,
        flow::{HeadFlow, Outcome},
        stream::{ConnectionInfo, IncomingRequest},
    },
    config::{self, Format},
    control::snapshot::{BuildMode, Built, SnapshotBuilder},
    net::socket::LOCAL,
    upstream::{PoolOptions, Pools},
    wasm::{Compiler, InstanceSupply, Vm, VmBinding},
};
use tollgate_sdk::testing::TestHost;

use super::{Piece, small};

/// The output folder of `cargo filters`.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/filters/wasm32-unknown-unknown/filter");

pub fn pieces() -> Vec<Piece> {
    let modules =
        [("chain/third-party filter", "three_headers_standard"), ("chain/the same by our SDK", "three_headers")];
    let chains = modules.into_iter().filter_map(|(name, module)| {
        let file = format!("{FOLDER}/{module}.wasm");
        if !Path::new(&file).is_file() {
            eprintln!("!!! {name} is skipped: {file} is missing; build it with `cargo filters`.");
            return None;
        }
        Some(chain(name, &[("f", json!({"wasm": file}))]))
    });
    // The difference is the cost of a route that selects a variant.
    let routed = [("chain/router and filter", json!({})), ("chain/router and variant", json!({"limits": "other"}))];
    let routed = routed.map(|(name, filters)| {
        let routes = json!([{"cluster": "c", "filters": filters}]);
        let limits = json!({"limits": [{"name": "all", "requests": 1_000_000_000, "per": "1s"}]});
        let router = json!({"wasm": "builtin:router", "config": {"routes": routes}});
        let limits = json!({"wasm": "builtin:ratelimit", "config": limits, "variants": {"other": limits}});
        chain(name, &[("routes", router), ("limits", limits)])
    });
    chains.chain(routed).chain([routes("routes/10", 10), routes("routes/10,000", 10_000)]).collect()
}

/// Passes a request's and a response's head through a chain of these filters, given by name and settings, and ends the
/// stream.
fn chain(name: &'static str, filters: &[(&str, Json)]) -> Piece {
    let named = |(name, settings): &(&str, Json)| {
        let mut filter = settings.clone();
        filter["name"] = json!(name);
        filter
    };
    let text = json!({
        "listeners": [{
            "name": "public",
            "address": "127.0.0.1:0",
            "chain": filters.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        }],
        "filters": filters.iter().map(named).collect::<Vec<_>>(),
        "clusters": [{"name": "c"}],
    });
    let loaded = config::parse("bench.json", &text.to_string(), Format::Json).unwrap_or_else(|wrong| panic!("{wrong}"));
    let builder = SnapshotBuilder::new(1, Compiler::in_process()).expect("a builder");
    let built = builder.build(loaded, None, BuildMode::Trial).unwrap_or_else(|wrong| panic!("{wrong}"));
    let Built { vms, .. } = built;
    let supply = InstanceSupply::new(|_| panic!("the filter failed"));
    let binding = VmBinding { upstream: Pools::new(PoolOptions::default()), supply };
    let tasks = LocalSet::new();
    let filters = tasks.block_on(&super::traffic::runtime().0, async move {
        let all = vms.into_iter().flat_map(|(template, instances)| Some((template, instances.into_iter().next()?)));
        let vms: Vec<_> = all.map(|(template, instance)| Vm::new(template, instance, binding.clone())).collect();
        vms.iter().flat_map(Vm::filters).map(|filter| filter as Rc<dyn Filter>).collect()
    });
    let chain = Rc::new(Chain::new(filters));
    let head = small::head();
    let response = ResponseHead { status: StatusCode::OK, fields: head.fields.clone() };
    let connection = Rc::new(ConnectionInfo::new("public".into(), LOCAL, LOCAL));
    Piece::new(name, move || {
        let _inside = tasks.enter();
        let arrival = IncomingRequest {
            client: LOCAL,
            head: head.clone(),
            original_path: head.path.clone(),
            version: Version::HTTP_11,
            request_id: HeaderValue::from_static("0190a8f2-0000-7000-8000-000000000000"),
        };
        let stream = Stream::new(connection.clone(), Rc::default(), chain.clone(), arrival);
        pass(&stream, Direction::Request);
        stream.state.borrow_mut().response = Some(response.clone());
        pass(&stream, Direction::Response);
        stream.end();
    })
}

fn pass(stream: &Rc<Stream>, direction: Direction) {
    let mut flow = HeadFlow::new(stream, direction);
    let passed = flow.poll(stream, true, &mut Context::from_waker(Waker::noop()));
    assert!(matches!(passed, Poll::Ready(Outcome::Done)), "{passed:?}");
}

/// The lookup of the route in the middle.
fn routes(name: &'static str, count: usize) -> Piece {
    let route = |n| json!({"match": {"path": {"prefix": format!("/service-{n}")}}, "cluster": "c"});
    let routes: Vec<_> = (0..count).map(route).collect();
    let config = json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]});
    let path = format!("/service-{}/items/42", count / 2);
    // Created on first use: if a thread has several, only the last one is alive.
    let mut host = None;
    Piece::new(name, move || {
        let host = host.get_or_insert_with(|| TestHost::<Router>::new(config.clone()).expect("a valid configuration"));
        assert!(black_box(host.request("GET", black_box(&path)).send()).route().is_some());
    })
}
