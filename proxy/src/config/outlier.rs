//! Checks of a cluster's `outlier_detection` that a JSON Schema cannot express: times, and options that have no effect.

use super::{
    diagnostic::Diagnostic,
    node::{Node, Value},
    units::Duration,
};

/// Checks the section of one cluster.
pub(super) fn check(section: &Node, problems: &mut Vec<Diagnostic>) {
    let Value::Map(entries) = &section.value else { return };
    let time = |name: &str| section.get(name).and_then(|node| Some((node, node.as_str()?.parse::<Duration>().ok()?)));
    for name in ["interval", "base_ejection_time"] {
        if let Some((node, _)) = time(name).filter(|(_, time)| time.0.is_zero()) {
            let help = "write a time such as 10s, or leave it out for the default".to_owned();
            problems.push(Diagnostic::error(node.span, format!("`{name}` must be more than 0")).help(help));
        }
    }
    let base = time("base_ejection_time").map_or(Duration::secs(30), |(_, base)| base);
    if let Some((node, most)) = time("max_ejection_time").filter(|(_, most)| most.0 < base.0) {
        let message = format!("`max_ejection_time` ({most}) is shorter than `base_ejection_time` ({base})");
        problems.push(Diagnostic::error(node.span, message).help(format!("it must be {base} or longer")));
    }
    let is_split = section.get("split_external_local_origin_errors").is_some_and(|node| node.to_json() == true);
    for (key, _) in entries.iter().filter(|(key, _)| key.name.contains("local_origin") && !is_split) {
        if &*key.name != "split_external_local_origin_errors" {
            let message = format!("`{}` has no effect without `split_external_local_origin_errors`", key.name);
            let help = "remove it, or set `split_external_local_origin_errors: true`".to_owned();
            problems.push(Diagnostic::error(key.span, message).help(help));
        }
    }
}
