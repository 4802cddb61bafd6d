//! The connection limit, and the queue of requests waiting for a connection.

use std::{cell::RefCell, sync::atomic::Ordering::Relaxed};

use super::{super::*, *};

fn slow(ms: u64) -> impl Fn(&Seen) -> Reply {
    move |_| Reply::Slowly("", ms, OK)
}

fn few(connections: u32, pending: u32) -> impl FnOnce(&mut model::ClusterLimits) {
    move |limits| (limits.connections, limits.pending) = (connections, pending)
}

#[test]
fn requests_wait_in_order_for_connections() {
    run(async {
        let server = server(slow(10)).await;
        let (pools, cluster) = (pools(), cluster(&[server.address], few(2, 100)));
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..10)
            .map(|i| {
                let (pools, cluster, order) = (pools.clone(), Arc::clone(&cluster), Rc::clone(&order));
                spawn_local(async move {
                    get(&pools, &cluster).await;
                    order.borrow_mut().push(i);
                })
            })
            .collect();
        until("eight wait", || cluster.stats().pending.load(Relaxed) == 8).await;
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(server.accepted.get(), 2);
        assert_eq!(cluster.stats().pending.load(Relaxed), 0);
        // Two run at a time, so each can only be overtaken by its neighbour.
        for (place, i) in order.borrow().iter().enumerate() {
            assert!(place.abs_diff(*i) <= 1, "{:?}", order.borrow());
        }
    });
}

#[test]
fn requests_beyond_the_queue_are_refused_and_returned() {
    run(async {
        let server = server(|_| Reply::Hang("")).await;
        let (pools, cluster) = (pools(), cluster(&[server.address], few(1, 1)));
        let spawn = || {
            let (pools, cluster) = (pools.clone(), Arc::clone(&cluster));
            spawn_local(async move { send(&pools, &cluster).await })
        };
        let (first, second) = (spawn(), spawn());
        until("one waits", || cluster.stats().pending.load(Relaxed) == 1).await;
        let failure = send(&pools, &cluster).await.unwrap_err();
        assert!(matches!(failure.kind, RequestErrorKind::Overflow) && failure.body.is_some(), "{failure:?}");
        assert_eq!(cluster.stats().pending_overflows.load(Relaxed), 1);
        second.abort();
        until("none waits", || cluster.stats().pending.load(Relaxed) == 0).await;
        let third = spawn();
        until("the queue has room again", || cluster.stats().pending.load(Relaxed) == 1).await;
        first.abort();
        until("the third has its connection", || server.accepted.get() == 2).await;
        third.abort();
        until("everything is released", || cluster.stats().connections.load(Relaxed) == 0).await;
    });
}

#[test]
fn leaving_the_queue_does_not_leak_a_connection() {
    run(async {
        let server = server(slow(20)).await;
        let (pools, cluster) = (pools(), cluster(&[server.address], few(1, 10)));
        let held = send(&pools, &cluster).await.unwrap();
        let mut first = Box::pin(send(&pools, &cluster));
        let mut second = Box::pin(send(&pools, &cluster));
        assert!(waits(&mut first).await);
        assert!(waits(&mut second).await);
        // The connection is handed to the first, which leaves before taking it.
        text(held).await;
        drop(first);
        assert_eq!(text(second.await.unwrap()).await, "hello");
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn failed_connection_lets_the_next_one_try() {
    run(async {
        let (_socket, address) = refusing();
        let (pools, cluster) = (pools(), cluster(&[address], few(1, 10)));
        let all = (0..5).map(|_| send(&pools, &cluster));
        for result in futures_util::future::join_all(all).await {
            assert!(matches!(result.unwrap_err().kind, RequestErrorKind::Connect(_)));
        }
        assert_eq!(cluster.stats().connect_failures.load(Relaxed), 5);
        assert_eq!(cluster.stats().connections.load(Relaxed), 0);
    });
}

#[test]
fn idle_connection_makes_room_for_another_endpoint() {
    run(async {
        let (a, b) = (server(slow(5)).await, server(slow(5)).await);
        let (pools, cluster) = (pools(), cluster(&[a.address, b.address], few(1, 10)));
        for at in [0, 1, 0] {
            assert_eq!(
                text(send_to(&pools, &cluster, endpoint(&cluster, at), request("GET", "")).await.unwrap()).await,
                "hello"
            );
        }
        assert_eq!((a.accepted.get(), b.accepted.get()), (2, 1));
        // So does a busy one once it is free, although others wait for its endpoint.
        let order = [0, 1, 0, 0].map(|at| send_to(&pools, &cluster, endpoint(&cluster, at), request("GET", "")));
        let mut order = order.map(Box::pin);
        for one in &mut order {
            assert!(waits(one).await);
        }
        for one in order {
            assert_eq!(text(one.await.unwrap()).await, "hello");
        }
        assert_eq!((endpoint(&cluster, 0).connections(), endpoint(&cluster, 1).connections()), (1, 0));
        assert_eq!(cluster.stats().connections.load(Relaxed), 1);
    });
}

#[test]
fn limit_applies_to_all_workers_and_each_may_have_one() {
    run(async {
        let server = server(|_| Reply::Send(OK)).await;
        let cluster = cluster(&[server.address], few(2, 10));
        let connections = || cluster.stats().connections.load(Relaxed);
        let (one, other, third) = (pools(), pools(), pools());
        let held = (send(&one, &cluster).await.unwrap(), send(&one, &cluster).await.unwrap());
        let others = send(&other, &cluster).await.unwrap();
        assert_eq!(connections(), 3, "a worker without a connection may open one although two exist");
        let mut queued = Box::pin(send(&other, &cluster));
        assert!(waits(&mut queued).await);
        // Everything that could give it one has had its turn.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(connections(), 3);
        // The first worker does not keep a second connection while another worker's requests wait.
        text(held.0).await;
        assert_eq!(connections(), 2);
        text(held.1).await;
        assert_eq!((connections(), cluster.stats().idle.load(Relaxed)), (2, 1));
        text(others).await;
        assert_eq!(text(queued.await.unwrap()).await, "hello");
        get(&third, &cluster).await;
        assert_eq!(connections(), 3);
    });
}

#[test]
fn permit_released_by_another_worker_is_found() {
    run(async {
        let server = server(slow(5)).await;
        let cluster = cluster(&[server.address], |limits| {
            (limits.connections, limits.idle_timeout) = (2, units::Duration::millis(100));
        });
        let (one, other) = (pools(), pools());
        let held = send(&one, &cluster).await.unwrap();
        let others = send(&other, &cluster).await.unwrap();
        let mut queued = Box::pin(send(&other, &cluster));
        assert!(waits(&mut queued).await);
        drop(held);
        // Only its sweep makes the other worker check.
        assert_eq!(text(queued.await.unwrap()).await, "hello");
        drop(others);
    });
}

#[test]
fn threads_share_a_cluster_and_release_everything() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let cluster = cluster(&[listener.local_addr().unwrap()], few(3, 1000));
    // The server has its own thread, so that only the workers are measured.
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let most = std::thread::scope(|scope| {
        scope.spawn(|| {
            run(async {
                listener.set_nonblocking(true).unwrap();
                let listener = TcpListener::from_std(listener).unwrap();
                while !stop.load(Relaxed) {
                    if let Ok(Ok((stream, _))) = timeout(Duration::from_millis(20), listener.accept()).await {
                        spawn_local(async move { converse(stream, 1, &slow(1)).await });
                    }
                }
            });
        });
        let worker = || {
            run(async {
                let pools = pools();
                let work = (0..30).map(|_| async {
                    for _ in 0..10 {
                        let _request = cluster.try_request().unwrap();
                        get(&pools, &cluster).await;
                    }
                });
                futures_util::future::join_all(work).await;
            });
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        let mut most = 0;
        while !workers.iter().all(|w| w.is_finished()) {
            most = most.max(cluster.stats().connections.load(Relaxed));
            std::thread::sleep(Duration::from_micros(100));
        }
        stop.store(true, Relaxed);
        most
    });
    // Three, plus one per worker that has none, plus one per request just being refused: 120 run concurrently.
    assert!((1..=10).contains(&most), "{most} connections");
    let stats = cluster.stats();
    let gauges = [&stats.active, &stats.connections, &stats.idle, &stats.pending].map(|gauge| gauge.load(Relaxed));
    assert_eq!((gauges, stats.requests.load(Relaxed)), ([0; 4], 1200));
    assert_eq!(endpoint(&cluster, 0).connections(), 0);
}

/// A permit released by another worker is found by the sweep, also of a worker that has had only tunnels.
#[test]
fn tunnel_gets_a_permit_released_by_another_worker() {
    run(async {
        let server = server(|_| Reply::Hang("")).await;
        let cluster = cluster(&[server.address], |limits| {
            limits.connections = 2;
            limits.idle_timeout = units::Duration::secs(1);
        });
        let (here, there, place) = (pools(), pools(), UsageGuard::default());
        let first = here.tunnel(&cluster, endpoint(&cluster, 0), None, &place).await.unwrap();
        let other = there.tunnel(&cluster, endpoint(&cluster, 0), None, &place).await.unwrap();
        let mut second = Box::pin(here.tunnel(&cluster, endpoint(&cluster, 0), None, &place));
        assert!(waits(&mut second).await);
        drop(other);
        second.await.unwrap();
        drop(first);
    });
}

/// A client, and whether its request's body is incomplete.
type Who = (Option<&'static str>, bool);

const A: Option<&str> = Some("192.0.2.1");
const B: Option<&str> = Some("192.0.2.2");

async fn ask(
    pools: &Pools<Body>,
    cluster: &Arc<Cluster>,
    (client, uploads): Who,
) -> Result<Response<PooledBody>, RequestErrorKind> {
    let way = ProtocolChoice {
        uploads,
        on_behalf_of: client.map(|client| client.parse().unwrap()),
        ..ProtocolChoice::default()
    };
    let (head, body) = request("GET", "").into_parts();
    pools.send(cluster, endpoint(cluster, 0), way, &head, body).await.map_err(|failure| failure.kind)
}

/// Queues a request.
async fn queue<'a>(
    pools: &'a Pools<Body>,
    cluster: &'a Arc<Cluster>,
    who: Who,
) -> Pin<Box<impl Future<Output = Result<Response<PooledBody>, RequestErrorKind>> + use<'a>>> {
    let mut request = Box::pin(ask(pools, cluster, who));
    assert!(waits(&mut request).await);
    request
}

/// Returns how many wait, how many of these behind others, and how many because their clients are over their shares.
fn waiting(cluster: &Cluster) -> [u64; 3] {
    let stats = cluster.stats();
    [&stats.pending, &stats.pending_behind, &stats.pending_over].map(|gauge| gauge.load(Relaxed))
}

/// With one connection, a client's share is one waiting request: a third one is over it.
#[test]
fn unfinished_uploads_and_clients_over_their_shares_wait_behind_others() {
    run(async {
        let server = server(|_| Reply::Send(OK)).await;
        let (pools, cluster) = (pools(), cluster(&[server.address], few(1, 100)));
        let held = send(&pools, &cluster).await.unwrap();
        let order = RefCell::new(Vec::new());
        // Each with its expected position.
        let come =
            [(0, A, false), (3, None, true), (1, A, false), (5, A, false), (6, A, true), (2, B, false), (4, B, true)];
        let mut all = Vec::new();
        for (place, client, uploads) in come {
            let request = queue(&pools, &cluster, (client, uploads)).await;
            let order = &order;
            all.push(async move {
                text(request.await.unwrap()).await;
                order.borrow_mut().push(place);
            });
        }
        assert_eq!(waiting(&cluster), [7, 4, 2]);
        text(held).await;
        futures_util::future::join_all(all).await;
        assert_eq!(*order.borrow(), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!((server.accepted.get(), waiting(&cluster)), (1, [0; 3]));
    });
}

#[test]
fn full_queue_gives_its_places_to_requests_with_precedence() {
    run(async {
        let server = server(|_| Reply::Hang("")).await;
        let (pools, cluster) = (pools(), cluster(&[server.address], few(1, 4)));
        let refused = async |who| matches!(ask(&pools, &cluster, who).await, Err(RequestErrorKind::Overflow));
        let mut first = Box::pin(send(&pools, &cluster));
        assert!(waits(&mut first).await);
        let mut waiters = Vec::new();
        for client in [A, A, B] {
            waiters.push(queue(&pools, &cluster, (client, false)).await);
        }
        assert!(refused((None, true)).await, "three quarters are for uploads");
        let over = queue(&pools, &cluster, (A, false)).await;
        assert!(refused((A, false)).await);
        waiters.push(queue(&pools, &cluster, (B, false)).await);
        assert!(matches!(over.await, Err(RequestErrorKind::Overflow)), "its place went to another request");
        assert!(refused((None, false)).await);
        assert_eq!((waiting(&cluster), cluster.stats().pending_overflows.load(Relaxed)), ([4, 0, 0], 4));
    });
}

#[test]
fn released_permits_go_to_requests_with_precedence_on_any_worker() {
    run(async {
        let server = server(|_| Reply::Send(OK)).await;
        let cluster = cluster(&[server.address], few(3, 10));
        let (here, there) = (pools(), pools());
        let held = (send(&here, &cluster).await.unwrap(), send(&here, &cluster).await.unwrap());
        let others = send(&there, &cluster).await.unwrap();
        let mut upload = queue(&here, &cluster, (None, true)).await;
        let whole = queue(&there, &cluster, (None, false)).await;
        text(held.0).await;
        assert!(waits(&mut upload).await, "another worker's request has precedence");
        assert_eq!(text(whole.await.unwrap()).await, "hello");
        assert_eq!(text(upload.await.unwrap()).await, "hello");
        drop((held.1, others));
    });
}
