//! Checks of a cluster's `adaptive_concurrency` that a JSON Schema cannot express: times, limits that cross, and options
//! that have no effect.

use super::{
    diagnostic::Diagnostic,
    model::{ConcurrencyLimitParams, MinRttCalcParams},
    node::{Node, Value},
    units::Duration,
};

/// Checks the section of one cluster.
pub(super) fn check(section: &Node, problems: &mut Vec<Diagnostic>) {
    let (limit, min_rtt) = (section.get("concurrency_limit_params"), section.get("min_rtt_calc_params"));
    let options = [("concurrency_update_interval", limit), ("interval", min_rtt), ("fixed_value", min_rtt)];
    for (name, node) in options.into_iter().filter_map(|(name, section)| Some((name, section?.get(name)?))) {
        if node.as_str().and_then(|text| text.parse::<Duration>().ok()).is_some_and(|time| time.0.is_zero()) {
            let help = "write a time such as 100ms, or leave it out for the default".to_owned();
            problems.push(Diagnostic::error(node.span, format!("`{name}` must be more than 0")).help(help));
        }
    }
    let number = |section: Option<&Node>, name: &str| Some(section?.get(name)?.to_json().as_u64());
    let most = number(limit, "max_concurrency_limit")
        .unwrap_or(Some(ConcurrencyLimitParams::default().max_concurrency_limit.into()));
    let least = number(min_rtt, "min_concurrency").unwrap_or(Some(MinRttCalcParams::default().min_concurrency.into()));
    if let (Some(least), Some(most)) = (least, most)
        && least > most
    {
        let written = min_rtt.and_then(|section| section.get("min_concurrency"));
        let span = written.or(limit.and_then(|section| section.get("max_concurrency_limit"))).map(|node| node.span);
        let message = format!("`min_concurrency` ({least}) is higher than `max_concurrency_limit` ({most})");
        problems.push(Diagnostic::error(span, message).help(format!("set `min_concurrency` to {most} or less")));
    }
    let Some(Value::Map(entries)) = min_rtt.map(|node| &node.value) else { return };
    if entries.iter().any(|(key, _)| &*key.name == "fixed_value") {
        for (key, _) in entries.iter().filter(|(key, _)| ["interval", "request_count", "jitter"].contains(&&*key.name))
        {
            let message = format!("`{}` has no effect with `fixed_value`: nothing is measured", key.name);
            problems.push(Diagnostic::error(key.span, message).help("remove one of them".to_owned()));
        }
    }
}
