//! What people write who know other proxies, or who guess, and what is meant by it here. Asked before names are compared:
//! `cert` is nearer to `crl` than to `certificates`.

/// The section (as the schema calls it; empty for the whole file), what was written there, and what to do about it. What
/// was written is a field, a word in place of one of the words that are allowed, or the type of a value.
const MEANT: [(&str, &[&str], &str); 38] = [
    ("", &["static_resources"], "`listeners`, `filters` and `clusters` stand at the top of the file"),
    ("", &["upstreams", "upstream", "backends", "services"], "did you mean `clusters`?"),
    ("", &["frontends", "entrypoints"], "did you mean `listeners`?"),
    (
        "",
        &["server", "servers"],
        "who accepts requests is one of `listeners`; who answers them is an endpoint of one of `clusters`",
    ),
    ("", &["plugins", "middlewares"], "did you mean `filters`?"),
    ("", &["routes"], "routes are the configuration of the filter `builtin:router`"),
    ("Listener", &["port"], "the port is a part of `address`, such as 0.0.0.0:8080"),
    ("Listener", &["bind", "listen"], "did you mean `address`?"),
    ("Listener", &["filters", "filter_chains"], "did you mean `chain`?"),
    ("Listener", &["upstream"], "did you mean `cluster`?"),
    (
        "Listener",
        &["routes"],
        "routes are the configuration of the filter `builtin:router`, whose name stands in `chain`",
    ),
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
    ("Protocol", &["grpc"], "gRPC is spoken over HTTP/2: write `http` or `http2`"),
    ("ClusterProtocol", &["https", "tls"], "for HTTPS, write `protocol: h1` (or `h2`, `auto`) and add `tls: {}`"),
    ("ClusterProtocol", &["http"], "HTTP/1.1 is `h1`, HTTP/2 is `h2`"),
    ("ClusterProtocol", &["http1"], "did you mean `h1`?"),
    ("ClusterProtocol", &["http2"], "did you mean `h2`?"),
    ("ClusterProtocol", &["h2c"], "HTTP/2 without TLS is `h2` without the section `tls`"),
    ("ClusterProtocol", &["grpc"], "gRPC is spoken over HTTP/2: write `h2`"),
    ("ClusterProtocol", &["tcp"], "leave it out: TCP connections are passed on as they are"),
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
    ("ClusterTls", &["verify", "insecure_skip_verify"], "certificates are verified unless it says `insecure: true`"),
    (
        "Cluster",
        &["servers", "targets", "hosts", "address", "addresses", "load_assignment"],
        "write `endpoints: [ADDRESS]`",
    ),
    ("Cluster", &["lb_policy"], "did you mean `balancer`?"),
    ("Retry", &["integer", "number"], "for so many retries, write `retry: {attempts: N}`"),
    ("HealthCheck", &["string"], "for a path, write `health_check: {check: {http: {path: PATH}}}`"),
    ("AccessLog", &["boolean"], "write `access_log: stdout`; for no log, leave it out"),
];

/// What is meant by something in a section.
pub(super) fn meant(section: &str, written: &str) -> Option<String> {
    let row = MEANT.iter().find(|(place, words, _)| *place == section && words.contains(&written));
    row.map(|(_, _, help)| (*help).to_owned())
}

/// What is meant by a field where those that are known tell what is written there: in filters' configurations, whose sections
/// have no names.
pub(super) fn meant_beside(written: &str, known: &[&str]) -> Option<String> {
    let known = |name: &str| known.contains(&name);
    let help = match written {
        // Many tools still write YAML 1.1.
        "true" | "True" if known("on") => {
            "YAML 1.1 takes the key `on` for `true`; whatever has written this file must put it in quotes: `\"on\":`"
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
    fn only_what_is_wrong_is_in_the_table() {
        for (name, words, _) in MEANT {
            let schema = section(name);
            for word in words {
                assert!(schema["properties"].get(word).is_none(), "{name}.{word} is a field");
                assert!(!schema::types(schema).contains(word), "{name} may be a {word}");
            }
        }
    }

    /// So that a renamed field is refused with a name that is accepted.
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
