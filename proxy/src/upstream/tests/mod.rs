//! Upstream servers for the tests: on loopback sockets, in the test's own thread, with scripted responses.

mod limits;
mod pool;
mod streams;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};

use super::{Cluster, Endpoint, PooledBody, Pools, ProtocolChoice, RequestError};
use crate::config::{model, units};

type Body = Full<Bytes>;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// A server's reaction to a request.
#[derive(Clone)]
enum Reply {
    Send(&'static str),
    SendAndClose(&'static str),
    /// Sends the first part, waits, sends the second.
    Slowly(&'static str, u64, &'static str),
    /// Sends this and then stays silent.
    Hang(&'static str),
}

/// A request as a server sees it: the number of the connection, the number of the request on it (both from 1), and the
/// head.
struct Seen {
    connection: usize,
    request: usize,
    head: String,
}

struct Server {
    address: SocketAddr,
    /// Connections accepted so far, and those open now.
    accepted: Rc<Cell<usize>>,
    open: Rc<Cell<usize>>,
}

/// Returns an address that refuses connections as long as the socket exists.
fn refusing() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

async fn server(reply: impl Fn(&Seen) -> Reply + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, open, reply) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(reply));
    let server = Server { address, accepted: Rc::clone(&accepted), open: Rc::clone(&open) };
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            accepted.set(accepted.get() + 1);
            open.set(open.get() + 1);
            let (open, reply, connection) = (Rc::clone(&open), Rc::clone(&reply), accepted.get());
            spawn_local(async move {
                let _ = converse(stream, connection, &*reply).await;
                open.set(open.get() - 1);
            });
        }
    });
    server
}

async fn converse(mut stream: TcpStream, connection: usize, reply: &impl Fn(&Seen) -> Reply) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    for request in 1.. {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        let length = head.split_once("content-length: ").and_then(|(_, rest)| rest.split("\r\n").next()?.parse().ok());
        while buffer.len() < length.unwrap_or(0) && stream.read_buf(&mut buffer).await? > 0 {}
        buffer.drain(..length.unwrap_or(0));
        match reply(&Seen { connection, request, head }) {
            Reply::Send(text) => stream.write_all(text.as_bytes()).await?,
            Reply::SendAndClose(text) => return stream.write_all(text.as_bytes()).await,
            Reply::Slowly(first, ms, second) => {
                stream.write_all(first.as_bytes()).await?;
                sleep(Duration::from_millis(ms)).await;
                stream.write_all(second.as_bytes()).await?;
            }
            Reply::Hang(text) => {
                stream.write_all(text.as_bytes()).await?;
                while stream.read_buf(&mut buffer).await? > 0 {}
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A limit that no expected event reaches, not even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a test on the runtime that workers use.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { timeout(DEADLINE, test).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime, limited);
}

pub(super) fn config(addresses: &[SocketAddr]) -> model::Cluster {
    let endpoints: Vec<_> = addresses.iter().map(|a| serde_json::json!({ "address": a })).collect();
    serde_json::from_value(serde_json::json!({ "name": "test", "endpoints": endpoints })).unwrap()
}

fn cluster(addresses: &[SocketAddr], limits: impl FnOnce(&mut model::ClusterLimits)) -> Arc<Cluster> {
    let mut config = config(addresses);
    limits(&mut config.limits);
    Cluster::new(&config, None)
}

fn pools() -> Pools<Body> {
    Pools::new(super::PoolOptions::default())
}

fn request(method: &str, body: &'static str) -> Request<Body> {
    Request::builder().method(method).uri("/").header("host", "test").body(Full::from(body)).unwrap()
}

fn endpoint(cluster: &Cluster, index: usize) -> &Arc<Endpoint> {
    &cluster.members()[index].endpoint
}

async fn send(pools: &Pools<Body>, cluster: &Arc<Cluster>) -> Result<Response<PooledBody>, RequestError<Body>> {
    send_to(pools, cluster, endpoint(cluster, 0), request("GET", "")).await
}

async fn send_to<B>(
    pools: &Pools<B>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    request: Request<B>,
) -> Result<Response<PooledBody>, RequestError<B>>
where
    B: http_body::Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    pools.send(cluster, endpoint, ProtocolChoice::default(), &head, body).await
}

/// Performs a whole exchange, which must succeed.
async fn get(pools: &Pools<Body>, cluster: &Arc<Cluster>) -> String {
    text(send(pools, cluster).await.unwrap()).await
}

async fn text(response: Response<PooledBody>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Polls once, and returns whether the future is still pending.
async fn waits(future: &mut (impl Future + Unpin)) -> bool {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending())).await
}

/// Waits for a condition that the other side of a socket brings about.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + DEADLINE / 2;
    while !condition() {
        assert!(std::time::Instant::now() < end, "timed out waiting until {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
