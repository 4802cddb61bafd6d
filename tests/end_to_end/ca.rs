//! The certificate authority: on the command line, as a service of the admin listener, and as used by a proxy that
//! needs a certificate. The certificates are verified independently: by webpki, and by OpenSSL where it is installed.

mod rotation;

use std::{
    fs,
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use serde_json::{Value, json};
use tempfile::TempDir;
use x509_parser::{certificate::X509Certificate, parse_x509_certificate};

use crate::harness::{Client, Config, Message, Proxy, Signal, Upstream, answer, peer::needs, wait_until};

pub(crate) const WEB: &str = "spiffe://mesh.local/ns/default/sa/web";

/// A directory with an authority and the files created with it.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Folder {
        let folder = Folder(TempDir::new().expect("a folder"));
        folder.run(&["init"]);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("the file exists")
    }

    fn try_run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.arg("ca").args(args).current_dir(self.0.path()).output().expect("tollgate can be run")
    }

    /// Runs `tollgate ca` and returns its standard output.
    fn run(&self, args: &[&str]) -> String {
        let output = self.try_run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("a text")
    }

    /// Runs a command that must fail and returns its standard error.
    fn refusal(&self, args: &[&str]) -> String {
        let output = self.try_run(args);
        assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).expect("a text")
    }

    pub(crate) fn token(&self, scope: &str, ttl: &str) -> String {
        self.run(&["token", "--spiffe", scope, "--ttl", ttl]).trim().to_owned()
    }

    /// A proxy that runs the authority and has no listener.
    fn serve(&self, options: &str) -> Proxy {
        Proxy::start(self.admin(options))
    }

    pub(crate) fn admin(&self, options: &str) -> String {
        format!("admin: {{address: '@admin@', ca: {{dir: '{}'{options}}}}}", self.path("ca").display())
    }
}

/// The configuration of a proxy that obtains a certificate, stored in the directory `run`.
pub(crate) fn workload(ca: SocketAddr, options: &str) -> Config {
    Config::new().top(&workload_section(ca, WEB, options))
}

fn workload_section(ca: SocketAddr, id: &str, options: &str) -> String {
    format!("workload: {{spiffe: '{id}', ca: 'http://{ca}', token: token, dir: run{options}}}")
}

fn request_for(id: &str) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
    let key = KeyPair::generate().expect("a key");
    params.serialize_request(&key).and_then(|request| request.pem()).expect("a request")
}

/// The number of renewals with this result.
fn renewals(proxy: &Proxy, result: &str) -> f64 {
    proxy.metrics().sum("tollgate_workload_renewals_total", &[("result", result)])
}

fn sign(ca: &Proxy, token: Option<&str>, query: &str, request: &str) -> Message {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let fields: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
    let path = format!("/ca/sign{query}");
    Client::connect(ca.address("admin")).request("POST", &path, &fields, request.as_bytes())
}

fn read_json(message: &Message) -> Value {
    serde_json::from_slice(&message.body).expect("the service speaks JSON")
}

/// The DER bytes of a PEM certificate.
fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

fn parsed<'d>(der: &'d CertificateDer<'_>) -> X509Certificate<'d> {
    parse_x509_certificate(der).expect("a certificate").1
}

/// Verifies a certificate for server and client use, and for a server name if given.
fn verify(certificate: &str, root: &str, name: Option<&str>) -> Result<(), webpki::Error> {
    let (root, leaf) = (der(root), der(certificate));
    let anchors = [webpki::anchor_from_trusted_cert(&root)?];
    let leaf = webpki::EndEntityCert::try_from(&leaf)?;
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
        leaf.verify_for_usage(algorithms, &anchors, &[], UnixTime::now(), usage, None, None)?;
    }
    match name {
        Some(name) => leaf.verify_is_valid_for_subject_name(&ServerName::try_from(name).expect("a name")),
        None => Ok(()),
    }
}

/// Asserts that a certificate names only `WEB` and is for this key.
fn assert_is_of_web(certificate: &str, key: &str) {
    let certificate = der(certificate);
    let uris: Vec<_> = webpki::EndEntityCert::try_from(&certificate).expect("it").valid_uri_names().collect();
    assert_eq!(uris, [WEB]);
    let key = KeyPair::from_pem(key).expect("a key");
    assert_eq!(key.subject_public_key_info(), parsed(&certificate).public_key().raw);
}

/// The stored certificate and its key, read from the directory.
fn held(dir: &Path) -> (String, String) {
    let dir = fs::canonicalize(dir.join("..data")).expect("a folder");
    let read = |name: &str| fs::read_to_string(dir.join(name)).expect("the file exists");
    (read("workload.pem"), read("workload.key"))
}

#[test]
fn webpki_accepts_certificates_signed_on_the_command_line() {
    let folder = Folder::new();
    folder.run(&["issue", "--spiffe", WEB, "--dns", "web.mesh.local", "--dns", "*.web.local", "--ip", "127.0.0.1"]);
    let (leaf, root) = (folder.read("web.pem"), folder.read("ca/ca.pem"));
    for name in ["web.mesh.local", "a.web.local", "127.0.0.1"] {
        verify(&leaf, &root, Some(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let other = verify(&leaf, &root, Some("other.local"));
    assert!(matches!(other, Err(webpki::Error::CertNotValidForName(_))), "{other:?}");
    assert_is_of_web(&leaf, &folder.read("web.key"));
    for file in ["web.key", "ca/ca.key", "ca/token.key"] {
        let mode = fs::metadata(folder.path(file)).expect("the file exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let another = Folder::new();
    let another = verify(&folder.read("web.pem"), &another.read("ca/ca.pem"), None);
    assert_eq!(another, Err(webpki::Error::UnknownIssuer), "another root");
}

#[test]
fn openssl_accepts_certificates_signed_on_the_command_line() {
    let openssl = needs!("openssl");
    let folder = Folder::new();
    folder.run(&["issue", "--spiffe", WEB, "--dns", "web.mesh.local", "--ttl", "1h"]);
    let run = |args: &[&str]| {
        let output = Command::new(&openssl).args(args).current_dir(&folder.0).output().expect("openssl can be run");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        said
    };
    for purpose in ["sslserver", "sslclient"] {
        run(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca/ca.pem", "web.pem"]);
    }
    let leaf = run(&["x509", "-in", "web.pem", "-noout", "-text"]);
    for part in [
        format!("URI:{WEB}, DNS:web.mesh.local"),
        "X509v3 Subject Alternative Name: critical".to_owned(),
        "CA:FALSE".to_owned(),
        "Digital Signature\n".to_owned(),
        "TLS Web Server Authentication, TLS Web Client Authentication".to_owned(),
        "prime256v1".to_owned(),
    ] {
        assert!(leaf.contains(&part), "{part}: {leaf}");
    }
    let root = run(&["x509", "-in", "ca/ca.pem", "-noout", "-text"]);
    for part in ["CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign", "URI:spiffe://mesh.local\n"] {
        assert!(root.contains(part), "{part}: {root}");
    }
}

#[test]
fn the_command_line_rejects_harmful_arguments() {
    let folder = Folder::new();
    let root = folder.read("ca/ca.pem");
    for (args, said) in [
        (&["init"][..], "already exists"),
        (&["init", "--dir", "other", "--trust-domain", "Mesh"], "cannot be in the name of a trust domain"),
        (&["init", "--dir", "other", "--days", "0"], "0 is not in 1..=36500"),
        (&["issue", "--spiffe", "web"], "must begin with `spiffe://`"),
        (&["issue", "--spiffe", "spiffe://other/web"], "is not in the trust domain of this authority, `mesh.local`"),
        (&["issue", "--spiffe", "spiffe://mesh.local"], "a workload's identity has a path"),
        (&["issue", "--spiffe", WEB, "--dns", "a b"], "`a b` is not a valid DNS name"),
        (&["issue", "--spiffe", WEB, "--ttl", "0s"], "too short"),
        (&["issue", "--spiffe", WEB, "--out", "ca/ca"], "belongs to the authority"),
        (&["token", "--out", "ca/ca.key"], "already exists and is never overwritten"),
        (&["token", "--out", "ca/../ca/token.key"], "already exists and is never overwritten"),
        (&["issue", "--spiffe", WEB, "--dir", "nowhere"], "`tollgate ca init` creates one"),
        (&["token", "--spiffe", "spiffe://other/*"], "is not in the trust domain of this authority, `mesh.local`"),
        (&["show", "ca/ca.key"], "holds no certificate"),
    ] {
        let refusal = folder.refusal(args);
        assert!(refusal.contains(said), "{args:?}: {refusal}");
    }
    assert_eq!(folder.read("ca/ca.pem"), root);
    assert!(!folder.path("web.pem").exists() && !folder.path("other").exists());
    folder.run(&["init", "--force"]);
    assert_ne!(folder.read("ca/ca.pem"), root);
}

#[test]
fn show_describes_the_authority() {
    let folder = Folder::new();
    let issued: Value = serde_json::from_str(&folder.run(&["issue", "--spiffe", WEB, "--json"])).expect("JSON");
    let shown: Value = serde_json::from_str(&folder.run(&["show", "web.pem", "--json"])).expect("JSON");
    let certificate = &shown["certificates"][0];
    for key in ["serial", "names", "not_after", "sha256"] {
        assert_eq!(certificate[key], issued[key], "{key}");
    }
    assert_eq!(certificate["names"][0], format!("URI:{WEB}"));
    let shown: Value = serde_json::from_str(&folder.run(&["show", "--json"])).expect("JSON");
    assert_eq!((&shown["trust_domain"], &shown["certificates"][0]["ca"]), (&"mesh.local".into(), &true.into()));
    assert!(folder.run(&["show"]).contains("the certificate authority of mesh.local"));
}

#[test]
fn a_proxy_signs_certificates_for_another() {
    let folder = Folder::new();
    let ca = folder.serve("");
    let root = ca.admin("GET", "/ca/root", "");
    assert_eq!((root.status(), root.text()), (200, folder.read("ca/ca.pem").as_str()));
    let token = folder.token("spiffe://mesh.local/ns/default/*", "1h");
    let web = Proxy::start_with(workload(ca.address("admin"), ", ttl: 1h"), &[("token", token.as_bytes())]);
    let run = web.dir().join("run");
    let (certificate, key) = held(&run);
    verify(&certificate, root.text(), None).expect("its certificate is good");
    assert_eq!(fs::read_to_string(run.join("ca.pem")).expect("the root"), root.text());
    assert_is_of_web(&certificate, &key);
    let mode = fs::metadata(run.join("workload.key")).expect("the key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let end = parsed(&der(&certificate)).validity().not_after.timestamp() as f64;
    let metrics = web.metrics();
    assert_eq!(metrics.sum("tollgate_workload_certificate_not_after_timestamp_seconds", &[]), end);
    assert_eq!(metrics.sum("tollgate_workload_renewals_total", &[("result", "success")]), 1.0);
    assert_eq!(ca.metrics().sum("tollgate_ca_issued_total", &[]), 1.0);
    ca.wait_for_output(&format!("certificate signed spiffe=\"{WEB}\""));
}

/// An authority whose clock is behind: nine tenths of its certificates' hour have passed when they arrive. So a proxy
/// renews its first one immediately, and the second one five minutes later. Returns also its root; `refused` is the
/// index of the request that it rejects, if any.
fn late_authority(refused: Option<usize>) -> (Upstream, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.subject_alt_names = vec![SanType::URI("spiffe://mesh.local".try_into().expect("ASCII"))];
    let root = params.self_signed(&key).expect("a root").pem();
    let (issuer, shown, asked) = (Issuer::new(params, key), root.clone(), AtomicUsize::new(0));
    let sign = move |body: &[u8]| {
        let request = std::str::from_utf8(body).expect("PEM");
        let mut request = CertificateSigningRequestParams::from_pem(request).expect("a request");
        let now = SystemTime::now();
        request.params.not_before = (now - Duration::from_secs(54 * 60)).into();
        request.params.not_after = (now + Duration::from_secs(6 * 60)).into();
        let certificate = request.signed_by(&issuer).expect("a certificate").pem();
        json!({"certificate": certificate, "root": shown}).to_string()
    };
    let upstream = Upstream::replying(move |request| match request.target() {
        "/ca/root" => answer(404, &[], ""),
        _ if Some(asked.fetch_add(1, Ordering::SeqCst)) == refused => {
            answer(401, &[], json!({"reason": "bad_token", "error": "who is that?"}).to_string())
        }
        _ => answer(200, &[], sign(&request.body)),
    });
    (upstream, root)
}

#[test]
fn a_certificate_is_renewed_before_it_expires() {
    let (ca, root) = late_authority(None);
    let web = Proxy::start_with(workload(ca.address, ""), &[("token", b"token")]);
    web.wait_for_metric("tollgate_workload_renewals_total", &[("result", "success")], 2.0);
    let keys: Vec<_> = ca.requests().iter().filter(|request| request.target() != "/ca/root").map(key_of).collect();
    assert!(keys.len() == 2 && keys[0] != keys[1], "each certificate has its own key");
    let (certificate, _) = held(&web.dir().join("run"));
    verify(&certificate, &root, None).expect("the new one is good");
    assert_eq!(parsed(&der(&certificate)).public_key().raw, keys[1]);
    assert!(web.is_ready());
}

/// The public key of a certificate request.
fn key_of(request: &Message) -> Vec<u8> {
    let request = CertificateSigningRequestParams::from_pem(request.text()).expect("a request");
    request.public_key.subject_public_key_info()
}

#[test]
fn a_failed_renewal_is_logged_and_retried() {
    let (ca, _) = late_authority(Some(1));
    let web = Proxy::start_with(workload(ca.address, ""), &[("token", b"token")]);
    web.wait_for_output(
        r#"certificate not renewed yet: the certificate authority rejected the request: "who is that?" (401"#,
    );
    web.wait_for_metric("tollgate_workload_renewals_total", &[("result", "success")], 2.0);
    assert_eq!(renewals(&web, "failure"), 1.0);
}

#[test]
fn unauthorized_requests_are_rejected_with_a_reason() {
    let folder = Folder::new();
    let ca = folder.serve(", max_ttl: 1h");
    let token = folder.token("spiffe://mesh.local/ns/default/*", "1h");
    let forged = Folder::new().token("spiffe://mesh.local/*", "1h");
    let ended = folder.token(WEB, "1s");
    wait_until("the token's end", || sign(&ca, Some(&ended), "", "").text().contains("expired at"));
    let (good, other) = (request_for(WEB), request_for("spiffe://mesh.local/ns/other/sa/web"));
    let large = "x".repeat(17 << 10);
    for (token, query, request, status, reason) in [
        (None, "", &good, 401, "no_token"),
        (Some(&forged), "", &good, 401, "bad_token"),
        (Some(&ended), "", &good, 401, "expired_token"),
        (Some(&token), "", &other, 403, "identity"),
        (Some(&token), "?ttl=never", &good, 400, "ttl"),
        (Some(&token), "", &"nonsense".to_owned(), 400, "request"),
        (Some(&token), "", &large, 413, "body"),
    ] {
        let refused = sign(&ca, token.map(String::as_str), query, request);
        assert_eq!((refused.status(), &read_json(&refused)["reason"]), (status, &reason.into()));
        assert_eq!(refused.field("www-authenticate"), (status == 401).then_some("Bearer"));
        assert!(ca.metrics().sum("tollgate_ca_refused_total", &[("reason", reason)]) >= 1.0, "{reason}");
    }
    let signed = read_json(&sign(&ca, Some(&token), "?ttl=100h", &good));
    let certificate = der(signed["certificate"].as_str().expect("a certificate"));
    let certificate = parsed(&certificate);
    let life = certificate.validity();
    assert!(life.not_after.timestamp() - life.not_before.timestamp() <= 3600 + 61, "no longer than `max_ttl`");
    assert_eq!(ca.metrics().sum("tollgate_ca_issued_total", &[]), 1.0);
    // The expiry of one token does not affect others; a new secret invalidates all of them.
    let new = folder.run(&["token", "--new-secret"]);
    assert_eq!(sign(&ca, Some(&token), "", &good).status(), 401);
    assert_eq!(sign(&ca, Some(new.trim()), "", &good).status(), 200);
}

#[test]
fn a_workload_whose_request_is_rejected_does_not_start() {
    let folder = Folder::new();
    let ca = folder.serve("");
    let token = folder.token("spiffe://mesh.local/ns/other/*", "1h");
    let start = |files: &[(&str, &[u8])]| match Proxy::try_start(workload(ca.address("admin"), ""), files) {
        Ok(_) => panic!("it must not start"),
        Err(output) => output,
    };
    let output = start(&[("token", token.as_bytes())]);
    for part in [WEB, "the join token is for `spiffe://mesh.local/ns/other/*`", "403"] {
        assert!(output.contains(part), "{output}");
    }
    assert!(start(&[]).contains("the join token is not available: cannot read"));
}

#[test]
fn a_workload_waits_for_an_unavailable_authority() {
    let folder = Folder::new();
    let ca = folder.serve("");
    let (address, attempts) = (ca.address("admin"), AtomicUsize::new(0));
    // At first the authority fails in two ways.
    let way = Upstream::scripted(move |mut connection| match attempts.fetch_add(1, Ordering::SeqCst) {
        0 => {}
        1 => {
            connection.head();
            connection.send("HTTP/1.1 503 Not yet\r\ncontent-length: 0\r\n\r\n");
        }
        _ => pass(connection.wire.socket(), address),
    });
    let token = folder.token(WEB, "1h");
    let web = Proxy::start_with(workload(way.address, ""), &[("token", token.as_bytes())]);
    verify(&held(&web.dir().join("run")).0, &folder.read("ca/ca.pem"), None).expect("its certificate is good");
    assert!(web.output().contains("is unavailable"), "{}", web.output());
    assert_eq!(renewals(&web, "failure"), 2.0);
}

/// Copies bytes in both directions until both have ended.
fn pass(from: &TcpStream, to: SocketAddr) {
    let to = TcpStream::connect(to).expect("the authority listens");
    let carry = |mut from: &TcpStream, mut to: &TcpStream| {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::scope(|scope| {
        scope.spawn(|| carry(from, &to));
        carry(&to, from);
    });
}

#[test]
fn a_valid_stored_certificate_is_used_without_a_request() {
    let folder = Folder::new();
    let token = folder.token(WEB, "1h");
    fs::write(folder.path("token"), token).expect("a file can be written");
    let (run, token) = (folder.path("run"), folder.path("token"));
    let config = |ca: SocketAddr| {
        let (token, run) = (token.display(), run.display());
        Config::new().top(&format!("workload: {{spiffe: '{WEB}', ca: 'http://{ca}', token: '{token}', dir: '{run}'}}"))
    };
    let ca = folder.serve("");
    let mut first = Proxy::start(config(ca.address("admin")));
    let before = held(&run);
    first.signal(Signal::TERM);
    first.wait_exit();
    let second = Proxy::start(config(Upstream::refusing()));
    assert_eq!(held(&run), before);
    assert!(second.output().contains("still valid"), "{}", second.output());
    let metrics = second.metrics();
    assert_eq!(metrics.sum("tollgate_workload_renewals_total", &[]), 0.0);
    assert!(metrics.sum("tollgate_workload_certificate_not_after_timestamp_seconds", &[]) > 0.0);
}

/// The files that a proxy receives from its authority.
const OWN: &str = "{certificate: run/workload.pem, key: run/workload.key}";

/// A proxy with the identity `WEB` that accepts clients certified by the authority.
fn inner(ca: SocketAddr, upstream: &Upstream) -> Config {
    Config::to(upstream)
        .top(&workload_section(ca, WEB, ", ttl: 12s"))
        .listener(&format!("tls: {{certificates: [{OWN}], client_certificates: require, client_ca: [run/ca.pem]}}"))
}

/// A proxy in front of it that expects `san` from its upstream; `more` are further options of the cluster.
fn outer(ca: SocketAddr, inner: &Proxy, san: &str, options: &str) -> Config {
    let options = format!("{options}tls: {{ca: [run/ca.pem], sans: ['{san}'], certificate: {OWN}}}");
    let section = workload_section(ca, "spiffe://mesh.local/edge", ", ttl: 12s");
    Config::new().top(&section).listener("cluster: inner").cluster("inner", &[inner.address("main")], &options)
}

#[test]
fn proxies_with_certificates_of_one_authority_trust_each_other() {
    let (ca, _) = late_authority(None);
    let files: [(&str, &[u8]); 1] = [("token", b"token")];
    let upstream = Upstream::saying("through both");
    let inner = Proxy::start_with(inner(ca.address, &upstream), &files);
    let outer = |san: &str| Proxy::start_with(outer(ca.address, &inner, san, ""), &files);
    let wrong = outer("spiffe://mesh.local/ns/default/sa/db");
    assert_eq!(wrong.get("/").status(), 503, "the server has another identity");
    let right = outer(WEB);
    let through = || {
        let response = right.get("/");
        assert_eq!((response.status(), response.text()), (200, "through both"));
    };
    through();
    // Both renew their certificates and use the new ones without a reload.
    for proxy in [&inner, &right] {
        wait_until("the new certificate to be used", || proxy.version() == 2);
        assert_eq!(proxy.metrics().sum("tollgate_config_reloads_total", &[("result", "refused")]), 0.0);
        assert_eq!(renewals(proxy, "success"), 2.0);
    }
    through();
}

#[test]
fn a_proxy_can_be_its_own_authority() {
    let folder = Folder::new();
    let token = folder.token(WEB, "1h");
    let admin = folder.admin("");
    let config = Config::new()
        .top(&format!("{admin}\nworkload: {{spiffe: '{WEB}', ca: 'http://@admin@', token: token, dir: run}}"));
    let proxy = Proxy::start_with(config, &[("token", token.as_bytes())]);
    verify(&held(&proxy.dir().join("run")).0, &folder.read("ca/ca.pem"), None).expect("its certificate is good");
}

#[test]
fn without_an_authority_signing_and_starting_fail() {
    let proxy = Proxy::start(Config::new());
    for (method, path) in [("GET", "/ca/root"), ("POST", "/ca/sign")] {
        let response = proxy.admin(method, path, "");
        assert_eq!(response.status(), 404, "{path}");
        assert!(response.text().contains("`admin.ca` is not configured"), "{}", response.text());
    }
    let nothing = Config::new().top("admin: {address: '@admin@', ca: {dir: nothing}}");
    let Err(output) = Proxy::try_start(nothing, &[]) else { panic!("it must not start") };
    assert!(output.contains("config.yaml:2:") && output.contains("^^^^^^^"), "{output}");
    assert!(output.contains("`tollgate ca init --dir nothing` creates an authority"), "{output}");
}

#[test]
fn token_files_are_not_replaced_and_readable_keys_are_warned_about() {
    let folder = Folder::new();
    let key = folder.read("ca/ca.key");
    folder.run(&["token", "--out", "web.token"]);
    let output = folder.refusal(&["token", "--out", "web.token"]);
    assert!(output.contains("`web.token` already exists"), "{output}");
    folder.refusal(&["token", "--out", "ca/ca.key"]);
    assert_eq!(folder.read("ca/ca.key"), key);
    let left = fs::read_dir(folder.path(""))
        .expect("a folder")
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.')));
    assert_eq!(left.count(), 0, "nothing is left over");
    let warned = |folder: &Folder| String::from_utf8(folder.try_run(&["token"]).stderr).expect("a text");
    assert!(!warned(&folder).contains("warning"));
    fs::set_permissions(folder.path("ca/ca.key"), fs::Permissions::from_mode(0o644)).expect("ours");
    assert!(
        warned(&folder)
            .contains("warning: every user on this machine can read the authority's private key in `ca/ca.key`")
    );
}
