//! Connections: reuse, closing, and the consequences of failures.

use std::{
    error::Error,
    sync::{Barrier, atomic::Ordering::Relaxed},
};

use http::HeaderMap;
use http_body::{Body as _, Frame};
use http_body_util::{StreamBody, combinators::UnsyncBoxBody};

use super::{super::*, *};

fn gauges(cluster: &Cluster) -> (u64, u64) {
    (cluster.stats().connections.load(Relaxed), cluster.stats().idle.load(Relaxed))
}

#[test]
fn connection_is_reused() {
    run(async {
        let server = server(|_| Reply::Send(OK)).await;
        let (pools, cluster) = (pools(), cluster(&[server.address], |_| {}));
        for _ in 0..20 {
            assert_eq!(get(&pools, &cluster).await, "hello");
            assert_eq!(gauges(&cluster), (1, 1));
        }
        assert_eq!(server.accepted.get(), 1);
        assert_eq!(cluster.stats().connects.load(Relaxed), 1);
    });
}

#[test]
fn responses_without_a_body_release_the_connection_immediately() {
    run(async {
        let server = server(|seen| match seen.request {
            1 => Reply::Send("HTTP/1.1 204 No Content\r\n\r\n"),
            2 => Reply::Send("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
            3 => Reply::Send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
            _ => Reply::Send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
        })
        .await;
        let (pools, cluster) = (pools(), cluster(&[server.address], |_| {}));
        for method in ["GET", "GET", "GET", "HEAD", "HEAD"] {
            let response = send_to(&pools, &cluster, endpoint(&cluster, 0), request(method, "")).await.unwrap();
            assert!(response.body().is_end_stream());
            assert_eq!(gauges(&cluster), (1, 1), "{method}: still held by a body that need not be read");
        }
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn trailers_are_delivered_and_end_the_body() {
    const CHUNKED: &str =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: sum\r\n\r\n5\r\nhello\r\n0\r\nsum: 7\r\n\r\n";
    run(async {
        let server = server(|_| Reply::Send(CHUNKED)).await;
        let (pools, cluster) = (pools(), cluster(&[server.address], |_| {}));
        for _ in 0..2 {
            let mut body = send(&pools, &cluster).await.unwrap().into_body();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
            assert_eq!(gauges(&cluster), (1, 0));
            let trailers: HeaderMap = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(trailers["sum"], "7");
            assert_eq!(gauges(&cluster), (1, 1), "after the trailers no further poll is needed");
        }
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn interim_responses_are_skipped() {
    run(async {
        let reply = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        let server = server(move |_| Reply::Send(reply)).await;
        assert_eq!(get(&pools(), &cluster(&[server.address], |_| {})).await, "hello");
    });
}

#[test]
fn body_dropped_early_closes_the_connection() {
    run(async {
        let server = server(|_| Reply::Hang("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello")).await;
        let (pools, cluster) = (pools(), cluster(&[server.address], |_| {}));
        let mut body = send(&pools, &cluster).await.unwrap().into_body();
        assert!(body.frame().await.unwrap().is_ok());
        drop(body);
        assert_eq!(gauges(&cluster), (0, 0));
        until("the server sees it closed", || server.open.get() == 0).await;
    });
}

#[test]
fn request_dropped_while_it_waits_closes_the_connection() {
    run(async {
        let asked = Rc::new(Cell::new(false));
        let server = server({
            let asked = Rc::clone(&asked);
            move |_| {
                asked.set(true);
                Reply::Hang("")
            }
        })
        .await;
        let (pools, cluster) = (pools(), cluster(&[server.address], |_| {}));
        tokio::select! {
            _ = send(&pools, &cluster) => panic!("there is no answer"),
            () = until("the server has the request", || asked.get()) => {}
        }
        assert_eq!(gauges(&cluster), (0, 0));
        until("the server sees it closed", || server.accepted.get() == 1 && server.open.get() == 0).await;
    });
}

#[test]
fn idle_connections_are_closed_after_their_timeout_and_not_before() {
    run(async {
        let server = server(|_| Reply::Send(OK)).await;
        let (pools, cluster) =
            (pools(), cluster(&[server.address], |limits| limits.idle_timeout = units::Duration::secs(10)));
        // Time advances only in these steps, and during requests, which take less than ten seconds.
        let pass = async |seconds: u64| {
            for _ in 0..seconds {
                tokio::time::advance(Duration::from_secs(1)).await;
                tokio::task::yield_now().await;
            }
        };
        get(&pools, &cluster).await;
        tokio::time::pause();
        pass(6).await;
        assert_eq!(gauges(&cluster), (1, 1));
        tokio::time::resume();
        get(&pools, &cluster).await;
        tokio::time::pause();
        pass(6).await;
        assert_eq!(gauges(&cluster), (1, 1), "its timeout restarts with each use");
        pass(6).await;
        assert_eq!(gauges(&cluster), (0, 0));
        until("the server sees it closed", || server.open.get() == 0).await;
        tokio::time::resume();
        get(&pools, &cluster).await;
        tokio::time::pause();
        pass(12).await;
        assert_eq!(gauges(&cluster), (0, 0), "the sweep has restarted");
        assert_eq!(server.accepted.get(), 2);
    });
}

#[test]
fn connection_is_closed_after_its_maximum_of_requests() {
    run(async {
        let server = server(|_| Reply::Send(OK)).await;
        let (pools, cluster) = (pools(), cluster(&[server.address], |limits| limits.requests_per_connection = 3));
        for _ in 0..7 {
            get(&pools, &cluster).await;
        }
        assert_eq!(server.accepted.get(), 3);
        assert_eq!(gauges(&cluster), (1, 1));
    });
}

#[test]
fn connection_closed_by_the_upstream_while_idle_is_noticed() {
    run(async {
        let server = server(|_| Reply::SendAndClose(OK)).await;
        let (pools, cluster) = (pools(), cluster(&[server.address], |_| {}));
        get(&pools, &cluster).await;
        until("it is removed without a request", || gauges(&cluster) == (0, 0)).await;
        get(&pools, &cluster).await;
        assert_eq!(server.accepted.get(), 2);
    });
}

#[test]
fn unnoticed_closed_connection_is_replaced_transparently() {
    for reset in [false, true] {
        run(async move {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let cluster = cluster(&[listener.local_addr().unwrap()], |_| {});
            let pools = pools();
            let turns = Arc::new(Barrier::new(2));
            let server = std::thread::spawn({
                let turns = Arc::clone(&turns);
                move || answer_and_close(&listener, reset, &turns)
            });
            get(&pools, &cluster).await;
            // The close arrives while this thread is busy; then the request is polled before the connection.
            turns.wait();
            turns.wait();
            // Time for it to arrive. (If this is too little, nothing fails.)
            std::thread::sleep(Duration::from_millis(10));
            tokio::task::yield_now().await;
            assert_eq!(gauges(&cluster), (1, 1), "the test setup is wrong");
            assert_eq!(get(&pools, &cluster).await, "hello");
            server.join().unwrap();
            assert_eq!(cluster.stats().connects.load(Relaxed), 2);
        });
    }
}

/// A blocking server: a request answered on each of two connections, the first then closed by FIN or RST, between
/// `turns`.
fn answer_and_close(listener: &std::net::TcpListener, reset: bool, turns: &Barrier) {
    use std::io::{Read, Write};
    for connection in 1..=2 {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        stream.write_all(OK.as_bytes()).unwrap();
        if connection == 1 {
            turns.wait();
            if reset {
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(stream);
            turns.wait();
        }
    }
}

#[test]
fn reset_reports_whether_a_retry_is_safe() {
    run(async {
        let server = server(|seen| match (seen.connection, seen.request) {
            (1, 1) => Reply::Send(OK),
            (1, _) => Reply::SendAndClose(""),
            _ => Reply::SendAndClose("HTTP/1.1 200 OK\r\nhalf"),
        })
        .await;
        let (pools, cluster) = (pools(), cluster(&[server.address], |_| {}));
        get(&pools, &cluster).await;
        let failure = send(&pools, &cluster).await.unwrap_err();
        let RequestErrorKind::Reset { reused: true, request_sent: true, bytes_received: false, .. } = failure.kind
        else {
            panic!("{failure:?}")
        };
        assert!(failure.body.is_none() && failure.source().is_some());
        let failure = send(&pools, &cluster).await.unwrap_err();
        let RequestErrorKind::Reset { reused: false, request_sent: true, bytes_received: true, .. } = failure.kind
        else {
            panic!("{failure:?}")
        };
        assert_eq!(gauges(&cluster), (0, 0));
    });
}

#[test]
fn refused_connection_returns_the_request() {
    run(async {
        let (_socket, address) = refusing();
        let (pools, cluster) = (pools(), cluster(&[address], |_| {}));
        let failure = send(&pools, &cluster).await.unwrap_err();
        assert!(matches!(failure.kind, RequestErrorKind::Connect(ref error) if !error.timeout), "{failure:?}");
        assert!(failure.body.is_some() && failure.source().is_some());
        assert_eq!((cluster.stats().connect_failures.load(Relaxed), gauges(&cluster)), (1, (0, 0)));
        assert_eq!(endpoint(&cluster, 0).connect_failures(), 1);
    });
}

#[test]
fn connecting_has_a_timeout() {
    run(async {
        // A listener with a full queue drops further connections.
        let (socket, address) = refusing();
        socket.listen(0).unwrap();
        let _fill: Vec<_> = (0..4)
            .map(|_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(20)))
            .take_while(Result::is_ok)
            .collect();
        let mut config = config(&[address]);
        config.connect_timeout = units::Duration::millis(50);
        let cluster = Cluster::new(&config, None);
        let failure = send(&pools(), &cluster).await.unwrap_err();
        assert!(matches!(failure.kind, RequestErrorKind::Connect(ref error) if error.timeout), "{failure:?}");
        assert_eq!(cluster.stats().connect_timeouts.load(Relaxed), 1);
    });
}

#[test]
fn invalid_response_is_a_protocol_failure() {
    let many: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101)).into_boxed_str());
    let long: &'static str =
        Box::leak(format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(70_000)).into_boxed_str());
    let conflict = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello";
    for reply in ["SSH-2.0-OpenSSH_9.9\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n", many, long, conflict] {
        run(async move {
            let server = server(move |_| Reply::Hang(reply)).await;
            let (pools, cluster) = (pools(), cluster(&[server.address], |_| {}));
            let failure = send(&pools, &cluster).await.unwrap_err();
            let is_malformed =
                matches!(failure.kind, RequestErrorKind::Protocol { source: ProtocolError::Malformed(..) });
            assert!(is_malformed, "{failure:?} for {}", &reply[..30.min(reply.len())]);
            assert_eq!(gauges(&cluster), (0, 0));
        });
    }
    run(async move {
        let server = server(move |_| Reply::Send(many)).await;
        let pools = Pools::<Body>::new(PoolOptions { max_response_headers: 256, ..PoolOptions::default() });
        assert!(send(&pools, &cluster(&[server.address], |_| {})).await.is_ok());
    });
}

#[test]
fn switching_protocols_is_a_protocol_failure() {
    run(async {
        let server =
            server(|_| Reply::Hang("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"));
        let server = server.await;
        let (pools, cluster) = (pools(), cluster(&[server.address], |_| {}));
        let failure = send(&pools, &cluster).await.unwrap_err();
        assert!(matches!(failure.kind, RequestErrorKind::Protocol { source: ProtocolError::Switched }), "{failure:?}");
        assert_eq!(gauges(&cluster), (0, 0));
        until("the server sees it closed", || server.open.get() == 0).await;
    });
}

#[test]
fn truncated_response_is_an_error_of_its_body() {
    run(async {
        let server = server(|_| Reply::SendAndClose("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello")).await;
        let (pools, cluster) = (pools(), cluster(&[server.address], |_| {}));
        let body = send(&pools, &cluster).await.unwrap().into_body();
        assert!(body.collect().await.is_err());
        assert_eq!(gauges(&cluster), (0, 0));
    });
}

#[test]
fn failing_request_body_is_not_the_upstreams_fault() {
    run(async {
        let server = server(|_| Reply::Hang("")).await;
        let cluster = cluster(&[server.address], |_| {});
        let frames = futures_util::stream::iter([Ok(Frame::data(Bytes::from("a"))), Err("the client is gone")]);
        let body = StreamBody::new(frames).map_err(Box::<dyn Error + Send + Sync>::from);
        let request = Request::post("/").body(UnsyncBoxBody::new(body)).unwrap();
        let failure =
            send_to(&Pools::new(PoolOptions::default()), &cluster, endpoint(&cluster, 0), request).await.unwrap_err();
        assert!(matches!(failure.kind, RequestErrorKind::RequestBody { .. }), "{failure:?}");
    });
}

#[test]
fn early_response_closes_the_connection() {
    run(async {
        let server = server(|_| Reply::Send(OK)).await;
        let cluster = cluster(&[server.address], |_| {});
        let pools = Pools::new(PoolOptions::default());
        let body = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, std::io::Error>>());
        let request = Request::post("/").body(body).unwrap();
        let response = send_to(&pools, &cluster, endpoint(&cluster, 0), request).await.unwrap();
        assert_eq!(text(response).await, "hello");
        until("it is closed", || gauges(&cluster) == (0, 0) && server.open.get() == 0).await;
    });
}

#[test]
fn requests_with_bodies_are_sent_as_http_1_1_and_leave_the_connection_reusable() {
    run(async {
        let server = server(|seen| {
            assert!(seen.head.starts_with("POST / HTTP/1.1\r\n") && seen.head.contains("content-length: 3"));
            Reply::Send(OK)
        });
        let server = server.await;
        let (pools, cluster) = (pools(), cluster(&[server.address], |_| {}));
        for _ in 0..3 {
            let mut request = request("POST", "abc");
            *request.version_mut() = http::Version::HTTP_2;
            let response = send_to(&pools, &cluster, endpoint(&cluster, 0), request).await.unwrap();
            assert_eq!(text(response).await, "hello");
        }
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn unsolicited_data_is_not_the_answer_to_the_next_request() {
    run(async {
        let stray = "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n";
        let server = server(move |_| Reply::Slowly(OK, 20, stray)).await;
        let (pools, cluster) = (pools(), cluster(&[server.address], |_| {}));
        get(&pools, &cluster).await;
        until("it is closed", || gauges(&cluster) == (0, 0)).await;
        assert_eq!(get(&pools, &cluster).await, "hello");
    });
}

#[test]
fn connections_missing_from_a_new_snapshot_are_closed() {
    run(async {
        let (a, b) = (server(|_| Reply::Send(OK)).await, server(|_| Reply::Slowly("", 50, OK)).await);
        let (pools, clusters) = (pools(), Clusters::default());
        let (handle, old) = (clusters.handle("test"), cluster(&[a.address, b.address], |_| {}));
        pools.set(&handle, &old);
        let busy = send_to(&pools, &old, endpoint(&old, 1), request("GET", "")).await.unwrap();
        for at in [0, 1] {
            text(send_to(&pools, &old, endpoint(&old, at), request("GET", "")).await.unwrap()).await;
        }
        assert_eq!(gauges(&old), (3, 2));
        let new = Cluster::new(&config(&[a.address]), Some(&old));
        pools.set(&handle, &new);
        assert_eq!(gauges(&new), (2, 1), "a's stays, b's idle one is gone, b's busy one is still there");
        assert_eq!(text(busy).await, "hello");
        assert_eq!(gauges(&new), (1, 1));
        until("b is left", || b.open.get() == 0 && a.open.get() == 1).await;
        pools.close_all();
        assert_eq!(gauges(&new), (0, 0));
        until("a is left", || a.open.get() == 0).await;
        get(&pools, &new).await;
        drop(pools);
        assert_eq!(gauges(&new), (0, 0));
    });
}
