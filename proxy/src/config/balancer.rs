//! Checks of a cluster's `balancer` that a JSON Schema cannot express: options of another policy, sizes, times.

use super::{
    diagnostic::Diagnostic,
    explain::list,
    model::BalancerPolicy,
    node::{Node, Value},
    units::Duration,
};

/// The policies to which each option belongs.
const OPTIONS: [(&str, &[&str]); 11] = [
    ("choice_count", &["least_request"]),
    ("active_request_bias", &["least_request"]),
    ("decay", &["peak_ewma"]),
    ("default_rtt", &["peak_ewma"]),
    ("failure_penalty", &["peak_ewma"]),
    ("max_retry_after", &["peak_ewma"]),
    ("minimum_ring_size", &["ring_hash"]),
    ("maximum_ring_size", &["ring_hash"]),
    ("table_size", &["maglev"]),
    ("hash_balance_factor", &["hash", "ring_hash", "maglev"]),
    ("slow_start", &["round_robin", "least_request", "random", "peak_ewma"]),
];

/// Checks the section of one cluster.
pub(super) fn check(balancer: &Node, problems: &mut Vec<Diagnostic>) {
    let Value::Map(entries) = &balancer.value else { return };
    let default = serde_json::to_value(BalancerPolicy::default()).unwrap_or_default();
    let policy = balancer.get("policy").map_or(default.as_str(), Node::as_str).unwrap_or_default();
    // An unknown policy is reported elsewhere.
    let is_policy = OPTIONS.iter().any(|(_, policies)| policies.contains(&policy));
    for (key, _) in entries.iter().filter(|_| is_policy) {
        if let Some((option, policies)) = OPTIONS.iter().find(|(option, _)| *option == key.name)
            && !policies.contains(&policy)
        {
            let message = format!("`{option}` has no effect with the policy `{policy}`");
            let help = format!("it is an option of {}; remove it, or set another `policy`", list(policies));
            problems.push(Diagnostic::error(key.span, message).help(help));
        }
    }
    let times = [
        ("decay", balancer.get("decay")),
        ("default_rtt", balancer.get("default_rtt")),
        ("window", balancer.get("slow_start").and_then(|slow_start| slow_start.get("window"))),
    ];
    for (name, node) in times.into_iter().filter_map(|(name, node)| Some((name, node?))) {
        if node.as_str().and_then(|text| text.parse::<Duration>().ok()).is_some_and(|time| time.0.is_zero()) {
            let help = "write a time such as 10s".to_owned();
            problems.push(Diagnostic::error(node.span, format!("`{name}` must be more than 0")).help(help));
        }
    }
    if let Some(node) = balancer.get("max_retry_after")
        && node.as_str().and_then(|text| text.parse::<Duration>().ok()).is_some_and(|time| time.0 > LONGEST_RETRY_AFTER)
    {
        let help = "write a time such as 300s".to_owned();
        problems.push(Diagnostic::error(node.span, "`max_retry_after` must be at most 168h".to_owned()).help(help));
    }
    if let Some(locality) = balancer.get("locality") {
        check_locality(locality, problems);
    }
    let number = |name: &str| balancer.get(name).and_then(|node| Some((node, node.to_json().as_u64()?)));
    if let (Some((least, size)), Some((_, most))) = (number("minimum_ring_size"), number("maximum_ring_size"))
        && size > most
    {
        let message = format!("`minimum_ring_size` ({size}) is larger than `maximum_ring_size` ({most})");
        problems.push(Diagnostic::error(least.span, message).help(format!("it must be {most} or less")));
    }
    if let Some((node, size)) =
        number("table_size").filter(|(_, size)| (3..=MOST_PLACES).contains(size) && !is_prime(*size))
    {
        let next = (size..).find(|size| is_prime(*size)).unwrap_or(MOST_PLACES);
        let message = format!("`table_size` must be a prime number, and {size} is not");
        problems.push(Diagnostic::error(node.span, message).help(format!("the next one is {next}")));
    }
}

/// The policy to which each option of `locality` belongs.
const LOCALITY_OPTIONS: [(&str, &str); 3] =
    [("weights", "weighted"), ("callers", "zone_aware"), ("minimum_cluster_size", "zone_aware")];

fn check_locality(locality: &Node, problems: &mut Vec<Diagnostic>) {
    let Some(policy) = locality.get("policy").and_then(Node::as_str) else { return };
    for (option, of) in LOCALITY_OPTIONS {
        if let Some(node) = locality.get(option).filter(|_| policy != of) {
            let message = format!("`{option}` has no effect with the policy `{policy}`");
            problems.push(Diagnostic::error(node.span, message).help(format!("remove it, or set `policy: {of}`")));
        }
    }
    if policy == "weighted" && locality.get("weights").is_none() {
        let help = "write `locality: {policy: weighted, weights: [{region: NAME, weight: N}]}`".to_owned();
        problems.push(Diagnostic::error(locality.span, "`weights` are missing".to_owned()).help(help));
    }
    let callers = locality.get("callers").map_or(&[][..], |callers| match &callers.value {
        Value::Seq(callers) => callers,
        _ => &[],
    });
    for sub_zone in callers.iter().filter_map(|caller| caller.get("sub_zone")) {
        let message = "`sub_zone` has no effect: requests are counted by zone".to_owned();
        problems.push(Diagnostic::error(sub_zone.span, message).help("remove it".to_owned()));
    }
}

/// The longest `max_retry_after`: a week. The balancer's clock has 32 bits.
const LONGEST_RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// The largest `table_size`, a prime number.
const MOST_PLACES: u64 = 5_000_011;

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}
