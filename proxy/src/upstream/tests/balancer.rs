//! Shares: exact where they are promised to be, otherwise within five standard deviations of many draws.

use std::cell::Cell;

use super::*;
use crate::upstream::{
    Transport,
    balancer::candidates::{address_hash, mix},
    cluster::next_id,
    endpoint::EndpointState,
};

thread_local! {
    /// The simulated time in milliseconds.
    pub(super) static NOW: Cell<u64> = const { Cell::new(1_000) };
}

pub(super) fn clock() -> u64 {
    NOW.get()
}

/// All policies.
pub(super) const POLICIES: [BalancerPolicy; 7] = [
    BalancerPolicy::RoundRobin,
    BalancerPolicy::LeastRequest,
    BalancerPolicy::PeakEwma,
    BalancerPolicy::Random,
    BalancerPolicy::Hash,
    BalancerPolicy::RingHash,
    BalancerPolicy::Maglev,
];

/// The policies that place keys.
pub(super) const HASHES: [BalancerPolicy; 3] = [BalancerPolicy::Hash, BalancerPolicy::RingHash, BalancerPolicy::Maglev];

/// Endpoints that join now.
pub(super) fn members(weights: &[u32]) -> Vec<Member> {
    let transport = Arc::new(Transport::new(&crate::upstream::tests::config(&[]), None));
    let member = |(n, weight): (u32, &u32)| {
        let address = std::net::SocketAddr::from(((0x0a00_0000 + n).to_be_bytes(), 80)).into();
        let (transport, state) = (Arc::clone(&transport), Arc::new(EndpointState::new(NOW.get())));
        let endpoint = Arc::new(Endpoint { address, transport, hostname: None, id: next_id(), state });
        Member { endpoint, weight: *weight, priority: 0, locality: None, metadata: None }
    };
    (0..).zip(weights).map(member).collect()
}

pub(super) fn config(policy: BalancerPolicy) -> model::Balancer {
    model::Balancer { policy, ..model::Balancer::default() }
}

/// A balancer whose table, if it needs one, is built.
pub(super) fn balancer(config: &model::Balancer, members: &[Member]) -> Arc<Balancer> {
    let balancer = Balancer::new(config, members, None);
    await_table(&balancer);
    balancer
}

/// Waits until the table of a balancer is built, if it needs one.
pub(super) fn await_table(balancer: &Arc<Balancer>) {
    if let Some(table) =
        balancer.hash_policy().and_then(|policy| policy.table()).filter(|_| !balancer.candidates.is_empty())
    {
        while table.get(balancer).is_none() {
            std::thread::yield_now();
        }
    }
}

/// Picks endpoints for requests of a cluster that is otherwise idle.
pub(super) struct Picker {
    pub(super) cursor: AtomicU64,
    pub(super) in_flight: AtomicU64,
}

impl Picker {
    pub(super) fn new() -> Picker {
        Picker { cursor: AtomicU64::new(0), in_flight: AtomicU64::new(1) }
    }

    pub(super) fn context<'a>(&'a self, key: Option<u64>, tried: &'a [Arc<Endpoint>]) -> PickContext<'a> {
        PickContext { cursor: &self.cursor, in_flight: &self.in_flight, hash: key, tried, clock }
    }

    fn pick(&self, balancer: &Arc<Balancer>, key: Option<u64>, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        balancer.pick(&self.context(key, tried)).cloned()
    }
}

pub(super) fn index(members: &[Member], endpoint: &Arc<Endpoint>) -> usize {
    members.iter().position(|m| Arc::ptr_eq(&m.endpoint, endpoint)).unwrap()
}

/// Returns how often each endpoint is picked for keys `0..draws`.
fn counts(config: &model::Balancer, members: &[Member], tried: &[Arc<Endpoint>], draws: u64) -> Vec<u64> {
    let (balancer, picker) = (balancer(config, members), Picker::new());
    let mut counts = vec![0; members.len()];
    for key in 0..draws {
        counts[index(members, &picker.pick(&balancer, Some(mix(key)), tried).unwrap())] += 1;
    }
    counts
}

fn assert_shares(counts: &[u64], weights: &[u32]) {
    let (draws, total) = (counts.iter().sum::<u64>() as f64, weights.iter().sum::<u32>() as f64);
    for (count, weight) in counts.iter().zip(weights) {
        let share = f64::from(*weight) / total;
        let tolerance = 5.0 * (draws * share * (1.0 - share)).sqrt();
        assert!((*count as f64 - draws * share).abs() <= tolerance, "{counts:?} for {weights:?}");
    }
}

#[test]
fn round_robin_is_smooth_and_exact() {
    let expected = [
        (&[5, 1, 1][..], "abaaaca"),
        (&[50, 10, 10], "abaaaca"),
        (&[1, 1, 1], "abc"),
        (&[4, 2, 0], "aab"),
        (&[1, 2, 3], "cbcbca"),
        (&[7], "a"),
    ];
    let actual = expected.map(|(weights, expected)| {
        let members = members(weights);
        let (balancer, picker) = (balancer(&config(BalancerPolicy::RoundRobin), &members), Picker::new());
        let next = || (b'a' + index(&members, &picker.pick(&balancer, None, &[]).unwrap()) as u8) as char;
        let sequence: String = (0..3 * expected.len()).map(|_| next()).collect();
        assert_eq!(sequence, sequence[..expected.len()].repeat(3), "{weights:?}");
        (weights, sequence[..expected.len()].to_owned())
    });
    assert_eq!(actual, expected.map(|(weights, expected)| (weights, expected.to_owned())));
}

#[test]
fn round_robin_skips_tried_endpoints() {
    let members = members(&[1, 1, 1]);
    let avoid = [Arc::clone(&members[1].endpoint)];
    let counts = counts(&config(BalancerPolicy::RoundRobin), &members, &avoid, 300);
    assert_eq!(counts, [100, 0, 200]);
}

#[test]
fn policies_of_chance_share_by_weight() {
    for policy in [BalancerPolicy::Random, BalancerPolicy::Hash] {
        let config = config(policy);
        for weights in [&[1, 1, 1, 1][..], &[5, 1, 0, 4], &[1, 100]] {
            assert_shares(&counts(&config, &members(weights), &[], 50_000), weights);
        }
        let members = members(&[5, 1, 4]);
        let avoid = [Arc::clone(&members[0].endpoint)];
        assert_shares(&counts(&config, &members, &avoid, 50_000)[1..], &[1, 4]);
    }
}

#[test]
fn tried_endpoints_are_reused_if_there_are_no_others() {
    for policy in POLICIES {
        let (config, members) = (config(policy), members(&[1, 2]));
        let all: Vec<_> = members.iter().map(|m| Arc::clone(&m.endpoint)).collect();
        assert_eq!(counts(&config, &members, &all, 100).iter().sum::<u64>(), 100);
        assert_eq!(counts(&config, &members, &all[..1], 100), [0, 100], "{policy:?}");
        let picker = Picker::new();
        let another = balancer(&config, &members);
        assert!(another.pick_another(&picker.context(Some(1), &all)).is_none(), "{policy:?}");
        assert!(picker.pick(&balancer(&config, &super::tests::members(&[0, 0])), None, &[]).is_none());
        assert!(picker.pick(&balancer(&config, &[]), Some(1), &[]).is_none());
    }
}

#[test]
fn small_endpoint_is_found_next_to_a_large_one_that_was_tried() {
    for policy in POLICIES {
        let members = members(&[65_535, 1]);
        let tried = [Arc::clone(&members[0].endpoint)];
        assert_eq!(counts(&config(policy), &members, &tried, 100), [0, 100], "{policy:?}");
    }
}

#[test]
fn rendezvous_moves_no_other_keys() {
    let all = members(&[3, 1, 2, 2]);
    let (before, after) =
        (balancer(&config(BalancerPolicy::Hash), &all), balancer(&config(BalancerPolicy::Hash), &all[..3]));
    let picker = Picker::new();
    let mut moved = 0;
    for key in 0..10_000 {
        let (old, new) = (picker.pick(&before, Some(key), &[]).unwrap(), picker.pick(&after, Some(key), &[]).unwrap());
        if !Arc::ptr_eq(&old, &new) {
            assert!(Arc::ptr_eq(&old, &all[3].endpoint), "a key has moved between endpoints that both stayed");
            moved += 1;
        }
    }
    assert!((2250..2750).contains(&moved), "{moved} of 10000 with an endpoint that had a quarter");
}

#[test]
fn keys_map_to_the_same_endpoint_in_every_process() {
    let members = members(&[1, 1, 1, 1]);
    let picker = Picker::new();
    let places = HASHES.map(|policy| {
        let balancer = balancer(&config(policy), &members);
        std::array::from_fn(|key| index(&members, &picker.pick(&balancer, Some(key as u64), &[]).unwrap()))
    });
    assert_eq!(places, GOLDEN);
    for (address, hash) in ADDRESS_HASHES {
        assert_eq!(address_hash(&address.parse().unwrap()), hash, "{address}");
    }
}

/// Changing these values would move users' keys to other endpoints on an upgrade.
const GOLDEN: [[usize; 16]; 3] = [
    [0, 0, 3, 0, 0, 3, 3, 2, 0, 0, 1, 0, 2, 3, 2, 3],
    [1, 2, 0, 1, 0, 1, 3, 0, 1, 1, 3, 0, 0, 2, 1, 1],
    [1, 3, 3, 0, 2, 3, 0, 2, 1, 1, 1, 1, 2, 2, 0, 0],
];
const ADDRESS_HASHES: [(&str, u64); 4] = [
    ("10.0.0.1:80", 0x474b_18c6_6e57_86f4),
    ("[2001:db8::1]:80", 0x5f48_6322_f1de_ca4d),
    ("[2001:db8:0:7::1]:80", 0xff74_4b29_f13f_58e9),
    ("unix:/run/a.sock", 0x3439_17af_51ee_a763),
];

#[test]
fn order_of_endpoints_does_not_move_keys() {
    let members = members(&[1, 2, 3, 4, 5]);
    let reversed: Vec<_> = members.iter().rev().cloned().collect();
    let picker = Picker::new();
    for policy in HASHES {
        let (one, other) = (balancer(&config(policy), &members), balancer(&config(policy), &reversed));
        for key in 0..1000 {
            let [one, other] = [&one, &other].map(|balancer| picker.pick(balancer, Some(key), &[]).unwrap());
            assert!(Arc::ptr_eq(&one, &other), "{policy:?} {key}");
        }
    }
}

#[test]
fn keys_stay_while_a_large_table_is_built() {
    let members = members(&[1; 10]);
    let before = balancer(&config(BalancerPolicy::Maglev), &members);
    let after = Balancer::new(&config(BalancerPolicy::Maglev), &members[..9], Some(&before));
    let table = after.hash_policy().unwrap().table().unwrap();
    for key in 0..1000 {
        let owner = index(&members, &Picker::new().pick(&before, Some(key), &[]).unwrap());
        assert_eq!(table.previous_owner(key, &after.candidates), (owner < 9).then_some(owner));
    }
    await_table(&after);
    // The table before is dropped right after this one is there.
    while table.previous_owner(7, &after.candidates).is_some() {
        std::thread::yield_now();
    }
}

#[test]
fn unused_balancer_builds_no_table() {
    let members = members(&[1; 10]);
    let before = balancer(&config(BalancerPolicy::Maglev), &members);
    let unused = Balancer::new(&config(BalancerPolicy::Maglev), &members[..9], Some(&before));
    let after = Balancer::new(&config(BalancerPolicy::Maglev), &members[..8], Some(&unused));
    let table = after.hash_policy().unwrap().table().unwrap();
    assert!((0..100).any(|key| table.previous_owner(key, &after.candidates).is_some()), "that of the first serves");
    let again = Balancer::new(&config(BalancerPolicy::Maglev), &members, Some(&before));
    let tables = [&before, &again].map(|balancer| {
        std::ptr::from_ref(balancer.hash_policy().unwrap().table().unwrap().get(balancer).expect("it is shared"))
    });
    assert_eq!(tables[0], tables[1]);
}

#[test]
fn least_request_keeps_loads_level_by_weight() {
    for weights in [&[1, 1, 1, 1][..], &[1, 3], &[4, 2, 2]] {
        let members = members(weights);
        let (balancer, picker) = (balancer(&config(BalancerPolicy::LeastRequest), &members), Picker::new());
        let total: u32 = weights.iter().sum();
        let held: Vec<_> = (0..total * 100).map(|_| picker.pick(&balancer, None, &[]).unwrap().start()).collect();
        for (member, weight) in members.iter().zip(weights) {
            let (active, due) = (member.endpoint.active(), u64::from(weight * 100));
            assert!(active.abs_diff(due) <= 6, "{active} at weight {weight}, {due} would be level");
        }
        drop(held);
        assert!(members.iter().all(|m| m.endpoint.active() == 0));
    }
}

#[test]
fn least_request_shares_by_weight_when_idle_and_avoids_a_busy_endpoint() {
    let (members, config) = (members(&[1, 3]), config(BalancerPolicy::LeastRequest));
    assert_shares(&counts(&config, &members, &[], 50_000), &[1, 3]);
    let busy: Vec<_> = (0..10).map(|_| Arc::clone(&members[1].endpoint).start()).collect();
    assert_eq!(counts(&config, &members, &[], 1000), [1000, 0]);
    let busier: Vec<_> = (0..4).map(|_| Arc::clone(&members[0].endpoint).start()).collect();
    assert_eq!(counts(&config, &members, &[], 1000), [0, 1000], "for its weight");
    drop((busy, busier));
}

#[test]
fn least_request_does_not_choose_an_idle_endpoint_that_was_tried() {
    let members = members(&[1, 1, 1]);
    let _busy = [0, 1].map(|i| Arc::clone(&members[i].endpoint).start());
    let tried = [Arc::clone(&members[2].endpoint)];
    assert_eq!(counts(&config(BalancerPolicy::LeastRequest), &members, &tried, 100)[2], 0);
}

#[test]
fn more_choices_find_the_least_busy_endpoint_more_often() {
    let members = members(&[1; 10]);
    let _busy: Vec<_> = members[1..].iter().map(|m| Arc::clone(&m.endpoint).start()).collect();
    let share = |choice_count| {
        let config = model::Balancer { choice_count, ..config(BalancerPolicy::LeastRequest) };
        counts(&config, &members, &[], 10_000)[0]
    };
    // 1 − (8/10)^… without replacement of the best: 2/10, then almost 1 − (8/9)^9.
    let (two, ten) = (share(None), share(Some(10)));
    assert!((1_700..2_300).contains(&two) && ten > 6_000, "{two} {ten}");
}

#[test]
fn bias_weighs_the_load() {
    let members = members(&[1, 1]);
    let _busy = [0, 0, 0].map(|i: usize| Arc::clone(&members[i].endpoint).start());
    for (bias, expected) in [(0.0, [1, 1]), (1.0, [1, 4]), (2.0, [1, 16])] {
        let config = model::Balancer {
            choice_count: Some(64),
            active_request_bias: Some(bias),
            ..config(BalancerPolicy::LeastRequest)
        };
        let counts = counts(&config, &members, &[], 20_000);
        let share = counts[1] as f64 / 20_000.0;
        let wanted = f64::from(expected[1]) / f64::from(expected[0] + expected[1]);
        assert!((share - wanted).abs() < 0.02, "{bias}: {share}, not {wanted}");
    }
}

#[test]
fn draws_among_others_are_by_weight() {
    for weights in [[1, 3, 2, 4], [1, 1, 1, 1]] {
        let candidates = Candidates::new(&members(&weights));
        let shares = |draw: &dyn Fn() -> Option<usize>| {
            let mut counts = [0; 4];
            (0..50_000).for_each(|_| counts[draw().unwrap()] += 1);
            assert_shares(&counts, &[weights[0], 0, weights[2], weights[3]]);
        };
        shares(&|| candidates.draw_other(1));
        shares(&|| candidates.draw_among(|i| i != 1));
    }
}

#[test]
fn peak_ewma_follows_peaks_and_decays() {
    let policy = PeakEwma::new(&config(BalancerPolicy::PeakEwma));
    let cell = LatencyCell::new(0);
    let assert_near = |now, wanted: f32| {
        let estimate = cell.estimate(&policy, now);
        assert!((estimate - wanted).abs() <= wanted * 1e-3, "{estimate} at {now}, not {wanted}");
    };
    assert_near(0, 30_000.0);
    assert_near(10_000, 30_000.0 / std::f32::consts::E);
    cell.observe(&policy, 10_000, 100_000.0);
    assert_near(10_000, 100_000.0);
    cell.observe(&policy, 20_000, 10_000.0);
    let left = 1.0 / std::f32::consts::E;
    assert_near(20_000, 100_000.0 * left + 10_000.0 * (1.0 - left));
    // A cancelled request raises the estimate, but does not lower it.
    cell.observe_at_least(&policy, 20_000, 5_000.0);
    assert_near(20_000, 100_000.0 * left + 10_000.0 * (1.0 - left));
    cell.observe_at_least(&policy, 20_000, 500_000.0);
    assert_near(20_000, 500_000.0);
    cell.observe(&policy, 20_000, 1.0);
    assert_near(20_000, 500_000.0);
}

#[test]
fn peak_ewma_is_held_for_an_endpoint_that_wants_no_requests() {
    let policy = PeakEwma::new(&config(BalancerPolicy::PeakEwma));
    // Also when the 32 bits of the time wrap around.
    for start in [1_000, u64::from(u32::MAX) - 5_000] {
        let cell = LatencyCell::new(start);
        let is_near = |after, wanted: f32| (cell.estimate(&policy, start + after) - wanted).abs() <= wanted * 1e-3;
        cell.observe(&policy, start, 5e6);
        cell.hold(&policy, start + 20_000);
        assert!(is_near(0, 5e6) && is_near(20_000, 5e6));
        assert!(is_near(30_000, 5e6 / std::f32::consts::E));
        // Neither a shorter time nor a fast answer ends it.
        cell.hold(&policy, start + 10_000);
        cell.observe(&policy, start + 15_000, 1e3);
        assert!(is_near(20_000, 5e6));
        // A slower one counts, and the time stays.
        cell.observe(&policy, start + 16_000, 6e6);
        cell.observe_at_least(&policy, start + 17_000, 7e6);
        assert!(is_near(20_000, 7e6) && is_near(30_000, 7e6 / std::f32::consts::E));
        cell.observe(&policy, start + 30_000, 1e3);
        assert!(is_near(30_000, 7e6 / std::f32::consts::E + 632.0));
    }
}

#[test]
fn peak_ewma_prefers_fast_and_idle_endpoints_by_weight() {
    let (members, config) = (members(&[1, 1]), config(BalancerPolicy::PeakEwma));
    let policy = PeakEwma::new(&config);
    let observe = |i: usize, micros| members[i].endpoint.latency().observe(&policy, NOW.get(), micros);
    assert_shares(&counts(&config, &members, &[], 10_000), &[1, 1]);
    observe(0, 40_000.0);
    assert_eq!(counts(&config, &members, &[], 100), [0, 100]);
    let busy = [0, 0].map(|_| Arc::clone(&members[1].endpoint).start());
    assert_eq!(counts(&config, &members, &[], 100), [100, 0]);
    let heavy = [members[0].clone(), Member { weight: 4, ..members[1].clone() }];
    assert_eq!(counts(&config, &heavy, &[], 100), [0, 100], "four times the weight bears more requests");
    drop(busy);
}
