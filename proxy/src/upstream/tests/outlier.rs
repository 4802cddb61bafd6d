//! The rules of outlier detection, in simulated time.

use std::{net::SocketAddr, pin::pin, task::Poll, time::Duration};

use serde_json::{Value, json};

use super::{AttemptOutcome::*, *};
use crate::{
    config::model,
    upstream::{ClusterHandle, Clusters},
};

/// A cluster with outlier detection.
struct World {
    config: model::Cluster,
    handle: ClusterHandle,
    cluster: Arc<Cluster>,
    detectors: OutlierDetectors,
}

impl World {
    /// A cluster of this many endpoints with these options of `outlier_detection`.
    fn new(endpoints: usize, options: Value) -> World {
        World::with(endpoints, json!({ "outlier_detection": options }))
    }

    /// A cluster of this many endpoints with these options.
    fn with(endpoints: usize, options: Value) -> World {
        let endpoints: Vec<_> = (0..endpoints).map(|n| json!({"address": address(n)})).collect();
        let mut config = json!({"name": "test", "endpoints": endpoints});
        config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let config: model::Cluster = serde_json::from_value(config).unwrap();
        let (cluster, handle) = (Cluster::new(&config, None), Clusters::default().handle("test"));
        let mut detectors = OutlierDetectors::default();
        detectors.set(&handle, &cluster);
        World { config, handle, cluster, detectors }
    }

    fn endpoint(&self, index: usize) -> &Arc<Endpoint> {
        &self.cluster.members()[index].endpoint
    }

    /// Reports outcomes of one endpoint, each followed by the decision that it causes.
    async fn report(&mut self, index: usize, outcomes: impl IntoIterator<Item = AttemptOutcome>) {
        for outcome in outcomes {
            self.cluster.report(self.endpoint(index), || Some(outcome));
            self.settle().await;
        }
    }

    /// Lets this many attempts at an endpoint succeed and fail in turns, so that few failures are in a row.
    async fn mixed(&mut self, index: usize, successes: usize, failures: usize, failure: AttemptOutcome) {
        for n in 0..successes.max(failures) {
            if n < failures {
                self.report(index, [failure]).await;
            }
            if n < successes {
                let success = if failure == NoResponse { Connected } else { Response(200) };
                self.report(index, [success]).await;
            }
        }
    }

    /// Makes the decisions that are due.
    async fn settle(&mut self) {
        loop {
            // A test makes more decisions in one turn than a task should.
            let mut advance = pin!(tokio::task::unconstrained(self.detectors.advance()));
            if std::future::poll_fn(|cx| Poll::Ready(advance.as_mut().poll(cx).is_pending())).await {
                return;
            }
        }
    }

    /// Lets intervals pass.
    async fn intervals(&mut self, count: u32) {
        for _ in 0..count {
            tokio::time::advance(self.config.outlier_detection.as_ref().unwrap().interval.0).await;
            // The timer wheel rounds up.
            tokio::time::advance(Duration::from_millis(2)).await;
            self.settle().await;
        }
    }

    /// Replaces the cluster by its next state.
    fn change(&mut self, change: impl FnOnce(&mut model::Cluster)) {
        change(&mut self.config);
        self.cluster = Cluster::new(&self.config, Some(&self.cluster));
        self.detectors.set(&self.handle, &self.cluster);
    }

    /// The endpoints that are ejected.
    fn ejected(&self) -> Vec<usize> {
        (0..self.cluster.members().len()).filter(|index| self.endpoint(*index).is_ejected()).collect()
    }

    /// The endpoints that get requests.
    fn used(&self) -> Vec<usize> {
        let picked: Vec<_> = (0..200).filter_map(|_| self.cluster.pick(None, &[])).collect();
        let is_used = |index: &usize| picked.iter().any(|endpoint| Arc::ptr_eq(endpoint, self.endpoint(*index)));
        (0..self.cluster.members().len()).filter(is_used).collect()
    }

    fn count(&self, rule: OutlierRule) -> (u64, u64) {
        let totals = self.cluster.outliers().unwrap();
        (totals.detections[rule as usize], totals.ejections[rule as usize])
    }

    /// The seconds of an endpoint's ejection.
    fn seconds(&self, index: usize) -> f64 {
        self.endpoint(index).outlier_status().unwrap().ejection.unwrap().time.as_secs_f64()
    }
}

/// No endpoint.
const NONE: [usize; 0] = [];

fn address(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, index as u8], 80))
}

#[tokio::test(start_paused = true)]
async fn consecutive_5xx_ejects_after_that_many_server_errors_in_a_row() {
    let mut world = World::new(3, json!({}));
    world.report(0, [500, 501, 599, 503].map(Response)).await;
    world.report(0, [Response(200)]).await;
    world.report(0, [500, 500, 500, 429].map(Response)).await;
    world.report(0, [500, 500, 404].map(Response)).await;
    world.report(1, [Response(500); 4]).await;
    assert_eq!((world.ejected(), world.used()), (vec![], vec![0, 1, 2]), "429 and 404 are not failures");
    world.report(1, [Response(500)]).await;
    assert_eq!((world.ejected(), world.used()), (vec![1], vec![0, 2]));
    assert_eq!(world.count(OutlierRule::Consecutive5xx), (1, 1));
    let status = world.endpoint(1).outlier_status().unwrap();
    assert_eq!((status.ejection.unwrap().rule.name(), status.ejections), ("consecutive_5xx", 1));
}

#[tokio::test(start_paused = true)]
async fn gateway_failures_are_502_to_504_and_only_counted_unless_enforced() {
    for (enforcing, ejected) in [(0, vec![]), (100, vec![0])] {
        let options = json!({"consecutive_5xx": 100, "enforcing_consecutive_gateway_failure": enforcing});
        let mut world = World::new(3, options);
        world.report(0, [502, 503, 504, 502, 500].map(Response)).await;
        world.report(0, [502, 503, 504, 502, 505].map(Response)).await;
        assert_eq!(world.ejected(), NONE);
        world.report(0, [502, 503, 504, 502, 503].map(Response)).await;
        assert_eq!(world.ejected(), ejected, "{enforcing}");
        let count = world.count(OutlierRule::ConsecutiveGatewayFailure);
        assert_eq!(count, (1, u64::from(enforcing == 100)), "{enforcing}");
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_without_a_response_count_as_gateway_failures() {
    let mut world =
        World::new(3, json!({"enforcing_consecutive_gateway_failure": 100, "enforcing_consecutive_5xx": 0}));
    world.report(0, [NoResponse; 4]).await;
    world.report(0, [Connected]).await;
    world.report(0, [NoResponse; 4]).await;
    assert_eq!(world.ejected(), NONE, "a connection is a success");
    world.report(0, [Response(502)]).await;
    assert_eq!(world.ejected(), [0]);
    assert_eq!(world.count(OutlierRule::ConsecutiveLocalOriginFailure), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn local_origin_failures_are_counted_apart_if_split() {
    let mut world = World::new(3, json!({"split_external_local_origin_errors": true}));
    // Neither of these is in a row with the other.
    world.report(0, [Response(500); 4]).await;
    world.report(0, [NoResponse; 4]).await;
    assert_eq!(world.ejected(), NONE);
    world.report(0, [NoResponse]).await;
    assert_eq!(world.ejected(), [0]);
    assert_eq!(world.count(OutlierRule::ConsecutiveLocalOriginFailure), (1, 1));
    assert_eq!(world.count(OutlierRule::Consecutive5xx), (0, 0));
    // A response, whatever its status, ends a row.
    world.report(1, [NoResponse; 4]).await;
    world.report(1, [Response(500)]).await;
    world.report(1, [NoResponse; 4]).await;
    world.report(1, [Connected]).await;
    world.report(1, [NoResponse; 4]).await;
    assert_eq!(world.ejected(), [0]);
}

/// Options under which failures in a row eject nothing.
fn rates(more: Value) -> Value {
    let mut options = json!({"consecutive_5xx": 1000, "consecutive_local_origin_failure": 1000});
    options["max_ejection_percent"] = 100.into();
    let split = more.to_string().contains("local_origin");
    options["split_external_local_origin_errors"] = split.into();
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    options
}

#[tokio::test(start_paused = true)]
async fn success_rate_ejects_those_far_below_the_mean() {
    for (failure, rule, options) in [
        (Response(500), OutlierRule::SuccessRate, json!({})),
        (NoResponse, OutlierRule::SuccessRateLocalOrigin, json!({"enforcing_local_origin_success_rate": 100})),
    ] {
        for (requests, endpoints, factor, ejected) in
            [(100, 5, 1900, vec![0]), (98, 5, 1900, vec![]), (100, 4, 1900, vec![]), (100, 5, 2100, vec![])]
        {
            let mut options = rates(options.clone());
            options["success_rate_stdev_factor"] = factor.into();
            let mut world = World::new(endpoints, options);
            world.mixed(0, requests / 2, requests / 2, failure).await;
            for index in 1..endpoints {
                world.mixed(index, requests, 0, failure).await;
            }
            assert_eq!(world.ejected(), NONE, "only at the end of an interval");
            world.intervals(1).await;
            assert_eq!(world.ejected(), ejected, "{rule:?}, {requests} of {endpoints}, {factor}");
            assert_eq!(world.count(rule), (ejected.len() as u64, ejected.len() as u64));
            if rule == OutlierRule::SuccessRate {
                // 98 requests are enough to show the rate, which the other rule uses from 50 on.
                assert_eq!(world.endpoint(0).outlier_status().unwrap().success_rate, Some(50.0));
            }
            world.intervals(1).await;
            assert_eq!(world.endpoint(0).outlier_status().unwrap().success_rate, None, "nothing was counted");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failure_percentage_ejects_those_above_the_threshold() {
    for (failure, rule, enforcing) in [
        (Response(500), OutlierRule::FailurePercentage, "enforcing_failure_percentage"),
        (NoResponse, OutlierRule::FailurePercentageLocalOrigin, "enforcing_failure_percentage_local_origin"),
    ] {
        for (failures, successes, enforced, ejected) in
            [(85, 15, 100, vec![0]), (84, 16, 100, vec![]), (42, 7, 100, vec![]), (85, 15, 0, vec![])]
        {
            let mut options = rates(json!({"enforcing_success_rate": 0}));
            if failure == NoResponse {
                options["enforcing_local_origin_success_rate"] = 0.into();
                options["split_external_local_origin_errors"] = true.into();
            }
            options[enforcing] = enforced.into();
            let mut world = World::new(5, options);
            world.mixed(0, successes, failures, failure).await;
            for index in 1..5 {
                world.mixed(index, 50, 0, failure).await;
            }
            world.intervals(1).await;
            assert_eq!(world.ejected(), ejected, "{rule:?}, {failures} failures, {successes} successes, {enforced}");
            let found = u64::from(failures == 85);
            assert_eq!(world.count(rule), (found, ejected.len() as u64));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failure_percentage_needs_enough_endpoints() {
    let options = rates(json!({"enforcing_failure_percentage": 100, "failure_percentage_minimum_hosts": 3}));
    for (endpoints, ejected) in [(2, vec![]), (3, vec![0])] {
        let mut world = World::new(endpoints, options.clone());
        for index in 0..endpoints {
            world.report(index, [Response(if index == 0 { 500 } else { 200 }); 50]).await;
        }
        world.intervals(1).await;
        assert_eq!(world.ejected(), ejected);
    }
}

#[tokio::test(start_paused = true)]
async fn ejections_grow_up_to_the_maximum_and_shrink_while_the_endpoint_is_healthy() {
    let options = json!({"base_ejection_time": "30s", "max_ejection_time": "100s", "consecutive_5xx": 1});
    let mut world = World::new(3, options);
    for seconds in [30.0, 60.0, 90.0, 100.0, 100.0] {
        world.report(0, [Response(500)]).await;
        assert_eq!((world.ejected(), world.seconds(0)), (vec![0], seconds));
        world.intervals(seconds as u32 / 10 - 1).await;
        assert_eq!(world.ejected(), [0], "it is not over yet");
        world.intervals(1).await;
        assert_eq!((world.ejected(), world.used()), (vec![], vec![0, 1, 2]));
    }
    // The factor is 5, and grows no further. Each interval without an ejection takes one off.
    world.intervals(3).await;
    world.report(0, [Response(500)]).await;
    assert_eq!(world.seconds(0), 90.0);
    assert_eq!(world.endpoint(0).outlier_status().unwrap().ejections, 6);
}

#[tokio::test(start_paused = true)]
async fn jitter_is_added_to_the_time() {
    fastrand::seed(7);
    let options = json!({"max_ejection_time_jitter": "20s", "consecutive_5xx": 1, "max_ejection_percent": 100});
    let mut world = World::new(50, options);
    for index in 0..49 {
        world.report(index, [Response(500)]).await;
    }
    let seconds: Vec<_> = (0..49).map(|index| world.seconds(index)).collect();
    let (least, most) = (seconds.iter().copied().fold(99.0, f64::min), seconds.iter().copied().fold(0.0, f64::max));
    assert!((30.0..35.0).contains(&least) && most > 45.0 && most <= 50.0, "{least} {most}");
}

#[tokio::test(start_paused = true)]
async fn at_most_a_percentage_is_ejected_and_one_is_always_left() {
    for (endpoints, percent, one, most) in [
        (10, 10, false, 1),
        (9, 10, false, 0),
        (9, 10, true, 1),
        (10, 30, true, 3),
        (10, 35, false, 3),
        (3, 100, false, 2),
        (1, 100, true, 0),
        (2, 0, true, 1),
        (2, 0, false, 0),
    ] {
        let options = json!({"max_ejection_percent": percent, "always_eject_one_host": one, "consecutive_5xx": 2});
        let mut world =
            World::with(endpoints, json!({"outlier_detection": options, "balancer": {"panic_threshold": 0}}));
        for index in 0..endpoints {
            world.report(index, [Response(500); 2]).await;
        }
        let ejected: Vec<_> = (0..most).collect();
        assert_eq!(world.ejected(), ejected, "{endpoints} endpoints, {percent} %, {one}");
        assert_eq!(world.used(), (most..endpoints).collect::<Vec<_>>());
        let totals = world.cluster.outliers().unwrap();
        assert_eq!((totals.active, totals.overflows), (most, (endpoints - most) as u64));
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_get_no_requests_do_not_count() {
    let options = json!({"outlier_detection": {"max_ejection_percent": 50, "always_eject_one_host": false}});
    let mut world = World::with(2, options);
    world.change(|config| config.endpoints[1].weight = 0);
    world.report(0, [Response(500); 5]).await;
    assert_eq!(world.ejected(), NONE, "it would be 100 %, and no other is left");
}

#[tokio::test(start_paused = true)]
async fn enforcing_is_a_chance() {
    fastrand::seed(7);
    let options = json!({"enforcing_consecutive_5xx": 30, "consecutive_5xx": 1, "max_ejection_percent": 100});
    let mut world = World::new(200, options);
    for index in 0..200 {
        world.report(index, [Response(500)]).await;
    }
    let (found, ejected) = world.count(OutlierRule::Consecutive5xx);
    assert!(found == 200 && (40..80).contains(&ejected), "{ejected}");
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_again_after_a_return() {
    let mut world = World::new(3, json!({}));
    world.report(0, [Response(500); 5]).await;
    // Of requests that were in flight.
    world.report(0, [Response(500); 7]).await;
    assert_eq!((world.ejected(), world.count(OutlierRule::Consecutive5xx)), (vec![0], (1, 1)));
    world.intervals(3).await;
    assert_eq!(world.ejected(), NONE);
    world.report(0, [Response(500); 4]).await;
    assert_eq!(world.ejected(), NONE);
    world.report(0, [Response(500)]).await;
    assert_eq!(world.ejected(), [0]);
}

#[tokio::test(start_paused = true)]
async fn endpoint_that_may_not_be_ejected_is_reported_again() {
    let mut world = World::new(2, json!({}));
    world.report(0, [Response(500); 5]).await;
    world.report(1, [Response(500); 15]).await;
    assert_eq!((world.ejected(), world.cluster.outliers().unwrap().overflows), (vec![0], 3));
    world.intervals(3).await;
    world.report(1, [Response(500); 5]).await;
    assert_eq!(world.ejected(), [1]);
}

#[tokio::test(start_paused = true)]
async fn state_follows_the_address_through_changes() {
    let mut world = World::new(3, json!({}));
    world.report(0, [Response(500); 5]).await;
    world.report(1, [Response(500); 4]).await;
    world.change(|config| config.endpoints.insert(0, model::Endpoint::new(address(9), 1)));
    assert_eq!((world.ejected(), world.used()), (vec![1], vec![0, 2, 3]));
    world.change(|config| config.protocol = model::ClusterProtocol::H2);
    assert_eq!((world.ejected(), world.used()), (vec![1], vec![0, 2, 3]), "with another transport");
    world.report(2, [Response(500)]).await;
    assert_eq!(world.cluster.outliers().unwrap().overflows, 1, "the row has continued");
    world.intervals(3).await;
    assert_eq!(world.ejected(), NONE);
    // An endpoint that leaves gives up its place.
    world.report(1, [Response(500); 5]).await;
    world.change(|config| _ = config.endpoints.remove(1));
    world.report(1, [Response(500); 5]).await;
    assert_eq!(world.ejected(), [1]);
}

#[tokio::test(start_paused = true)]
async fn report_of_an_endpoint_that_has_left_is_ignored() {
    let mut world = World::new(3, json!({}));
    (0..5).for_each(|_| world.cluster.report(world.endpoint(0), || Some(Response(500))));
    let gone = Arc::clone(world.endpoint(0));
    world.change(|config| _ = config.endpoints.remove(0));
    world.settle().await;
    assert!(!gone.is_ejected() && world.ejected().is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_the_section_ejections_end_and_nothing_is_counted() {
    let mut world = World::new(3, json!({}));
    world.report(0, [Response(500); 5]).await;
    let detection = world.config.outlier_detection.take();
    world.change(|_| {});
    assert_eq!((world.ejected(), world.used()), (vec![], vec![0, 1, 2]));
    assert_eq!(world.cluster.outliers(), None);
    world.report(1, [Response(500); 10]).await;
    assert!(world.endpoint(1).outlier_status().is_none(), "no memory is used");
    world.change(|config| config.outlier_detection = detection);
    world.report(0, [Response(500); 5]).await;
    assert_eq!((world.ejected(), world.used()), (vec![0], vec![1, 2]));
    world.detectors.remove(&world.handle);
    world.report(1, [Response(500); 5]).await;
    assert_eq!(world.ejected(), [0], "the cluster is gone");
}

#[tokio::test(start_paused = true)]
async fn successful_health_check_ends_an_ejection_unless_it_may_not() {
    for (option, is_healthy, ejected) in [(true, true, vec![]), (true, false, vec![0]), (false, true, vec![0])] {
        let detection = json!({"successful_active_health_check_uneject_host": option});
        let check = json!({"check": [{"tcp": {}}], "interval": "8760h"});
        let mut world = World::with(3, json!({"outlier_detection": detection, "health_check": check}));
        world.report(0, [Response(500); 5]).await;
        world.endpoint(0).state.healthy.store(is_healthy, Relaxed);
        passed_check(&world.cluster, world.endpoint(0));
        assert_eq!(world.ejected(), ejected, "{option} {is_healthy}");
        assert_eq!(world.used().len(), 3 - ejected.len());
        world.intervals(3).await;
        assert_eq!(world.ejected(), NONE);
        world.cluster.apply_health();
        assert_eq!(world.used().contains(&0), is_healthy, "its health still counts");
    }
}

#[tokio::test(start_paused = true)]
async fn ejections_lead_to_the_next_priority_and_to_panic() {
    let detection = json!({"max_ejection_percent": 100, "consecutive_5xx": 1});
    let mut world = World::with(4, json!({ "outlier_detection": detection }));
    world.report(0, [Response(500)]).await;
    world.report(1, [Response(500)]).await;
    assert_eq!(world.used(), [2, 3]);
    world.report(2, [Response(500)]).await;
    assert_eq!((world.ejected(), world.used()), (vec![0, 1, 2], vec![0, 1, 2, 3]), "25 % are below the threshold");

    let mut world = World::with(4, json!({ "outlier_detection": world.config.outlier_detection }));
    world.change(|config| config.endpoints[2].priority = 1);
    world.change(|config| config.endpoints[3].priority = 1);
    assert_eq!(world.used(), [0, 1]);
    world.report(0, [Response(500)]).await;
    assert_eq!(world.used(), [1, 2, 3], "70 % remain with the first priority");
    world.report(1, [Response(500)]).await;
    assert_eq!(world.used(), [2, 3]);
    world.report(2, [Response(500)]).await;
    assert_eq!((world.ejected(), world.used()), (vec![0, 1, 2], vec![3]), "half of a priority are not below it");
}

#[tokio::test(start_paused = true)]
async fn returning_endpoint_starts_slowly() {
    fastrand::seed(7);
    let balancer = json!({"policy": "random", "slow_start": {"window": "60s"}});
    let mut world = World::with(3, json!({"outlier_detection": {}, "balancer": balancer}));
    tokio::time::advance(Duration::from_secs(3600)).await;
    world.report(0, [Response(500); 5]).await;
    world.intervals(3).await;
    let share =
        || (0..10_000).filter(|_| Arc::ptr_eq(&world.cluster.pick(None, &[]).unwrap(), world.endpoint(0))).count();
    assert!((300..700).contains(&share()), "{}", share());
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!((3_000..3_700).contains(&share()), "{}", share());
}

/// Workers report concurrently; one decision follows.
#[test]
fn reports_of_many_workers_lead_to_one_ejection() {
    super::super::tests::run(async {
        for round in 0..20 {
            let mut world = World::new(3, json!({}));
            std::thread::scope(|scope| {
                for _ in 0..16 {
                    let (cluster, endpoint) = (&world.cluster, world.endpoint(0));
                    scope.spawn(move || (0..1_000).for_each(|_| cluster.report(endpoint, || Some(Response(500)))));
                }
            });
            world.settle().await;
            assert_eq!((world.ejected(), world.count(OutlierRule::Consecutive5xx)), (vec![0], (1, 1)), "{round}");
            let status = world.endpoint(0).outlier();
            assert_eq!(status.external.take(), (16_000, 0.0), "each was counted");
        }
    });
}

/// Requests arrive in simulated time, and one of ten endpoints fails half of them: how many reach it, with the default
/// settings and a failure percentage.
#[tokio::test(start_paused = true)]
async fn endpoint_that_fails_half_of_its_requests_gets_few() {
    fastrand::seed(7);
    let options = json!({"max_ejection_percent": 50});
    let mut world = World::new(10, options);
    // Per interval of 10 s: 2,000 requests.
    let mut shares = Vec::new();
    for _ in 0..30 {
        let mut at_first = 0;
        for _ in 0..2_000 {
            let endpoint = world.cluster.pick(None, &[]).unwrap();
            let is_first = Arc::ptr_eq(&endpoint, world.endpoint(0));
            at_first += u32::from(is_first);
            let status = if is_first && fastrand::bool() { 500 } else { 200 };
            world.cluster.report(&endpoint, || Some(Response(status)));
            world.settle().await;
        }
        shares.push(at_first);
        world.intervals(1).await;
    }
    println!("requests of 2,000 per interval at an endpoint that fails half of them: {shares:?}");
    let total: u32 = shares.iter().sum();
    // Without ejections: 6,000. Each time that it returns, it gets at most one interval of requests.
    assert!(total < 1_000, "{total}: {shares:?}");
    assert_eq!(world.ejected().iter().filter(|index| **index != 0).count(), 0, "no other is ejected");
}
