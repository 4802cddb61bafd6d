//! Checks of a listener's `overload` that a JSON Schema cannot express: bounds that are missing or too small, and paths.

use super::{
    diagnostic::Diagnostic,
    explain::clip,
    node::Node,
    units::{ByteSize, Duration},
};

/// The least lag that can be measured: timers have a precision of a millisecond.
const LEAST_LAG: Duration = Duration(std::time::Duration::from_millis(5));

/// Checks the section of one listener.
pub(super) fn check(listener: &Node, problems: &mut Vec<Diagnostic>) {
    let Some((key, section)) = listener.entry("overload") else { return };
    if ["max_lag", "max_memory", "max_memory_percent"].iter().all(|bound| section.get(bound).is_none()) {
        let help =
            "set `max_lag`, `max_memory` or `max_memory_percent`, such as `overload: {max_lag: 50ms}`".to_owned();
        problems.push(Diagnostic::error(key.span, "`overload` has no bound, so nothing would be shed").help(help));
    }
    if let Some(node) = section.get("max_lag")
        && node.as_str().and_then(|text| text.parse::<Duration>().ok()).is_some_and(|lag| lag.0 < LEAST_LAG.0)
    {
        let message = "`max_lag` is too short to be told from the imprecision of timers";
        problems.push(Diagnostic::error(node.span, message).help(format!("it must be {LEAST_LAG} or longer")));
    }
    if let Some(node) = section.get("max_memory")
        && serde_json::from_value::<ByteSize>(node.to_json()).is_ok_and(|size| size.0 == 0)
    {
        let help = "write a size such as 1GiB, or leave it out".to_owned();
        problems.push(Diagnostic::error(node.span, "`max_memory` must be more than 0").help(help));
    }
    let Some((key, paths)) = section.entry("exempt_paths") else { return };
    if listener.get("protocol").and_then(Node::as_str) == Some("tcp") {
        let message = "`exempt_paths` has no effect with `protocol: tcp`: TCP connections have no paths";
        return problems.push(Diagnostic::error(key.span, message).help("remove it".to_owned()));
    }
    for node in paths.items() {
        let Some(path) = node.as_str().filter(|path| !path.starts_with('/') || path.contains(['?', '#'])) else {
            continue;
        };
        let message = format!("`{}` is not a path", clip(path));
        let help = "write one that begins with `/`, without a query, such as /healthz".to_owned();
        problems.push(Diagnostic::error(node.span, message).help(help));
    }
}
