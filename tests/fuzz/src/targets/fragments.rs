//! Documents of sources.

use std::path::Path;

use tollgate::config::{Format, Loader};

use crate::{Outcome, Target};

/// A resource is accepted or refused, each refusal with a reason. A cluster that is accepted is also valid in a file.
fn check(input: &[u8]) -> Outcome {
    let Ok(text) = str::from_utf8(input) else { return Outcome::of(()) };
    let mut outcomes = Vec::new();
    for format in [Format::Yaml, Format::Json] {
        match LOADER.with(|loader| loader.fragment("fuzz", Path::new("/"), text.to_owned(), format)) {
            Ok(fragment) => {
                for refused in &fragment.refused {
                    assert!(!refused.name.is_empty() && !refused.errors.is_empty(), "{refused:?}");
                }
                for cluster in &fragment.clusters {
                    // The source that it names would have to be in the file.
                    if cluster.value.discovery.is_none() {
                        in_a_file(&serde_json::to_value(&*cluster.value).unwrap());
                    }
                }
                let (parts, endpoints) = (fragment.parts.len(), fragment.endpoints.len());
                outcomes.push(Some((
                    parts,
                    fragment.clusters.len(),
                    endpoints,
                    fragment.removed.len(),
                    fragment.refused.len(),
                )));
            }
            Err(errors) => {
                assert!(errors.has_errors());
                assert!(!errors.render(false).is_empty() && !errors.to_json().is_null());
                outcomes.push(None);
            }
        }
    }
    Outcome::of((outcomes, text.len().min(800) / 16))
}

fn in_a_file(cluster: &serde_json::Value) {
    let listener = serde_json::json!({"name": "l", "address": "127.0.0.1:80"});
    let file = serde_json::json!({"listeners": [listener], "clusters": [cluster]}).to_string();
    LOADER
        .with(|loader| loader.parse("file", &file, Format::Json))
        .unwrap_or_else(|errors| panic!("{errors}\nin {file}"));
}

thread_local! {
    static LOADER: Loader<'static> = Loader::default().env(|name| (name == "SET").then(|| "8080".to_owned()));
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"clusters:\n  - name: b\n    endpoints: [127.0.0.1:81]\n",
        b"clusters: {b: {endpoints: [{address: 127.0.0.1:81, weight: 2, priority: 1, hostname: a.test}]}}\n",
        b"endpoints:\n  - name: b\n    endpoints: [127.0.0.1:81]\n",
        b"listeners:\n  - {name: a, address: 127.0.0.1:80, chain: [f], cluster: b}\n",
        b"filters:\n  - {name: f, wasm: builtin:authz, config: {}}\n",
        b"removed: {clusters: [b], endpoints: [b], listeners: [a], filters: [f]}\n",
        b"{\"clusters\":[{\"name\":\"b\",\"endpoints\":[\"127.0.0.1:81\"]}]}",
        b"{\"removed\":{\"clusters\":[\"b\"]}}",
        b"discovery: {source: s, service: b}\n",
        b"health_check: {path: /}\n",
        b"${SET}",
        b"&a ",
        b"*a",
        b"<<: ",
        b"- ",
        b": ",
        b"\n  ",
        b"10s",
        b"1MiB",
    ],
    max_len: 2000,
    check,
};
