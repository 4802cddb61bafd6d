//! Shares: exact where they are promised to be, otherwise within five standard deviations of many draws.

use super::*;

fn members(weights: &[u32]) -> Vec<Member> {
    let endpoints: Vec<_> = (0..weights.len()).map(|i| std::net::SocketAddr::from(([10, 0, 0, i as u8], 80))).collect();
    let config = model::Cluster {
        endpoints: endpoints.iter().zip(weights).map(|(a, w)| model::Endpoint::new(*a, *w)).collect(),
        ..super::super::tests::config(&[])
    };
    super::super::Cluster::new(&config, None).members().to_vec()
}

fn index(members: &[Member], endpoint: &Arc<Endpoint>) -> usize {
    members.iter().position(|m| Arc::ptr_eq(&m.endpoint, endpoint)).unwrap()
}

/// Returns how often each endpoint is picked for keys `0..draws`.
fn counts(kind: model::Balancer, members: &[Member], avoid: &[Arc<Endpoint>], draws: u64) -> Vec<u64> {
    let (balancer, cursor) = (Balancer::new(kind, members), AtomicU64::new(0));
    let mut counts = vec![0; members.len()];
    for key in 0..draws {
        counts[index(
            members,
            balancer.pick(&cursor, Some(mix(key)), Excluded { tried: avoid, unhealthy: false }).unwrap(),
        )] += 1;
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
    for (weights, expected) in [
        (&[5, 1, 1][..], "aabacaa"),
        (&[50, 10, 10], "aabacaa"),
        (&[1, 1, 1], "abc"),
        (&[4, 2, 0], "aba"),
        (&[1, 2, 3], "cbacbc"),
        (&[7], "a"),
    ] {
        let members = members(weights);
        let (balancer, cursor) = (Balancer::new(model::Balancer::RoundRobin, &members), AtomicU64::new(0));
        let next =
            || (b'a' + index(&members, balancer.pick(&cursor, None, Excluded::default()).unwrap()) as u8) as char;
        let sequence: String = (0..3 * expected.len()).map(|_| next()).collect();
        assert_eq!(sequence, expected.repeat(3), "{weights:?}");
        let Policy::RoundRobin(written_out) = &balancer.policy else { panic!() };
        assert_eq!(written_out.len(), expected.len(), "no longer than necessary");
    }
}

#[test]
fn round_robin_sequence_is_limited() {
    let members = members(&[65_535, 65_521, 1]);
    let Policy::RoundRobin(sequence) = Balancer::new(model::Balancer::RoundRobin, &members).policy else { panic!() };
    assert!((4000..=4100).contains(&sequence.len()), "{}", sequence.len());
    let share = |i| sequence.iter().filter(|at| **at == i).count();
    assert!(share(2) == 1 && share(0).abs_diff(share(1)) <= 2);
}

#[test]
fn round_robin_skips_tried_endpoints() {
    let members = members(&[1, 1, 1]);
    let avoid = [Arc::clone(&members[1].endpoint)];
    let counts = counts(model::Balancer::RoundRobin, &members, &avoid, 300);
    assert_eq!(counts, [100, 0, 200]);
}

#[test]
fn random_and_hash_share_by_weight() {
    for kind in [model::Balancer::Random, model::Balancer::Hash] {
        for weights in [&[1, 1, 1, 1][..], &[5, 1, 0, 4], &[1, 100]] {
            assert_shares(&counts(kind, &members(weights), &[], 50_000), weights);
        }
        let members = members(&[5, 1, 4]);
        let avoid = [Arc::clone(&members[0].endpoint)];
        assert_shares(&counts(kind, &members, &avoid, 50_000)[1..], &[1, 4]);
    }
}

#[test]
fn tried_endpoints_are_reused_if_there_are_no_others() {
    use model::Balancer::{Hash, LeastRequest, Random, RoundRobin};
    for kind in [RoundRobin, LeastRequest, Random, Hash] {
        let members = members(&[1, 2]);
        let all: Vec<_> = members.iter().map(|m| Arc::clone(&m.endpoint)).collect();
        assert_eq!(counts(kind, &members, &all, 100).iter().sum::<u64>(), 100);
        let one = counts(kind, &members, &all[..1], 100);
        assert_eq!(one, [0, 100]);
        assert!(
            Balancer::new(kind, &super::tests::members(&[0, 0]))
                .pick(&AtomicU64::new(0), None, Excluded::default())
                .is_none()
        );
        assert!(Balancer::new(kind, &[]).pick(&AtomicU64::new(0), Some(1), Excluded::default()).is_none());
    }
}

#[test]
fn keys_keep_their_endpoint_when_others_change() {
    let all = members(&[3, 1, 2, 2]);
    let before = Balancer::new(model::Balancer::Hash, &all);
    let after = Balancer::new(model::Balancer::Hash, &all[..3]);
    let cursor = AtomicU64::new(0);
    let mut moved = 0;
    for key in 0..10_000 {
        let (old, new) = (
            before.pick(&cursor, Some(key), Excluded::default()).unwrap(),
            after.pick(&cursor, Some(key), Excluded::default()).unwrap(),
        );
        assert!(Arc::ptr_eq(old, before.pick(&cursor, Some(key), Excluded::default()).unwrap()));
        if !Arc::ptr_eq(old, new) {
            assert!(Arc::ptr_eq(old, &all[3].endpoint), "a key has moved between endpoints that both stayed");
            moved += 1;
        }
    }
    assert!((2250..2750).contains(&moved), "{moved} of 10000 with an endpoint that had a quarter");
}

#[test]
fn keys_map_to_the_same_endpoint_in_every_process() {
    let members = members(&[1, 1, 1, 1]);
    let balancer = Balancer::new(model::Balancer::Hash, &members);
    let cursor = AtomicU64::new(0);
    let places: Vec<_> =
        (0..16).map(|key| index(&members, balancer.pick(&cursor, Some(key), Excluded::default()).unwrap())).collect();
    assert_eq!(places, GOLDEN);
    for (address, hash) in HASHES {
        assert_eq!(address_hash(&address.parse().unwrap()), hash, "{address}");
    }
}

/// Changing these values would move users' keys to other endpoints on an upgrade.
const GOLDEN: [usize; 16] = [0, 0, 3, 0, 0, 3, 3, 2, 0, 0, 1, 0, 2, 3, 2, 3];
const HASHES: [(&str, u64); 4] = [
    ("10.0.0.1:80", 0x474b_18c6_6e57_86f4),
    ("[2001:db8::1]:80", 0x5f48_6322_f1de_ca4d),
    ("[2001:db8:0:7::1]:80", 0xff74_4b29_f13f_58e9),
    ("unix:/run/a.sock", 0x3439_17af_51ee_a763),
];

#[test]
fn least_request_keeps_loads_level_by_weight() {
    for weights in [&[1, 1, 1, 1][..], &[1, 3], &[4, 2, 2]] {
        let members = members(weights);
        let (balancer, cursor) = (Balancer::new(model::Balancer::LeastRequest, &members), AtomicU64::new(0));
        let total: u32 = weights.iter().sum();
        let held: Vec<_> = (0..total * 100)
            .map(|_| Arc::clone(balancer.pick(&cursor, None, Excluded::default()).unwrap()).start())
            .collect();
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
    let members = members(&[1, 3]);
    assert_shares(&counts(model::Balancer::LeastRequest, &members, &[], 50_000), &[1, 3]);
    let busy: Vec<_> = (0..10).map(|_| Arc::clone(&members[1].endpoint).start()).collect();
    assert_eq!(counts(model::Balancer::LeastRequest, &members, &[], 1000), [1000, 0]);
    let busier: Vec<_> = (0..4).map(|_| Arc::clone(&members[0].endpoint).start()).collect();
    assert_eq!(counts(model::Balancer::LeastRequest, &members, &[], 1000), [0, 1000], "for its weight");
    drop((busy, busier));
}

#[test]
fn least_request_does_not_choose_an_idle_excluded_endpoint() {
    let members = members(&[1, 1, 1]);
    let _busy = [0, 1].map(|i| Arc::clone(&members[i].endpoint).start());
    let tried = [Arc::clone(&members[2].endpoint)];
    assert_eq!(counts(model::Balancer::LeastRequest, &members, &tried, 100)[2], 0);
    make_unhealthy(&members, &[2]);
    let (balancer, cursor) = (Balancer::new(model::Balancer::LeastRequest, &members), AtomicU64::new(0));
    assert!((0..100).all(|_| index(&members, balancer.pick(&cursor, None, HEALTHY_ONLY).unwrap()) != 2));
}

#[test]
fn draws_among_others_are_by_weight() {
    let members = members(&[1, 3, 2, 4]);
    let balancer = Balancer::new(model::Balancer::Random, &members);
    let shares = |draw: &dyn Fn() -> Option<usize>| {
        let mut counts = [0; 4];
        (0..50_000).for_each(|_| counts[draw().unwrap()] += 1);
        assert_shares(&counts, &[1, 0, 2, 4]);
    };
    shares(&|| balancer.draw_other(1));
    shares(&|| balancer.draw_among(|i| i != 1));
}

const HEALTHY_ONLY: Excluded<'static> = Excluded { tried: &[], unhealthy: true };

fn make_unhealthy(members: &[Member], which: &[usize]) {
    which.iter().for_each(|i| members[*i].endpoint.state.healthy.store(false, Relaxed));
}

#[test]
fn unhealthy_endpoints_are_excluded_and_the_others_share_by_weight() {
    use model::Balancer::{Hash, LeastRequest, Random, RoundRobin};
    for kind in [RoundRobin, LeastRequest, Random, Hash] {
        let members = members(&[2, 1, 4, 1]);
        make_unhealthy(&members, &[1, 2]);
        let balancer = Balancer::new(kind, &members);
        let cursor = AtomicU64::new(0);
        let mut counts = [0; 4];
        for key in 0..30_000 {
            counts[index(&members, balancer.pick(&cursor, Some(mix(key)), HEALTHY_ONLY).unwrap())] += 1;
        }
        assert_eq!((counts[1], counts[2]), (0, 0), "{kind:?}");
        if kind == RoundRobin {
            assert_eq!(counts, [20_000, 0, 0, 10_000], "exactly");
        } else {
            assert_shares(&[counts[0], counts[3]], &[2, 1]);
        }
        // A tried endpoint is better than an unhealthy one.
        let tried = [Arc::clone(&members[0].endpoint), Arc::clone(&members[3].endpoint)];
        let avoid = Excluded { tried: &tried, unhealthy: true };
        let picked = index(&members, balancer.pick(&cursor, Some(1), avoid).unwrap());
        assert!(picked == 0 || picked == 3, "{kind:?}: {picked}");
        make_unhealthy(&members, &[0, 3]);
        assert!(balancer.pick(&cursor, Some(1), HEALTHY_ONLY).is_none(), "{kind:?}");
    }
}

#[test]
fn small_endpoint_is_found_next_to_a_large_unhealthy_one() {
    use model::Balancer::{Hash, LeastRequest, Random, RoundRobin};
    for kind in [RoundRobin, LeastRequest, Random, Hash] {
        let members = members(&[65_535, 1]);
        make_unhealthy(&members, &[0]);
        let (balancer, cursor) = (Balancer::new(kind, &members), AtomicU64::new(0));
        for key in 0..100 {
            assert_eq!(index(&members, balancer.pick(&cursor, Some(key), HEALTHY_ONLY).unwrap()), 1, "{kind:?}");
        }
    }
}

#[test]
fn only_keys_of_unhealthy_endpoints_move() {
    let members = members(&[1, 1, 1, 1]);
    let (balancer, cursor) = (Balancer::new(model::Balancer::Hash, &members), AtomicU64::new(0));
    let place = |key| index(&members, balancer.pick(&cursor, Some(key), HEALTHY_ONLY).unwrap());
    let before: Vec<_> = (0..1000).map(place).collect();
    make_unhealthy(&members, &[2]);
    let after: Vec<_> = (0..1000).map(place).collect();
    assert!(before.iter().zip(&after).all(|(old, new)| old == new || *old == 2));
    assert!(!after.contains(&2));
}
