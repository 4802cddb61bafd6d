//! Per-route configuration: routes select variants of the filters behind the router, or turn them off.

use serde_json::Value;

use crate::{
    guest,
    harness::{
        Config, Gate, Message, Proxy, Upstream, Wire, answer,
        exchange::{Everywhere, Outcome, Request},
        wait_until, wasm,
    },
};

/// A filter of the standard, which knows nothing of variants. It adds its configuration to the heads and bodies of both
/// messages, and to the access log as the field NAME. A request with `x-boom` makes it trap.
fn marking(name: &str) -> Vec<u8> {
    let message = |message: &str, map: u8| {
        format!(
            r#"(func (export "proxy_on_{message}_headers") (param i32 i32 i32) (result i32)
                (if (call $has (i32.const 0) %"x-boom") (then unreachable))
                (call $config)
                (drop (call $remove_header (i32.const {map}) %"content-length"))
                (drop (call $add_header (i32.const {map}) %"x-{name}" (i32.load (global.get $out)) (i32.load (global.get $out_len))))
                %continue)
            (func (export "proxy_on_{message}_body") (param i32 i32) (param $end i32) (result i32)
                (call $config)
                (if (local.get $end)
                    (then (drop (call $set_buffer %{message}_body (i32.const 1000000) (i32.const 0)
                        (i32.load (global.get $out)) (i32.load (global.get $out_len))))))
                %continue)"#
        )
    };
    guest::filter(&format!(
        r#"(func $config
            (drop (call $get_buffer %configuration (i32.const 0) (i32.const 100) (global.get $out) (global.get $out_len))))
        {}{}
        (func (export "proxy_on_log") (param i32)
            (call $config)
            (drop (call $log_field %"{name}" (i32.load (global.get $out)) (i32.load (global.get $out_len)))))"#,
        message("request", 0),
        message("response", 2)
    ))
}

/// An upstream that returns the request's body.
fn echo() -> Upstream {
    Upstream::replying(|request| answer(200, &[], &request.body))
}

/// Three marking filters with a variant `other` each: `before` the router, and `a` and `b` behind it.
fn around(upstream: &Upstream, routes: &str) -> Config {
    let options = |name: &str| format!("config: '{name};'\nvariants: {{other: '{name}/other;'}}");
    let config = Config::new().cluster("web", &[upstream], "").top("workers: 1");
    let config = config.module("before", &marking("before"), &options("before")).routes(routes);
    config.module("a", &marking("a"), &options("a")).module("b", &marking("b"), &options("b"))
}

/// The marks of the filters on a message.
fn marks(field: impl Fn(&str) -> Option<String>) -> String {
    ["before", "a", "b"].iter().filter_map(|name| field(&format!("x-{name}"))).collect()
}

fn marks_of(message: &Message) -> String {
    marks(|name| message.field(name).map(str::to_owned))
}

/// A proxy whose routes select variants by path.
fn by_path(upstream: &Upstream) -> Everywhere {
    Everywhere::start(around(
        upstream,
        "{match: {path: {exact: /other}}, cluster: web, filters: {a: other}},
         {match: {path: {exact: /off}}, cluster: web, filters: {a: off, b: other}},
         {match: {path: {exact: /before}}, cluster: web, filters: {before: other}},
         {match: {path: {exact: /before-off}}, cluster: web, filters: {before: off}},
         {cluster: web}",
    ))
}

#[test]
fn variants_process_bodies_the_response_and_the_log() {
    let upstream = echo();
    let proxy = by_path(&upstream);
    for (path, all) in [
        ("/", ["before;", "a;", "b;"]),
        ("/other", ["before;", "a/other;", "b;"]),
        ("/off", ["before;", "", "b/other;"]),
        // The filter stands before the router, so the route cannot change it.
        ("/before", ["before;", "a;", "b;"]),
        ("/before-off", ["before;", "a;", "b;"]),
    ] {
        let mut request = Request::get(path);
        (request.method, request.body) = ("POST".to_owned(), Some(vec![b"hello ".to_vec(), b"you ".to_vec()]));
        let (forward, back) = (all.concat(), all.iter().rev().copied().collect::<String>());
        let before = upstream.requests().len();
        proxy.each(&request, |version, outcome| {
            let Outcome::Whole(response) = outcome else { panic!("{version:?} {path}: {outcome:?}") };
            let field = |name: &str| response.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
            assert_eq!(marks(field), forward, "{version:?} {path}");
            assert_eq!(
                String::from_utf8_lossy(&response.body),
                format!("hello you {forward}{back}"),
                "{version:?} {path}"
            );
        });
        for request in &upstream.requests()[before..] {
            assert_eq!(marks_of(request), forward, "{path}");
        }
        let of_path = || proxy.entries().into_iter().filter(|entry| entry["path"] == path).collect::<Vec<_>>();
        wait_until("the lines", || of_path().len() == upstream.requests().len() - before);
        for entry in of_path() {
            let logged = |name: &str| entry["fields"][name].as_str().unwrap_or_default().to_owned();
            assert_eq!(["before", "a", "b"].map(logged), all, "{path}");
        }
    }
}

/// A filter that stands between two routers and drops the route that the first has selected.
const CLEARING: &str = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (if (call $has (i32.const 0) %"x-clear")
        (then (drop (call $foreign %"tollgate_route_clear" %"" (i32.const 0) (i32.const 0)))))
    (if (call $has (i32.const 0) %"x-clear-fast")
        (then (drop (call $route_clear))))
    (if (call $has (i32.const 0) %"x-envoy")
        (then (drop (call $foreign %"clear_route_cache" %"" (i32.const 0) (i32.const 0)))))
    %continue)"#;

#[test]
fn a_cleared_route_is_chosen_again_for_the_filters_behind() {
    let upstream = echo();
    let config = around(&upstream, "{cluster: web, name: first, filters: {a: other, b: off}}");
    let second = "{match: {headers: [{name: x-again}]}, name: second, cluster: web, filters: {a: off, c: other}}";
    let config = config.module("clearing", &guest::filter(CLEARING), "").filter(
        "second",
        "builtin:router",
        &format!("config: {{routes: [{second}, {{redirect: {{path: /gone}}, match: {{path: {{exact: /never}}}}}}]}}"),
    );
    let config = config.module("c", &marking("c"), "config: 'c;'\nvariants: {other: 'c/other;'}");
    let proxy = Proxy::start(config);
    let get = |fields: &[(&str, &str)]| {
        let response = proxy.request("GET", "/", fields, b"");
        let c = response.field("x-c").unwrap_or_default().to_owned();
        (response.status(), format!("{}{c}", marks_of(&response)))
    };
    assert_eq!(get(&[("x-again", "1")]), (200, "before;a/other;c/other;".to_owned()));
    for how in ["x-clear", "x-clear-fast"] {
        assert_eq!(get(&[(how, "1"), ("x-again", "1")]), (200, "before;a/other;c/other;".to_owned()), "{how}");
    }
    let entry = proxy.entry(|entry| entry["route"] == "*/second");
    assert_eq!(entry["fields"]["a"], "a/other;", "it keeps what it ran with");
    // The second router has no route for it and answers itself, whatever the first has selected.
    assert_eq!(get(&[]).0, 404);
}

#[test]
fn a_request_without_a_route_is_answered_with_404() {
    let upstream = echo();
    let config = around(&upstream, "{cluster: web, filters: {c: other}}");
    let config = config.module("clearing", &guest::filter(CLEARING), "");
    let proxy = Proxy::start(config.module("c", &marking("c"), "config: 'c;'\nvariants: {other: 'c/other;'}"));
    let c = |fields: &[(&str, &str)]| {
        let response = proxy.request("GET", "/", fields, b"");
        (response.status(), response.field("x-c").unwrap_or_default().to_owned())
    };
    assert_eq!(c(&[]), (200, "c/other;".to_owned()));
    // Filters made for Envoy call this wherever they are.
    assert_eq!(c(&[("x-envoy", "1")]), (200, "c/other;".to_owned()));
    for how in ["x-clear", "x-clear-fast"] {
        assert_eq!(c(&[(how, "1")]), (404, "c;".to_owned()), "{how}");
    }
}

/// A filter `mark` with these variants, and for each of the others a route `/NAME` that selects the variant `NAME`. The
/// version's first character is that of the filter's own configuration.
fn swapped(upstream: &Upstream, variants: &[&str], routes: &[&str], version: &str) -> Config {
    let variants: Vec<_> = variants.iter().map(|name| format!("{name}: '{name}{version}'")).collect();
    let route = |name| format!("{{match: {{path: {{exact: /{name}}}}}, cluster: web, filters: {{mark: {name}}}}}, ");
    let routes: String = routes.iter().map(route).collect();
    let config = Config::new().cluster("web", &[upstream], "").routes(&format!("{routes}{{cluster: web}}"));
    let options = format!("config: 'own{}'\nvariants: {{{}}}", &version[..1], variants.join(", "));
    config.module("mark", &marking("mark"), &options)
}

#[test]
fn variants_are_added_and_removed_by_a_reload() {
    let gate = Gate::default();
    let upstream = Upstream::held(&gate, "/slow", |_| answer(200, &[], "hello"));
    let mark = |message: &Message| message.field("x-mark").unwrap_or_default().to_owned();
    let mut proxy = Proxy::start(swapped(&upstream, &["a", "slow"], &["a", "slow"], "1"));
    assert_eq!(["/", "/a", "/b"].map(|path| mark(&proxy.get(path))), ["own1", "a1", "own1"]);
    let mut slow = proxy.client();
    slow.send_request("GET", "/slow", &[], b"");
    upstream.wait_for_requests(4);
    proxy.change_config(swapped(&upstream, &["a", "b"], &["a", "b"], "2"));
    assert_eq!(["/", "/a", "/b"].map(|path| mark(&proxy.get(path))), ["own2", "a2", "b2"]);
    proxy.change_config(swapped(&upstream, &["b"], &["b"], "2"));
    assert_eq!(["/", "/a", "/b"].map(|path| mark(&proxy.get(path))), ["own2", "own2", "b2"]);
    // Only the variant's configuration changes.
    let created = |proxy: &Proxy| {
        let of = |filter| proxy.metrics().sum("tollgate_filter_instances_created_total", &[("filter", filter)]);
        (of("mark"), of("routes"))
    };
    let before = created(&proxy);
    proxy.change_config(swapped(&upstream, &["b"], &["b"], "2nd"));
    assert_eq!(["/", "/b"].map(|path| mark(&proxy.get(path))), ["own2", "b2nd"]);
    // A variant that no route selects yet; the router need not be configured again.
    proxy.change_config(swapped(&upstream, &["b", "c"], &["b"], "2nd"));
    let after = created(&proxy);
    assert!(after.0 > before.0 && after.1 == before.1, "{before:?} {after:?}");
    // The stream that began before has the variant that no longer exists.
    gate.open();
    assert_eq!(mark(&slow.read()), "slow1");
    // A route must not select a variant that does not exist.
    proxy.put_config(swapped(&upstream, &["a"], &["b"], "3"));
    proxy.wait_for_output("filter `mark` has no variant `b`");
    assert_eq!(mark(&proxy.get("/b")), "b2nd");
}

#[test]
fn a_failed_instance_is_replaced_together_with_its_variants() {
    let upstream = Upstream::saying("hello");
    let config = swapped(&upstream, &["a"], &["a"], "1").top("workers: 1").listener("trusted_hops: 1");
    let proxy = Proxy::start(config);
    let get = |client: &str, path: &str, boom: bool| {
        let fields = [("x-forwarded-for", client), ("x-boom", "1")];
        let response = proxy.request("GET", path, &fields[..if boom { 2 } else { 1 }], b"");
        (response.status(), response.field("x-mark").unwrap_or_default().to_owned())
    };
    let (poisoner, other) = ("192.0.2.1", "192.0.2.2");
    assert_eq!(get(other, "/a", false), (200, "a1".to_owned()));
    assert_eq!(get(poisoner, "/a", true).0, 503);
    wait_until("another instance", || get(other, "/a", false) == (200, "a1".to_owned()));
    assert_eq!(get(other, "/", false), (200, "own1".to_owned()));
    // The client gets a separate instance, which has the variants too.
    wait_until("a separate instance", || {
        assert_eq!(get(poisoner, "/a", true).0, 503);
        proxy.filter("mark")["quarantine"] == 1
    });
    wait_until("an answer from it", || get(poisoner, "/a", false) == (200, "a1".to_owned()));
    assert_eq!(get(poisoner, "/", false), (200, "own1".to_owned()));
    let filter = proxy.filter("mark");
    assert_eq!((&filter["instances"], &filter["quarantine"]), (&1.into(), &1.into()), "{filter}");
}

/// A bucket that two variants define alike is one bucket; with other parameters it is another.
#[test]
fn equal_limits_of_variants_share_their_bucket() {
    let limit = |burst: u32| format!("{{limits: [{{name: all, requests: {burst}, per: 1h}}]}}");
    let upstream = Upstream::saying("hello");
    let routes = "{match: {path: {prefix: /same}}, cluster: web, filters: {limits: same}},
                  {match: {path: {prefix: /strict}}, cluster: web, filters: {limits: strict}},
                  {match: {path: {prefix: /off}}, cluster: web, filters: {limits: off}}, {cluster: web}";
    let options = format!("config: {}\nvariants: {{same: {}, strict: {}}}", limit(3), limit(3), limit(1));
    let config = Config::new().cluster("web", &[&upstream], "").routes(routes);
    let proxy = Proxy::start(config.filter("limits", "builtin:ratelimit", &options));
    let statuses = |path: &str, count: usize| (0..count).map(|_| proxy.get(path).status()).collect::<Vec<_>>();
    assert_eq!(statuses("/", 2), [200, 200]);
    assert_eq!(statuses("/same", 2), [200, 429]);
    assert_eq!(statuses("/", 1), [429]);
    assert_eq!(statuses("/strict", 2), [200, 429]);
    assert_eq!(statuses("/off", 3), [200, 200, 200]);
}

#[test]
fn standard_filters_act_as_the_route_selects() {
    let upstream = Upstream::saying("hello");
    let deny = "{policies: [{name: none, action: deny, rules: [{}]}]}";
    let fault = "{abort: {status: 418, percent: 100}}";
    let routes = "{match: {path: {exact: /health}}, cluster: web, filters: {access: off}},
                  {match: {path: {exact: /open}}, cluster: web, filters: {access: open, faults: teapot}}, {cluster: web}";
    let access = format!("config: {deny}\nvariants: {{open: {{policies: []}}}}");
    let config = Config::new().cluster("web", &[&upstream], "").routes(routes);
    let config = config.filter("access", "builtin:authz", &access);
    let config = config.filter("faults", "builtin:fault", &format!("config: {{}}\nvariants: {{teapot: {fault}}}"));
    let proxy = Everywhere::start(config);
    for (path, status) in [("/", 403), ("/health", 200), ("/open", 418)] {
        assert_eq!(proxy.status(&Request::get(path)), status, "{path}");
    }
}

#[test]
fn filters_written_with_any_sdk_have_variants() {
    let upstream = Upstream::saying("hello");
    let routes = "{match: {path: {exact: /other}}, cluster: web, filters: {crate: other, ours: other}}, {cluster: web}";
    let config = Config::new().cluster("web", &[&upstream], "").routes(routes);
    let options = "config: {tag: own}\nvariants: {other: {tag: other}}";
    let config = config.module("crate", &wasm::example("third-party"), options);
    let options = "config: {greeting: own}\nvariants: {other: {greeting: other}}";
    let proxy = Proxy::start(config.module("ours", &wasm::example("hello"), options));
    for (path, expected) in [("/", "own"), ("/other", "other"), ("/", "own")] {
        let response = proxy.get(path);
        let marks = [response.field("x-third-party"), response.field("x-hello")];
        assert_eq!((response.status(), marks), (200, [Some(expected); 2]), "{path}");
    }
    assert_eq!(proxy.filter("ours")["variants"], serde_json::json!(["other"]));
}

/// A TCP filter that selects a route by the first bytes, and one that marks the client's bytes with its configuration.
#[test]
fn tcp_connections_use_the_selected_variants() {
    let document =
        |filters: &str| format!(r#"{{\"clusters\":[{{\"cluster\":\"web\",\"weight\":1}}],\"filters\":{{{filters}}}}}"#);
    let selecting = guest::filter(&format!(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $route_define (i32.const 2048) (i32.const {}))) ;; 0
            (drop (call $route_define (i32.const 3072) (i32.const {}))) ;; 1
            (i32.const 1))
        (data (i32.const 2048) "{}")
        (data (i32.const 3072) "{}")
        (func (export "proxy_on_new_connection") (param i32) (result i32) %pause)
        (func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32)
            (drop (call $get_buffer %downstream_data (i32.const 0) (i32.const 1) (global.get $out) (global.get $out_len)))
            (drop (call $route_select
                (i32.sub (i32.load8_u (i32.load (global.get $out))) (i32.const 48)) (i32.const 0) (i64.const 0) (i64.const 0)))
            (drop (call $resume %downstream))
            %continue)"#,
        document(r#"\"mark\":\"other\""#).replace('\\', "").len(),
        document(r#"\"mark\":\"off\""#).replace('\\', "").len(),
        document(r#"\"mark\":\"other\""#),
        document(r#"\"mark\":\"off\""#),
    ));
    let mark = guest::filter(
        r#"(func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32)
            (drop (call $get_buffer %configuration (i32.const 0) (i32.const 100) (global.get $out) (global.get $out_len)))
            (drop (call $set_buffer %downstream_data (i32.const 1000000) (i32.const 0)
                (i32.load (global.get $out)) (i32.load (global.get $out_len))))
            %continue)"#,
    );
    let upstream = Upstream::scripted(|mut connection| {
        let mut buffer = vec![0; 1024];
        while let Ok(n @ 1..) = connection.wire.read_some(&mut buffer) {
            connection.send(&buffer[..n]);
        }
    });
    let config = Config::new().listener("protocol: tcp").cluster("web", &[&upstream], "");
    let config = config.module("select", &selecting, "");
    let proxy = Proxy::start(config.module("mark", &mark, "config: '[own]'\nvariants: {other: '[other]'}"));
    let connect = || -> Wire { proxy.client().wire };
    for (first, echo) in [("0", "0[other]"), ("1", "1")] {
        let mut wire = connect();
        wire.send(first).expect("the proxy reads");
        assert_eq!(String::from_utf8_lossy(&wire.read_exact(echo.len()).expect("an echo")), echo);
        let more = echo.replace(first, "x");
        wire.send("x").expect("the proxy reads");
        assert_eq!(String::from_utf8_lossy(&wire.read_exact(more.len()).expect("an echo")), more);
    }
}

/// The diagnostics of a configuration that is refused at the start.
fn refused(config: Config) -> String {
    Proxy::try_start(config, &[]).err().unwrap_or_else(|| panic!("it was accepted"))
}

#[test]
fn errors_in_variants_and_in_their_selection_have_places() {
    let upstream = Upstream::saying("hello");
    let options = "config: {limits: []}
variants:
  strict:
    limits:
      - {name: a, requests: many, per: 1h}
  \"a/b\": {limit: []}";
    let config = Config::to(&upstream).filter("limits", "builtin:ratelimit", options);
    let said = refused(config);
    for expected in ["requests: many", "`limit`", "did you mean `limits`?"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let routes = "{cluster: web, filters: {limts: strict, limits: strickt}}, {cluster: web, filters: {limits: off}}";
    let options = "config: {limits: []}\nvariants: {strict: {limits: []}}";
    let config = Config::to(&upstream).routes(routes).filter("limits", "builtin:ratelimit", options);
    let said = refused(config);
    for expected in
        ["there is no filter `limts`", "filter `limits` has no variant `strickt`", "filters: {limts: strict"]
    {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

/// A value from an environment variable gets the type that the filter expects, also in a variant.
#[test]
fn numbers_from_the_environment_are_converted_in_variants() {
    let upstream = Upstream::saying("hello");
    let variant = "{limits: [{name: all, requests: '${TOLLGATE_NO_SUCH_NUMBER:-1}', per: 1h}]}";
    let options = format!("config: {variant}\nvariants: {{strict: {variant}}}");
    let routes = "{match: {path: {prefix: /strict}}, cluster: web, filters: {limits: strict}}, {cluster: web}";
    let config = Config::new().cluster("web", &[&upstream], "").routes(routes);
    let proxy = Proxy::start(config.filter("limits", "builtin:ratelimit", &options));
    assert_eq!((proxy.get("/strict").status(), proxy.get("/strict").status()), (200, 429));
    let config: Value = proxy.config();
    assert_eq!(config["config"]["filters"][1]["variants"]["strict"]["limits"][0]["name"], "all");
}
