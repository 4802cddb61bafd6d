//! Tests on whole files: the errors of bad ones, equal results in each format for good ones, and no panics.
//!
//! `tests/bad` holds files and, under the same name with `.txt`, their expected errors. With `UPDATE=1` the tests write
//! the expectations instead of comparing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;

fn dir(name: &str) -> PathBuf {
    Path::new(file!()).with_extension("").join(name)
}

/// `file!()` is relative to the directory that the compiler ran in, not to the tests' working directory.
fn find(name: &str) -> PathBuf {
    let file = dir(name);
    let mut roots = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    roots.find_map(|root| Some(root.join(&file)).filter(|path| path.exists())).unwrap_or(file)
}

fn loader() -> Loader<'static> {
    let env = |name: &str| match name {
        "WORD" => Some("many".to_owned()),
        "WHO" => Some("you".to_owned()),
        _ => None,
    };
    let foreign = ExternalChecks {
        access_log: |format| match format.contains("%nope%") {
            true => Err(("there is no field `nope`".to_owned(), None)),
            false => Ok(()),
        },
        log_level: |level| match level {
            "loud" => Err(("`loud` is not a level".to_owned(), Some("did you mean `cloud`?".to_owned()))),
            _ => Ok(()),
        },
    };
    Loader::default().env(env).foreign(foreign)
}

fn files(name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(find(name)).expect("the directory of test files");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a test file").path()).collect();
    files.retain(|path| Format::of(path).is_some());
    files.sort();
    files
}

fn parse_file(path: &Path) -> Result<Loaded, Diagnostics> {
    let name = format!("conf/{}", path.file_name().unwrap_or_default().display());
    let text = fs::read_to_string(path).expect("a readable test file");
    loader().parse(&name, &text, Format::of(path).expect("a known format"))
}

#[test]
fn bad_files_are_explained() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for path in files("bad") {
        seen += 1;
        let Err(diagnostics) = parse_file(&path) else {
            wrong.push(format!("{}: no error", path.display()));
            continue;
        };
        let actual = diagnostics.render(false);
        let expected = PathBuf::from(format!("{}.txt", path.display()));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&expected, &actual).expect("a writable directory");
        } else if fs::read_to_string(&expected).unwrap_or_default() != actual {
            wrong.push(format!("{}:\n{actual}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "not as expected (UPDATE=1 accepts this):\n\n{}", wrong.join("\n"));
    assert!(seen >= 30, "{seen}");
}

#[test]
fn good_files_mean_the_same_in_each_format() {
    let configs: Vec<_> = files("good")
        .iter()
        .map(|path| {
            let loaded = parse_file(path).unwrap_or_else(|e| panic!("{}", e.render(false)));
            assert!(loaded.warnings.is_empty());
            serde_json::to_value(&loaded.config).expect("a configuration")
        })
        .collect();
    assert_eq!(configs.len(), 3);
    assert_eq!(configs[0], configs[1]);
    assert_eq!(configs[0], configs[2]);
    assert_eq!(configs[0]["workers"], 2);
    assert_eq!(configs[0]["filters"][0]["config"]["rules"][0]["price"], "$5 for you");
    // The JSON form can be loaded again.
    assert!(loader().parse("out.json", &configs[0].to_string(), Format::Json).is_ok());
}

const MINIMAL: &str = "listeners: [{name: web, address: '127.0.0.1:8080'}]\n";

#[test]
fn the_hash_covers_values_only() {
    let hash = |text: &str| loader().parse("x.yaml", text, Format::Yaml).unwrap_or_else(|e| panic!("{e}")).hash();
    // { printf '{}' | openssl sha256 -binary; printf '{"name":"web","address":"127.0.0.1:8080"}' | openssl sha256 -binary;
    //   printf '\0\0\0'; } | sha256sum
    assert_eq!(hash(MINIMAL), "de50aa1d8f0f5ab59f88716f3d90f7d91d07168cad9b5ae4ada2def64c1e5302");
    assert_eq!(hash(MINIMAL), hash(&format!("# a comment\n{MINIMAL}\n")));
    assert_ne!(hash(MINIMAL), hash(&format!("{MINIMAL}workers: 3\n")));
    assert_eq!(hash(&format!("{MINIMAL}workers: ${{W:-3}}\n")), hash(&format!("{MINIMAL}workers: 3\n")));
}

#[test]
fn an_authority_on_a_disabled_admin_listener_is_a_warning() {
    let text = "admin:\n  enabled: false\n  ca: {dir: ca}\nlisteners: [{name: a, address: \"127.0.0.1:1\"}]";
    let warnings = loader().parse("x.yaml", text, Format::Yaml).expect("a configuration").warnings;
    assert_eq!(warnings.to_string(), "x.yaml:3:3: warning: `ca` has no effect: the admin listener is disabled");
}

#[test]
fn a_try_longer_than_all_tries_is_a_warning() {
    let text = format!(
        "{MINIMAL}clusters:\n  - name: a\n    request_timeout: 1s\n    retry: {{per_try_timeout: 2s}}\n    \
                        endpoints: [{{address: '127.0.0.1:1'}}]\n"
    );
    let loaded = loader().parse("x.yaml", &text, Format::Yaml).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        loaded.warnings.to_string(),
        "x.yaml:5:30: warning: `per_try_timeout` (2s) is longer than the cluster's `request_timeout` (1s) and has no effect"
    );
    assert!(!loaded.warnings.has_errors());
}

/// This includes the default of `response_head_timeout`.
#[test]
fn a_per_try_timeout_above_the_head_timeout_is_a_warning() {
    let warnings = |times: &str| {
        let text = format!(
            "{MINIMAL}clusters:\n  - {{name: a, {times}, retry: {{per_try_timeout: 20s}}, endpoints: [{{address: '127.0.0.1:1'}}]}}\n"
        );
        let loaded = loader().parse("x.yaml", &text, Format::Yaml).unwrap_or_else(|e| panic!("{e}"));
        loaded.warnings.to_string()
    };
    let by_default = warnings("balancer: random");
    assert!(by_default.contains("(20s) is longer than the cluster's `response_head_timeout` (15s)"), "{by_default}");
    let least = warnings("response_head_timeout: 5s, request_timeout: 10s");
    assert!(least.contains("`response_head_timeout` (5s)"), "{least}");
    for long_enough in ["response_head_timeout: 30s", "request_timeout: 1m", "request_timeout: 0s"] {
        assert_eq!(warnings(long_enough), "", "{long_enough}");
    }
}

#[test]
fn later_stages_can_point_into_the_file() {
    let path = find("good/full.toml");
    let loaded = parse_file(&path).unwrap_or_else(|e| panic!("{e}"));
    let help = Some("write a prefix".to_owned());
    let error = loaded.source.diagnostic_in("/filters/0/config", "rules[0].match.path", "not a path", help);
    let later = Diagnostics::new(loaded.source.clone(), vec![error]);
    assert_eq!(later.to_string(), "conf/full.toml:34:18: error: not a path (write a prefix)");
    assert_eq!(
        later.to_json(),
        serde_json::json!([{
            "file": "conf/full.toml", "severity": "error", "message": "not a path", "help": "write a prefix",
            "line": 34, "column": 18,
        }])
    );
    assert!(later.render(true).contains('\u{1b}'));
    assert!(!loaded.source.locate("/filters/0/config", "rules[9]").expect("the text").exact);
}

/// Values may be secrets, and messages go to logs and to clients of the admin listener.
#[test]
fn values_of_variables_do_not_appear_in_messages() {
    let loader = || {
        let value = |name: &str| Some(format!("sekrit-{}", name.strip_prefix('S')?));
        Loader::default().env(value).foreign(ExternalChecks {
            access_log: |format| Err((format!("`{format}` is no format"), Some(format!("not `{format}`")))),
            log_level: |_| Ok(()),
        })
    };
    let listener = "listeners: [{name: a, address: '127.0.0.1:1', LISTENER}]\n";
    let clusters = "clusters: [{name: c, endpoints: [{address: '127.0.0.1:2'}]}]\n";
    for text in [
        format!("{}{clusters}", listener.replace("LISTENER", "cluster: '${S1}'")),
        format!("{}{clusters}", listener.replace("LISTENER", "cluster: 'pre${S1}'")),
        format!("{}{clusters}", listener.replace("LISTENER", "chain: ['${S1}', '${S2}']")),
        format!("{}{clusters}", listener.replace("LISTENER", "tls: '${S1}'")),
        format!("{}{clusters}", listener.replace("LISTENER", "access_log: {format: '${S1}'}")),
        format!("{}{}", listener.replace("LISTENER", "cluster: c"), clusters.replace("127.0.0.1:2", "http://${S1}/x")),
        format!("{}{}", listener.replace("LISTENER", "cluster: c"), clusters.replace("name: c", "name: '${S1}'")),
        format!(
            "{}{clusters}filters: [{{name: f, wasm: '${{S1}}/f.wasm'}}]",
            listener.replace("LISTENER", "cluster: c")
        ),
        format!("admin: {{hosts: ['${{S1}}:x']}}\nworkers: ${{S2}}\n{}", listener.replace("LISTENER", "cluster: c")),
    ] {
        let Err(wrong) = loader().parse("x.yaml", &text, Format::Yaml) else { panic!("no error: {text}") };
        for said in [wrong.to_string(), wrong.render(false), wrong.to_json().to_string()] {
            assert!(!said.contains("sekrit") && said.contains("${S1}"), "{said}");
        }
    }
    // The same applies to errors of later stages and of filters.
    let text = format!(
        "{}{}",
        listener.replace("LISTENER", "cluster: c"),
        clusters.replace("name: c", "name: c, tls: {sni: '${S1}'}")
    );
    let loaded = loader().parse("x.yaml", &text, Format::Yaml).unwrap_or_else(|e| panic!("{e}"));
    let error = loaded.source.diagnostic("/clusters/0/tls", "cannot read `/conf/sekrit-1/f.wasm`: sekrit-1", None);
    let said = Diagnostics::new(loaded.source.clone(), vec![error]).to_string();
    assert!(said.ends_with("error: cannot read `/conf/${S1}/f.wasm`: ${S1}"), "{said}");
}

#[test]
fn files_are_read() {
    let dir = std::env::temp_dir().join(format!("tollgate-config-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory");
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, bytes).expect("a file");
        load(&path)
    };
    let error = |result: Result<Loaded, Diagnostics>| match result {
        Ok(_) => panic!("no error"),
        Err(d) => d.to_string().replace(&format!("{}/", dir.display()), ""),
    };
    assert!(file("a.yaml", MINIMAL.as_bytes()).is_ok());
    assert!(file("bom.YML", format!("\u{feff}{MINIMAL}").as_bytes()).is_ok());
    assert!(file("f.wasm.yaml", b"x").is_err());
    let filter = format!("{MINIMAL}filters: [{{name: f, wasm: a.yaml}}]\n");
    assert!(file("relative.yaml", filter.as_bytes()).is_ok());
    assert_eq!(
        error(file("a.conf", b"")),
        "a.conf: error: unknown file format (use the extension .yaml, .yml, .json or .toml)"
    );
    assert_eq!(error(file("latin.yaml", b"a: 1\nb: gr\xfc\xdfe\n")), "latin.yaml:2:6: error: this is not UTF-8");
    assert_eq!(
        error(file("large.json", &vec![b' '; (16 << 20) + 1])),
        "large.json: error: the file is larger than 16 MiB"
    );
    assert!(error(load(&dir.join("no.yaml"))).starts_with("no.yaml: error: cannot read the file: No such file"));
    fs::remove_dir_all(&dir).expect("a directory that can be removed");
}

#[test]
fn there_is_an_end_to_errors() {
    let text = format!("[{}]", "{\"a\": 1},".repeat(500).trim_end_matches(','));
    let text = format!("{{\"listeners\": {text}}}");
    let Err(diagnostics) = parse("x.json", &text, Format::Json) else { panic!("no error") };
    assert_eq!(diagnostics.len(), 100);
    assert!(diagnostics.render(false).ends_with("... and 1400 more\n"), "{}", diagnostics.render(false));
}

/// Truncates every file, and flips bytes in it, at every position. Nothing may panic, and every error must be
/// displayable.
#[test]
fn broken_files_cause_errors_only() {
    let check = |path: &Path, bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let format = Format::of(path).expect("a known format");
        if let Err(diagnostics) = loader().parse("x", &text, format) {
            assert!(diagnostics.has_errors());
            assert!(!diagnostics.render(false).is_empty());
            assert!(!diagnostics.to_string().is_empty());
            assert!(diagnostics.to_json().is_array());
        }
    };
    for path in files("good") {
        let bytes = fs::read(&path).expect("a test file");
        for at in 0..bytes.len() {
            check(&path, &bytes[..at]);
            let mut broken = bytes.clone();
            for replacement in [bytes[at] ^ (1 << (at % 7)), b"{}[]\"':,-#&*!|>%@$\n\t \0"[at % 22]] {
                broken[at] = replacement;
                check(&path, &broken);
            }
        }
    }
}

#[test]
fn a_connection_window_below_the_sum_of_stream_windows_is_a_warning() {
    let defaults = crate::config::model::Http2::default();
    assert!(defaults.connection_window.0 >= defaults.all_stream_windows().0);
    let warnings = |http2: &str| {
        let text = format!(
            "listeners:\n  - name: a\n    address: 127.0.0.1:1\n    http2: {http2}\nclusters:\n  - name: b\n    \
             endpoints: [127.0.0.1:2]\n    http2: {http2}\n"
        );
        loader().parse("x.yaml", &text, Format::Yaml).unwrap_or_else(|e| panic!("{e}")).warnings.to_string()
    };
    assert_eq!(warnings("{}"), "");
    assert_eq!(warnings("{stream_window: 1MiB, connection_window: 100MiB}"), "");
    assert_eq!(warnings("{max_concurrent_streams: 4000000000, connection_window: 2147483647}"), "");
    let said =
        "`max_concurrent_streams` times `stream_window` (25MiB): streams that are not being read can block the others";
    assert_eq!(
        warnings("{connection_window: 16MiB}"),
        format!(
            "x.yaml:4:32: warning: `connection_window` (16MiB) is smaller than {said}\n\
             x.yaml:8:32: warning: `connection_window` (16MiB) is smaller than {said}"
        )
    );
}

#[test]
fn tls_that_has_no_effect_is_a_warning() {
    let text = "\
listeners:
  - name: web
    address: 127.0.0.1:8080
    forwarded_client_cert: set
    tls:
      certificates: [{certificate: a.pem, key: a.key}]
      client_ca: [ca.pem]
clusters:
  - name: two words
    tls: {}
    endpoints: [{address: 127.0.0.1:1}]
  - name: any
    tls: {insecure: true}
    endpoints: [{address: 127.0.0.1:1}]
";
    let loaded = loader().parse("x.yaml", text, Format::Yaml).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        loaded.warnings.to_string(),
        "x.yaml:4:28: warning: clients are not asked for certificates, so the header is always removed\n\
         x.yaml:7:7: warning: `client_ca` has no effect: clients are not asked for certificates\n\
         x.yaml:10:5: warning: the cluster's name is not a valid host name, so endpoints' certificates \
         must be valid for their IP addresses: set `sni` or `sans`\n\
         x.yaml:13:21: warning: certificates are not verified; `ca`, `sans` and `crl` are ignored"
    );
}

/// gRPC servers reject clients that send frequent pings without data, so upstreams are pinged only if configured.
#[test]
fn clients_are_pinged_by_default_and_upstreams_are_not() {
    let text = "
listeners:
  - {name: a, address: 127.0.0.1:1, cluster: c}
  - {name: b, address: 127.0.0.1:2, cluster: d, http2: {ping_interval: 0s}}
clusters:
  - {name: c, protocol: h2, endpoints: [127.0.0.1:3], http2: {max_concurrent_streams: 7}}
  - {name: d, protocol: h2, endpoints: [127.0.0.1:4], http2: {ping_interval: 10m}}
";
    let config = loader().parse("pings.yaml", text, Format::Yaml).expect("a right configuration").config;
    let secs = std::time::Duration::from_secs;
    assert_eq!(config.listeners[0].http2.ping_clients(), Some(secs(30)));
    assert_eq!(config.listeners[1].http2.ping_clients(), None);
    assert_eq!(config.clusters[0].http2.ping_upstreams(), None);
    assert_eq!(config.clusters[1].http2.ping_upstreams(), Some(secs(600)));
}

#[test]
fn useless_settings_are_reported() {
    let cluster = |options: &str| {
        let text = format!("{MINIMAL}clusters: [{{name: a, {options}}}]\n");
        match loader().parse("x.yaml", &text, Format::Yaml) {
            Ok(loaded) => loaded.warnings.to_string(),
            Err(wrong) => wrong.to_string(),
        }
    };
    for (options, said) in [
        ("endpoints: []", "warning: cluster `a` has no endpoints: all requests get 503"),
        ("tls: {}", "warning: cluster `a` has no endpoints: all requests get 503"),
        ("endpoints: [{address: '127.0.0.1:0'}]", "error: an endpoint cannot have port 0"),
        ("endpoints: [{address: '127.0.0.1:1'}], tls: {sans: []}", "error: `sans` must not be empty"),
        (
            "endpoints: [{address: '127.0.0.1:1'}], health_check: {interval: 1s, timeout: 2s, check: {http: {path: /}}}",
            "warning: `timeout` (2s) is longer than `interval` (1s): a check that hangs delays the following ones",
        ),
    ] {
        assert!(cluster(options).contains(said), "{options}: {}", cluster(options));
    }
    assert_eq!(
        cluster(
            "endpoints: [{address: '127.0.0.1:1'}], health_check: {interval: 2s, timeout: 2s, check: {http: {path: /}}}"
        ),
        ""
    );
}

#[test]
fn all_addresses_of_both_families_can_be_listened_on() {
    let listeners = |one: &str, other: &str| {
        let text = format!(
            "listeners: [{{name: a, address: '{one}', cluster: c}}, {{name: b, address: '{other}', cluster: c}}]\nclusters: [{{name: c}}]\n"
        );
        parse("x.yaml", &text, Format::Yaml).map(drop).map_err(|wrong| wrong.to_string())
    };
    assert_eq!(listeners("0.0.0.0:80", "[::]:80"), Ok(()));
    assert_eq!(listeners("[::]:80", "0.0.0.0:80"), Ok(()));
    let wrong = listeners("[::]:80", "[::1]:80").unwrap_err();
    assert!(wrong.contains("overlaps with"), "{wrong}");
    let text = "admin: '0.0.0.0:80'\nlisteners: [{name: a, address: '[::]:80', cluster: c}]\nclusters: [{name: c}]\n";
    assert!(parse("x.yaml", text, Format::Yaml).is_err(), "the admin listener does not share its address");
}
