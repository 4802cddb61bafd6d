//! Connections over the network: names, addresses, TLS.

use std::{net::SocketAddr, path::Path, sync::Arc};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::LocalSet,
};
use tokio_rustls::TlsAcceptor;

use super::super::{HttpPoller, Server, client_tls};
use crate::{
    config::{
        model::{ClusterTls, HttpSource},
        url::HttpUrl,
    },
    control::source::status::SourceStatus,
    net::Socket,
    observe::Registry,
    tls::{
        ServerTls,
        tests::{
            load,
            pki::{Ca, Dir},
        },
    },
};

/// Reads one request and answers it.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|read| read > 2) {
        line.clear();
    }
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nETag: \"1\"\r\nContent-Length: 2\r\n\r\n";
    // The client may have left.
    let _ = stream.write_all(format!("{head}{{}}").as_bytes()).await;
    let _ = stream.flush().await;
}

/// Asks a server once. Returns the document or the error.
async fn ask(url: String, tls: Option<ClusterTls>) -> Result<String, String> {
    let config: HttpSource = serde_json::from_value(json!({ "url": url, "tls": tls })).unwrap();
    let url: HttpUrl = url.parse().unwrap();
    let tls = load(|loader| client_tls(&config, &url, loader, None)).unwrap();
    let status = SourceStatus::new(&Registry::new(1), "central").unwrap();
    let (out, mut fetched) = mpsc::channel(1);
    let poller = HttpPoller::new(&config, Server::new(url, tls), None, status.clone(), out);
    let tasks = LocalSet::new();
    tasks.spawn_local(poller.run());
    let waiting = async {
        loop {
            match fetched.try_recv() {
                Ok(document) => return Ok(String::from_utf8(document.body.into()).unwrap()),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
            }
            if let Some(error) = status.state().last_error {
                return Err(error.text);
            }
        }
    };
    tasks.run_until(waiting).await
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Accepts connections until the test ends.
async fn accept<F: Future<Output = ()>>(listener: TcpListener, serve: impl Fn(TcpStream) -> F) {
    loop {
        serve(listener.accept().await.unwrap().0).await;
    }
}

#[tokio::test]
async fn server_is_found_by_its_name() {
    let (listener, port) = listen().await;
    let answer = tokio::select! {
        answer = ask(format!("http://localhost:{port}/"), None) => answer,
        () = accept(listener, serve) => unreachable!(),
    };
    assert_eq!(answer.as_deref(), Ok("{}"));
}

#[tokio::test]
async fn every_address_of_a_server_is_tried() {
    let (listener, port) = listen().await;
    // Port 1 is not in use, and binding it needs privileges.
    let dead: [SocketAddr; 2] = ["127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap()];
    let server = Server::new("http://control.test/".parse().unwrap(), None);
    let live = SocketAddr::from(([127, 0, 0, 1], port));
    let stream = server.open_any(dead.into_iter().chain([live])).await.unwrap();
    let Socket::Tcp(socket) = stream.socket() else { panic!("not TCP") };
    assert_eq!(socket.peer_addr().unwrap(), live);
    drop(listener);
    let error = server.open_any(dead.into_iter()).await.unwrap_err();
    assert!(error.starts_with("cannot connect to `control.test`: 127.0.0.1:1: "), "{error}");
    assert!(error.contains("; [::1]:1: "), "{error}");
    assert_eq!(server.open_any(std::iter::empty()).await.unwrap_err(), "`control.test` has no address");
}

#[tokio::test]
async fn tls_requires_a_trusted_certificate_for_the_name() {
    let (dir, ca) = (Dir::new(), Ca::new("ca"));
    let pair = dir.pair("server", &ca.leaf(&["localhost"]));
    let section = serde_json::from_value(json!({ "certificates": [pair] })).unwrap();
    let tls = load(|loader| ServerTls::load(&section, &[b"http/1.1"], loader, None)).unwrap();
    let (ca, other) = (dir.write("ca.pem", &ca.pem()), dir.write("other.pem", &Ca::new("other").pem()));
    let trusting = |ca: &Path| Some(ClusterTls { ca: vec![ca.to_owned()], ..ClusterTls::default() });
    for (host, section, error) in [
        ("localhost", trusting(&ca), None),
        ("127.0.0.1", trusting(&ca), Some("TLS: ")),
        ("localhost", trusting(&other), Some("`tls.ca`")),
    ] {
        let (listener, port) = listen().await;
        let acceptor: Arc<TlsAcceptor> = tls.acceptor().into();
        let served = accept(listener, |socket| {
            let acceptor = acceptor.clone();
            async move {
                if let Ok(stream) = acceptor.accept(socket).await {
                    serve(stream).await;
                }
            }
        });
        let answer = tokio::select! {
            answer = ask(format!("https://{host}:{port}/"), section) => answer,
            () = served => unreachable!(),
        };
        match error {
            None => assert_eq!(answer.as_deref(), Ok("{}")),
            Some(error) => assert!(answer.as_ref().is_err_and(|text| text.contains(error)), "{host}: {answer:?}"),
        }
    }
}
