//! Names, addresses, sockets, TLS and the choice of the protocol.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::json;
use tokio::{net::UnixListener, task::spawn_local};

use super::{super::Protocol, Client, Listening, Server, ask, listen, local, raw, serve, server, told};
use crate::{
    config::{
        model::{CertificateFiles, ClusterTls},
        units::Address,
    },
    net::Socket,
    tls::{
        ServerTls,
        tests::{
            load,
            pki::{Ca, Dir},
        },
    },
};

/// Starts a server with TLS that speaks HTTP/2 if it is selected.
async fn tls(section: serde_json::Value, alpn: &[&[u8]]) -> Listening {
    let section = serde_json::from_value(section).unwrap();
    let tls = Arc::new(load(|loader| ServerTls::load(&section, alpn, loader, None)).unwrap());
    listen(move |socket, _| {
        let tls = tls.clone();
        async move {
            if let Ok(stream) = tls.acceptor().accept(socket).await {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                serve(stream, is_http2, |request| told(&request)).await;
            }
        }
    })
    .await
}

fn trusting(ca: &Path) -> ClusterTls {
    ClusterTls { ca: vec![ca.to_owned()], ..ClusterTls::default() }
}

fn with_tls(url: &str, section: &ClusterTls) -> Server {
    Server::new(url.parse().unwrap(), Some(section), Path::new(""))
}

#[tokio::test]
async fn every_address_of_a_server_is_tried() {
    local(async || {
        let listening = raw(|_, _| None).await;
        // Port 1 is not in use, and binding it needs privileges.
        let dead = ["127.0.0.1:1", "[::1]:1"].map(|address| address.parse::<Address>().unwrap());
        let server = server("http://control.test/");
        let all = [&dead[..], &[Address::Inet(listening.address)]].concat();
        let (stream, _) = server.open_any(&all).await.unwrap();
        let Socket::Tcp(socket) = stream.socket() else { panic!("not TCP") };
        assert_eq!(socket.peer_addr().unwrap(), listening.address);
        let error = server.open_any(&dead).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot connect to `control.test`: 127.0.0.1:1: "), "{error}");
        assert!(error.contains("; [::1]:1: "), "{error}");
    })
    .await;
}

#[tokio::test]
async fn server_is_found_by_its_name_or_at_the_given_address() {
    local(async || {
        let listening = listen(|socket, _| serve(socket, false, |request| told(&request))).await;
        let (name, url) = (listening.url("http", "localhost"), listening.url("http", "control.test"));
        let host = url.strip_prefix("http://").unwrap();
        assert_eq!(
            ask(&mut Client::new(server(&name)), "/a").await.unwrap(),
            format!("HTTP/1.1 {} /a", name.strip_prefix("http://").unwrap())
        );
        let there = server(&url).at(Some(Address::Inet(listening.address)));
        assert_eq!(ask(&mut Client::new(there), "/a").await.unwrap(), format!("HTTP/1.1 {host} /a"));
        let error = ask(&mut Client::new(server("http://name.invalid/")), "/").await.unwrap_err().to_string();
        assert!(error.starts_with("cannot resolve `name.invalid`: "), "{error}");
    })
    .await;
}

#[tokio::test]
async fn unix_sockets_are_connected_to_with_and_without_tls() {
    local(async || {
        let (dir, ca) = (Dir::new(), Ca::new("ca"));
        let pair = dir.pair("server", &ca.leaf(&["control.test"]));
        let section = serde_json::from_value(json!({ "certificates": [pair] })).unwrap();
        let tls = load(|loader| ServerTls::load(&section, &[], loader, None)).unwrap();
        let ca = dir.write("ca.pem", &ca.pem());
        let (plain, secure) = (dir.path().join("plain.sock"), dir.path().join("tls.sock"));
        let listener = UnixListener::bind(&plain).unwrap();
        spawn_local(async move {
            let (socket, _) = listener.accept().await.unwrap();
            serve(socket, false, |request| told(&request)).await;
        });
        let listener = UnixListener::bind(&secure).unwrap();
        spawn_local(async move {
            let (socket, _) = listener.accept().await.unwrap();
            serve(tls.acceptor().accept(socket).await.unwrap(), false, |request| told(&request)).await;
        });
        let at = |path: &PathBuf| Some(format!("unix:{}", path.display()).parse::<Address>().unwrap());
        let mut client = Client::new(server("http://control.test/").at(at(&plain)));
        assert_eq!(ask(&mut client, "/a").await.unwrap(), "HTTP/1.1 control.test /a");
        let mut client = Client::new(with_tls("https://control.test/", &trusting(&ca)).at(at(&secure)));
        assert_eq!(ask(&mut client, "/b").await.unwrap(), "HTTP/1.1 control.test /b");
        let none = dir.path().join("none.sock");
        let error = ask(&mut Client::new(server("http://control.test/").at(at(&none))), "/").await.unwrap_err();
        assert!(error.to_string().contains("none.sock: No such file"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn certificate_must_be_trusted_and_for_the_name() {
    local(async || {
        let (dir, ca) = (Dir::new(), Ca::new("ca"));
        let other = dir.write("other.pem", &Ca::new("other").pem());
        let trusted = dir.write("ca.pem", &ca.pem());
        let named = |name: &str, leaf| json!({ "certificates": [dir.pair(name, &leaf)] });
        let good = tls(named("good", ca.leaf(&["localhost"])), &[]).await;
        let sni = ClusterTls { sni: Some("localhost".to_owned()), ..trusting(&trusted) };
        for (listening, host, section, error) in [
            (&good, "localhost", trusting(&trusted), None),
            (&good, "127.0.0.1", sni, None),
            (&good, "127.0.0.1", trusting(&trusted), Some("localhost")),
            (&good, "localhost", trusting(&other), Some("`tls.ca`")),
            (&good, "localhost", trusting(&dir.path().join("none.pem")), Some("ca/0: there is no file")),
        ] {
            let answer = ask(&mut Client::new(with_tls(&listening.url("https", host), &section)), "/").await;
            match error {
                None => assert!(answer.is_ok(), "{host}: {answer:?}"),
                Some(error) => {
                    let text = answer.unwrap_err().to_string();
                    assert!(text.contains(error), "{host}: {text}");
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn client_certificate_is_presented_and_read_again_for_each_connection() {
    local(async || {
        let (dir, ca, next) = (Dir::new(), Ca::new("ca"), Ca::new("next"));
        let both = dir.write("clients.pem", &next.pem());
        let server_pair = dir.pair("server", &ca.leaf(&["localhost"]));
        let listening =
            tls(json!({ "certificates": [server_pair], "client_certificates": "require", "client_ca": [both] }), &[])
                .await;
        let url = listening.url("https", "localhost");
        let mut section = trusting(&dir.write("ca.pem", &ca.pem()));
        let error = ask(&mut Client::new(with_tls(&url, &section)), "/").await.unwrap_err().to_string();
        assert!(error.contains("certificate"), "{error}");
        let pair: CertificateFiles = dir.pair("client", &ca.leaf(&["client"]));
        section.certificate = Some(pair);
        let mut client = Client::new(with_tls(&url, &section));
        assert!(ask(&mut client, "/").await.is_err(), "the wrong authority signed it");
        client.close();
        let leaf = next.leaf(&["client"]);
        dir.write("client.pem", &leaf.pem);
        let error = ask(&mut client, "/").await.unwrap_err().to_string();
        assert!(!error.contains("does not belong"), "the previous pair is used while one file is missing: {error}");
        dir.pair("client", &leaf);
        assert!(ask(&mut client, "/").await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn http_version_is_chosen_by_alpn() {
    local(async || {
        let (dir, ca) = (Dir::new(), Ca::new("ca"));
        let section = trusting(&dir.write("ca.pem", &ca.pem()));
        let pair = json!({ "certificates": [dir.pair("server", &ca.leaf(&["localhost"]))] });
        let both = tls(pair.clone(), &[b"h2", b"http/1.1"]).await;
        let old = tls(pair, &[b"http/1.1"]).await;
        for (listening, protocol, expected) in [
            (&both, Protocol::Auto, Ok("HTTP/2.0")),
            (&both, Protocol::Http1, Ok("HTTP/1.1")),
            (&both, Protocol::Http2, Ok("HTTP/2.0")),
            (&old, Protocol::Auto, Ok("HTTP/1.1")),
            (&old, Protocol::Http2, Err("TLS: ")),
        ] {
            let server = with_tls(&listening.url("https", "localhost"), &section).speaking(protocol);
            match (ask(&mut Client::new(server), "/a").await, expected) {
                (Ok(answer), Ok(version)) => {
                    let port = listening.address.port();
                    assert_eq!(answer, format!("{version} localhost:{port} /a"), "{protocol:?}");
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (answer, _) => panic!("{protocol:?}: {answer:?}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn server_that_speaks_another_protocol_is_named_in_the_error() {
    local(async || {
        let (dir, ca) = (Dir::new(), Ca::new("ca"));
        let trusted = trusting(&dir.write("ca.pem", &ca.pem()));
        let secure = tls(json!({ "certificates": [dir.pair("server", &ca.leaf(&["localhost"]))] }), &[]).await;
        let plain = listen(|socket, _| serve(socket, false, |request| told(&request))).await;
        let old = raw(|_, _| Some("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_owned())).await;
        let new = listen(|socket, _| serve(socket, true, |request| told(&request))).await;
        for (server, hint) in [
            (server(&secure.url("http", "localhost")), "the server speaks TLS; write https:// in the URL"),
            (with_tls(&plain.url("https", "localhost"), &trusted), "write http:// in the URL"),
            (server(&old.url("http", "localhost")).speaking(Protocol::Http2), "speaks HTTP/1.1, not HTTP/2"),
            (server(&new.url("http", "localhost")), "the server speaks HTTP/2, not HTTP/1.1"),
        ] {
            let error = ask(&mut Client::new(server), "/").await.unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    })
    .await;
}

#[tokio::test]
async fn address_that_the_filter_rejects_is_never_connected_to() {
    local(async || {
        let listening = raw(|_, _| Some(super::ok("secret"))).await;
        for host in ["localhost", "127.0.0.1"] {
            let server = server(&listening.url("http", host)).only_at(Arc::new(|ip| !ip.is_loopback()));
            let error = ask(&mut Client::new(server), "/").await.unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{host}` has only addresses that are not allowed here: ")), "{error}");
            assert!(error.contains("127.0.0.1"), "{error}");
        }
        assert_eq!(listening.connections.get(), 0);
        // An IPv4 address within an IPv6 one is checked as what it is.
        let mapped = server(&listening.url("http", "[::ffff:127.0.0.1]")).only_at(Arc::new(|ip| !ip.is_loopback()));
        assert!(ask(&mut Client::new(mapped), "/").await.is_err());
        let allowed = server(&listening.url("http", "127.0.0.1")).only_at(Arc::new(|ip| ip.is_loopback()));
        assert_eq!(ask(&mut Client::new(allowed), "/").await.unwrap(), "secret");
        assert_eq!(listening.connections.get(), 1);
    })
    .await;
}
