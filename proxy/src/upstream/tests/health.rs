//! The results of health checks and their effects.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::spawn_local,
};

use super::{super::tests::run, *};
use crate::net::TokioIo;
use crate::upstream::Clusters;

fn config(addresses: &[SocketAddr], options: serde_json::Value) -> model::Cluster {
    let mut config = super::super::tests::config(addresses);
    let check = options.get("health_check").cloned();
    config.health_check = check.map(|mut check| {
        // The short form for a single kind is expanded when a file is read.
        if check["check"].is_object() {
            check["check"] = json!([check["check"]]);
        }
        serde_json::from_value(check).unwrap()
    });
    if let Some(balancer) = options.get("balancer") {
        config.balancer = serde_json::from_value(balancer.clone()).unwrap();
    }
    if let Some(protocol) = options.get("protocol") {
        config.protocol = serde_json::from_value(protocol.clone()).unwrap();
    }
    config
}

fn addresses<const N: usize>() -> [SocketAddr; N] {
    std::array::from_fn(|n| SocketAddr::from(([192, 0, 2, n as u8], 80)))
}

/// A check that never gets its first turn.
fn never(more: serde_json::Value) -> serde_json::Value {
    let mut check = json!({"check": {"tcp": {}}, "interval": "8760h"});
    check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "health_check": check })
}

/// The same, with this panic threshold.
fn never_with_panic_below(threshold: u32) -> serde_json::Value {
    let mut options = never(json!({}));
    options["balancer"] = json!({ "panic_threshold": threshold });
    options
}

/// The handle of the only cluster of a test.
fn handle() -> ClusterHandle {
    Clusters::default().handle("test")
}

fn check_of<'c>(checks: &'c HealthChecks, cluster: &Cluster, index: usize) -> &'c EndpointCheck {
    &checks.running[&handle().id()].endpoints[&cluster.members()[index].endpoint.id].check
}

/// Changes an endpoint's state to the opposite.
fn turn(checks: &HealthChecks, cluster: &Cluster, index: usize, well: bool) {
    let check = check_of(checks, cluster, index);
    while check.endpoint.is_healthy() != well {
        check.note(if well { Ok(()) } else { Err("unwell".to_owned()) });
    }
}

/// Returns which endpoints are used.
fn used(cluster: &Cluster) -> Vec<bool> {
    let picked: Vec<_> = (0..100).filter_map(|_| cluster.pick(None, &[])).collect();
    cluster.members().iter().map(|m| picked.iter().any(|p| Arc::ptr_eq(p, &m.endpoint))).collect()
}

#[test]
fn state_changes_after_consecutive_results() {
    run(async {
        let config = config(&addresses::<2>(), never(json!({"unhealthy_threshold": 3, "healthy_threshold": 2})));
        let cluster = Cluster::new(&config, None);
        let mut checks = HealthChecks::default();
        checks.set(&handle(), &cluster);
        let endpoint = &cluster.members()[0].endpoint;
        let note = |results: &str| {
            results.chars().for_each(|c| {
                let result = if c == '+' { Ok(()) } else { Err("unwell".to_owned()) };
                check_of(&checks, &cluster, 0).note(result);
            });
            endpoint.is_healthy()
        };
        assert!(note("+--+--"), "never three in a row");
        assert!(!note("-"));
        assert_eq!(endpoint.check_error().as_deref().map(String::as_str), Some("unwell"));
        assert!(!note("-+-+-"), "never two in a row");
        assert!(!note("+"));
        assert!(note("+"));
        assert!(note("--"), "the count has restarted");
        assert!(endpoint.check_error().is_some());
        assert!(note("+"));
        assert!(endpoint.check_error().is_none());
        assert_eq!(cluster.stats().checks(), [10, 7], "failures and successes");
    });
}

#[test]
fn unhealthy_endpoints_are_excluded_unless_too_many_are() {
    run(async {
        for (threshold, unhealthy, expected) in [
            (50, 0, [true; 4]),
            (50, 1, [false, true, true, true]),
            (50, 2, [false, false, true, true]),
            // 25 % are healthy.
            (50, 3, [true; 4]),
            (25, 3, [false, false, false, true]),
            (26, 3, [true; 4]),
            (1, 4, [true; 4]),
            (0, 4, [false; 4]),
        ] {
            let config = config(&addresses::<4>(), never_with_panic_below(threshold));
            let cluster = Cluster::new(&config, None);
            let mut checks = HealthChecks::default();
            checks.set(&handle(), &cluster);
            (0..unhealthy).for_each(|index| turn(&checks, &cluster, index, false));
            assert_eq!(used(&cluster), expected, "{unhealthy} of 4, {threshold} %");
            assert_eq!(cluster.health(), (4 - unhealthy, 4));
            (0..unhealthy).for_each(|index| turn(&checks, &cluster, index, true));
            assert_eq!(used(&cluster), [true; 4]);
        }
    });
}

#[test]
fn endpoints_without_a_weight_do_not_count() {
    run(async {
        let mut config = config(&addresses::<3>(), never(json!({})));
        config.endpoints[2].weight = 0;
        let cluster = Cluster::new(&config, None);
        let mut checks = HealthChecks::default();
        checks.set(&handle(), &cluster);
        turn(&checks, &cluster, 2, false);
        turn(&checks, &cluster, 0, false);
        assert_eq!((used(&cluster), cluster.health()), (vec![false, true, false], (1, 2)));
    });
}

#[test]
fn reload_keeps_results_that_are_still_valid() {
    run(async {
        let config = config(&addresses::<2>(), never_with_panic_below(0));
        let first = Cluster::new(&config, None);
        let mut checks = HealthChecks::default();
        checks.set(&handle(), &first);
        turn(&checks, &first, 0, false);
        check_of(&checks, &first, 1).note(Err("once".to_owned()));

        // The same check, with another endpoint before it.
        let mut more = config.clone();
        more.endpoints.insert(0, model::Endpoint::new(addresses::<9>()[8], 1));
        let second = Cluster::new(&more, Some(&first));
        checks.set(&handle(), &second);
        assert_eq!(used(&second), [true, false, true]);
        assert_eq!(check_of(&checks, &second, 2).contrary.get(), 1, "the check has continued");
        assert_eq!(checks.running[&handle().id()].endpoints.len(), 3);

        // Another check: the result holds until it finds otherwise.
        let mut other = more.clone();
        other.health_check.as_mut().unwrap().unhealthy_threshold = 7;
        let third = Cluster::new(&other, Some(&second));
        checks.set(&handle(), &third);
        assert_eq!(used(&third), [true, false, true]);
        assert_eq!(check_of(&checks, &third, 2).contrary.get(), 0);
        turn(&checks, &third, 1, true);
        assert_eq!(used(&third), [true; 3]);
        turn(&checks, &third, 1, false);

        // No check: the health is unknown.
        other.health_check = None;
        let last = Cluster::new(&other, Some(&third));
        checks.set(&handle(), &last);
        assert_eq!((used(&last), checks.running.len()), (vec![true; 3], 0));
        assert!(last.members().iter().all(|m| m.endpoint.is_healthy()));
    });
}

/// Starts an endpoint that answers any input with `reply` and is then silent.
async fn saying(reply: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            spawn_local(async move {
                let mut request = vec![0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(reply).await;
                let _ = stream.read(&mut request).await;
            });
        }
    });
    address
}

async fn ask(address: SocketAddr, options: serde_json::Value) -> Result<(), String> {
    let config = config(&[address], options);
    let cluster = Cluster::new(&config, None);
    let check = config.health_check.clone().unwrap();
    probe::ask(&cluster, &cluster.members()[0].endpoint, &check).await.map_err(|error| error.to_string())
}

#[test]
fn http_checks_use_the_status() {
    run(async {
        let http = || json!({"health_check": {"check": {"http": {"path": "/up"}}, "timeout": "5s"}});
        for (reply, expected) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], Ok(())),
            (b"HTTP/1.1 204 No Content\r\n\r\n", Ok(())),
            (b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", Err("the status is 302 Found")),
            (
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
                Err("the status is 503 Service Unavailable"),
            ),
            (
                b"220 smtp.example ESMTP\r\n",
                Err(
                    "no answer: expected HTTP/1.1 (`protocol`): first bytes 32 32 30 20 73 6d 74 70 2e 65 78 61 6d 70 6c 65 \
                     (\"220 smtp.example\")",
                ),
            ),
        ] {
            assert_eq!(
                ask(saying(reply).await, http()).await,
                expected.map_err(str::to_owned),
                "{}",
                reply.escape_ascii()
            );
        }
        let slow = json!({"health_check": {"check": {"http": {"path": "/up"}}, "timeout": "50ms"}});
        assert_eq!(ask(saying(b"").await, slow).await, Err("no answer in time".to_owned()));
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(ask(gone, http()).await.unwrap_err().starts_with("no connection: "));
    });
}

#[test]
fn tcp_checks_use_the_connection() {
    run(async {
        let tcp = || json!({"health_check": {"check": {"tcp": {}}}});
        assert_eq!(ask(saying(b"").await, tcp()).await, Ok(()));
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(ask(gone, tcp()).await.unwrap_err().starts_with("no connection: "));
    });
}

/// An HTTP/2 server's response to a request.
type Reply = fn(Request<Bytes>) -> Response<(&'static [u8], &'static str)>;

async fn h2_server(reply: Reply) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move |stream: TcpStream| async move {
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| async move {
            let (parts, body) = request.into_parts();
            let request = Request::from_parts(parts, body.collect().await?.to_bytes());
            Ok::<_, hyper::Error>(reply(request).map(|(data, status)| {
                let trailers = (!status.is_empty()).then(|| {
                    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(status))])
                });
                Full::new(Bytes::from_static(data)).with_trailers(async move { trailers.map(Ok) })
            }))
        });
        let _ = hyper::server::conn::http2::Builder::new(Local).serve_connection(TokioIo::new(stream), service).await;
    };
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(serve(stream));
        }
    });
    address
}

#[derive(Clone)]
struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

#[test]
fn http_checks_use_the_clusters_protocol() {
    run(async {
        let address = h2_server(|request| {
            let right = request.uri() == "http://up.example/up" && request.version() == http::Version::HTTP_2;
            Response::builder().status(if right { 200 } else { 500 }).body((&b"fine"[..], "")).unwrap()
        });
        let check = json!({"check": {"http": {"path": "/up", "host": "up.example"}}, "timeout": "5s"});
        assert_eq!(ask(address.await, json!({"health_check": check, "protocol": "h2"})).await, Ok(()));
    });
}

#[test]
fn grpc_checks_use_the_reported_status() {
    run(async {
        let check = |service: &str| json!({"health_check": {"check": {"grpc": {"service": service}}, "timeout": "5s"}});
        let replies: [(Reply, Result<(), &str>); 7] = [
            (
                |request| {
                    assert_eq!(request.uri(), "http://test/grpc.health.v1.Health/Check");
                    assert_eq!(
                        (&request.headers()["content-type"], &request.headers()["te"]),
                        (&HeaderValue::from_static("application/grpc"), &HeaderValue::from_static("trailers"))
                    );
                    assert_eq!(request.body(), &b"\0\0\0\0\x05\x0a\x03a.B"[..]);
                    Response::new((b"\0\0\0\0\x02\x08\x01", "0"))
                },
                Ok(()),
            ),
            (|_| Response::new((b"\0\0\0\0\x02\x08\x02", "0")), Err("it is not serving: the health status is 2")),
            (|_| Response::new((b"\0\0\0\0\0", "0")), Err("it is not serving: the health status is 0")),
            (|_| Response::new((b"junk!!", "0")), Err("the answer is not a valid HealthCheckResponse")),
            (|_| Response::new((b"\0\0\0\0\x02\x08\x01", "")), Err("the gRPC status is missing")),
            (
                |_| Response::builder().header("grpc-status", "12").body((&b""[..], "")).unwrap(),
                Err("the gRPC status is 12"),
            ),
            (
                |_| Response::builder().status(503).body((&b""[..], "")).unwrap(),
                Err("the status is 503 Service Unavailable"),
            ),
        ];
        for (reply, expected) in replies {
            let found = ask(h2_server(reply).await, check("a.B")).await;
            assert_eq!(found, expected.map_err(str::to_owned));
        }
        let long: Reply = |_| Response::new((&[0; 1 << 20], "0"));
        assert!(ask(h2_server(long).await, check("")).await.unwrap_err().starts_with("cannot read the answer"));
    });
}

#[test]
fn checks_repeat() {
    run(async {
        let address = saying(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await;
        let check = json!({"check": {"http": {"path": "/"}}, "interval": "5ms", "unhealthy_threshold": 2});
        let config = config(&[address], json!({"health_check": check, "balancer": {"panic_threshold": 0}}));
        let cluster = Cluster::new(&config, None);
        let mut checks = HealthChecks::default();
        checks.set(&handle(), &cluster);
        while cluster.pick(None, &[]).is_some() {
            checks.advance().await;
        }
        assert_eq!(
            cluster.members()[0].endpoint.check_error().as_deref().map(String::as_str),
            Some("the status is 500 Internal Server Error")
        );
    });
}

/// Accepts connections and never answers; `accepted` counts them.
async fn silent(accepted: Rc<Cell<usize>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
            accepted.set(accepted.get() + 1);
        }
    });
    address
}

/// Advances the checks until the condition holds.
async fn advance_until(checks: &mut HealthChecks, condition: impl Fn() -> bool) {
    while !condition() {
        tokio::select! {
            () = checks.advance() => {}
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
}

#[test]
fn checks_that_are_gone_leave_neither_timers_nor_tasks() {
    run(async {
        let accepted = Rc::new(Cell::new(0));
        let probed = silent(accepted.clone()).await;
        let check = |interval: &str| json!({"check": {"http": {"path": "/"}}, "interval": interval, "timeout": "1h"});
        let first = Cluster::new(&config(&[probed], json!({"health_check": check("1ms")})), None);
        let mut checks = HealthChecks::default();
        checks.set(&handle(), &first);
        advance_until(&mut checks, || accepted.get() == 1).await;
        assert_eq!((checks.due.len(), checks.probes.len()), (0, 1), "the probe runs");

        // A probe that runs is not repeated by a state with the same check, and ends with its endpoint.
        let [other, another] = addresses();
        let more = config(&[probed, other, another], json!({"health_check": check("1ms")}));
        let second = Cluster::new(&more, Some(&first));
        checks.set(&handle(), &second);
        assert_eq!((checks.due.len(), checks.probes.len()), (2, 1));
        let third = Cluster::new(&config(&[other], json!({"health_check": check("8760h")})), Some(&second));
        checks.set(&handle(), &third);
        assert_eq!(checks.due.len(), 1, "one check with another interval");
        checks.probes.join_next().await.unwrap().unwrap_err();
        checks.remove(&handle());
        assert_eq!((checks.due.len(), checks.running.len()), (0, 0));
    });
}

/// The first result decides about an endpoint that is unhealthy from the start, and the thresholds about the following ones.
#[test]
fn endpoints_can_be_unhealthy_until_their_first_check() {
    run(async {
        for (results, healthy) in
            [("+", true), ("-", false), ("-+", false), ("-++", true), ("+-", true), ("+---", false)]
        {
            let config = config(&addresses::<1>(), never(json!({"initially": "unhealthy", "healthy_threshold": 2})));
            let cluster = Cluster::new(&config, None);
            let endpoint = cluster.members()[0].endpoint.clone();
            assert!(!endpoint.is_healthy(), "also before the checks know the cluster");
            let mut checks = HealthChecks::default();
            checks.set(&handle(), &cluster);
            assert!(!endpoint.is_healthy());
            for result in results.chars() {
                check_of(&checks, &cluster, 0).note(if result == '+' { Ok(()) } else { Err("unwell".to_owned()) });
            }
            assert_eq!(endpoint.is_healthy(), healthy, "{results}");
        }
    });
}

#[test]
fn only_endpoints_that_join_are_unhealthy_from_the_start() {
    run(async {
        let before = Cluster::new(&config(&addresses::<1>(), json!({})), None);
        let options = never(json!({"initially": "unhealthy"}));
        let after = Cluster::new(&config(&addresses::<2>(), options), Some(&before));
        let healthy: Vec<_> = after.members().iter().map(|member| member.endpoint.is_healthy()).collect();
        assert_eq!(healthy, [true, false]);
    });
}

#[test]
fn pauses_depend_on_health_and_are_jittered() {
    run(async {
        let options =
            json!({"interval": "10s", "unhealthy_interval": "1s", "jitter": "500ms", "unhealthy_threshold": 1});
        let mut check = json!({"check": {"tcp": {}}});
        check.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let cluster = Cluster::new(&config(&addresses::<1>(), json!({"health_check": check})), None);
        let mut checks = HealthChecks::default();
        checks.set(&handle(), &cluster);
        for (healthy, base) in [(true, 10.0), (false, 1.0)] {
            turn(&checks, &cluster, 0, healthy);
            let pauses: Vec<_> = (0..200).map(|_| check_of(&checks, &cluster, 0).pause().as_secs_f64()).collect();
            assert!(pauses.iter().all(|pause| (base..=base + 0.5).contains(pause)), "{pauses:?}");
            assert!(pauses.iter().any(|pause| *pause > base + 0.4) && pauses.iter().any(|pause| *pause < base + 0.1));
        }
    });
}
