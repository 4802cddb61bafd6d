//! Which sessions are resumed, also after reloads, and which are not.

use super::{
    pki::{Ca, Dir},
    *,
};
use crate::config::model::{ClientCertificates, TlsVersion};

struct World {
    dir: Dir,
    ca: Ca,
    listener: ListenerTls,
    cluster: ClusterTls,
}

fn world() -> World {
    let (dir, ca) = (Dir::new(), Ca::new("all"));
    let file = dir.write("ca.pem", &ca.pem());
    let pair = dir.pair("server", &ca.leaf(&["web.test"]));
    let cluster = ClusterTls {
        ca: vec![file.clone()],
        certificate: Some(dir.pair("client", &ca.leaf(&["client.test"]))),
        ..ClusterTls::default()
    };
    let listener = ListenerTls { client_ca: vec![file], ..listener(vec![pair]) };
    World { dir, ca, listener, cluster }
}

impl World {
    fn reload(&self, before: &ServerTls) -> ServerTls {
        try_server(&self.listener, Some(before)).unwrap()
    }

    /// Replaces the server's certificate.
    fn rotate(&self) {
        self.dir.pair("server", &self.ca.leaf(&["web.test"]));
    }
}

const FULL: HandshakeKind = HandshakeKind::Full;
const RESUMED: HandshakeKind = HandshakeKind::Resumed;

async fn kind(server: &ServerTls, client: &ClientTls) -> HandshakeKind {
    match meet(server, client).await.unwrap().kind {
        // One more round trip, because the client did not offer this key exchange.
        HandshakeKind::FullWithHelloRetryRequest => FULL,
        kind => kind,
    }
}

#[tokio::test]
async fn sessions_outlive_a_reload_with_other_certificates() {
    let world = world();
    let (first, client) = (server(&world.listener), client(&world.cluster));
    assert_eq!(kind(&first, &client).await, FULL);
    assert_eq!(kind(&first, &client).await, RESUMED);
    world.rotate();
    let second = world.reload(&first);
    assert_ne!(first.local(None).unwrap().sha256, second.local(None).unwrap().sha256);
    assert_eq!(kind(&second, &client).await, RESUMED);
    // Without the previous configuration, as after a restart.
    assert_eq!(kind(&server(&world.listener), &client).await, FULL);
}

#[tokio::test]
async fn sessions_end_when_the_requirements_for_clients_change() {
    let mut world = world();
    let (first, client) = (server(&world.listener), client(&world.cluster));
    assert_eq!(kind(&first, &client).await, FULL);
    world.listener.client_certificates = ClientCertificates::Request;
    let asking = world.reload(&first);
    assert_eq!(kind(&asking, &client).await, FULL);
    assert_eq!(kind(&asking, &client).await, RESUMED);
    world.listener.client_certificates = ClientCertificates::Require;
    let requiring = world.reload(&asking);
    assert_eq!(kind(&requiring, &client).await, FULL);
    // The same file with an additional authority.
    world.dir.write("ca.pem", &[world.ca.pem(), Ca::new("more").pem()].concat());
    assert_eq!(kind(&world.reload(&requiring), &client).await, FULL);
}

#[tokio::test]
async fn a_resumed_session_keeps_its_client_and_ends_on_revocation() {
    let mut world = world();
    let leaf = world.ca.leaf(&["spiffe://mesh/a"]);
    world.cluster.certificate = Some(world.dir.pair("client", &leaf));
    world.listener.client_certificates = ClientCertificates::Require;
    world.listener.crl = vec![world.dir.write("crl.pem", &world.ca.crl(&[], 2099))];
    let (first, client) = (server(&world.listener), client(&world.cluster));
    assert_eq!(kind(&first, &client).await, FULL);
    world.rotate();
    let second = world.reload(&first);
    let met = meet(&second, &client).await.unwrap();
    assert_eq!(met.kind, RESUMED);
    assert_eq!(met.tls.peer.unwrap().principal(), "spiffe://mesh/a");
    world.dir.write("crl.pem", &world.ca.crl(&[&leaf], 2099));
    let failed = meet(&world.reload(&second), &client).await.err().unwrap();
    assert!(failed.server.contains("Revoked"), "{failed:?}");
}

/// A TLS 1.2 client with a certificate.
fn old_client(world: &World) -> ClientConfig {
    let mut config = ClientConfig::clone(client(&world.cluster).config());
    let leaf = world.ca.leaf(&["client.test"]);
    let mut roots = rustls::RootCertStore::empty();
    let ca = <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice;
    roots.add(ca(world.ca.pem().as_bytes()).unwrap()).unwrap();
    let resumption = config.resumption.clone();
    config = ClientConfig::builder_with_provider(super::super::provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![leaf.der.clone()], leaf.key_der())
        .unwrap();
    config.resumption = resumption;
    config
}

#[tokio::test]
async fn old_clients_resume_unless_they_have_certificates() {
    let mut world = world();
    assert_eq!(world.listener.min_version, TlsVersion::V1_2);
    for (asked, again) in [(ClientCertificates::None, RESUMED), (ClientCertificates::Require, FULL)] {
        world.listener.client_certificates = asked;
        let server = server(&world.listener);
        let client = Arc::new(old_client(&world));
        for expected in [FULL, again] {
            let know = |connection: &_| server.connection(connection).map_err(|e| e.to_string());
            let name = ServerName::try_from("web.test").unwrap();
            let met = raw(server.config().clone(), client.clone(), name, know).await.unwrap();
            assert_eq!((met.kind, met.tls.version), (expected, "TLSv1.2"), "{asked:?}");
            assert_eq!(met.tls.is_mutual(), asked == ClientCertificates::Require);
        }
    }
}

#[test]
fn a_client_whose_certificate_has_since_expired_is_rejected() {
    let expired = Ca::new("all").expired(&["client.test"]);
    let error = ConnectionTls::new(("TLSv1.3", ""), None, None, &[expired.der], None).unwrap_err();
    assert!(error.to_string().ends_with("expired on 2002-01-01T00:00:00Z"), "{error}");
}

#[test]
fn a_cluster_keeps_its_tls_while_nothing_changes() {
    let world = world();
    let again = |before: &Arc<ClientTls>| {
        load(|loader| ClientTls::load(&world.cluster, "web.test", &[b"http/1.1"], loader, Some(before))).unwrap()
    };
    let first = client(&world.cluster);
    assert!(Arc::ptr_eq(&first, &again(&first)));
    world.dir.pair("client", &world.ca.leaf(&["client.test"]));
    let second = again(&first);
    assert!(!Arc::ptr_eq(&first, &second));
    world.dir.write("ca.pem", &Ca::new("other").pem());
    assert!(!Arc::ptr_eq(&second, &again(&second)));
}

#[tokio::test]
async fn quic_has_separate_sessions() {
    let world = world();
    let server = server(&world.listener);
    let quic = server.quic_config(&[b"h3"]);
    assert_eq!(quic.alpn_protocols, [b"h3"]);
    let ticket = server.config().ticketer.encrypt(b"a session").unwrap();
    assert!(server.config().ticketer.decrypt(&ticket).is_some());
    assert!(quic.ticketer.decrypt(&ticket).is_none());
    // With client certificates there are none: for QUIC they would not be checked again.
    let listener = ListenerTls { client_certificates: ClientCertificates::Require, ..world.listener };
    let quic = try_server(&listener, None).unwrap().quic_config(&[b"h3"]);
    assert!(!quic.ticketer.enabled() && !quic.session_storage.put(b"name".to_vec(), b"session".to_vec()));
}

/// A session whose chain or lists have expired could not begin, so it is not resumed either.
#[tokio::test]
async fn sessions_with_an_expired_chain_or_list_are_not_resumed() {
    let mut world = world();
    world.listener.client_certificates = ClientCertificates::Require;
    world.listener.crl = vec![world.dir.write("crl.pem", &world.ca.crl(&[], 2090))];
    let server = server(&world.listener);
    let mut short = pki::params(&["intermediate"]);
    short.not_after = rcgen::date_time_ymd(2080, 1, 1);
    let chain = [world.ca.leaf(&["client.test"]).der.clone(), world.ca.sign(short).der.clone()];
    let year = |year| rcgen::date_time_ymd(year, 1, 2).unix_timestamp();
    for (chain, now, expected) in [
        (&chain[..], year(2079), ""),
        (&chain[..], year(2081), "a certificate in the client's chain"),
        (&chain[..1], year(2081), ""),
        (&chain[..1], year(2091), "a revocation list"),
        // Without a client certificate nothing can expire.
        (&[], year(2091), ""),
    ] {
        let said = server.is_still_good(chain, now).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{now}: {said}");
    }
    let client = client(&world.cluster);
    assert_eq!(kind(&server, &client).await, FULL);
    for (now, refused) in [(year(2089), false), (year(2091), true)] {
        let know = |connection: &rustls::ServerConnection| {
            assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Resumed));
            server.connection_at(connection, now).map_err(|e| e.to_string())
        };
        let name = ServerName::try_from("web.test").unwrap();
        let failed = raw(server.config().clone(), client.config().clone(), name, know).await.err();
        assert_eq!(failed.is_some_and(|failed| failed.server.contains("a revocation list")), refused);
    }
}
