//! HTTP sources behind TLS and on Unix sockets.

use std::fs;

use serde_json::{Value, json};

use super::{Plane, cluster, text};
use crate::harness::{
    Config, Proxy, Upstream, answer,
    peer::{Peer, needs},
    pki::Authority,
    run_in, wait_until,
};

/// Routes everything to `api`, which only the source with these settings supplies.
fn config(http: &str) -> Config {
    Config::new().top(&format!("sources: [{{name: plane, http: {{interval: 50ms, {http}}}}}]")).routes("{cluster: api}")
}

/// The last error of the source.
fn last_error(proxy: &Proxy) -> String {
    let shown: Value = serde_json::from_slice(&proxy.admin("GET", "/resources", "").body).expect("JSON");
    shown["sources"][0].to_string()
}

#[test]
fn resources_come_over_mutual_tls_with_a_token() {
    let (plane, one, two) = (Plane::new(), Upstream::saying("one"), Upstream::saying("two"));
    let authority = Authority::with(&["control.test", "client.test"]);
    let (ca, token) = (authority.path("ca.pem"), authority.path("token"));
    fs::write(&token, "secret\n").expect("a file");
    let clients = format!("client_certificates: require, client_ca: ['{ca}']");
    let front = Proxy::start(Config::to(&plane.server).listener(&authority.tls(&["control.test"], &clients)));
    plane.full(json!({"clusters": [cluster("api", &[&one])]}));

    let address = front.address("main");
    let host = format!("control.test:{}", address.port());
    let with = |tls: &str| {
        let server = format!("url: 'https://{host}/resources', address: '{address}', token_file: '{token}'");
        config(&format!("{server}, tls: {{ca: ['{ca}']{tls}}}"))
    };
    let mut proxy = Proxy::start(with(""));
    proxy.wait_for_output("it requires a client certificate: set `tls.certificate`");
    assert!(plane.server.requests().is_empty(), "a client without a certificate is not accepted");

    let pair = format!(", certificate: {}", authority.pair("client.test"));
    proxy.change_config(with(&pair));
    wait_until("the cluster to come", || proxy.get("/").status() == 200);
    let request = plane.server.requests().remove(0);
    assert_eq!(request.field("authorization"), Some("Bearer secret"));
    assert_eq!(request.field("host"), Some(&*host));
    plane.delta(json!({"clusters": [cluster("api", &[&two])]}));
    wait_until("its endpoints to change", || text(&proxy) == "two");

    // The server's certificate is not for another name, so what was accepted stays, and no token is sent.
    let requests = plane.server.requests().len();
    proxy.change_config(with(&format!("{pair}, sni: other.test")));
    wait_until("the server to be refused", || last_error(&proxy).contains("other.test"));
    assert_eq!(text(&proxy), "two");
    assert_eq!(plane.server.requests().len(), requests);
}

#[test]
fn openssl_serves_resources_and_its_certificate_is_verified() {
    let openssl = needs!("openssl");
    let (one, two) = (Upstream::saying("one"), Upstream::saying("two"));
    let (authority, stranger) = (Authority::with(&["control.test"]), Authority::with(&[]));
    let put = |endpoint: &Upstream| {
        let document = json!({"clusters": [cluster("api", &[endpoint])]}).to_string();
        let next = authority.dir().join("next");
        fs::write(&next, answer(200, &["Content-Type: application/json"], document)).expect("a file");
        fs::rename(next, authority.dir().join("resources")).expect("it is replaced");
    };
    put(&one);
    let [certificate, key] = ["control.test.pem", "control.test.key"].map(|name| authority.path(name));
    let dir = authority.path("");
    let serve = ["-c", "cd \"$0\" && exec \"$@\"", &dir, openssl.to_str().expect("a path of text"), "s_server"];
    let options = ["-HTTP", "-quiet", "-accept", "{address}", "-cert", &certificate, "-key", &key];
    let server = Peer::serve("/bin/sh".as_ref(), &[&serve[..], &options].concat());

    let with = |authority: &Authority| {
        let (port, ca) = (server.address.port(), authority.path("ca.pem"));
        let tls = format!("tls: {{ca: ['{ca}'], sni: control.test}}");
        config(&format!("url: 'https://127.0.0.1:{port}/resources', {tls}"))
    };
    let mut proxy = Proxy::start(with(&stranger));
    wait_until("the server to be refused", || last_error(&proxy).contains("TLS: the certificate "));
    proxy.change_config(with(&authority));
    wait_until("the cluster to come", || proxy.get("/").status() == 200);
    assert_eq!(text(&proxy), "one");
    put(&two);
    wait_until("its endpoints to change", || text(&proxy) == "two");
}

#[test]
fn resources_come_over_a_unix_socket() {
    let (plane, one, two) = (Plane::new(), Upstream::saying("one"), Upstream::saying("two"));
    let dir = tempfile::tempdir().expect("a folder");
    let socket = format!("unix:{}", dir.path().join("control.sock").display());
    let listening = Config::to(&plane.server).listener(&format!("addresses: ['{socket}']"));
    let front = Proxy::start(listening.clone());
    plane.full(json!({"clusters": [cluster("api", &[&one])]}));
    let proxy = Proxy::start(config(&format!("url: 'http://control.test/resources', address: '{socket}'")));
    wait_until("the cluster to come", || proxy.get("/").status() == 200);
    assert_eq!(plane.server.requests()[0].field("host"), Some("control.test"));

    // While there is no socket, what was accepted stays.
    drop(front);
    wait_until("the server to be missed", || last_error(&proxy).contains("control.sock: "));
    assert_eq!(text(&proxy), "one");
    plane.full(json!({"clusters": [cluster("api", &[&two])]}));
    let _front = Proxy::start(listening);
    wait_until("its endpoints to change", || text(&proxy) == "two");
}

#[test]
fn check_warns_of_a_token_without_encryption() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("token"), "secret\n").expect("a file");
    let check = |url: &str| {
        let text = format!("sources: [{{name: plane, http: {{url: '{url}', token_file: token}}}}]\n");
        let text = text + "listeners: [{name: main, address: '127.0.0.1:1', chain: []}]\n";
        fs::write(dir.path().join("config.yaml"), text).expect("a file");
        run_in(dir.path(), &["check", "config.yaml"], &[])
    };
    let (is_valid, output) = check("http://control.test/");
    assert!(is_valid && output.contains("the token is sent to `control.test` without encryption"), "{output}");
    for url in ["https://control.test/", "http://127.0.0.1:8700/"] {
        let (is_valid, output) = check(url);
        assert!(is_valid && !output.contains("without encryption"), "{output}");
    }
}
