//! The client against servers on real sockets. Raw ones write bytes, others are hyper's.

mod connect;
mod exchange;
mod grpc;

use std::{cell::Cell, convert::Infallible, net::SocketAddr, path::Path, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

use super::{Client, Error, Protocol, Server};
use crate::net::{LocalExecutor, TokioIo};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

/// Runs a test with the tasks that it starts.
async fn local<T>(test: impl AsyncFnOnce() -> T) -> T {
    LocalSet::new().run_until(test()).await
}

/// A server in a task of the test.
struct Listening {
    address: SocketAddr,
    /// The number of connections so far.
    connections: Rc<Cell<usize>>,
}

/// Starts a server that runs `serve` for each connection, with the connection's number, from 1.
async fn listen<F: Future<Output = ()> + 'static>(serve: impl Fn(TcpStream, usize) -> F + 'static) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), Rc::<Cell<usize>>::default());
    let counted = connections.clone();
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.set(counted.get() + 1);
            spawn_local(serve(stream, counted.get()));
        }
    });
    Listening { address, connections }
}

/// Starts a server that answers each request head with bytes; `None`: it closes the connection.
async fn raw(answer: impl Fn(&str, usize) -> Option<String> + Clone + 'static) -> Listening {
    listen(move |mut stream, number| {
        let answer = answer.clone();
        async move {
            while let Some(head) = head(&mut stream).await {
                let Some(bytes) = answer(&head, number) else { return };
                // The client may have left.
                let _ = stream.write_all(bytes.as_bytes()).await;
            }
        }
    })
    .await
}

/// Reads the head of a request; `None` at the end of the connection.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// An answer over HTTP/1.1.
fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Serves a connection with hyper, as far as the client allows.
async fn serve<B>(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    is_http2: bool,
    answer: impl Fn(Request<Incoming>) -> Response<B>,
) where
    B: http_body::Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(request))));
    let io = TokioIo::new(io);
    let _ = match is_http2 {
        true => http2::Builder::new(LocalExecutor).serve_connection(io, service).await,
        false => http1::Builder::new().serve_connection(io, service).await,
    };
}

/// The answer of a server that tells what it was asked.
fn told(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let host = request.headers().get("host").map(|host| host.to_str().unwrap().to_owned());
    let host = host.or(request.uri().authority().map(ToString::to_string)).unwrap_or_default();
    Response::new(format!("{:?} {host} {}", request.version(), request.uri().path()).into())
}

impl Listening {
    fn url(&self, scheme: &str, host: &str) -> String {
        format!("{scheme}://{host}:{}", self.address.port())
    }

    fn client(&self, protocol: Protocol) -> Client {
        Client::new(server(&self.url("http", "127.0.0.1")).speaking(protocol))
    }
}

fn server(url: &str) -> Server {
    Server::new(url.parse().unwrap(), None, Path::new(""))
}

fn get(path: &str) -> Request<Bytes> {
    Request::get(path).body(Bytes::new()).unwrap()
}

/// Returns the body of an answer.
async fn ask(client: &mut Client, path: &str) -> Result<String, Error> {
    let response = client.fetch(get(path), LONG, 1 << 20).await?;
    Ok(String::from_utf8(response.into_body().into()).unwrap())
}
