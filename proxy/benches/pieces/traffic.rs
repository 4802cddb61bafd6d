//! Requests over connections: one to an upstream on a kept connection, and a whole one through the proxy, from the client's
//! socket to the upstream and back. Everything runs on this thread. Upstreams are in the same process, and take only
//! a few lines, so that almost all counted instructions are the proxy's.

use std::{rc::Rc, sync::Arc};

use super::{Piece, small::REQUEST};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::UnixStream,
    runtime::Runtime,
    task::{LocalSet, spawn_local},
};
use tollgate::{
    chain::{Route, slot::SlottedChain, stream::ConnectionInfo},
    config::{self, Format},
    control::snapshot::{BuildMode, Built, SnapshotBuilder},
    downstream::{connection::ListenerHandle, h1},
    exchange::ListenerContext,
    net::{Socket, Stream, socket::LOCAL},
    upstream::{PoolOptions, Pools, ProtocolChoice},
    wasm::Compiler,
};

const RESPONSE: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 64\r\nDate: Thu, 01 Jan 2026 \
    00:00:00 GMT\r\nServer: upstream\r\n\r\n0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

const CONFIG: &str = "
listeners: [{name: public, address: '127.0.0.1:0', cluster: backend}]
clusters: [{name: backend, endpoints: [{address: '192.0.2.1:80'}]}]
";

pub fn pieces() -> Vec<Piece> {
    vec![kept_connection(), whole_request()]
}

/// A worker's runtime.
pub fn runtime() -> (Runtime, LocalSet) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    (runtime, LocalSet::new())
}

/// A configuration without filters.
fn built() -> Built {
    let loaded = config::parse("bench.yaml", CONFIG, Format::Yaml).unwrap_or_else(|wrong| panic!("{wrong}"));
    let builder = SnapshotBuilder::new(1, Compiler::in_process()).expect("a builder");
    builder.build(loaded, None, BuildMode::Trial).unwrap_or_else(|wrong| panic!("{wrong}"))
}

/// An upstream that responds to each head.
async fn upstream(mut stream: DuplexStream) {
    let (mut bytes, mut end) = (vec![0; 16 << 10], 0);
    while let Ok(n @ 1..) = stream.read(&mut bytes[end..]).await {
        end += n;
        if bytes[..end].ends_with(b"\r\n\r\n") {
            end = 0;
            if stream.write_all(RESPONSE.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Pools whose connections lead to `upstream`.
fn pools<B>() -> Pools<B>
where
    B: http_body::Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let dial = |_: &_, _: &_| {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        spawn_local(upstream(theirs));
        Ok(ours)
    };
    Pools::dialling(PoolOptions::default(), Box::new(dial))
}

fn kept_connection() -> Piece {
    let (runtime, local) = runtime();
    let cluster = built().clusters[0].1.clone();
    let pools: Pools<Empty<Bytes>> = pools();
    let request = Request::get("/api/items").header("host", "shop.example").body(()).expect("a request");
    let (head, ()) = request.into_parts();
    Piece::new("pool/a request on a kept connection", move || {
        local.block_on(&runtime, async {
            let endpoint = cluster.pick(None, &[]).expect("an endpoint");
            let response = pools.send(&cluster, &endpoint, ProtocolChoice::default(), &head, Empty::new()).await;
            let body = response.unwrap_or_else(|failure| panic!("{}", failure.kind)).into_body().collect().await;
            assert_eq!(body.expect("a body").to_bytes().len(), 64);
        });
    })
}

fn whole_request() -> Piece {
    let (runtime, local) = runtime();
    let Built { snapshot, clusters, .. } = built();
    let parts = &snapshot.listeners[0];
    let (handle, cluster) = &clusters[0];
    let mut context =
        ListenerContext::new(parts.config.clone(), SlottedChain::single(Vec::new()), parts.metrics.clone(), pools());
    context.default_route = Some(Arc::new(Route::to_cluster(handle.clone())));
    context.pools.set(handle, cluster);
    let mut client = local.block_on(&runtime, async {
        let (client, served) = UnixStream::pair().expect("a pair of sockets");
        let info = ConnectionInfo::new("public".into(), LOCAL, LOCAL);
        let handle = Rc::new(ListenerHandle::new(Rc::new(context)));
        spawn_local(async move { h1::serve(handle, Stream::from(Socket::Unix(served)), Rc::new(info)).await });
        (client, vec![0; 16 << 10])
    });
    Piece::new("request/bare, HTTP/1.1", move || {
        local.block_on(&runtime, async {
            let (socket, answer) = &mut client;
            socket.write_all(REQUEST.as_bytes()).await.expect("the proxy reads");
            let mut end = 0;
            // The body's last bytes, which do not occur in the head.
            while !answer[..end].ends_with(b"89abcdef") {
                let n = socket.read(&mut answer[end..]).await.expect("the proxy answers");
                assert_ne!(n, 0, "closed after {}", String::from_utf8_lossy(&answer[..end]));
                end += n;
            }
            assert!(answer.starts_with(b"HTTP/1.1 200"));
        });
    })
}
