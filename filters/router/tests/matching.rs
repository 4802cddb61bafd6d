//! Which requests a route applies to: each kind of condition, and which of several routes is used.

use router::Router;
use serde_json::{Value, json};
use tollgate_sdk::testing::{RequestBuilder, TestHost};

/// A host with these conditions as routes of one virtual host for all domains.
fn host(matches: &[Value]) -> TestHost<Router> {
    let routes: Vec<_> = matches.iter().map(|m| json!({"match": m, "cluster": "c"})).collect();
    TestHost::new(json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]})).unwrap()
}

/// The number of the route that a request takes.
fn taken(request: RequestBuilder<Router>) -> Option<usize> {
    let outcome = request.send();
    let number = outcome.route().map(|route| route.strip_prefix("v/").unwrap().parse().unwrap());
    if number.is_none() {
        assert_eq!((outcome.status(), outcome.details()), (Some(404), Some("route_not_found")));
        assert_eq!(outcome.flags(), ["NR"]);
    }
    number
}

fn matches_path(path: Value, target: &str) -> bool {
    taken(host(&[json!({"path": path})]).request("GET", target)).is_some()
}

#[test]
fn exact_paths() {
    let exact = |target| matches_path(json!({"exact": "/a/b"}), target);
    assert!(exact("/a/b") && exact("/a/b?c=/d") && exact("/a/b?"));
    assert!(!exact("/a/b/") && !exact("/A/b") && !exact("/a") && !exact("/a/b/c") && !exact("/a%2fb"));
    assert!(matches_path(json!({"exact": "*"}), "*"));
}

#[test]
fn prefixes_are_whole_segments() {
    for prefix in ["/api", "/api/"] {
        let prefix = |target| matches_path(json!({"prefix": prefix}), target);
        assert!(prefix("/api") && prefix("/api/") && prefix("/api/x") && prefix("/api?x") && prefix("/api//"));
        assert!(!prefix("/apix") && !prefix("/ap") && !prefix("/") && !prefix("/x/api") && !prefix("//api"));
    }
    assert!(matches_path(json!({"prefix": "/"}), "/") && matches_path(json!({"prefix": "/"}), "/x/y"));
    assert!(!matches_path(json!({"prefix": "/"}), "*"));
}

/// Paths that a server treats alike are routed and rewritten alike.
#[test]
fn optional_encodings_match_in_both_forms() {
    for path in ["/a@b/c", "/a%40b/c", "/a%40b/c?x=%40"] {
        assert!(matches_path(json!({"prefix": "/a@b"}), path), "{path}");
    }
    assert!(matches_path(json!({"exact": "/a;b"}), "/a%3Bb") && !matches_path(json!({"exact": "/a/b"}), "/a%2Fb"));
    assert!(matches_path(json!({"regex": "/[a-z]:x"}), "/a%3Ax"));
}

#[test]
fn regular_expressions_match_the_whole_path() {
    let regex = |target| matches_path(json!({"regex": r"/users/\d+|/me"}), target);
    assert!(regex("/users/42") && regex("/me") && regex("/users/42?x=y"));
    assert!(!regex("/users/42/x") && !regex("/x/me") && !regex("/users/x"));
    assert!(matches_path(json!({"regex": "(?i)/A"}), "/a"));
    // Whichever alternative comes first: the whole path counts.
    assert!(matches_path(json!({"regex": "/a|/ab"}), "/ab"));
}

#[test]
fn no_condition_matches_everything() {
    let host = host(&[json!({})]);
    assert_eq!(taken(host.request("OPTIONS", "*")), Some(0));
    assert_eq!(taken(host.request("GET", "/x?y").host("")), Some(0));
}

#[test]
fn methods() {
    let host = host(&[json!({"methods": ["GET", "HEAD"]}), json!({"method": "PURGE"})]);
    for (method, route) in [("GET", Some(0)), ("HEAD", Some(0)), ("PURGE", Some(1)), ("POST", None), ("get", None)] {
        assert_eq!(taken(host.request(method, "/")), route, "{method}");
    }
}

/// Whether a header `x` with this value (or none) meets a condition.
fn meets(condition: Value, value: Option<&str>) -> bool {
    let mut condition = condition;
    condition["name"] = "X".into();
    let host = host(&[json!({"headers": [condition]})]);
    let request = host.request("GET", "/");
    taken(match value {
        Some(value) => request.header("x", value),
        None => request,
    })
    .is_some()
}

#[test]
fn header_values() {
    for (condition, right, wrong) in [
        (json!({"exact": "abc"}), "abc", "abcd"),
        (json!({"exact": ""}), "", "a"),
        (json!({"prefix": "ab"}), "abc", "xab"),
        (json!({"suffix": "bc"}), "abc", "bcx"),
        (json!({"regex": "a.c"}), "abc", "xabc"),
    ] {
        assert!(meets(condition.clone(), Some(right)) && !meets(condition.clone(), Some(wrong)), "{condition}");
        assert!(!meets(condition.clone(), None), "{condition}");
        let mut inverted = condition;
        inverted["invert"] = true.into();
        assert!(!meets(inverted.clone(), Some(right)) && meets(inverted.clone(), Some(wrong)), "{inverted}");
        assert!(meets(inverted, None));
    }
}

#[test]
fn header_presence() {
    for (condition, with, without) in [
        (json!({}), true, false),
        (json!({"invert": true}), false, true),
        (json!({"present": true}), true, false),
        (json!({"present": false}), false, true),
        (json!({"present": true, "invert": true}), false, true),
        (json!({"present": false, "invert": true}), true, false),
    ] {
        assert_eq!(meets(condition.clone(), Some("")), with, "{condition}");
        assert_eq!(meets(condition.clone(), None), without, "{condition}");
    }
}

#[test]
fn fields_of_one_name_and_pseudo_headers() {
    let several = host(&[json!({"headers": [{"name": "x", "exact": "a, b"}]})]);
    assert_eq!(taken(several.request("GET", "/").header("x", "a").header("x", "b")), Some(0));
    let pseudo = host(&[
        json!({"headers": [{"name": "Host", "prefix": "a."}]}),
        json!({"headers": [{"name": ":path", "suffix": "?q"}]}),
    ]);
    assert_eq!(taken(pseudo.request("GET", "/").host("a.com")), Some(0));
    assert_eq!(taken(pseudo.request("GET", "/x?q")), Some(1));
}

#[test]
fn all_header_conditions_must_be_met() {
    let host = host(&[json!({"headers": [{"name": "a", "exact": "1"}, {"name": "b", "present": true}]})]);
    assert_eq!(taken(host.request("GET", "/").header("a", "1").header("b", "")), Some(0));
    assert_eq!(taken(host.request("GET", "/").header("a", "1")), None);
    // No value of one request is left for the next.
    assert_eq!(taken(host.request("GET", "/").header("b", "1")), None);
}

#[test]
fn query_parameters() {
    for (condition, right, wrong) in [
        (
            json!({"exact": "1"}),
            vec!["/?q=1", "/?a=2&q=1", "/?q=1&q=2"],
            vec!["/", "/?q=2&q=1", "/?qq=1", "/?q", "/q=1"],
        ),
        (json!({"exact": ""}), vec!["/?q", "/?q="], vec!["/?q=1", "/?"]),
        (json!({"prefix": "ab"}), vec!["/?q=abc"], vec!["/?q=xab", "/"]),
        (json!({"regex": "[a-z]+"}), vec!["/?q=abc"], vec!["/?q=ab1", "/?q="]),
        (json!({}), vec!["/?q"], vec!["/"]),
        (json!({"present": true}), vec!["/?q", "/?q=1", "/?a&q"], vec!["/", "/?a"]),
        (json!({"present": false}), vec!["/", "/?a"], vec!["/?q"]),
        (json!({"exact": "1", "invert": true}), vec!["/", "/?q=2"], vec!["/?q=1"]),
    ] {
        let mut parameter = condition;
        parameter["name"] = "q".into();
        let host = host(&[json!({"query": [parameter]})]);
        right.iter().for_each(|t| assert_eq!(taken(host.request("GET", t)), Some(0), "{parameter} {t}"));
        wrong.iter().for_each(|t| assert_eq!(taken(host.request("GET", t)), None, "{parameter} {t}"));
    }
}

#[test]
fn first_matching_route_wins_whatever_its_kind() {
    let kinds = [
        json!({"path": {"exact": "/a"}}),
        json!({"path": {"prefix": "/a"}}),
        json!({"path": {"prefix": "/"}}),
        json!({"path": {"regex": "/a"}}),
        json!({}),
    ];
    for first in 0..kinds.len() {
        for second in 0..kinds.len() {
            let host = host(&[json!({"method": "PUT"}), kinds[first].clone(), kinds[second].clone()]);
            assert_eq!(taken(host.request("GET", "/a")), Some(1), "{first} {second}");
        }
    }
}

#[test]
fn routes_of_one_path_are_tried_in_order() {
    let path = json!({"exact": "/a"});
    let host = host(&[
        json!({"path": path, "method": "POST", "headers": [{"name": "x", "present": true}]}),
        json!({"path": path, "method": "POST"}),
        json!({"path": path, "headers": [{"name": "x", "exact": "1"}]}),
        json!({"path": path, "query": [{"name": "q", "present": true}]}),
    ]);
    assert_eq!(taken(host.request("POST", "/a").header("x", "1")), Some(0));
    assert_eq!(taken(host.request("POST", "/a")), Some(1));
    assert_eq!(taken(host.request("GET", "/a?q").header("x", "1")), Some(2));
    assert_eq!(taken(host.request("GET", "/a?q").header("x", "2")), Some(3));
    assert_eq!(taken(host.request("GET", "/a")), None);
}

#[test]
fn routes_without_hosts_apply_to_all_and_names_have_defaults() {
    let host =
        TestHost::<Router>::new(json!({"routes": [{"match": {"method": "PUT"}, "cluster": "c"}, {"cluster": "c"}]}));
    let host = host.unwrap();
    let outcome = host.request("GET", "/").host("any.example").send();
    assert_eq!(outcome.route(), Some("*/1"));
    let unnamed = json!({"virtual_hosts": [
        {"domains": ["a.example", "b.example"], "routes": [{"cluster": "c"}, {"name": "n", "cluster": "c"}]},
    ]});
    let host = TestHost::<Router>::new(unnamed).unwrap();
    let outcome = host.request("GET", "/").host("b.example").send();
    assert_eq!(outcome.route(), Some("a.example/0"));
}

#[test]
fn virtual_hosts_are_chosen_by_domain() {
    let host = TestHost::<Router>::new(json!({"virtual_hosts": [
        {"name": "wild", "domains": ["*.example.com"], "routes": [{"cluster": "c"}]},
        {"name": "exact", "domains": ["API.example.com", "example.org:8080"], "routes": [{"name": "all", "cluster": "c"}]},
        {"name": "empty", "domains": ["empty.example.com"]},
    ]}))
    .unwrap();
    for (authority, route) in [
        ("api.example.com", Some("exact/all")),
        ("api.EXAMPLE.com:8080", Some("exact/all")),
        ("www.example.com", Some("wild/0")),
        ("example.com", None),
        ("example.org", None),
        ("example.org:8080", Some("exact/all")),
        // It has no matching route, and no other virtual host is tried.
        ("empty.example.com", None),
    ] {
        let outcome = host.request("GET", "/").host(authority).send();
        assert_eq!(outcome.route(), route, "{authority}");
        assert_eq!(outcome.status(), route.is_none().then_some(404));
        assert_eq!(outcome.details(), route.is_none().then_some("route_not_found"));
    }
}

#[test]
fn default_port_of_the_scheme_is_implied() {
    let host = |domain: &str| {
        let virtual_hosts = json!([{"name": "v", "domains": [domain], "routes": [{"cluster": "c"}]}]);
        TestHost::<Router>::new(json!({"virtual_hosts": virtual_hosts})).unwrap()
    };
    for (scheme, domain, authority, expected) in [
        ("http", "a.example:80", "a.example", true),
        ("http", "a.example:80", "A.example:80", true),
        ("http", "a.example:443", "a.example", false),
        ("https", "a.example:443", "a.example", true),
        ("https", "*.example:443", "a.example", true),
        ("https", "a.example:80", "a.example", false),
        ("http", "a.example", "a.example:80", true),
        ("https", "a.example", "a.example:443", true),
    ] {
        let found = taken(host(domain).request("GET", "/").scheme(scheme).host(authority)).is_some();
        assert_eq!(found, expected, "{scheme} {domain} {authority}");
    }
}
