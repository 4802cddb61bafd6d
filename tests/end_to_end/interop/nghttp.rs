//! nghttp, which prints the frames that it receives.

use super::{needs, upstream};
use crate::harness::{
    Config, Proxy,
    peer::{Peer, run},
    wait_until,
};

#[test]
fn requests_share_a_connection_with_and_without_priorities() {
    let nghttp = needs!("nghttp");
    let upstream = upstream();
    let proxy = Proxy::start(Config::to(&upstream));
    let url = |path: &str| format!("http://{}{path}", proxy.address("main"));
    let urls = [url("/a"), url("/b"), url("/large"), url("/c")];
    for more in [&[][..], &["--no-dep"], &["-p", "1"], &["--no-rfc7540-pri"]] {
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let args = [&["-nv", "--no-push", "-w", "24", "-W", "24"], more, &urls].concat();
        let output = run(&nghttp, &args);
        // Older versions of nghttp do not have the last option.
        if output.err.contains("unrecognized option") {
            continue;
        }
        let output = output.well();
        assert_eq!(output.matches(":status: 200").count(), 4, "{output}");
        assert!(!output.contains(
            "GOAWAY frame <length=8, flags=0x00, stream_id=0>\n          (last_stream_id=0, error_code=PROTOCOL"
        ));
    }
    assert_eq!(proxy.metrics().sum("tollgate_connections_refused_total", &[]), 0.0);
}

#[test]
fn trailers_pass() {
    let (nghttp, nghttpd) = needs!("nghttp", "nghttpd");
    let data = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(data.path(), "body").expect("a file can be written");
    // Not over HTTP/1.1, where a body with a length cannot have trailers.
    let args = ["-v", "--no-tls", "-a", "127.0.0.1", "--echo-upload", "--trailer", "x-down: 1", "{port}"];
    let server = Peer::serve(&nghttpd, &args);
    let proxy = Proxy::start(Config::to_with(server.address, "protocol: h2"));
    let url = format!("http://{}/", proxy.address("main"));
    let data = data.path().to_str().expect("a path");
    let output = run(&nghttp, &["-nv", "-H", "te: trailers", "--trailer", "x-up: 2", "-d", data, &url]).well();
    assert!(output.contains("x-down: 1"), "{output}");
    wait_until("the trailer at nghttpd", || server.output().contains("x-up: 2"));
}
