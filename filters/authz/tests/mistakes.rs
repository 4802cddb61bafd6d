//! Configuration errors: all reported together, each with its path and a correction.

use authz::Authz;
use serde_json::{Value, json};
use tollgate_sdk::{
    ConfigError,
    testing::{TestHost, refuses_blanks},
};

fn mistakes(config: Value) -> Vec<String> {
    let error = TestHost::<Authz>::new(config).map(|_| ()).unwrap_err();
    let text =
        |e: &ConfigError| if e.path.is_empty() { e.message.clone() } else { format!("{}: {}", e.path, e.message) };
    error.iter().map(text).collect()
}

fn rule(rule: Value) -> Vec<String> {
    let policies = json!([{"name": "p", "rules": [rule]}]);
    mistakes(json!({"policies": policies, "principal_header": "x-peer"}))
}

#[test]
fn of_form() {
    let table = [
        (json!({}), "missing field `policies`"),
        (json!({"policies": [], "mode": 1}), "mode: unknown field `mode`, expected one of"),
        (json!({"policies": [{}]}), "policies[0]: missing field `name`"),
        (json!({"policies": [{"name": "p", "action": "audit"}]}), "policies[0].action: unknown variant `audit`"),
        (
            json!({"policies": [{"name": "p", "rules": [{"form": []}]}]}),
            "policies[0].rules[0].form: unknown field `form`",
        ),
        (
            json!({"policies": [{"name": "p", "rules": [{"from": [{"source": {"namespaces": ["x"]}}]}]}]}),
            "policies[0].rules[0].from[0].source.namespaces: unknown field `namespaces`",
        ),
        (
            json!({"policies": [{"name": "p", "rules": [{"to": [{}]}]}]}),
            "policies[0].rules[0].to[0]: missing field `operation`",
        ),
        (
            json!({"policies": [{"name": "p", "rules": [{"when": [{"values": []}]}]}]}),
            "policies[0].rules[0].when[0]: missing field `key`",
        ),
    ];
    for (config, expected) in table {
        let found = mistakes(config);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?} instead of {expected}");
    }
}

#[test]
fn of_names() {
    let (longest, too_long) = ("p".repeat(128), "p".repeat(129));
    let names = ["", "p", "p", "a\nb", &longest, &too_long].map(|name| json!({"name": name}));
    let found = mistakes(json!({"principal_header": "x y", "policies": names}));
    assert_eq!(
        found,
        [
            "principal_header: `x y` is not a valid header name; a name is a word such as `x-user`",
            "policies[0].name: a name has 1 to 128 bytes and no control characters",
            "policies[2].name: another policy is called `p` too",
            "policies[3].name: a name has 1 to 128 bytes and no control characters",
            "policies[5].name: a name has 1 to 128 bytes and no control characters",
        ]
    );
}

#[test]
fn of_sources() {
    let found = rule(json!({"from": [
        {"source": {}},
        {"source": {"ip_blocks": ["10.0.0.0/8", "10.0.0.1/8"], "remote_ip_blocks": ["x"]}},
        {"source": {"not_ip_blocks": ["::/200"], "not_remote_ip_blocks": []}},
        {"source": {"principals": ["a*b"], "not_principals": [""]}},
    ]}));
    let at = "policies[0].rules[0].from";
    let example = "write `10.0.0.0/8`, `2001:db8::/32` or a single address";
    assert_eq!(
        found,
        [
            format!("{at}[0].source: is empty: leave `from` out for any source"),
            format!(
                "{at}[1].source.ip_blocks[1]: `10.0.0.1/8` has bits set after its prefix; write `10.0.0.0/8` or `10.0.0.1`"
            ),
            format!("{at}[1].source.remote_ip_blocks[0]: `x` is not a block of addresses; {example}"),
            format!(
                "{at}[2].source.not_ip_blocks[0]: `/200` is not a prefix length for ::, which has 128 bits; {example}"
            ),
            format!(
                "{at}[2].source.not_remote_ip_blocks: an empty list matches nothing: leave it out to match anything"
            ),
            format!("{at}[3].source.principals[0]: in `a*b` a `*` is only allowed as the first or last character"),
            format!("{at}[3].source.not_principals[0]: an empty text never matches: leave it out"),
        ]
    );
}

#[test]
fn of_operations() {
    let found = rule(json!({"from": [], "to": [
        {"operation": {}},
        {"operation": {"methods": ["get", "*"], "not_methods": ["G T"]}},
        {"operation": {"paths": ["a", "/a/{*}", "/a?b", "/*/b"], "not_paths": ["*.x"]}},
        {"operation": {"hosts": ["http://a"], "not_hosts": ["a:b"]}},
    ]}));
    let at = "policies[0].rules[0].to";
    assert_eq!(
        found,
        [
            "policies[0].rules[0].from: an empty list matches nothing: leave it out to match anything".to_string(),
            format!("{at}[0].operation: is empty: leave `to` out for any operation"),
            format!("{at}[1].operation.methods[0]: `get` matches no method: write `GET`"),
            format!("{at}[1].operation.not_methods[0]: `G T` is not a method; a method is a word such as `GET`"),
            format!("{at}[2].operation.paths[0]: a path begins with `/`: write `/a`"),
            format!("{at}[2].operation.paths[1]: in `/a/{{*}}` a `*` is only allowed as the first or last character"),
            format!("{at}[2].operation.paths[2]: `/a?b` has a query, which is not compared; leave it out"),
            format!("{at}[2].operation.paths[3]: in `/*/b` a `*` is only allowed as the first or last character"),
            format!(
                "{at}[3].operation.hosts[0]: `http://a` is not a host; write it as in `example.com`, `*.example.com` or `example.com:80`"
            ),
            format!(
                "{at}[3].operation.not_hosts[0]: `a:b` has no valid port after its colon; write a number, or `*` for any port"
            ),
        ]
    );
    let template = rule(json!({"to": [{"operation": {"paths": ["/a/{id}"]}}]}));
    assert!(template[0].ends_with("templates are not supported; write `/text*` or `*text`"), "{template:?}");
}

#[test]
fn of_conditions() {
    let found = rule(json!({"when": [
        {"key": "source.ip"},
        {"key": "request.auth.claims[iss]", "values": ["x"]},
        {"key": "request.headers[x y]", "values": []},
        {"key": "remote.ip", "not_values": ["x"]},
    ]}));
    let at = "policies[0].rules[0].when";
    assert_eq!(
        found,
        [
            format!("{at}[0]: is empty: give `values` or `not_values`"),
            format!(
                "{at}[1].key: `request.auth.claims[iss]` is not supported here; \
                 write `request.headers[NAME]`, `source.ip`, `remote.ip` or `source.principal`"
            ),
            format!("{at}[2].key: `x y` is not a valid header name; a name is a word such as `x-user`"),
            format!("{at}[2].values: an empty list matches nothing: leave it out to match anything"),
            format!(
                "{at}[3].not_values[0]: `x` is not a block of addresses; \
                 write `10.0.0.0/8`, `2001:db8::/32` or a single address"
            ),
        ]
    );
}

#[test]
fn of_principals_without_a_header_for_them() {
    let found = mistakes(json!({"policies": [{"name": "p", "rules": [
        {"from": [{"source": {"principals": ["a"]}}]},
        {"when": [{"key": "source.principal", "not_values": ["a"]}]},
    ]}]}));
    let expected = ["policies[0].rules[0].from[0].source.principals: ", "policies[0].rules[1].when[0].not_values: "];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, place) in found.iter().zip(expected) {
        let message = found.strip_prefix(place).unwrap_or_else(|| panic!("{found}"));
        // Both alternatives are named.
        assert!(message.contains("set `principal_header` to its name"), "{message}");
        assert!(message.contains("forwarded_client_cert: set") && message.contains("*;URI=spiffe://"), "{message}");
    }
}

/// Blanks each value of a configuration in turn: a blank must not be treated like an omitted value.
#[test]
fn blanks() {
    let config = json!({
        "principal_header": "x-peer",
        "dry_run": false,
        "policies": [{
            "name": "p",
            "action": "allow",
            "dry_run": true,
            "rules": [{
                "from": [{"source": {
                    "ip_blocks": ["10.0.0.0/8"], "not_ip_blocks": ["10.0.0.1"],
                    "remote_ip_blocks": ["::/0"], "not_remote_ip_blocks": ["::1"],
                    "principals": ["a"], "not_principals": ["b"],
                }}],
                "to": [{"operation": {
                    "hosts": ["a.example"], "not_hosts": ["b.example"], "methods": ["GET"], "not_methods": ["PUT"],
                    "paths": ["/a*"], "not_paths": ["/b"],
                }}],
                "when": [{"key": "request.headers[x-a]", "values": ["1"], "not_values": ["2"]}],
            }],
        }],
    });
    refuses_blanks::<Authz>(&config);
}

/// A rule that no request can match would be a hole in a `deny` policy.
#[test]
fn of_patterns_that_nothing_can_match() {
    let found = rule(json!({"to": [{"operation": {
        "paths": ["/caf%c3%a9*", "//x*", "/a#b", "/café", "*/b%2e", "/a%40b", "/x/..;/*", "/ok*", "*.ok"],
        "hosts": ["example.com.", "example.com:08443", "*.example.com", "Example.COM:80"],
        "methods": ["DELETE", "purge*"],
    }}], "when": [
        {"key": "request.headers[:path]", "values": ["/x"]},
        {"key": "request.headers[Host]", "values": ["x"]},
        {"key": "request.headers[:host]", "values": ["x"]},
        {"key": "request.headers[:method]", "values": ["GET"]},
    ]}));
    let (to, when) = ("policies[0].rules[0].to[0].operation", "policies[0].rules[0].when");
    let asks = |list: &str| format!("is not supported here: use `{list}` in `to: [{{operation: …}}]`");
    assert_eq!(
        found,
        [
            format!("{to}.hosts[0]: `example.com.` matches no host: write `example.com`"),
            format!("{to}.hosts[1]: `example.com:08443` matches no host: write `example.com:8443`"),
            format!("{to}.methods[1]: `purge` matches no method: write `PURGE`"),
            format!("{to}.paths[0]: `/caf%c3%a9*` matches no path: write `/caf%C3%A9*`"),
            format!("{to}.paths[1]: `//x*` matches no path: write `/x*`"),
            format!("{to}.paths[2]: `/a#b` has a fragment, which is not compared; leave it out"),
            format!("{to}.paths[3]: `/café` matches no path: write `/caf%C3%A9`"),
            format!("{to}.paths[4]: `*/b%2e` matches no path: write `*/b.`"),
            format!("{to}.paths[5]: `/a%40b` matches no path: write `/a@b`"),
            format!(
                "{to}.paths[6]: `/x/..;/` matches no path: the path has an empty segment or a dot segment with parameters"
            ),
            format!("{when}[0].key: `:path` {}", asks("paths")),
            format!("{when}[1].key: `Host` {}", asks("hosts")),
            format!("{when}[2].key: `:host` is not a request header: write `:authority`"),
            format!("{when}[3].key: `:method` {}", asks("methods")),
        ]
    );
}
