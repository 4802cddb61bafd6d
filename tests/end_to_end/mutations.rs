//! Fuzzing with almost valid bytes: no input may crash the proxy, or make it send invalid HTTP. The seed is fixed, so
//! failures are reproducible.

use std::{
    io::ErrorKind,
    net::TcpStream,
    sync::{Arc, Mutex},
};

use crate::harness::{Config, Proxy, Upstream, Wire};

const ROUNDS: usize = 600;

/// Fragments to be inserted, to replace a part, or to be duplicated.
const PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"0",
    b"9",
    b"f",
    b"-",
    b"+",
    b"%",
    b"%00",
    b"/../",
    b"\0",
    b"\xff",
    b"\x80",
    b"chunked",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"Host: b\r\n",
    b"GET / HTTP/1.1\r\n",
    b"99999999999999999999",
    b"TE: trailers\r\n",
    b"@",
    b"#",
    b"?",
    b"\\",
];

const REQUESTS: &[&[u8]] = &[
    b"GET /a?b HTTP/1.1\r\nHost: test\r\nX-A: 1\r\n\r\nGET /c HTTP/1.1\r\nHost: test\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: test\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n5;e=1\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: test\r\nConnection: keep-alive, X-A\r\nX-A: 1\r\n\r\n",
    b"GET http://test:80/x/%2e%2e/y HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nUpgrade: h2c\r\n\r\n",
];

const RESPONSES: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n5;e=1\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nConnection: close, X-A\r\nX-A: 1\r\n\r\nuntil the end",
    b"HTTP/1.0 204 No Content\r\n\r\n",
];

/// A message with up to four mutations.
fn mutated(random: &mut fastrand::Rng, messages: &[&[u8]]) -> Vec<u8> {
    let mut bytes = messages[random.usize(..messages.len())].to_vec();
    for _ in 0..random.usize(1..=4) {
        let at = random.usize(..bytes.len());
        let to = (at + random.usize(..8)).min(bytes.len());
        match random.u8(..5) {
            0 => bytes[at] = random.u8(..),
            1 => drop(bytes.drain(at..to)),
            2 => drop(bytes.splice(at..to, bytes[at..to].repeat(2))),
            3 => bytes.truncate(at.max(1)),
            _ => drop(bytes.splice(at..at, PIECES[random.usize(..PIECES.len())].iter().copied())),
        }
        if bytes.is_empty() {
            return b"\r\n".to_vec();
        }
    }
    bytes
}

/// Reads responses until there are no more; panics if one is invalid.
fn read_all(wire: &mut Wire, sent: &[u8]) {
    loop {
        match wire.read_response("GET") {
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return,
            Err(e) => panic!("{e} after {:?}", sent.escape_ascii().to_string()),
        }
    }
}

fn assert_sound(mut proxy: Proxy) {
    assert!(!proxy.has_ended());
    assert!(proxy.entries().len() > ROUNDS / 4, "too few requests were parsed");
}

#[test]
fn almost_valid_requests_are_handled() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..ROUNDS {
        let bytes = mutated(&mut random, REQUESTS);
        let mut wire = Wire::new(TcpStream::connect(proxy.address("main")).expect("the proxy accepts connections"));
        // The proxy may reject it before all of it is sent.
        let _ = wire.send(&bytes);
        wire.finish();
        read_all(&mut wire, &bytes);
    }
    // The upstream has checked that every forwarded request is valid.
    assert_eq!(proxy.get("/").text(), "ok");
    assert_sound(proxy);
}

#[test]
fn almost_valid_responses_are_handled() {
    let next = Arc::new(Mutex::new(Vec::new()));
    let theirs = next.clone();
    let upstream = Upstream::scripted(move |mut connection| {
        if connection.request().is_some() {
            let bytes = theirs.lock().unwrap().clone();
            connection.send(bytes);
        }
    });
    let proxy = Proxy::start(Config::to(&upstream));
    let mut random = fastrand::Rng::with_seed(12);
    for _ in 0..ROUNDS {
        let bytes = mutated(&mut random, RESPONSES);
        next.lock().unwrap().clone_from(&bytes);
        let mut client = proxy.client();
        client.send_request("GET", "/", &[("Connection", "close")], b"");
        read_all(&mut client.wire, &bytes);
    }
    *next.lock().unwrap() = RESPONSES[0].to_vec();
    assert_eq!(proxy.get("/").text(), "hello");
    assert_sound(proxy);
}
