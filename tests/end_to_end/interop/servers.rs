//! nghttpd and nginx as upstreams.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::{large, needs};
use crate::harness::{
    Config, Message, Proxy, not_run,
    peer::{Peer, run},
    pki::Authority,
    reserve,
};

fn documents() -> TempDir {
    let dir = TempDir::new().expect("a folder");
    fs::write(dir.path().join("index.html"), "hello").expect("a file can be written");
    fs::write(dir.path().join("large"), large()).expect("a file can be written");
    dir
}

fn config(server: &Peer, options: &str) -> Config {
    Config::to_with(server.address, options).top("workers: 1")
}

/// Small and large responses, concurrently, on one connection.
fn serves(proxy: &Proxy, version: &str) {
    let via = |m: &Message| m.field("via").unwrap_or_default().to_owned();
    let response = proxy.get("/index.html");
    assert_eq!((response.status(), response.text()), (200, "hello"));
    assert_eq!(via(&response), format!("{version} tollgate"));
    assert_eq!(proxy.get("/nothing").status(), 404);
    let mut client = proxy.h2();
    let streams: Vec<u32> = (0..50).map(|_| client.request("GET", "/index.html", &[], true)).collect();
    let whole = client.request("GET", "/large", &[], true);
    for stream in streams {
        assert_eq!(client.response(stream).text(), "hello");
    }
    assert!(client.response(whole).body == large(), "the body differs");
    let head = client.exchange("HEAD", "/large", &[], b"");
    assert_eq!(head.field("content-length"), Some(large().len().to_string().as_str()));
    if version == "2" {
        let connects = proxy.metrics().sum("tollgate_cluster_connects_total", &[("cluster", "web")]);
        assert_eq!(connects, 1.0);
    }
}

#[test]
fn nghttpd_without_tls() {
    let (nghttpd, documents) = (needs!("nghttpd"), documents());
    let root = documents.path().to_str().expect("a path");
    let server = Peer::serve(&nghttpd, &["--no-tls", "-a", "127.0.0.1", "-d", root, "{port}"]);
    serves(&Proxy::start(config(&server, "protocol: h2")), "2");
}

#[test]
fn nghttpd_with_tls_and_trailers() {
    let (nghttpd, documents, authority) = (needs!("nghttpd"), documents(), Authority::with(&["web.test"]));
    let root = documents.path().to_str().expect("a path");
    let pair = [authority.path("web.test.key"), authority.path("web.test.pem")];
    let args = ["-a", "127.0.0.1", "-d", root, "--trailer", "x-down: 1", "{port}", &pair[0], &pair[1]];
    let server = Peer::serve(&nghttpd, &args);
    let tls = format!("tls: {{sni: web.test, ca: [{}]}}", authority.path("ca.pem"));
    for protocol in ["h2", "auto"] {
        let proxy = Proxy::start(config(&server, &format!("protocol: {protocol}\n{tls}")));
        serves(&proxy, "2");
        assert_eq!(proxy.h2().get("/index.html").trailer("x-down"), Some("1"));
    }
    // A certificate for another name, or of an unknown issuer: no request is sent.
    let wrong =
        ["tls: {sni: other.test, ca: [CA]}".replace("CA", &authority.path("ca.pem")), "tls: {sni: web.test}".into()];
    for tls in wrong {
        let proxy = Proxy::start(config(&server, &format!("protocol: h2\n{tls}")));
        assert_eq!(proxy.get("/").status(), 503);
        proxy.entry_for("/").expect(503, "UF");
    }
}

/// It sends a request's body back.
#[test]
fn nghttpd_echoes_uploads() {
    let (nghttpd, curl) = needs!("nghttpd", "curl");
    let documents = documents();
    let root = documents.path().to_str().expect("a path");
    let args = ["--no-tls", "-a", "127.0.0.1", "--echo-upload", "-d", root, "{port}"];
    let server = Peer::serve(&nghttpd, &args);
    let proxy = Proxy::start(config(&server, "protocol: h2"));
    let url = format!("http://{}/", proxy.address("main"));
    let sent = format!("@{root}/large");
    let got = documents.path().join("got");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let out = got.to_str().expect("a path");
        run(&curl, &["-sS", version, "--data-binary", &sent, "-o", out, &url]).well();
        assert!(fs::read(&got).expect("a file") == large(), "{version}: the body differs");
    }
}

/// nginx with these lines at the beginning and the end of its configuration, where `{address}` stands for its listening
/// address.
fn nginx_with(nginx: &Path, dir: &Path, begin: &str, sections: &str) -> Peer {
    let (address, root) = (reserve(), dir.to_str().expect("a path"));
    let sections = sections.replace("{address}", &address.to_string());
    let config = format!(
        "{begin}daemon off; master_process off; pid {root}/nginx.pid; error_log stderr;\nevents {{}}\n{sections}\n"
    );
    fs::write(dir.join("nginx.conf"), config).expect("a file can be written");
    Peer::serve_at(address, nginx, &["-p", root, "-e", "stderr", "-c", &format!("{root}/nginx.conf")])
}

/// nginx with these options in its `http` and `server` blocks.
pub(super) fn nginx(nginx: &Path, dir: &Path, http: &str, server: &str) -> Peer {
    let root = dir.display();
    let sections = format!(
        "http {{\n access_log off; root {root};\n\
         client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;\n\
         uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5; client_max_body_size 0;\n\
         {http}\n server {{ {server} }}\n}}"
    );
    nginx_with(nginx, dir, "", &sections)
}

/// nginx with a `stream` block; `None` if it lacks the module.
pub(super) fn nginx_stream(nginx: &Path, dir: &Path, stream: &str) -> Option<Peer> {
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let built_in = run(nginx, &["-V"]).err.contains("--with-stream ");
    if !built_in && !Path::new(module).exists() {
        not_run::missing("nginx's stream module", "tests/interop/setup.sh");
        return None;
    }
    let load = if built_in { String::new() } else { format!("load_module {module};\n") };
    Some(nginx_with(nginx, dir, &load, stream))
}

#[test]
fn nginx_in_all_versions() {
    let (program, authority) = (needs!("nginx"), Authority::with(&["web.test"]));
    let pair = format!(
        "ssl_certificate {}; ssl_certificate_key {};",
        authority.path("web.test.pem"),
        authority.path("web.test.key")
    );
    let tls = format!("tls: {{sni: web.test, ca: [{}]}}", authority.path("ca.pem"));
    let cases = [
        ("listen {address};", "", "1.1"),
        ("listen {address} http2;", "protocol: h2", "2"),
        (&*format!("listen {{address}} ssl http2; {pair}"), &*format!("protocol: h2\n{tls}"), "2"),
        (&*format!("listen {{address}} ssl http2; {pair}"), &*format!("protocol: auto\n{tls}"), "2"),
        (&*format!("listen {{address}} ssl; {pair}"), &*format!("protocol: auto\n{tls}"), "1.1"),
        (&*format!("listen {{address}} ssl; {pair}"), &*tls, "1.1"),
    ];
    for (server, options, version) in cases {
        let documents = documents();
        let server = nginx(&program, documents.path(), "", server);
        serves(&Proxy::start(config(&server, options)), version);
    }
}

/// nginx ends a connection after a number of requests by GOAWAY: no request is lost.
#[test]
fn nginx_closes_connections_without_losing_requests() {
    let (program, documents) = (needs!("nginx"), documents());
    let server = nginx(&program, documents.path(), "keepalive_requests 50;", "listen {address} http2;");
    let proxy = Proxy::start(config(&server, "protocol: h2"));
    let mut client = proxy.h2();
    for _ in 0..40 {
        let streams = [(); 20].map(|()| client.request("PUT", "/index.html", &[], false));
        streams.iter().for_each(|stream| client.data(*stream, b"body", true));
        // nginx does not allow PUT for a file, but its response shows that the request arrived.
        streams.into_iter().for_each(|stream| assert_eq!(client.response(stream).status(), 405));
    }
    assert!(proxy.metrics().sum("tollgate_cluster_connects_total", &[("cluster", "web")]) > 5.0);
}
