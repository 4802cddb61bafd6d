//! Checks of a cluster's `retry` and `hedging` that a JSON Schema cannot express: conditions on headers, times that contradict each other,
//! options without effect on TCP connections.

use http::HeaderName;
use tollgate_abi::{doc::HeaderMatch, spelling};

use super::{
    Config, HeaderMatcher,
    diagnostic::Diagnostic,
    explain::{clip, list},
    model::{Cluster, Listener, Protocol, Retry},
    node::Node,
    source::Source,
    units::Duration,
};

/// Checks the `retry` of one cluster.
pub(super) fn check(retry: &Node, problems: &mut Vec<Diagnostic>) {
    for name in ["retriable_headers", "retriable_request_headers"] {
        for condition in retry.get(name).map_or(&[][..], Node::items) {
            // Fields of a wrong type are reported elsewhere.
            let Ok(source) = serde_json::from_value::<HeaderMatch>(condition.to_json()) else { continue };
            if let Err(wrong) = HeaderMatcher::try_from(source) {
                let at = wrong.field.and_then(|field| condition.get(field)).unwrap_or(condition);
                problems.push(Diagnostic::error(at.span, wrong.message));
            }
        }
    }
    let headers = retry.get("rate_limited_backoff").and_then(|section| section.get("reset_headers"));
    for header in headers.map_or(&[][..], Node::items) {
        if let Some(node) = header.get("name")
            && let Some(name) = node.as_str()
            && HeaderName::from_bytes(name.as_bytes()).is_err()
        {
            problems.push(Diagnostic::error(node.span, format!("`{}` is not the name of a header", clip(name))));
        }
    }
    let time = |name: &str| Some((retry.get(name)?, retry.get(name)?.as_str()?.parse::<Duration>().ok()?));
    let base = time("backoff").map_or(Duration::millis(25), |(_, base)| base);
    if let Some((node, max)) = time("max_backoff").filter(|(_, max)| *max < base) {
        let message = format!(
            "`max_backoff` ({max}) is shorter than `backoff` ({base}), the longest delay before the first retry"
        );
        problems.push(Diagnostic::error(node.span, message));
    }
}

/// Checks the `hedging` of one cluster.
pub(super) fn check_hedging(hedging: &Node, problems: &mut Vec<Diagnostic>) {
    for node in hedging.get("methods").map_or(&[][..], Node::items) {
        if let Some(name) = node.as_str().filter(|name| !spelling::is_method(name.as_bytes())) {
            let message = format!("`{}` is not a method", clip(name));
            let help = "write a method in upper case, such as GET".to_owned();
            problems.push(Diagnostic::error(node.span, message).help(help));
        }
    }
}

/// Warns of options of a cluster's policy that have no effect.
pub(super) fn warn(source: &Source, config: &Config, warnings: &mut Vec<Diagnostic>) {
    for (i, cluster) in config.clusters.iter().enumerate() {
        let tcp = config.listeners.iter().find(|listener| is_of_tcp(listener, &cluster.name));
        if let Some(listener) = tcp.filter(|_| cluster.hedging.is_some()) {
            let message = format!("`hedging` has no effect on the TCP connections of listener `{}`", listener.name);
            let pointer = format!("/clusters/{i}/hedging");
            warnings.push(Diagnostic::warning(source.locate(&pointer, "").span, message));
        }
        let Some(retry) = &cluster.retry else { continue };
        let mut warn = |field: &str, message: String| {
            let pointer = format!("/clusters/{i}/retry/{field}");
            warnings.push(Diagnostic::warning(source.locate(&pointer, "").span, message));
        };
        for (name, time) in
            [("per_try_timeout", retry.per_try_timeout), ("per_try_idle_timeout", retry.per_try_idle_timeout)]
        {
            if let (Some(time), Some((other, least))) = (time, least_bound(cluster))
                && time.0 > least
            {
                let least = Duration(least);
                warn(
                    name,
                    format!("`{name}` ({time}) is longer than the cluster's `{other}` ({least}) and has no effect"),
                );
            }
        }
        let options = http_only(retry);
        if let Some(listener) = tcp
            && let Some(first) = options.first()
        {
            let (names, has) = (list(&options), if options.len() > 1 { "have" } else { "has" });
            warn(first, format!("{names} {has} no effect on the TCP connections of listener `{}`", listener.name));
        }
    }
}

/// The shortest timeout of a cluster's responses.
fn least_bound(cluster: &Cluster) -> Option<(&'static str, std::time::Duration)> {
    let whole = cluster.request_timeout.and_then(|time| time.bound());
    let bounds = [("response_head_timeout", cluster.head_timeout()), ("request_timeout", whole)];
    bounds.into_iter().filter_map(|(name, time)| Some((name, time?))).min_by_key(|(_, time)| *time)
}

/// The options of a policy that only requests can use: of a TCP connection, only connecting is retried.
fn http_only(retry: &Retry) -> Vec<&'static str> {
    let given = [
        ("retriable_status_codes", !retry.retriable_status_codes.is_empty()),
        ("retriable_headers", !retry.retriable_headers.is_empty()),
        ("retriable_request_headers", !retry.retriable_request_headers.is_empty()),
        ("per_try_timeout", retry.per_try_timeout.is_some()),
        ("per_try_idle_timeout", retry.per_try_idle_timeout.is_some()),
        ("rate_limited_backoff", retry.rate_limited_backoff.is_some()),
    ];
    given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
}

/// Whether a listener forwards TCP connections, and nothing else, to a cluster.
pub(super) fn is_of_tcp(listener: &Listener, cluster: &str) -> bool {
    let named = listener.cluster.iter().chain(listener.tcp.sni.iter().map(|route| &route.cluster));
    let mut named = named.chain(listener.tcp.clusters.iter().map(|share| &share.cluster));
    listener.protocol == Protocol::Tcp && named.any(|name| name == cluster)
}
