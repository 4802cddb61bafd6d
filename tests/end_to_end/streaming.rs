//! Streaming: bodies of any size pass in bounded memory, and a peer that does not read causes backpressure.

use std::{
    io::ErrorKind,
    net::TcpStream,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use crate::harness::{Config, Proxy, Upstream, Wire, answer};

const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// The memory that the proxy may need for one body, in addition to its idle memory. Buffering the whole body would
/// exceed this by far.
const LEEWAY_KIB: u64 = 64 << 10;

/// More than all buffers on the path can hold, including the system's.
const IN_FLIGHT: usize = 128 * MIB;

/// A block of a body that reveals loss, duplication and reordering: no part of it repeats within a short distance.
fn block() -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..64 << 10).map(|_| next()).collect()
}

/// A proxy with response timeouts long enough for a busy machine.
fn unhurried(upstream: &Upstream, options: &str) -> Proxy {
    let options = format!("request_timeout: 0s\n{options}");
    Proxy::start(Config::to_with(upstream, &options))
}

/// Writes a body of repeated blocks.
fn write_body(wire: &mut Wire, size: usize) -> std::io::Result<()> {
    let block = block();
    (0..size / block.len()).try_for_each(|_| wire.send(&block))
}

/// Reads such a body and verifies it.
fn read_body(wire: &mut Wire, size: usize) {
    let block = block();
    let (mut seen, mut some) = (0, vec![0; 64 << 10]);
    while seen < size {
        let n = wire.read_some(&mut some).expect("the body continues");
        assert_ne!(n, 0, "the body ends after {seen} bytes");
        let mut read = &some[..n];
        while !read.is_empty() {
            let expected = &block[seen % block.len()..];
            let n = expected.len().min(read.len());
            assert!(read[..n] == expected[..n], "wrong bytes around {seen}");
            (seen, read) = (seen + n, &read[n..]);
        }
    }
    assert_eq!(seen, size);
}

fn assert_bounded(proxy: &Proxy, before: u64) {
    let more = proxy.peak_kib() - before;
    assert!(more < LEEWAY_KIB, "{more} KiB more than before");
}

#[test]
fn a_response_of_a_gibibyte_passes_in_bounded_memory() {
    let upstream = Upstream::scripted(|mut connection| {
        connection.head();
        connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n"));
        let _ = write_body(&mut connection.wire, GIB);
    });
    let proxy = unhurried(&upstream, "");
    let before = proxy.peak_kib();
    let mut client = proxy.client();
    client.send_request("GET", "/", &[], b"");
    let head = client.wire.read_head().expect("a response");
    assert_eq!((head.status(), head.field("content-length")), (200, Some(GIB.to_string().as_str())));
    read_body(&mut client.wire, GIB);
    assert_bounded(&proxy, before);
    assert_eq!(proxy.entry_for("/")["response_bytes"], GIB);
}

/// Asserts that an upload of this size passes in bounded memory.
fn upload(size: usize, options: &str) {
    let upstream = Upstream::scripted(move |mut connection| {
        connection.head();
        read_body(&mut connection.wire, size);
        connection.send(answer(200, &[], "all of it"));
    });
    let proxy = unhurried(&upstream, options);
    let before = proxy.peak_kib();
    let mut client = proxy.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {size}\r\n\r\n"));
    write_body(&mut client.wire, size).expect("the proxy keeps reading");
    assert_eq!(client.read().text(), "all of it");
    assert_bounded(&proxy, before);
    assert_eq!(proxy.entry_for("/")["request_bytes"], size);
}

#[test]
fn an_upload_of_a_gibibyte_passes_in_bounded_memory() {
    upload(GIB, "");
}

/// The retry policy buffers bodies, but not beyond its limit.
#[test]
fn an_upload_over_the_retry_buffer_is_not_kept() {
    upload(GIB / 4, "retry: {on: [5xx], attempts: 3}");
}

/// Writes blocks until the peer has accepted none for a while, and returns the number of accepted bytes.
fn write_until_stuck(socket: &TcpStream, size: usize) -> usize {
    use std::io::Write;
    socket.set_write_timeout(Some(Duration::from_secs(2))).expect("a timeout can be set");
    let (block, mut written) = (block(), 0);
    let mut socket = socket;
    while written < size {
        let at = written % block.len();
        match socket.write(&block[at..]) {
            Ok(n) => written += n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(e) => panic!("{e}"),
        }
    }
    written
}

#[test]
fn a_client_that_does_not_read_makes_the_upstream_wait() {
    let (pushed, stuck) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(2)));
    let (theirs, barrier) = (pushed.clone(), stuck.clone());
    let upstream = Upstream::scripted(move |mut connection| {
        connection.head();
        connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n"));
        theirs.store(write_until_stuck(connection.wire.socket(), GIB), SeqCst);
        barrier.wait();
    });
    let proxy = unhurried(&upstream, "");
    let before = proxy.peak_kib();
    let mut client = proxy.client();
    client.send_request("GET", "/", &[], b"");
    stuck.wait();
    let pushed = pushed.load(SeqCst);
    assert!(pushed > 0 && pushed < IN_FLIGHT, "the upstream could push {} MiB", pushed / MIB);
    assert_bounded(&proxy, before);
    // The data in transit is still correct, and the end of the connection does not end the body.
    client.wire.read_head().expect("a response");
    read_body(&mut client.wire, pushed);
    assert!(client.wire.is_closed());
}

#[test]
fn an_upstream_that_does_not_read_makes_the_client_wait() {
    let done = Arc::new(Barrier::new(2));
    let theirs = done.clone();
    let upstream = Upstream::scripted(move |mut connection| {
        connection.head();
        theirs.wait();
    });
    let proxy = unhurried(&upstream, "");
    let before = proxy.peak_kib();
    let mut client = proxy.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {GIB}\r\n\r\n"));
    upstream.wait_for_requests(1);
    let pushed = write_until_stuck(client.wire.socket(), GIB);
    assert!(pushed > 0 && pushed < IN_FLIGHT, "the client could push {} MiB", pushed / MIB);
    assert_bounded(&proxy, before);
    done.wait();
}

/// Concurrent directions: the upstream echoes what it receives while it receives it.
#[test]
fn bodies_pass_in_both_directions_concurrently() {
    let size = 64 * MIB;
    let upstream = Upstream::scripted(move |mut connection| {
        connection.head();
        connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"));
        let (mut left, mut some) = (size, vec![0; 64 << 10]);
        while left > 0 {
            let n = connection.wire.read_some(&mut some).expect("the body continues");
            assert_ne!(n, 0);
            connection.send(&some[..n]);
            left -= n;
        }
    });
    let proxy = unhurried(&upstream, "");
    let mut client = proxy.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {size}\r\n\r\n"));
    let mut writer = Wire::new(client.wire.socket().try_clone().expect("a second handle"));
    thread::scope(|scope| {
        scope.spawn(move || write_body(&mut writer, size).expect("the proxy keeps reading"));
        assert_eq!(client.wire.read_head().expect("a response").status(), 200);
        read_body(&mut client.wire, size);
    });
}
