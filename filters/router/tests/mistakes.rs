//! Configuration errors and their paths.

use router::Router;
use serde_json::{Value, json};
use tollgate_sdk::testing::{MISSING_CLUSTER, TestHost, refuses_blanks};

fn mistakes(config: Value) -> Vec<(String, String)> {
    let error = TestHost::<Router>::new(config.clone()).err().unwrap_or_else(|| panic!("no error in {config}"));
    error.iter().map(|e| (e.path.clone(), e.message.clone())).collect()
}

/// Asserts that a rule has exactly this error; `path` is relative to the rule.
fn wrong(rule: Value, path: &str, message: &str) {
    let found =
        mistakes(json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"cluster": "c"}, rule]}]}));
    let dot = if path.is_empty() { "" } else { "." };
    let expected = (format!("virtual_hosts[0].routes[1]{dot}{path}"), message.to_string());
    assert_eq!(found, [expected], "{rule}");
}

fn wrong_match(matches: Value, path: &str, message: &str) {
    wrong(json!({"match": matches, "cluster": "c"}), &format!("match.{path}"), message);
}

#[test]
fn virtual_hosts() {
    let host = |name: &str, domains: Value| json!({"name": name, "domains": domains});
    let found = mistakes(json!({"virtual_hosts": [
        host("a", json!(["x.com", "*.y.com", "x.com"])),
        host("a", json!([])),
        host("", json!(["X.com", "*x.com", "http://x", "", "*.", "x.com:port", "a.*.com", ".x.com"])),
    ]}));
    let expected = [
        ("virtual_hosts[0].domains[2]", "the domain `x.com` is listed twice"),
        ("virtual_hosts[1].name", "two virtual hosts are named `a`"),
        ("virtual_hosts[1].domains", "a virtual host needs a domain; write `*` for all hosts"),
        ("virtual_hosts[2].name", "is empty"),
        ("virtual_hosts[2].domains[0]", "the domain `X.com` is listed twice"),
        ("virtual_hosts[2].domains[1]", "`*x.com` is not a domain; write `example.com`, `*.example.com` or `*`"),
        ("virtual_hosts[2].domains[2]", "`http://x` is not a domain; write `example.com`, `*.example.com` or `*`"),
        ("virtual_hosts[2].domains[3]", "`` is not a domain; write `example.com`, `*.example.com` or `*`"),
        ("virtual_hosts[2].domains[4]", "`*.` is not a domain; write `example.com`, `*.example.com` or `*`"),
        ("virtual_hosts[2].domains[5]", "`x.com:port` is not a domain; write `example.com`, `*.example.com` or `*`"),
        ("virtual_hosts[2].domains[6]", "`a.*.com` is not a domain; write `example.com`, `*.example.com` or `*`"),
        ("virtual_hosts[2].domains[7]", "`.x.com` is not a domain; write `example.com`, `*.example.com` or `*`"),
    ];
    assert_eq!(found, expected.map(|(p, m)| (p.to_string(), m.to_string())));
    let found = mistakes(json!({"virtual_hosts": [host("a", json!(["x.com.", "y.com:08443", "*.z.com.", "*:080"]))]}));
    let messages: Vec<_> = found.iter().map(|(_, message)| message.as_str()).collect();
    let expected = [
        "`x.com.` matches no host: write `x.com`",
        "`y.com:08443` matches no host: write `y.com:8443`",
        "`.z.com.` matches no host: write `.z.com`",
        "`*:080`: write the port without leading zeros",
    ];
    assert_eq!(messages, expected);
    assert_eq!(mistakes(json!({"virtual_hosts": []})), [("virtual_hosts".to_string(), "is empty".to_string())]);
    // The default name is the first domain, and must not be another's either.
    let unnamed = json!({"domains": ["z.com"]});
    assert_eq!(
        mistakes(json!({"virtual_hosts": [host("z.com", json!(["a.com"])), unnamed]})),
        [("virtual_hosts[1].name".to_string(), "two virtual hosts are named `z.com`".to_string())]
    );
}

#[test]
fn routes_without_virtual_hosts() {
    let neither = "give `routes`, or `virtual_hosts` if they differ by host";
    assert_eq!(mistakes(json!({})), [(String::new(), neither.to_string())]);
    let both = "give only one of `virtual_hosts`, `routes`";
    assert_eq!(mistakes(json!({"virtual_hosts": [], "routes": []})), [(String::new(), both.to_string())]);
    let found = mistakes(json!({"routes": [{"cluster": "c"}, {"cluster": "c", "timeout": "soon"}]}));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, "routes[1].timeout");
}

#[test]
fn the_shape_of_the_configuration() {
    // The JSON reader stops at the first of these, so each is tested alone.
    let found = mistakes(json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"clutser": "c"}]}]}));
    assert_eq!(found[0].0, "virtual_hosts[0].routes[0].clutser");
    assert!(found[0].1.starts_with("unknown field `clutser`"), "{found:?}");
    let found = mistakes(
        json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"redirect": {"port": 70000}}]}]}),
    );
    assert_eq!(found[0].0, "virtual_hosts[0].routes[0].redirect.port");
    let found =
        mistakes(json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"method": 1}}]}]}));
    assert_eq!(found[0].1, "expected a method or a list of methods");
}

#[test]
fn actions() {
    wrong(json!({}), "", "give one of `cluster`, `split`, `redirect`, `respond`");
    let two = json!({"cluster": "c", "redirect": {"port": 1}});
    wrong(two, "", "give only one of `cluster`, `redirect`");
    let three = json!({"cluster": "c", "split": {"clusters": []}, "respond": {"status": 200}});
    wrong(three, "", "give only one of `cluster`, `split`, `respond`");
    wrong(json!({"cluster": MISSING_CLUSTER}), "cluster", "there is no cluster `missing`");
    let respond = json!({"respond": {"status": 200}, "timeout": "1s"});
    wrong(respond, "timeout", "has no effect with `respond`, only with `cluster`, `split`");
    let respond = json!({"respond": {"status": 200}, "filters": {"authz": "off"}});
    wrong(respond, "filters", "has no effect with `respond`, only with `cluster`, `split`");
    let respond = json!({"respond": {"status": 200}, "metadata_match": {"version": "v2"}});
    wrong(respond, "metadata_match", "has no effect with `respond`, only with `cluster`, `split`");
    let list = json!({"cluster": "c", "metadata_match": {"version": ["v2"]}});
    wrong(list, "metadata_match.version", "expected a text, a number or a boolean");
}

#[test]
fn filters_and_variants() {
    let filters = |filters: Value| json!({"cluster": "c", "filters": filters});
    wrong(filters(json!({"missing": "strict"})), "filters.missing", "there is no filter `missing`");
    wrong(filters(json!({"limits": "missing"})), "filters.limits", "filter `limits` has no variant `missing`");
    let both = mistakes(json!({"routes": [filters(json!({"missing": "off", "limits": "missing", "authz": "off"}))]}));
    let paths: Vec<_> = both.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["routes[0].filters.limits", "routes[0].filters.missing"]);
}

#[test]
fn splits() {
    wrong(json!({"split": {"clusters": []}}), "split.clusters", "is empty");
    wrong(json!({"split": {"clusters": [{"cluster": "c", "weight": 0}]}}), "split.clusters", "all weights are 0");
    let unknown = json!({"split": {"clusters": [{"cluster": "c"}, {"cluster": "missing"}]}});
    wrong(unknown, "split.clusters[1].cluster", "there is no cluster `missing`");
    let split = |sticky| json!({"split": {"clusters": [{"cluster": "c"}], "sticky": sticky}});
    wrong(split(json!({})), "split.sticky", "give one of `header`, `cookie`, `query`, `source`, `path`");
    wrong(split(json!({"header": "a", "path": true})), "split.sticky", "give only one of `header`, `path`");
    wrong(split(json!({"source": false})), "split.sticky.source", "can only be `true`; leave it out otherwise");
    wrong(split(json!({"cookie": "a b"})), "split.sticky.cookie", "`a b` is not a cookie's name");
    let key = |key: Value| json!({"cluster": "c", "hash_key": key});
    wrong(key(json!({"header": ""})), "hash_key.header", "`` is not a valid header name");
    wrong(key(json!([])), "hash_key", "is empty");
    wrong(key(json!({"query": ""})), "hash_key.query", "is empty");
    wrong(key(json!([{"query": "a"}, {"cookie": "a b"}])), "hash_key[1].cookie", "`a b` is not a cookie's name");
    let useless = "has no effect: the part before always has a value";
    wrong(key(json!([{"source": true}, {"path": true}])), "hash_key[1]", useless);
    let cookie = |more: Value| {
        let mut cookie = json!({"name": "c", "ttl": "1h"});
        cookie.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"cookie": cookie})
    };
    wrong(key(json!([cookie(json!({})), {"header": "a"}])), "hash_key[1]", useless);
    wrong(key(cookie(json!({"path": "a"}))), "hash_key.cookie.path", "`a` is not a cookie's path");
    wrong(key(cookie(json!({"path": "/;a"}))), "hash_key.cookie.path", "`/;a` is not a cookie's path");
    wrong(key(cookie(json!({"same_site": "none"}))), "hash_key.cookie.same_site", "`none` needs `secure: true`");
    let same_site = cookie(json!({"same_site": "Lax"}));
    wrong(key(same_site), "hash_key.cookie.same_site", "`Lax` is not `strict`, `lax` or `none`");
    let ttl = json!({"cookie": {"name": "c", "ttl": "1"}});
    wrong(
        key(ttl),
        "hash_key.cookie.ttl",
        "`1` is not a time; write a number with a unit (us, ms, s, m, h), such as 250ms",
    );
}

#[test]
fn redirects() {
    let redirect = |config: Value| json!({"redirect": config});
    let nowhere = "redirects to the request's own URL; give `scheme`, `host`, `port`, `path` or `prefix_rewrite`";
    wrong(redirect(json!({})), "redirect", nowhere);
    let status = redirect(json!({"port": 1, "status": 304}));
    wrong(status, "redirect.status", "must be 301, 302, 303, 307 or 308, not 304");
    wrong(redirect(json!({"scheme": "ftp"})), "redirect.scheme", "`ftp` is not `http` or `https`");
    let host = redirect(json!({"host": "a:1"}));
    wrong(host, "redirect.host", "`a:1` is not a host name (set the port with `port`)");
    wrong(redirect(json!({"port": 0})), "redirect.port", "must be 1 to 65535");
    for path in ["x", "/a b", "/a\tb"] {
        wrong(redirect(json!({"path": path})), "redirect.path", "a path begins with `/`, and has no spaces");
    }
    let both = redirect(json!({"path": "/", "prefix_rewrite": "/"}));
    wrong(both, "redirect", "give only one of `path`, `prefix_rewrite`");
    let needs = "needs `match.path.exact` or `match.path.prefix`, which it replaces";
    wrong(redirect(json!({"prefix_rewrite": "/"})), "redirect.prefix_rewrite", needs);
    let location = json!({"redirect": {"port": 1}, "response_headers": {"remove": ["Location"]}});
    wrong(location, "response_headers", "must not change `location`, which the redirect sets");
}

#[test]
fn responses() {
    wrong(json!({"respond": {"status": 199}}), "respond.status", "a status is 200 to 599, not 199");
    let name = json!({"respond": {"status": 200, "headers": {"a b": "c"}}});
    wrong(name, "respond.headers.a b", "`a b` is not a valid header name");
    let value = json!({"respond": {"status": 200, "headers": {"a": "b\r\nc: d"}}});
    wrong(value, "respond.headers.a", "a header's value must not have control characters");
}

#[test]
fn paths() {
    wrong_match(json!({"path": {}}), "path", "give one of `exact`, `prefix`, `regex`");
    wrong_match(json!({"path": {"exact": "/", "regex": "/"}}), "path", "give only one of `exact`, `regex`");
    wrong_match(json!({"path": {"exact": "a"}}), "path.exact", "a path begins with `/`: write `/a`");
    wrong_match(json!({"path": {"prefix": ""}}), "path.prefix", "a path begins with `/`: write `/`");
    let query = "`/a?b` has a query, which is not compared; leave it out";
    wrong_match(json!({"path": {"prefix": "/a?b"}}), "path.prefix", query);
    for (wrong, right) in [("/caf%c3%a9", "/caf%C3%A9"), ("/café", "/caf%C3%A9"), ("/a//b", "/a/b"), ("/a/../b", "/b")]
    {
        let message = format!("`{wrong}` matches no path: write `{right}`");
        wrong_match(json!({"path": {"prefix": wrong}}), "path.prefix", &message);
        wrong_match(json!({"path": {"exact": wrong}}), "path.exact", &message);
    }
    let ascii = "paths are ASCII: percent-encode other characters, as in `%C3%A9`";
    wrong_match(json!({"path": {"regex": "/café.*"}}), "path.regex", ascii);
    let unclosed = "`(a` is not a regular expression: unclosed group";
    wrong_match(json!({"path": {"regex": "(a"}}), "path.regex", unclosed);
    wrong_match(
        json!({"path": {"regex": "a)|(b"}}),
        "path.regex",
        "`a)|(b` is not a regular expression: unopened group",
    );
}

#[test]
fn conditions() {
    wrong_match(json!({"method": "get"}), "methods[0]", "`get` matches no method: write `GET`");
    wrong_match(json!({"methods": ["GET", ""]}), "methods[1]", "`` is not a method; a method is a word such as `GET`");
    // A generator that found no methods must not open the route to all of them.
    wrong_match(json!({"methods": []}), "methods", "an empty list matches no request: leave it out for any method");
    wrong_match(
        json!({"headers": [{"name": "a b", "exact": "c"}]}),
        "headers[0].name",
        "`a b` is not a valid header name",
    );
    let host = "`Example.com` matches no host: write `example.com`";
    wrong_match(json!({"headers": [{"name": "Host", "exact": "Example.com"}]}), "headers[0].exact", host);
    let two = json!([{"name": "a", "suffix": "b", "present": true}]);
    wrong_match(json!({"headers": two}), "headers[0]", "give only one of `suffix`, `present`");
    let regex = "`*` is not a regular expression: repetition operator missing expression";
    wrong_match(json!({"headers": [{"name": "a", "regex": "*"}]}), "headers[0].regex", regex);
    let two = json!([{"name": "a", "exact": "b", "prefix": "c"}]);
    wrong_match(json!({"query": two}), "query[0]", "give only one of `exact`, `prefix`");
    wrong_match(json!({"query": [{"name": "", "present": true}]}), "query[0].name", "is empty");
}

#[test]
fn options() {
    let option = |name: &str, value: Value| json!({"match": {"path": {"prefix": "/a"}}, "cluster": "c", name: value});
    wrong(option("prefix_rewrite", json!("x")), "prefix_rewrite", "a path begins with `/`");
    let query = "must not have spaces, a query or a fragment";
    wrong(option("prefix_rewrite", json!("/x?y")), "prefix_rewrite", query);
    let rewrite =
        |pattern, substitution| option("regex_rewrite", json!({"pattern": pattern, "substitution": substitution}));
    wrong(rewrite("[", ""), "regex_rewrite.pattern", "`[` is not a regular expression: unclosed character class");
    wrong(rewrite("(a)", r"\2"), "regex_rewrite.substitution", "there is no group 2: the pattern has 1");
    let backslash = "after a backslash there must be a digit or another backslash";
    wrong(rewrite("a", r"\x"), "regex_rewrite.substitution", backslash);
    for substitution in ["a b", "a\tb", "a?b", "a#b"] {
        wrong(rewrite("a", substitution), "regex_rewrite.substitution", query);
    }
    wrong(option("host_rewrite", json!("a/b")), "host_rewrite", "`a/b` is not a host");
    let time = "`1 parsec` is not a time; write a number with a unit (us, ms, s, m, h), such as 250ms";
    wrong(option("timeout", json!("1 parsec")), "timeout", time);
    wrong(option("idle_timeout", json!("1 parsec")), "idle_timeout", time);
    wrong(option("retry", json!({"per_try_timeout": "1 parsec"})), "retry.per_try_timeout", time);
    wrong(option("retry", json!({"backoff": "1 parsec"})), "retry.backoff", time);
    wrong(option("retry", json!({"on": []})), "retry.on", "is empty");
    wrong(option("retry", json!({"attempts": 11})), "retry.attempts", "must be 1 to 10, not 11");
    wrong(option("retry", json!({"per_try_idle_timeout": "1 parsec"})), "retry.per_try_idle_timeout", time);
    wrong(option("retry", json!({"max_backoff": "1 parsec"})), "retry.max_backoff", time);
    let shorter = "is shorter than `backoff`, the longest delay before the first retry";
    wrong(option("retry", json!({"max_backoff": "1ms"})), "retry.max_backoff", shorter);
    let status = "a status is 200 to 599, not 199";
    wrong(option("retry", json!({"retriable_status_codes": [503, 199]})), "retry.retriable_status_codes[1]", status);
    let headers = |name: &str| {
        let at = format!("retry.{name}[0]");
        let header = |header: Value| option("retry", json!({name: [header]}));
        wrong(header(json!({"name": ":status"})), &format!("{at}.name"), "`:status` is not a valid header name");
        let regex = "`(` is not a regular expression: unclosed group";
        wrong(header(json!({"name": "a", "regex": "("})), &format!("{at}.regex"), regex);
        let one = "give only one of `exact`, `present`";
        wrong(header(json!({"name": "a", "exact": "1", "present": true})), &at, one);
    };
    headers("retriable_headers");
    headers("retriable_request_headers");
    let limited = |section: Value| option("retry", json!({"rate_limited_backoff": section}));
    wrong(limited(json!({"max": "1 parsec"})), "retry.rate_limited_backoff.max", time);
    let reset = "retry.rate_limited_backoff.reset_headers";
    wrong(limited(json!({"reset_headers": []})), reset, "is empty");
    let name = "`a b` is not a valid header name";
    wrong(limited(json!({"reset_headers": [{"name": "a b"}]})), &format!("{reset}[0].name"), name);
    wrong(option("hedging", json!({"delay": "1 parsec"})), "hedging.delay", time);
    let method = "`get` matches no method: write `GET`";
    wrong(option("hedging", json!({"methods": ["GET", "get"]})), "hedging.methods[1]", method);
    wrong(option("mirror", json!({"cluster": "missing"})), "mirror.cluster", "there is no cluster `missing`");
    let percent = "101 is not a percentage from 0 to 100";
    wrong(option("mirror", json!({"cluster": "c", "percent": 101})), "mirror.percent", percent);
    let host = "use `host_rewrite` to change the host";
    wrong(option("request_headers", json!({"set": {"Host": "x"}})), "request_headers.set.Host", host);
    let framing = "`content-length` is set by the proxy itself";
    wrong(option("response_headers", json!({"remove": ["content-length"]})), "response_headers.remove[0]", framing);
    let both = json!({"match": {"path": {"prefix": "/a"}}, "cluster": "c", "prefix_rewrite": "/",
        "regex_rewrite": {"pattern": "a", "substitution": ""}});
    wrong(both, "", "give only one of `prefix_rewrite`, `regex_rewrite`");
}

#[test]
fn all_errors_are_reported_together() {
    let found = mistakes(json!({"virtual_hosts": [{"name": "v", "domains": [], "routes": [
        {"match": {"path": {"regex": "("}, "method": "get"}, "cluster": "missing", "timeout": "x", "retry": {"attempts": 99}},
        {},
    ]}]}));
    let paths: Vec<_> = found.iter().map(|(path, _)| path.strip_prefix("virtual_hosts[0].").unwrap()).collect();
    let expected =
        ["domains", "match.methods[0]", "match.path.regex", "cluster", "timeout", "retry.attempts", "routes[1]"];
    let expected =
        expected.map(|p| if p.contains("routes") || p == "domains" { p.into() } else { format!("routes[0].{p}") });
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    assert_eq!(sorted(paths.into_iter().map(String::from).collect()), sorted(expected.to_vec()));
}

/// Blanks each value of a configuration in turn: a blank must not be treated like an omitted value.
#[test]
fn blanks() {
    let config = json!({"virtual_hosts": [{
        "name": "v",
        "domains": ["*"],
        "routes": [
            {
                "name": "split",
                "match": {
                    "path": {"prefix": "/a"},
                    "methods": ["GET"],
                    "headers": [{"name": "x-a", "exact": "1", "invert": true}, {"name": "x-b", "present": true}],
                    "query": [{"name": "q", "prefix": "1"}],
                },
                "split": {"clusters": [{"cluster": "c", "weight": 1}], "sticky": {"cookie": "c"}},
                "prefix_rewrite": "/b",
                "host_rewrite": "h",
                "request_headers": {"set": {"a": "1"}, "add": {"b": "1"}, "remove": ["c"]},
                "response_headers": {"remove": ["c"]},
                "timeout": "1s",
                "idle_timeout": "1s",
                "retry": {"on": ["reset"], "attempts": 1, "per_try_timeout": "1s", "backoff": "1s"},
                "mirror": {"cluster": "c", "percent": 1.0},
                "hash_key": {"source": true},
            },
            {"match": {"path": {"exact": "/b"}}, "redirect": {"host": "h", "scheme": "https", "port": 1, "path": "/c"}},
            {"match": {"path": {"regex": "/c"}, "methods": "PUT"}, "respond": {"status": 200, "body": "b", "headers": {"a": "b"}}},
            {"match": {"query": [{"name": "q", "present": false}]}, "cluster": "c", "regex_rewrite": {"pattern": "a", "substitution": "b"}},
        ],
    }]});
    refuses_blanks::<Router>(&config);
}

/// It would match only paths that contain a star.
#[test]
fn a_prefix_has_no_wildcard() {
    wrong_match(json!({"path": {"prefix": "/a*"}}), "path.prefix", "a prefix has no wildcard: write `/a`");
    wrong_match(json!({"path": {"prefix": "/a/*"}}), "path.prefix", "a prefix has no wildcard: write `/a/`");
    wrong_match(json!({"path": {"prefix": "*"}}), "path.prefix", "a prefix has no wildcard: write `/`");
}
