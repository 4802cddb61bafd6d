//! Early data (0-RTT) can be replayed by anyone who recorded it, so it is never accepted: clients that resume a session
//! send early data anyway here, and it never reaches the upstream.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, NamedGroup, RootCertStore, StreamOwned,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    },
    pki_types::{CertificateDer, ServerName},
};

use crate::harness::{Config, DEADLINE, Proxy, Upstream, answer};

/// Stores sessions, and marks each as accepting early data, whatever the server announced.
#[derive(Debug)]
struct Eager(ClientSessionMemoryCache);

impl ClientSessionStore for Eager {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(name)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        assert_eq!(ticket.max_early_data_size(), 0, "early data is not offered");
        self.0.insert_tls13_ticket(name, ticket);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut ticket = self.0.take_tls13_ticket(name)?;
        ticket._private_set_max_early_data_size(u32::MAX);
        Some(ticket)
    }
}

fn client(trusted: &CertificateDer<'static>, alpn: &[u8]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_early_data = true;
    config.resumption = Resumption::store(Arc::new(Eager(ClientSessionMemoryCache::new(8))));
    Arc::new(config)
}

/// A proxy with TLS, over TCP and, if available, QUIC; and its certificate.
fn proxy(upstream: &Upstream) -> (Proxy, CertificateDer<'static>) {
    let pair = rcgen::generate_simple_self_signed(["web.test".to_owned()]).expect("a certificate");
    let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
    let files = [("server.pem", certificate.as_bytes()), ("server.key", key.as_bytes())];
    let http3 = cfg!(feature = "http3");
    let tls = format!("http3: {http3}\ntls: {{certificates: [{{certificate: server.pem, key: server.key}}]}}");
    // One worker, so that a session stored there would be found.
    let config = Config::to(upstream).top("workers: 1").listener(&tls);
    (Proxy::start_with(config, &files), pair.cert.der().clone())
}

#[test]
fn early_data_over_tcp_is_not_accepted() {
    let upstream = Upstream::replying(|_| answer(200, &[], ""));
    let (proxy, certificate) = proxy(&upstream);
    let config = client(&certificate, b"http/1.1");
    let ask = |early: bool| {
        let tls = ClientConnection::new(config.clone(), "web.test".try_into().expect("a name")).expect("a client");
        let socket = TcpStream::connect(proxy.address("main")).expect("a connection");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
        let mut tls = StreamOwned::new(tls, socket);
        if early {
            let request = b"GET /early HTTP/1.1\r\nHost: web.test\r\n\r\n";
            tls.conn.early_data().expect("a session").write_all(request).expect("room");
        }
        tls.write_all(b"GET /late HTTP/1.1\r\nHost: web.test\r\n\r\n").expect("it can be sent");
        let mut status = [0; 12];
        tls.read_exact(&mut status).expect("a response");
        assert_eq!(&status, b"HTTP/1.1 200");
        let early = (tls.conn.handshake_kind(), tls.conn.is_early_data_accepted());
        assert_eq!(upstream.requests().pop().expect("a request").target(), "/late");
        early
    };
    assert!(!ask(false).1);
    assert_eq!(ask(true), (Some(HandshakeKind::Resumed), false));
    assert_eq!(upstream.requests().len(), 2, "the early data was dropped");
}

#[cfg(feature = "http3")]
#[test]
fn early_data_over_quic_is_not_accepted() {
    use crate::http3::raw::{CONTROL, USUAL, headers};
    use quinn::{ClientConfig, Endpoint, crypto::rustls::QuicClientConfig};
    let upstream = Upstream::saying("ok");
    let (proxy, certificate) = proxy(&upstream);
    let crypto = QuicClientConfig::try_from(client(&certificate, b"h3")).expect("a configuration");
    let config = ClientConfig::new(Arc::new(crypto));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let asking = async {
        let endpoint = Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
        let connect = || endpoint.connect_with(config.clone(), proxy.address("main"), "web.test").expect("a start");
        let ask = async |connection: &quinn::Connection| {
            let (mut send, mut recv) = connection.open_bi().await?;
            send.write_all(&headers(&USUAL)).await?;
            let _ = send.finish();
            anyhow::Ok(recv.read_to_end(1 << 20).await?)
        };
        let first = connect().await.expect("a connection");
        // The session ticket has arrived by the time of the response.
        ask(&first).await.expect("a response");
        let (second, accepted) = connect().into_0rtt().expect("a session");
        let mut control = second.open_uni().await.expect("a stream");
        control.write_all(&CONTROL).await.expect("it can be sent");
        ask(&second).await.expect_err("the proxy did not receive it");
        assert!(!accepted.await);
        assert_eq!(upstream.requests().len(), 1);
        ask(&second).await.expect("a response");
    };
    runtime.block_on(async { tokio::time::timeout(DEADLINE, asking).await.expect("the request succeeds") });
    assert_eq!(upstream.requests().len(), 2);
}
