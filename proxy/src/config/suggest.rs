//! Suggestions for names that users of other proxies know, or guess. They take precedence over the comparison of names:
//! `cert` is closer to `crl` than to `certificates`.

/// The section (the schema's name; empty for the root), what was written there, and the advice. What was written is a
/// field, a variant, or the type of a value.
const MEANT: [(&str, &[&str], &str); 54] = [
    ("", &["static_resources"], "`listeners`, `filters` and `clusters` are top-level fields"),
    ("", &["upstreams", "upstream", "backends", "services"], "did you mean `clusters`?"),
    ("", &["frontends", "entrypoints"], "did you mean `listeners`?"),
    (
        "",
        &["server", "servers"],
        "sockets that accept requests are `listeners`; servers that answer them are endpoints of `clusters`",
    ),
    ("", &["plugins", "middlewares"], "did you mean `filters`?"),
    ("", &["routes"], "routes are the configuration of the filter `builtin:router`"),
    ("Listener", &["port"], "the port is a part of `address`, such as 0.0.0.0:8080"),
    ("Listener", &["bind", "listen"], "did you mean `address`?"),
    ("Listener", &["filters", "filter_chains"], "did you mean `chain`?"),
    ("Listener", &["upstream"], "did you mean `cluster`?"),
    ("Listener", &["routes"], "routes are the configuration of the filter `builtin:router`, which `chain` must list"),
    (
        "Listener",
        &["clusters"],
        "a listener has one `cluster`; for several, put a filter such as `builtin:router` into its `chain`",
    ),
    ("Protocol", &["https", "tls"], "for HTTPS, write `protocol: http` and add the section `tls`"),
    ("Protocol", &["h1"], "did you mean `http1`?"),
    ("Protocol", &["h2"], "did you mean `http2`?"),
    ("Protocol", &["h2c"], "HTTP/2 without TLS is `http2` without the section `tls`"),
    ("Protocol", &["h3", "http3", "quic"], "for HTTP/3 too, write `http3: true`"),
    ("Protocol", &["grpc"], "gRPC uses HTTP/2: write `http` or `http2`"),
    ("ClusterProtocol", &["https", "tls"], "for HTTPS, write `protocol: h1` (or `h2`, `auto`) and add `tls: {}`"),
    ("ClusterProtocol", &["http"], "HTTP/1.1 is `h1`, HTTP/2 is `h2`"),
    ("ClusterProtocol", &["http1"], "did you mean `h1`?"),
    ("ClusterProtocol", &["http2"], "did you mean `h2`?"),
    ("ClusterProtocol", &["h2c"], "HTTP/2 without TLS is `h2` without the section `tls`"),
    ("ClusterProtocol", &["grpc"], "gRPC uses HTTP/2: write `h2`"),
    ("ClusterProtocol", &["tcp"], "leave it out: TCP connections are forwarded unchanged"),
    (
        "ListenerTls",
        &["cert", "cert_file", "certificate", "certificate_file", "key", "key_file", "boolean"],
        "write `certificates: [{certificate: FILE, key: FILE}]`",
    ),
    ("ListenerTls", &["ca"], "did you mean `client_ca`?"),
    ("CertificateFiles", &["cert", "cert_file"], "did you mean `certificate`?"),
    ("CertificateFiles", &["private_key"], "did you mean `key`?"),
    ("CertificateFiles", &["string"], "write `{certificate: FILE, key: FILE}`"),
    ("ClusterTls", &["boolean"], "for TLS, write `tls: {}`; for none, leave it out"),
    ("ClusterTls", &["cert", "key"], "write `certificate: {certificate: FILE, key: FILE}`"),
    ("ClusterTls", &["verify", "insecure_skip_verify"], "certificates are verified unless `insecure: true` is set"),
    (
        "Cluster",
        &["servers", "targets", "hosts", "address", "addresses", "load_assignment"],
        "write `endpoints: [ADDRESS]`",
    ),
    ("Cluster", &["lb_policy"], "did you mean `balancer`?"),
    (
        "Cluster",
        &["slow_start", "choice_count", "hash_balance_factor", "table_size", "minimum_ring_size"],
        "this is an option of `balancer`: write `balancer: {policy: NAME, OPTION: VALUE}`",
    ),
    (
        "Cluster",
        &["circuit_breakers", "circuit_breaker"],
        "circuit breakers are `limits`: write `limits: {connections: N, pending: N, requests: N, retries: N}`",
    ),
    ("ClusterLimits", &["max_connections"], "did you mean `connections`?"),
    ("ClusterLimits", &["max_pending_requests", "pending_requests"], "did you mean `pending`?"),
    ("ClusterLimits", &["max_requests"], "did you mean `requests`?"),
    ("ClusterLimits", &["max_retries"], "did you mean `retries`?"),
    ("Cluster", &["outlier_ejection", "outlier", "passive_health_check"], "did you mean `outlier_detection`?"),
    (
        "HealthCheck",
        &["panic_threshold"],
        "this is an option of `balancer`: write `balancer: {policy: NAME, panic_threshold: PERCENT}`",
    ),
    ("Cluster", &["lb_subset_config", "subset"], "did you mean `subsets`?"),
    ("Subsets", &["subset_selectors"], "did you mean `selectors`?"),
    ("SubsetFallbackPolicy", &["ANY_ENDPOINT", "any"], "did you mean `any_endpoint`?"),
    ("SubsetFallbackPolicy", &["NO_FALLBACK", "none"], "did you mean `no_fallback`?"),
    ("Balancer", &["healthy_panic_threshold"], "did you mean `panic_threshold`?"),
    (
        "BalancerPolicy",
        &["rendezvous", "ip_hash", "source"],
        "rendezvous hashing is `hash`; the key is the route's `hash_key`",
    ),
    ("BalancerPolicy", &["leastconn", "least_conn", "least_connections", "least"], "did you mean `least_request`?"),
    ("BalancerPolicy", &["ewma", "p2c", "latency", "least_time"], "did you mean `peak_ewma`?"),
    ("Retry", &["integer", "number"], "for a number of retries, write `retry: {attempts: N}`"),
    ("HealthCheck", &["string"], "for a path, write `health_check: {check: {http: {path: PATH}}}`"),
    ("AccessLog", &["boolean"], "write `access_log: stdout`; for no log, leave it out"),
];

/// Returns the suggestion for a name in a section.
pub(super) fn meant(section: &str, written: &str) -> Option<String> {
    let row = MEANT.iter().find(|(place, words, _)| *place == section && words.contains(&written));
    row.map(|(_, _, help)| (*help).to_owned())
}

/// Returns the suggestion for a field by the fields that are known there. Used for filters' configurations, whose
/// sections have no names.
pub(super) fn meant_beside(written: &str, known: &[&str]) -> Option<String> {
    let known = |name: &str| known.contains(&name);
    let help = match written {
        // Many tools still write YAML 1.1.
        "true" | "True" if known("on") => {
            "YAML 1.1 reads the key `on` as `true`; the program that wrote this file must quote it: `\"on\":`"
        }
        "route" if known("cluster") => "write `cluster: NAME` here, without `route`",
        "weighted_clusters" if known("split") => "did you mean `split`?",
        "direct_response" if known("respond") => "did you mean `respond`?",
        "host" | "hosts" if known("domains") => "did you mean `domains`?",
        "prefix" if known("path") && known("methods") => "write `path: {prefix: PATH}`",
        _ => return None,
    };
    Some(help.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema;

    fn section(name: &str) -> &'static serde_json::Value {
        let schema = match name {
            "" => schema::root(),
            name => &schema::root()["$defs"][name],
        };
        assert!(schema.is_object(), "there is no section {name}");
        schema
    }

    #[test]
    fn valid_names_are_not_in_the_table() {
        for (name, words, _) in MEANT {
            let schema = section(name);
            for word in words {
                assert!(schema["properties"].get(word).is_none(), "{name}.{word} is a field");
                assert!(!schema::types(schema).contains(word), "{name} may be a {word}");
            }
        }
    }

    /// A suggestion after a rename must name a field that exists.
    #[test]
    fn suggested_fields_and_values_exist() {
        for (name, _, help) in MEANT {
            let suggested = help.strip_prefix("did you mean `").and_then(|rest| rest.strip_suffix("`?"));
            let Some(suggested) = suggested else { continue };
            let known = section(name).to_string().contains(&format!("\"{suggested}\""));
            assert!(known, "there is no `{suggested}` in {name}");
        }
    }
}
