//! curl, over all versions and kinds of sockets.

use std::fs;

use tempfile::TempDir;

use super::{large, needs, upstream};
use crate::harness::{Config, Proxy, Upstream, answer, peer::run, pki::Authority};

#[test]
fn large_bodies_pass_in_both_directions() {
    let curl = needs!("curl");
    let (upstream, authority, dir) = (upstream(), Authority::with(&["web.test"]), TempDir::new().expect("a folder"));
    let (file, got) = (dir.path().join("large"), dir.path().join("got"));
    fs::write(&file, large()).expect("a file can be written");
    let sent = format!("@{}", file.display());
    let ca = authority.path("ca.pem");
    for options in ["", "protocol: h2"] {
        // To the proxy itself, and from there to the upstream, so that HTTP/2 is also used to the upstream.
        let config = Config::to_with("@inner@", options)
            .listener(&authority.tls(&["web.test"], "mode: permissive"))
            .beside("inner", "cluster: last")
            .cluster("last", &[&upstream], "");
        let proxy = Proxy::start(config);
        let port = proxy.address("main").port();
        let resolve = format!("web.test:{port}:127.0.0.1");
        for (scheme, version) in
            [("http", "--http1.1"), ("http", "--http2-prior-knowledge"), ("https", "--http1.1"), ("https", "--http2")]
        {
            let base = format!("{scheme}://web.test:{port}");
            let common = ["-sS", "--cacert", &ca, "--resolve", &resolve, version];
            let url = format!("{base}/large");
            let out = got.to_str().expect("a path");
            let output = run(&curl, &[&common[..], &["-o", out, "-w", "%{http_version}", &url]].concat()).well();
            assert_eq!(output, if version == "--http1.1" { "1.1" } else { "2" });
            assert!(fs::read(&got).expect("a file") == large(), "{scheme} {version}: the download differs");
            let url = format!("{base}/upload");
            let output = run(&curl, &[&common[..], &["--data-binary", &sent, &url]].concat()).well();
            assert_eq!(output, large().len().to_string(), "{scheme} {version}");
        }
    }
}

#[test]
fn an_upgrade_to_http2_is_ignored() {
    let curl = needs!("curl");
    let upstream = upstream();
    let proxy = Proxy::start(Config::to(&upstream));
    let url = format!("http://{}/", proxy.address("main"));
    let output = run(&curl, &["-sS", "--http2", "-w", " %{http_version}", "-d", "body", &url]).well();
    assert_eq!(output, "4 1.1");
}

/// Over TLS, since curl 7.88 cannot do this with prior knowledge (with any server).
#[test]
fn many_requests_share_a_connection() {
    let curl = needs!("curl");
    let (upstream, authority) = (upstream(), Authority::with(&["web.test"]));
    let proxy = Proxy::start(Config::to(&upstream).listener(&authority.tls(&["web.test"], "")));
    let url = format!("https://{}/[1-200]", proxy.address("main"));
    let args = ["-sS", "-k", "-Z", "--parallel-max", "50", "--http2", "-w", "%{http_code}\n", "-o", "/dev/null"];
    let output = run(&curl, &[&args[..], &[&url]].concat()).well();
    assert_eq!(output.lines().filter(|line| *line == "200").count(), 200);
    let connections = proxy.metrics().sum("tollgate_connections_total", &[("listener", "main")]);
    assert!(connections < 10.0, "{connections}");
}

#[test]
fn unix_sockets_on_both_sides() {
    let curl = needs!("curl");
    let upstream = upstream();
    let config = Config::to_with("unix:inner.sock", "protocol: h2")
        .beside("inner", "address: unix:inner.sock\ncluster: last")
        .cluster("last", &[&upstream], "");
    let proxy = Proxy::start(config);
    let url = format!("http://{}/", proxy.address("main"));
    assert_eq!(run(&curl, &["-sS", "-d", "body", &url]).well(), "4");
    let socket = proxy.dir().join("inner.sock");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let socket = socket.to_str().expect("a path");
        let output = run(&curl, &["-sS", version, "--unix-socket", socket, "-d", "other", "http://any/"]).well();
        assert_eq!(output, "5", "{version}");
    }
}

/// With the proxy as curl's configured proxy.
#[test]
fn connect_opens_a_tunnel() {
    let curl = needs!("curl");
    let (upstream, authority) = (upstream(), Authority::with(&["web.test", "proxy.test"]));
    // Behind the tunnel is a TLS listener, so the bytes must pass unchanged.
    let config = Config::new()
        .listener("connect: true\ncluster: inner")
        .listener(&authority.tls(&["proxy.test"], "mode: permissive"))
        .cluster("inner", &["@inner@"], "")
        .cluster("web", &[&upstream], "");
    let inner = format!("cluster: web\n{}", authority.tls(&["web.test"], ""));
    let proxy = Proxy::start(config.beside("inner", &inner));
    let port = proxy.address("main").port();
    let (ca, plain) = (authority.path("ca.pem"), format!("http://127.0.0.1:{port}"));
    for version in ["--http1.1", "--http2"] {
        let args = ["-sS", version, "-p", "-x", &plain, "--cacert", &ca, "-d", "body", "https://web.test/"];
        assert_eq!(run(&curl, &args).well(), "4", "{version}");
        let secure = format!("https://proxy.test:{port}");
        let resolve = format!("proxy.test:{port}:127.0.0.1");
        let args = ["-sS", version, "-p", "-x", &secure, "--proxy-cacert", &ca, "--resolve", &resolve];
        let inside = ["--cacert", &ca, "-d", "body", "https://web.test/"];
        assert_eq!(run(&curl, &[&args[..], &inside].concat()).well(), "4", "{version}");
    }
    let entry = proxy.entry(|entry| entry["method"] == "CONNECT").expect(200, "");
    assert_eq!(entry["cluster"], "inner");
    assert!(entry["request_bytes"].as_u64() > Some(100), "{entry}");
}

#[test]
fn trailers_reach_curl() {
    let curl = needs!("curl");
    let upstream = Upstream::replying(|request| match request.target() {
        "/" => {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Down\r\n\r\n2\r\nab\r\n0\r\nX-Down: 1\r\n\r\n"
                .to_vec()
        }
        _ => answer(404, &[], ""),
    });
    let proxy = Proxy::start(Config::to(&upstream));
    let url = format!("http://{}/", proxy.address("main"));
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let output = run(&curl, &["-sS", version, "-H", "TE: trailers", "-D", "-", &url]).well();
        assert!(output.to_lowercase().contains("x-down: 1"), "{version}: {output}");
    }
}
