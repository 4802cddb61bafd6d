//! Checks of the workload certificate sections that a schema cannot express.

use super::{diagnostic::Diagnostic, explain::clip, model::Config, node::Node, source::Source, units::Duration};

/// Reports lifetimes under one second: certificates store their times in whole seconds (RFC 5280, section 4.1.2.5).
pub(super) fn check(root: &Node, problems: &mut Vec<Diagnostic>) {
    let max = root.get("admin").and_then(|admin| admin.get("ca")).and_then(|ca| ca.get("max_ttl"));
    let own = root.get("workload").and_then(|workload| workload.get("ttl"));
    for node in max.into_iter().chain(own) {
        let life = node.as_str().and_then(|text| text.parse::<Duration>().ok());
        if life.is_some_and(|life| life < Duration::secs(1)) {
            let message = format!("`{}` is too short for a certificate", clip(node.as_str().unwrap_or_default()));
            problems.push(Diagnostic::error(node.span, message).help("the lifetime must be at least `1s`".to_owned()));
        }
    }
}

/// Warns about settings that have no effect.
pub(super) fn warn(source: &Source, config: &Config, warnings: &mut Vec<Diagnostic>) {
    if config.admin.ca.is_some() && !config.admin.enabled {
        let message = "`ca` has no effect: the admin listener is disabled";
        warnings.push(Diagnostic::warning(source.locate("/admin/ca", "").span, message));
    }
}
