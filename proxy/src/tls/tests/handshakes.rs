//! Which certificates are accepted and which are rejected.

use std::{collections::BTreeMap, time::Duration};

use rustls::pki_types::UnixTime;

use super::{
    super::{
        client::{verifier, verifying},
        server::ClientAuth,
    },
    pki::{Ca, Dir, Leaf},
    *,
};
use crate::config::model::{ClientCertificates, TlsVersion};

/// A server with a certificate for `web.test`, and a client that trusts its authority.
struct World {
    dir: Dir,
    ca: Ca,
    listener: ListenerTls,
    cluster: ClusterTls,
}

fn world() -> World {
    let (dir, ca) = (Dir::new(), Ca::new("servers"));
    let pair = dir.pair("server", &ca.leaf(&["web.test", "spiffe://mesh/ns/a/sa/web"]));
    let cluster = ClusterTls { ca: vec![dir.write("ca.pem", &ca.pem())], ..ClusterTls::default() };
    World { dir, ca, listener: listener(vec![pair]), cluster }
}

impl World {
    /// Requires client certificates from another authority, which is returned.
    fn asking(&mut self, clients: ClientCertificates) -> Ca {
        let ca = Ca::new("clients");
        self.listener.client_certificates = clients;
        self.listener.client_ca = vec![self.dir.write("clients.pem", &ca.pem())];
        ca
    }

    /// Returns the client, with this certificate.
    fn showing(&self, leaf: &Leaf) -> Arc<ClientTls> {
        client(&ClusterTls { certificate: Some(self.dir.pair("client", leaf)), ..self.cluster.clone() })
    }

    async fn meet(&self) -> Result<Met, Failed> {
        meet(&server(&self.listener), &client(&self.cluster)).await
    }

    /// Connects to a server with the same rules and a certificate that it would not load.
    async fn meet_with(&self, leaf: &Leaf) -> Failed {
        let config = ServerConfig::builder_with_provider(super::super::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der.clone()], leaf.key_der())
            .unwrap();
        let client = client(&self.cluster);
        let know = |connection: &_| ConnectionTls::of_server(connection, None).map_err(|e| e.to_string());
        raw(config.into(), client.config().clone(), client.server_name(None, None), know).await.err().unwrap()
    }
}

#[tokio::test]
async fn a_connection_knows_its_tls() {
    let world = world();
    let Met { tls, kind } = world.meet().await.unwrap();
    assert_eq!(kind, HandshakeKind::Full);
    assert_eq!((tls.version, tls.cipher), ("TLSv1.3", "TLS_AES_256_GCM_SHA384"));
    assert_eq!(tls.server_name.as_deref(), Some("web.test"));
    assert_eq!(tls.alpn.as_deref(), Some(&b"http/1.1"[..]));
    let local = tls.local.as_deref().unwrap();
    assert_eq!(&*local.uri_sans[0], "spiffe://mesh/ns/a/sa/web");
    assert_eq!(&*local.dns_sans[0], "web.test");
    assert_eq!(&*local.subject, "CN=web.test,O=Tests");
    assert!(!tls.is_mutual());
}

#[tokio::test]
async fn the_minimum_version_applies_to_both_sides() {
    let mut world = world();
    world.listener.min_version = TlsVersion::V1_3;
    let old = ClientConfig::builder_with_provider(super::super::provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let server = server(&world.listener);
    let know = |connection: &_| server.connection(connection).map_err(|e| e.to_string());
    let name = ServerName::try_from("web.test").unwrap();
    let failed = raw(server.config().clone(), old.into(), name, know).await.err().unwrap();
    assert!(failed.client.contains("ProtocolVersion"), "{failed:?}");
}

#[tokio::test]
async fn servers_are_verified() {
    let mut world = world();
    // Another name.
    let other = ClusterTls { sni: Some("other.test".to_owned()), ..world.cluster.clone() };
    let failed = meet(&server(&world.listener), &client(&other)).await.err().unwrap();
    assert!(failed.client.contains("not valid for name"), "{failed:?}");
    // Expired.
    let failed = world.meet_with(&world.ca.expired(&["web.test"])).await;
    assert!(failed.client.contains("expired"), "{failed:?}");
    // Another authority with the same name.
    let stranger = Ca::new("servers").leaf(&["web.test"]);
    let failed = world.meet_with(&stranger).await;
    assert!(failed.client.contains("BadSignature"), "{failed:?}");
    // Every certificate is accepted if `insecure` is set.
    world.cluster.insecure = true;
    world.listener.certificates = vec![world.dir.pair("stranger", &stranger)];
    world.meet().await.unwrap();
}

#[tokio::test]
async fn sans_replace_the_server_name() {
    let mut world = world();
    let sans = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    world.cluster.sni = Some("some.where".to_owned());
    for wanted in [&["spiffe://mesh/ns/a/sa/web"][..], &["web.test"], &["no.test", "web.test"]] {
        world.cluster.sans = sans(wanted);
        let met = world.meet().await.unwrap_or_else(|e| panic!("{wanted:?}: {e:?}"));
        assert_eq!(met.tls.server_name.as_deref(), Some("some.where"));
    }
    for wanted in [&["spiffe://mesh/ns/a/sa/other"][..], &["spiffe://mesh/ns/a/sa/we"], &["some.where"], &["10.0.0.1"]]
    {
        world.cluster.sans = sans(wanted);
        let failed = world.meet().await.err().unwrap_or_else(|| panic!("{wanted:?}"));
        assert!(failed.client.contains("its names are: web.test, spiffe://mesh/ns/a/sa/web"), "{failed:?}");
    }
    // A matching name alone is not enough.
    world.cluster.sans = sans(&["web.test"]);
    let stranger = Ca::new("others").leaf(&["web.test"]);
    assert!(world.meet_with(&stranger).await.client.contains("UnknownIssuer"));
    assert!(world.meet_with(&world.ca.expired(&["web.test"])).await.client.contains("expired"));
    let revoked = world.ca.leaf(&["web.test"]);
    world.cluster.crl = vec![world.dir.write("crl.pem", &world.ca.crl(&[&revoked], 2099))];
    assert!(world.meet_with(&revoked).await.client.contains("Revoked"));
    world.meet().await.unwrap();
}

#[tokio::test]
async fn revoked_servers_are_rejected() {
    let mut world = world();
    let revoked = world.ca.leaf(&["web.test"]);
    world.cluster.crl = vec![world.dir.write("crl.pem", &world.ca.crl(&[&revoked], 2099))];
    world.meet().await.unwrap();
    assert!(world.meet_with(&revoked).await.client.contains("Revoked"));
}

/// An expired list is rejected, and once there is a list, every issuer must have one.
#[test]
fn revocation_lists_must_be_current_and_complete() {
    let mut world = world();
    let clients = world.asking(ClientCertificates::Require);
    let leaf = |ca: &Ca| ca.leaf(&["web.test", "spiffe://mesh/web"]).der;
    let (server, client, stranger) = (leaf(&world.ca), leaf(&clients), Ca::new("stranger"));
    let name = ServerName::try_from("web.test").unwrap();
    for (complete, year, expected) in
        [(true, 2085, ""), (true, 2091, "ExpiredRevocationList"), (false, 2085, "UnknownRevocationStatus")]
    {
        let list = |ca: &Ca| {
            let ca = if complete { ca } else { &stranger };
            vec![world.dir.write("list.pem", &ca.crl(&[], 2090))]
        };
        let now = u64::try_from(rcgen::date_time_ymd(year, 1, 2).unix_timestamp()).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let check = |by: &str, result: Result<(), rustls::Error>| {
            let said = result.err().map(|e| format!("{e:?}")).unwrap_or_default();
            assert!(
                said.contains(expected) && said.is_empty() == expected.is_empty(),
                "{by} {complete} {year}: {said}"
            );
        };
        for sans in [vec![], vec!["web.test".to_owned()]] {
            let cluster = ClusterTls { crl: list(&world.ca), sans, ..world.cluster.clone() };
            let (roots, lists) = load(|loader| verifying(&cluster, loader)).unwrap();
            let verifier = verifier(&cluster, roots, lists).unwrap();
            check("cluster", verifier.verify_server_cert(&server, &[], &name, &[], now).map(drop));
        }
        let ca = world.listener.client_ca.clone();
        for domains in [BTreeMap::new(), BTreeMap::from([("mesh".to_owned(), ca.clone())])] {
            let listener = ListenerTls { crl: list(&clients), trust_domains: domains, ..world.listener.clone() };
            let clients = load(|loader| ClientAuth::load(&listener, loader)).unwrap();
            check("listener", clients.verifier.unwrap().verify_client_cert(&client, &[], now).map(drop));
        }
    }
}

#[test]
fn server_name_is_the_configured_one_or_else_the_endpoints_or_else_the_clusters() {
    let world = world();
    let load = |sni: Option<&str>, cluster| {
        let section = ClusterTls { sni: sni.map(str::to_owned), ..world.cluster.clone() };
        load(|loader| ClientTls::load(&section, cluster, &[], loader, None)).unwrap()
    };
    let name = |tls: &ClientTls, hostname| match tls.server_name(hostname, Some([10, 1, 2, 3].into())) {
        ServerName::DnsName(name) => name.as_ref().to_owned(),
        other => format!("{other:?}"),
    };
    let (with, without) = (load(Some("fixed.test"), "web.test"), load(None, "web.test"));
    assert_eq!((name(&with, Some("host.test")), name(&with, None)), ("fixed.test".into(), "fixed.test".into()));
    assert_eq!((name(&without, Some("host.test")), name(&without, None)), ("host.test".into(), "web.test".into()));
    assert_eq!(name(&without, Some("no host's name")), "web.test");
    assert_eq!(name(&load(None, "no host's name"), Some("host.test")), "host.test");
}

#[tokio::test]
async fn without_a_name_the_address_is_verified() {
    let world = world();
    let nameless = load(|loader| ClientTls::load(&world.cluster, "no host's name", &[], loader, None)).unwrap();
    let name = nameless.server_name(None, Some([10, 1, 2, 3].into()));
    let failed = meet_as(&server(&world.listener), &nameless, name.clone()).await.err().unwrap();
    assert!(failed.client.contains("10.1.2.3"), "{failed:?}");
    let pair = world.dir.pair("address", &world.ca.leaf(&["10.1.2.3"]));
    let met = meet_as(&server(&listener(vec![pair])), &nameless, name).await.unwrap();
    assert_eq!(met.tls.server_name, None);
}

#[tokio::test]
async fn client_certificates_can_be_required() {
    let mut world = world();
    let ca = world.asking(ClientCertificates::Require);
    let failed = world.meet().await.err().unwrap();
    assert!(failed.server.contains("peer sent no certificates"), "{failed:?}");
    let met = meet(&server(&world.listener), &world.showing(&ca.leaf(&["a.test", "spiffe://mesh/ns/a/sa/a"]))).await;
    let tls = met.unwrap().tls;
    assert!(tls.is_mutual());
    let peer = tls.peer.as_ref().unwrap();
    assert_eq!(peer.principal(), "spiffe://mesh/ns/a/sa/a");
    assert_eq!(&*peer.issuer, "CN=clients,O=Tests");
}

#[tokio::test]
async fn client_certificates_can_be_optional() {
    let mut world = world();
    let ca = world.asking(ClientCertificates::Request);
    assert!(!world.meet().await.unwrap().tls.is_mutual());
    let server = server(&world.listener);
    assert!(meet(&server, &world.showing(&ca.leaf(&["a.test"]))).await.unwrap().tls.is_mutual());
    let failed = meet(&server, &world.showing(&world.ca.leaf(&["a.test"]))).await.err().unwrap();
    assert!(failed.server.contains("UnknownIssuer"), "{failed:?}");
}

#[tokio::test]
async fn invalid_client_certificates_are_rejected() {
    let mut world = world();
    let ca = world.asking(ClientCertificates::Require);
    let (good, revoked) = (ca.leaf(&["a.test"]), ca.leaf(&["b.test"]));
    world.listener.crl = vec![world.dir.write("crl.pem", &ca.crl(&[&revoked], 2099))];
    let server = server(&world.listener);
    meet(&server, &world.showing(&good)).await.unwrap();
    let failed = meet(&server, &world.showing(&revoked)).await.err().unwrap();
    assert!(failed.server.contains("Revoked") && failed.client.contains("CertificateRevoked"), "{failed:?}");
    // A certificate that our own client would not load.
    let expired = ca.expired(&["c.test"]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem(&world.ca.pem())).unwrap();
    let config = ClientConfig::builder_with_provider(super::super::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![expired.der.clone()], expired.key_der())
        .unwrap();
    let know = |connection: &_| server.connection(connection).map_err(|e| e.to_string());
    let name = ServerName::try_from("web.test").unwrap();
    let failed = raw(server.config().clone(), config.into(), name, know).await.err().unwrap();
    assert!(failed.server.contains("expired"), "{failed:?}");
}

#[tokio::test]
async fn the_requested_name_selects_the_certificate() {
    let (dir, ca) = (Dir::new(), Ca::new("servers"));
    let names = [&["first.test"][..], &["*.web.test"], &["a.web.test", "B.WEB.test"], &[]];
    let pairs = names.iter().enumerate().map(|(i, names)| dir.pair(&i.to_string(), &ca.leaf(names)));
    let server = server(&listener(pairs.collect()));
    let anybody = ClusterTls { insecure: true, ..ClusterTls::default() };
    let cases = [
        ("first.test", "first.test"),
        ("c.web.test", "*.web.test"),
        ("C.Web.Test", "*.web.test"),
        ("a.web.test", "a.web.test"),
        ("b.web.test", "a.web.test"),
        ("c.d.web.test", "first.test"),
        ("web.test", "first.test"),
        ("10.0.0.1", "first.test"),
    ];
    for (asked, shown) in cases {
        let client = client(&ClusterTls { sni: Some(asked.to_owned()), ..anybody.clone() });
        let tls = meet(&server, &client).await.unwrap_or_else(|e| panic!("{asked}: {e:?}")).tls;
        assert_eq!(&*tls.local.unwrap().dns_sans[0], shown, "{asked}");
        let strict = ClusterTls {
            insecure: false,
            ca: vec![dir.write("ca.pem", &ca.pem())],
            sans: vec![shown.replace('*', "any")],
            sni: Some(asked.to_owned()),
            ..ClusterTls::default()
        };
        meet(&server, &super::client(&strict)).await.unwrap_or_else(|e| panic!("{asked} was shown another: {e:?}"));
    }
    let warnings = server.warnings(std::time::SystemTime::now());
    let unseen = warnings.iter().find(|(place, _)| place == "certificates/3");
    assert!(unseen.is_some_and(|(_, text)| text.contains("no DNS names")), "{warnings:?}");
}

/// Parses a PEM text with one certificate.
struct CertificateDer;

impl CertificateDer {
    fn from_pem(text: &str) -> rustls::pki_types::CertificateDer<'static> {
        use rustls::pki_types::pem::PemObject;
        rustls::pki_types::CertificateDer::from_pem_slice(text.as_bytes()).unwrap()
    }
}

/// An authority is limited to its own trust domain.
#[tokio::test]
async fn a_partners_authority_cannot_sign_for_our_trust_domain() {
    use crate::config::model::ClientCertificates;
    let dir = super::pki::Dir::new();
    let [ours, partner, plain] = ["ours", "partner", "plain"].map(super::pki::Ca::new);
    let file = |name: &str, ca: &super::pki::Ca| vec![dir.write(name, &ca.pem())];
    let section = ListenerTls {
        client_certificates: ClientCertificates::Require,
        client_ca: file("plain.pem", &plain),
        trust_domains: [("ours", file("ours.pem", &ours)), ("partner", file("partner.pem", &partner))]
            .map(|(name, files)| (name.to_owned(), files))
            .into(),
        ..listener(vec![dir.pair("server", &ours.leaf(&["web.test"]))])
    };
    let server = server(&section);
    let mut nth = 0;
    let mut lets_in = async |ca: &super::pki::Ca, names: &[&str]| {
        nth += 1;
        let client = client(&ClusterTls {
            ca: file("ours.pem", &ours),
            certificate: Some(dir.pair(&format!("client{nth}"), &ca.leaf(names))),
            ..ClusterTls::default()
        });
        meet(&server, &client).await.is_ok()
    };
    for (ca, names, expected) in [
        (&ours, &["spiffe://ours/a"][..], true),
        (&partner, &["spiffe://partner/a"], true),
        (&plain, &["a.test"], true),
        (&partner, &["spiffe://ours/a"], false),
        (&ours, &["spiffe://partner/a"], false),
        (&plain, &["spiffe://ours/a"], false),
        (&ours, &["a.test"], false),
        (&ours, &["spiffe://other/a"], false),
        (&ours, &["SPIFFE://ours/a"], true),
        (&plain, &["SPIFFE://ours/a"], false),
        (&partner, &["spiffe://partner/a", "spiffe://ours/a"], false),
        (&ours, &["spiffe://OURS/a"], false),
    ] {
        assert_eq!(lets_in(ca, names).await, expected, "{names:?}");
    }
    let nobody = client(&ClusterTls { ca: file("ours.pem", &ours), ..ClusterTls::default() });
    for (client_certificates, expected) in [(ClientCertificates::Require, false), (ClientCertificates::Request, true)] {
        let server = super::server(&ListenerTls { client_certificates, ..section.clone() });
        assert_eq!(meet(&server, &nobody).await.is_ok(), expected, "{client_certificates:?}");
    }
    // A set with a broken file is an error.
    let domains = [("ours".to_owned(), vec![dir.write("broken.pem", "x")])].into();
    assert!(try_server(&ListenerTls { trust_domains: domains, ..section }, None).is_err());
}

#[test]
fn a_broken_client_certificate_is_an_error() {
    let world = world();
    let broken = world.dir.write("broken.pem", "x");
    let files = CertificateFiles { certificate: broken.clone(), key: broken };
    let cluster = ClusterTls { certificate: Some(files), ..world.cluster.clone() };
    assert!(load(|loader| ClientTls::load(&cluster, "web.test", &[], loader, None)).is_err());
}
