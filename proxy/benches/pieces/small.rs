//! Pieces without dependencies: reading and writing HTTP/1.1 heads, header fields, token buckets, endpoint
//! selection.

use std::{hint::black_box, sync::Arc};

use super::Piece;
use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body::SizeHint;
use serde_json::{Value, json};
use tokio::time::Instant;
use tollgate::{
    chain::head::{HeaderOps, Headers, Name, RequestHead},
    config::model,
    h1::{
        Limits, WriteBuf, encoder,
        head::{self, HeadScanner},
    },
    upstream::Cluster,
    wasm::stores::bucket::Bucket,
};
use tollgate_abi::doc;

/// A typical request of a browser.
pub const REQUEST: &str = "GET /api/items/8271?expand=prices HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: Mozilla/5.0 \
    (X11; Linux x86_64)\r\nAccept: application/json, text/html;q=0.9\r\nAccept-Encoding: gzip, br\r\nAccept-Language: \
    en-GB, en;q=0.8\r\nCookie: session=0123456789abcdef\r\nReferer: https://shop.example/items\r\n\r\n";

/// The same request as filters receive it.
pub fn head() -> RequestHead {
    let fields = REQUEST.lines().skip(2).filter_map(|line| line.split_once(": "));
    RequestHead {
        method: Method::GET,
        path: "/api/items/8271?expand=prices".into(),
        authority: "shop.example".into(),
        scheme: "http",
        fields: fields
            .map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
                (name, HeaderValue::from_str(value).expect("a value"))
            })
            .collect::<HeaderMap>(),
    }
}

pub fn pieces() -> Vec<Piece> {
    let mut pieces =
        vec![parse(), write(), read(), change(), ops(), bucket("bucket/one", 0), bucket("bucket/for each key", 10_000)];
    for (name, balancer, weights) in [
        ("pick/round robin", json!("round_robin"), [1; 10]),
        ("pick/least request", json!("least_request"), [1; 10]),
        ("pick/hash", json!("hash"), [1; 10]),
        ("pick/round robin, weights", json!("round_robin"), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("pick/least request, weights", json!("least_request"), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("pick/peak EWMA", json!("peak_ewma"), [1; 10]),
        ("pick/random", json!("random"), [1; 10]),
        // A larger ring is built by another thread, and keys are placed in another way until it is there.
        ("pick/ring hash", json!({"policy": "ring_hash", "maximum_ring_size": 4096}), [1; 10]),
        ("pick/Maglev", json!({"policy": "maglev", "table_size": 1021}), [1; 10]),
        (
            "pick/Maglev, bounded load",
            json!({"policy": "maglev", "table_size": 1021, "hash_balance_factor": 125}),
            [1; 10],
        ),
    ] {
        pieces.push(pick(name, &balancer, weights));
    }
    pieces.push(record());
    pieces
}

fn parse() -> Piece {
    let limits = Limits { head: 64 << 10, fields: 100 };
    let mut inbox = BytesMut::new();
    Piece::new("head/read a request", move || {
        inbox.extend_from_slice(black_box(REQUEST.as_bytes()));
        let length =
            HeadScanner::default().find(&mut inbox, limits.head).expect("a valid head").expect("a complete head");
        black_box(head::request(&mut inbox, length, &limits).expect("a request"));
    })
}

fn write() -> Piece {
    let head = head();
    Piece::new("head/write a request", move || {
        let mut outbox = WriteBuf::default();
        let head = encoder::RequestHead {
            method: &head.method,
            target: &head.path,
            host: Some(&head.authority),
            fields: &head.fields,
            replaced: &[],
        };
        black_box(encoder::request(black_box(&head), &SizeHint::with_exact(0), true, &mut outbox));
        black_box(outbox);
    })
}

fn read() -> Piece {
    let head = head();
    let names = [":path", ":authority", "user-agent", "x-not-there"].map(name);
    Piece::new("head/read 4 fields", move || {
        for name in &names {
            black_box(head.get(black_box(name)));
        }
    })
}

fn change() -> Piece {
    let mut head = head();
    let (set, add, remove) = (name("x-seen"), name("x-added"), name("cookie"));
    Piece::new("head/set, add and remove a field", move || {
        head.set(&set, black_box(b"GET /api/items")).expect("a value");
        head.add(&add, black_box(b"yes")).expect("a value");
        head.remove(&remove);
        head.remove(&add);
    })
}

/// A route's header changes.
fn ops() -> Piece {
    let pairs =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let doc = doc::HeaderOps {
        remove: vec!["x-internal".into()],
        set: pairs(&[("x-served-by", "tollgate"), ("cache-control", "no-store")]),
        add: Vec::new(),
    };
    let ops = HeaderOps::new(&doc).expect("valid operations");
    let mut fields = head().fields;
    Piece::new("head/changes of a route", move || ops.apply(black_box(&mut fields)))
}

fn name(name: &str) -> Name {
    Name::parse(name.as_bytes()).expect("a name")
}

fn bucket(name: &'static str, max_keys: u32) -> Piece {
    let doc = doc::Bucket { name: "b".into(), capacity: 1 << 30, fill: 1 << 30, interval_ms: 1, max_keys };
    let bucket = Bucket::new(&doc).expect("a valid bucket");
    Piece::new(name, move || {
        black_box(bucket.take(black_box(b"192.0.2.17"), 1));
    })
}

fn cluster(balancer: &Value, weights: [u32; 10]) -> Arc<Cluster> {
    let endpoint = |(n, weight): (u32, u32)| json!({"address": format!("192.0.2.{n}:80"), "weight": weight});
    let endpoints: Vec<_> = (1..).zip(weights).map(endpoint).collect();
    // A word is a short form, which only files have.
    let balancer = if balancer.is_string() { json!({"policy": balancer}) } else { balancer.clone() };
    let config = json!({"name": "c", "endpoints": endpoints, "balancer": balancer});
    Cluster::new(&serde_json::from_value::<model::Cluster>(config).expect("a cluster"), None)
}

fn pick(name: &'static str, balancer: &Value, weights: [u32; 10]) -> Piece {
    let cluster = cluster(balancer, weights);
    Piece::new(name, move || {
        black_box(cluster.pick(black_box(Some(0x1234_5678_9abc_def0)), &[]));
    })
}

/// What an attempt costs beyond the choice of the endpoint if its latency is recorded.
fn record() -> Piece {
    let cluster = cluster(&json!("peak_ewma"), [1; 10]);
    let endpoint = cluster.pick(None, &[]).expect("an endpoint");
    let start = Instant::now();
    Piece::new("pick/record a latency", move || {
        cluster.time_attempt(&endpoint, black_box(start)).answered(black_box(start));
    })
}
