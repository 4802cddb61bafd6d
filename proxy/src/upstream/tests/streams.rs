//! HTTP/2 connections: the number of their streams, the queue for streams, and connections with a single request.

use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::{Notify, Semaphore};

use super::{super::*, *};

/// A server that answers as many requests as it is told to.
struct Streams {
    address: SocketAddr,
    accepted: Rc<Cell<usize>>,
    open: Rc<Cell<usize>>,
    asked: Rc<Cell<usize>>,
    answers: Rc<Semaphore>,
    closes: Rc<Notify>,
}

async fn streams() -> Streams {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, open, asked) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (answers, closes) = (Rc::new(Semaphore::new(0)), Rc::new(Notify::new()));
    let server = Streams {
        address,
        accepted: Rc::clone(&accepted),
        open: Rc::clone(&open),
        asked: Rc::clone(&asked),
        answers: Rc::clone(&answers),
        closes: Rc::clone(&closes),
    };
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            accepted.set(accepted.get() + 1);
            open.set(open.get() + 1);
            let (open, asked, answers) = (Rc::clone(&open), Rc::clone(&asked), Rc::clone(&answers));
            let closes = Rc::clone(&closes);
            spawn_local(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                loop {
                    let accepted = tokio::select! {
                        accepted = connection.accept() => accepted,
                        () = closes.notified() => None,
                    };
                    let Some(Ok((_, mut respond))) = accepted else { break };
                    asked.set(asked.get() + 1);
                    let answers = Rc::clone(&answers);
                    spawn_local(async move {
                        answers.acquire().await.unwrap().forget();
                        let mut body = respond.send_response(Response::new(()), false).unwrap();
                        body.send_data(Bytes::from("hello"), true).unwrap();
                    });
                }
                drop(connection);
                open.set(open.get() - 1);
            });
        }
    });
    server
}

/// Creates an HTTP/2 cluster with this many connections of two streams and this idle timeout in seconds (0: none).
fn by_h2(addresses: &[SocketAddr], connections: u32, idle: u64) -> Arc<Cluster> {
    let mut config = config(addresses);
    config.protocol = model::ClusterProtocol::H2;
    config.http2.max_concurrent_streams = 2;
    config.limits.connections = connections;
    config.limits.idle_timeout = units::Duration::secs(idle);
    Cluster::new(&config, None)
}

/// Returns the number of connections, of those without a stream, and of waiting requests.
fn gauges(cluster: &Cluster) -> [u64; 3] {
    let stats = cluster.stats();
    [&stats.connections, &stats.idle, &stats.pending].map(|gauge| gauge.load(Relaxed))
}

/// Performs a whole exchange in its own task.
fn ask(pools: &Pools<Body>, cluster: &Arc<Cluster>, at: usize, alone: bool) -> tokio::task::JoinHandle<()> {
    let (pools, cluster) = (pools.clone(), Arc::clone(cluster));
    spawn_local(async move {
        let (head, body) = request("GET", "").into_parts();
        let way = ProtocolChoice { alone, ..ProtocolChoice::default() };
        let response = pools.send(&cluster, endpoint(&cluster, at), way, &head, body).await.unwrap();
        assert_eq!(text(response).await, "hello");
    })
}

#[test]
fn requests_share_a_connection_and_wait_for_its_streams() {
    run(async {
        let server = streams().await;
        let (pools, cluster) = (pools(), by_h2(&[server.address], 1, 10));
        let all: Vec<_> = (0..5).map(|_| ask(&pools, &cluster, 0, false)).collect();
        for asked in 2..=5 {
            until("two have streams", || server.asked.get() == asked && gauges(&cluster)[2] == 5 - asked as u64).await;
            server.answers.add_permits(1);
        }
        server.answers.add_permits(1);
        for one in all {
            one.await.unwrap();
        }
        assert_eq!((server.accepted.get(), gauges(&cluster)), (1, [1, 1, 0]));
        tokio::time::pause();
        for (seconds, left) in [(6, [1, 1, 0]), (6, [0, 0, 0])] {
            for _ in 0..seconds {
                tokio::time::advance(Duration::from_secs(1)).await;
                tokio::task::yield_now().await;
            }
            assert_eq!(gauges(&cluster), left, "it is closed after its timeout, and not before");
        }
        until("the server sees it closed", || server.open.get() == 0).await;
    });
}

#[test]
fn request_with_its_own_connection_leaves_one_to_others() {
    run(async {
        let server = streams().await;
        let (pools, cluster) = (pools(), by_h2(&[server.address], 1, 0));
        let first = ask(&pools, &cluster, 0, true);
        until("it has the request", || server.asked.get() == 1).await;
        let shared = ask(&pools, &cluster, 0, false);
        until("a worker may have one that its requests can share", || server.asked.get() == 2).await;
        assert_eq!((server.accepted.get(), gauges(&cluster)), (2, [2, 0, 0]));
        let second = ask(&pools, &cluster, 0, true);
        until("it waits", || gauges(&cluster) == [2, 0, 1]).await;
        let beside = ask(&pools, &cluster, 0, false);
        until("sharing requests are not held up", || server.asked.get() == 3).await;
        server.answers.add_permits(3);
        for one in [first, shared, beside] {
            one.await.unwrap();
        }
        until("the permit of the idle one is reused", || server.asked.get() == 4).await;
        assert_eq!(gauges(&cluster), [1, 0, 0]);
        server.answers.add_permits(1);
        second.await.unwrap();
        until("everything is released", || gauges(&cluster) == [0; 3] && server.open.get() == 0).await;
    });
}

#[test]
fn connection_that_ends_while_idle_releases_its_permit() {
    run(async {
        let server = streams().await;
        let (pools, cluster) = (pools(), by_h2(&[server.address], 1, 0));
        server.answers.add_permits(2);
        ask(&pools, &cluster, 0, false).await.unwrap();
        assert_eq!(gauges(&cluster), [1, 1, 0]);
        server.closes.notify_waiters();
        until("it is removed", || gauges(&cluster) == [0; 3]).await;
        assert_eq!(endpoint(&cluster, 0).connections(), 0);
        ask(&pools, &cluster, 0, false).await.unwrap();
        assert_eq!(server.accepted.get(), 2);
    });
}

#[test]
fn idle_h2_connection_makes_room_for_another_endpoint() {
    run(async {
        let (a, b) = (streams().await, streams().await);
        let (pools, cluster) = (pools(), by_h2(&[a.address, b.address], 1, 0));
        a.answers.add_permits(10);
        b.answers.add_permits(10);
        for at in [0, 1, 1, 0] {
            ask(&pools, &cluster, at, false).await.unwrap();
            assert_eq!((endpoint(&cluster, at).connections(), endpoint(&cluster, 1 - at).connections()), (1, 0));
            assert_eq!(gauges(&cluster), [1, 1, 0]);
        }
        let (handle, changed) =
            (Clusters::default().handle("test"), Cluster::new(&config(&[b.address]), Some(&cluster)));
        pools.set(&handle, &cluster);
        pools.set(&handle, &changed);
        assert_eq!(gauges(&cluster), [0; 3], "the protocol has changed");
    });
}
