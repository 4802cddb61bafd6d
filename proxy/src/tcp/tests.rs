//! Bytes arrive unchanged, whether spliced or copied, and ends are forwarded.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Poll, Waker},
};

use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

use super::*;
use crate::{
    config::model,
    net::Socket,
    observe::Registry,
    upstream::{Cluster, Clusters, PoolOptions, Pools},
};

/// Creates a listener's context with one cluster of these endpoints.
fn context(endpoints: &[SocketAddr], cluster: serde_json::Value) -> (Rc<TcpListenerContext>, Registry, Arc<Cluster>) {
    let registry = Registry::new(1);
    let mut config = json!({"name": "c", "endpoints": []});
    config["endpoints"] = endpoints.iter().map(|a| json!({"address": a.to_string()})).collect();
    config.as_object_mut().unwrap().extend(cluster.as_object().unwrap().clone());
    let config: model::Cluster = serde_json::from_value(config).unwrap();
    let (clusters, cluster) = (Arc::<Clusters>::default(), Cluster::new(&config, None));
    clusters.publish(&clusters.handle("c"), &cluster);
    let pools = Pools::<http_body_util::Empty<Bytes>>::new(PoolOptions::default());
    pools.adopt(&clusters);
    let listener = json!({"name": "l", "address": "127.0.0.1:1", "cluster": "c"});
    let listener: model::Listener = serde_json::from_value(listener).unwrap();
    let counter = |name: &str| registry.counter(name, "", &[]).unwrap();
    let context = TcpListenerContext {
        name: "l".into(),
        chain: SlottedChain::single(Vec::new()),
        routes: Routes::new(&listener, &clusters),
        idle: None,
        age: None,
        buffered: 1 << 20,
        access_log: None,
        metrics: TcpMetrics {
            connections: counter("connections"),
            active: registry.gauge("active", "", &[]).unwrap(),
            bytes: [counter("received"), counter("sent")],
            flags: Vec::new(),
        },
        clusters: pools.table().clone(),
    };
    (Rc::new(context), registry, cluster)
}

fn info() -> Rc<ConnectionInfo> {
    let nobody = SocketAddr::from(([192, 0, 2, 1], 40_000));
    Rc::new(ConnectionInfo::new("l".into(), nobody, nobody))
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Connects a client over sockets and serves its connection.
async fn by_sockets(context: &Rc<TcpListenerContext>) -> TcpStream {
    let (listener, address) = listen().await;
    let client = TcpStream::connect(address).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    spawn_local(serve(context.clone(), Socket::Tcp(socket), info(), Bytes::new(), None));
    client
}

fn local<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

/// Returns the byte at an offset of the test stream.
fn byte(at: u64, seed: u8) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ seed
}

/// Sends `total` bytes in pieces of varying sizes, then ends.
async fn send(to: &mut (impl AsyncWrite + Unpin), total: u64, seed: u8) {
    let mut random = fastrand::Rng::with_seed(seed.into());
    let mut at = 0;
    while at < total {
        let most = if random.bool() { 100 } else { 200_000 };
        let piece: Vec<u8> = (at..total).take(random.usize(1..most)).map(|at| byte(at, seed)).collect();
        to.write_all(&piece).await.unwrap();
        at += piece.len() as u64;
        if random.u8(..8) == 0 {
            tokio::task::yield_now().await;
        }
    }
    to.shutdown().await.unwrap();
}

/// Reads until the end, in pieces of varying sizes and with pauses, and checks each byte. Returns their number.
async fn receive(from: &mut (impl AsyncRead + Unpin), seed: u8) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed.into());
    let mut buffer = vec![0; 300_000];
    let mut at = 0;
    loop {
        let most = if random.u8(..4) == 0 { 50 } else { 300_000 };
        let n = from.read(&mut buffer[..random.usize(1..=most)]).await.unwrap();
        if n == 0 {
            return at;
        }
        for b in &buffer[..n] {
            assert_eq!(*b, byte(at, seed), "at {at}");
            at += 1;
        }
        if random.u8(..4) == 0 {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    }
}

/// Both directions concurrently, each with its own bytes.
async fn exchange(listener: TcpListener, client: impl AsyncRead + AsyncWrite + Unpin, forth: u64, back: u64) {
    let upstream = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let (mut reader, mut writer) = socket.split();
        tokio::join!(send(&mut writer, back, 2), receive(&mut reader, 1)).1
    };
    let client = async {
        let (mut reader, mut writer) = tokio::io::split(client);
        tokio::join!(send(&mut writer, forth, 1), receive(&mut reader, 2)).1
    };
    assert_eq!(tokio::join!(upstream, client), (forth, back));
}

#[test]
fn splicing_delivers_the_same_bytes_as_copying() {
    const FORTH: u64 = 20 << 20;
    const BACK: u64 = (7 << 20) + 13;
    local(async {
        for splices in [false, true] {
            let (listener, address) = listen().await;
            let (context, registry, cluster) = context(&[address], json!({}));
            if splices {
                let client = by_sockets(&context).await;
                exchange(listener, client, FORTH, BACK).await;
            } else {
                let (client, served) = duplex(1 << 16);
                spawn_local(serve(context.clone(), served, info(), Bytes::new(), None));
                exchange(listener, client, FORTH, BACK).await;
            }
            assert_eq!(splice::pooled() > 0, splices, "pipes are used for sockets only");
            let value = |name: &str| registry.value(name, &[]).unwrap() as u64;
            let [to, from] = cluster.stats().tcp_totals().unwrap();
            assert_eq!((value("received"), to), (FORTH, FORTH), "{splices}");
            assert_eq!((from, value("sent")), (BACK, BACK), "{splices}");
            // The task ends a moment after its sockets.
            while value("active") != 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(value("connections"), 1);
        }
    });
}

#[test]
fn receiver_that_does_not_read_stops_its_sender() {
    local(async {
        for splices in [true, false] {
            let (listener, address) = listen().await;
            let (context, ..) = context(&[address], json!({}));
            let piece = vec![7; 1 << 16];
            // The capacity of all buffers between the two, far less than the sender has.
            const MOST: usize = 64 << 20;
            let sent = async {
                if splices {
                    fill(by_sockets(&context).await, &piece, MOST).await
                } else {
                    let (client, served) = duplex(1 << 16);
                    spawn_local(serve(context.clone(), served, info(), Bytes::new(), None));
                    fill(client, &piece, MOST).await
                }
            };
            let (sent, accepted) = tokio::join!(sent, listener.accept());
            assert!(sent < MOST, "{splices}: no backpressure");
            // Bytes that were accepted are delivered.
            let (mut got, mut socket) = (Vec::new(), accepted.unwrap().0);
            socket.read_to_end(&mut got).await.unwrap();
            assert_eq!(got.len(), sent, "{splices}");
        }
    });
}

/// Writes until no more is accepted for a while. Returns the number of bytes written.
async fn fill(mut to: impl AsyncWrite + Unpin, piece: &[u8], most: usize) -> usize {
    let mut sent = 0;
    while sent < most {
        match tokio::time::timeout(Duration::from_millis(500), to.write(piece)).await {
            Ok(n) => sent += n.unwrap(),
            Err(_) => break,
        }
    }
    sent
}

#[test]
fn bytes_read_before_come_first() {
    local(async {
        let (listener, address) = listen().await;
        let (context, registry, _) = context(&[address], json!({}));
        let (front, front_address) = listen().await;
        let mut client = TcpStream::connect(front_address).await.unwrap();
        let (socket, _) = front.accept().await.unwrap();
        spawn_local(serve(context, Socket::Tcp(socket), info(), Bytes::from_static(b"first "), None));
        let (mut upstream, _) = listener.accept().await.unwrap();
        client.write_all(b"second").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = String::new();
        upstream.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "first second");
        assert_eq!(registry.value("received", &[]), Some(12.0));
    });
}

#[test]
fn end_of_one_direction_leaves_the_other_open() {
    local(async {
        for client_first in [true, false] {
            let (listener, address) = listen().await;
            let (context, ..) = context(&[address], json!({}));
            let client = by_sockets(&context).await;
            let (upstream, _) = listener.accept().await.unwrap();
            let (mut first, mut second) = if client_first { (client, upstream) } else { (upstream, client) };
            first.write_all(b"all I have").await.unwrap();
            first.shutdown().await.unwrap();
            let mut got = String::new();
            second.read_to_string(&mut got).await.unwrap();
            assert_eq!(got, "all I have");
            for part in ["and ", "now ", "this"] {
                second.write_all(part.as_bytes()).await.unwrap();
                let mut buffer = vec![0; part.len()];
                first.read_exact(&mut buffer).await.unwrap();
                assert_eq!(buffer, part.as_bytes());
            }
            second.shutdown().await.unwrap();
            assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
        }
    });
}

#[test]
fn reset_is_forwarded_as_a_reset() {
    local(async {
        for by_client in [true, false] {
            let (listener, address) = listen().await;
            let (context, ..) = context(&[address], json!({}));
            let client = by_sockets(&context).await;
            let (upstream, _) = listener.accept().await.unwrap();
            let (mut first, mut second) = if by_client { (client, upstream) } else { (upstream, client) };
            first.write_u8(b'x').await.unwrap();
            assert_eq!(second.read_u8().await.unwrap(), b'x');
            first.set_zero_linger().unwrap();
            drop(first);
            let error = second.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn connection_survives_an_endpoint_that_refuses_connections() {
    local(async {
        // No socket listens there any more.
        let (gone, refusing) = listen().await;
        drop(gone);
        let (listener, address) = listen().await;
        let retry = json!({"retry": {"attempts": 1, "backoff": "0s"}});
        for options in [json!({}), retry.clone(), json!({"retry_budget": {"percent": 0, "min_concurrent": 0}})] {
            let (context, _, cluster) = context(&[refusing, address], options);
            let mut client = by_sockets(&context).await;
            let (mut upstream, _) = listener.accept().await.unwrap();
            upstream.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
            assert_eq!(cluster.stats().connects.load(Relaxed), 1);
            assert_eq!((cluster.stats().active.load(Relaxed), cluster.stats().connections.load(Relaxed)), (1, 1));
        }
        let (context, _, cluster) = context(&[refusing], retry);
        let mut client = by_sockets(&context).await;
        assert!(client.read(&mut [0]).await.is_ok_and(|n| n == 0));
        let stats = cluster.stats();
        while stats.active.load(Relaxed) != 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!((stats.connect_failures.load(Relaxed), stats.connections.load(Relaxed)), (2, 0));
        // Without retries there is no second attempt.
        let (gone, other) = listen().await;
        drop(gone);
        let (context, _, cluster) = self::context(&[refusing, other], json!({"retry": {"attempts": 0}}));
        let mut client = by_sockets(&context).await;
        assert!(client.read(&mut [0]).await.is_ok_and(|n| n == 0));
        assert_eq!(cluster.stats().connect_failures.load(Relaxed), 1);
    });
}

#[test]
fn pipe_with_bytes_in_it_is_not_reused() {
    local(async {
        let (listener, address) = listen().await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        client.write_all(b"left").await.unwrap();
        let mut pipe = splice::Pipe::take().unwrap();
        let filled = std::future::poll_fn(|cx| pipe.poll_fill(&socket, cx)).await.unwrap();
        assert_eq!(filled, 4);
        pipe.give_back();
        let mut other = splice::Pipe::take().unwrap();
        assert!(other.is_empty());
        let cx = &mut std::task::Context::from_waker(Waker::noop());
        assert!(matches!(other.poll_fill(&socket, cx), Poll::Pending));
    });
}
