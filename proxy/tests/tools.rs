//! The tools for filter authors, run as commands: `tollgate new`, `tollgate inspect`, `tollgate test`.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

#[path = "../../tests/end_to_end/harness/wasm.rs"]
mod wasm;

fn tollgate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate")).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command that must succeed, and returns its output.
fn ok(args: &[&str]) -> String {
    let output = tollgate(args);
    assert!(output.status.success(), "{args:?}\n{}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// Writes a file in a temporary folder.
fn file(dir: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    path.display().to_string()
}

fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

mod inspect {
    use super::*;

    #[test]
    fn inspect_shows_all_parts_of_a_standard_filter() {
        let config = r#"{"delay": {"fixed": "5ms", "percent": 1}}"#;
        let text = ok(&["inspect", "builtin:fault", "--config", config]);
        for expected in [
            "loads         yes",
            "ABI           Proxy-Wasm 0.2.1",
            "rustc",
            "tollgate_v1 (",
            "delays requests",
            "subscribed    request headers",
            "configuring included",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert!(!text.contains('\x1b'), "no colours in a pipe");
        let json: Value =
            serde_json::from_str(&ok(&["inspect", "builtin:fault", "--json", "--config", config])).unwrap();
        assert_eq!((&json["abi"], &json["problems"]), (&"0.2.1".into(), &Value::Array(Vec::new())));
        let sizes: u64 = json["sizes"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        assert!(sizes <= json["bytes"].as_u64().unwrap() && json["sizes"]["code"].as_u64() > Some(10_000));
        assert!(json["memory"]["initial"].as_u64() > Some(0) && json["functions"].as_u64() > Some(50));
        assert!(json["compiled"]["native_bytes"].as_u64() > Some(10_000));
        assert!(json["subscribed"].as_array().unwrap().contains(&"request headers".into()));
    }

    #[test]
    fn inspect_shows_why_a_filter_rejects_its_configuration() {
        let text = ok(&["inspect", "builtin:router"]);
        assert!(text.contains("rejects its configuration: give `routes`") && text.contains("--config"), "{text}");
    }

    #[test]
    fn inspect_provides_the_named_clusters() {
        let config = r#"{"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"cluster": "web"}]}]}"#;
        let alone = ok(&["inspect", "builtin:router", "--config", config]);
        assert!(alone.contains("there is no cluster `web`") && alone.contains("add them with --cluster"), "{alone}");
        let text = ok(&["inspect", "builtin:router", "--config", config, "--cluster", "web"]);
        assert!(text.contains("configuring included") && !text.contains("refuses"), "{text}");
    }

    /// A module whose `configure` runs `body` and then traps.
    fn failing(body: &str) -> Vec<u8> {
        wasm::from_text(&format!(
            r#"(module
            (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 16) "panicked at src/lib.rs:7:9:\0akeys ran out")
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32) (i32.const 1024))
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0))
            (func (export "proxy_on_configure") (param i32 i32) (result i32) {body} unreachable))"#
        ))
    }

    #[test]
    fn check_and_inspect_show_what_a_filter_logged_before_it_failed() {
        let panics = "(drop (call $log (i32.const 5) (i32.const 16) (i32.const 40)))";
        let grows = "(drop (memory.grow (i32.const 60000)))";
        for (body, expected) in [
            (panics, "; it logged: panicked at src/lib.rs:7:9: keys ran out"),
            (grows, "it failed in `proxy_on_configure`: it needs more memory than `limits.memory` allows"),
        ] {
            let dir = tempdir();
            let module = file(&dir, "keys.wasm", failing(body));
            let inspected = ok(&["inspect", &module]);
            assert!(inspected.contains(expected), "{inspected}");
            let config = file(
                &dir,
                "tollgate.yaml",
                "listeners: [{name: l, address: '127.0.0.1:8080', chain: [keys]}]\nfilters: [{name: keys, wasm: keys.wasm}]\n",
            );
            let checked = tollgate(&["check", &config]);
            assert!(!checked.status.success() && stderr(&checked).contains(expected), "{}", stderr(&checked));
        }
    }

    #[test]
    fn a_module_of_another_sdk_can_be_inspected() {
        let dir = tempdir();
        let module = file(&dir, "third_party.wasm", wasm::example("third-party"));
        let json: Value = serde_json::from_str(&ok(&["inspect", &module, "--json"])).unwrap();
        let groups: Vec<_> = json["imports"].as_array().unwrap().iter().map(|i| &i["group"]).collect();
        assert!(!groups.is_empty() && groups.iter().all(|group| *group == "standard"), "{groups:?}");
        assert!(json["can"].as_array().unwrap().contains(&"sends its own HTTP requests".into()));
        assert_eq!(json["subscribed"], Value::Null);
    }

    #[test]
    fn a_module_of_the_sdk_exports_only_its_callbacks() {
        // With any compiler. `subscribe` determines which of the callbacks are called.
        let expected = [
            "malloc",
            "proxy_abi_version_0_2_1",
            "proxy_on_configure",
            "proxy_on_context_create",
            "proxy_on_delete",
            "proxy_on_done",
            "proxy_on_grpc_close",
            "proxy_on_grpc_receive",
            "proxy_on_grpc_receive_initial_metadata",
            "proxy_on_grpc_receive_trailing_metadata",
            "proxy_on_http_call_response",
            "proxy_on_log",
            "proxy_on_queue_ready",
            "proxy_on_request_body",
            "proxy_on_request_headers",
            "proxy_on_request_trailers",
            "proxy_on_response_body",
            "proxy_on_response_headers",
            "proxy_on_response_trailers",
            "proxy_on_tick",
            "proxy_on_vm_start",
            "tollgate_on_timer",
        ];
        let dir = tempdir();
        let module = file(&dir, "hello.wasm", wasm::example("hello"));
        let json: Value = serde_json::from_str(&ok(&["inspect", &module, "--json"])).unwrap();
        let mut exports: Vec<_> = json["exports"].as_array().unwrap().iter().map(|e| e["name"].as_str()).collect();
        exports.sort();
        assert_eq!(exports, expected.map(Some));
        assert_eq!(json["subscribed"], serde_json::json!(["response headers"]));
    }

    #[test]
    fn all_errors_in_a_module_are_reported_together() {
        let dir = tempdir();
        let text = r#"(module
            (import "env" "proxy_log" (func (param i32 i32 i32) (result i32)))
            (import "env" "proxy_from_the_future" (func))
            (import "tollgate_v9" "now" (func))
            (func (export "proxy_on_request_headers") (result i64) (i64.const 0)))"#;
        let module = file(&dir, "broken.wasm", wasm::from_text(text));
        let output = tollgate(&["inspect", &module]);
        assert_eq!(output.status.code(), Some(1));
        let text = stdout(&output);
        for expected in [
            "loads         no",
            "exports no `proxy_abi_version_0_2_1`",
            "exports neither `malloc`",
            "exports no `memory`",
            "`env.proxy_from_the_future`, `tollgate_v9.now`",
            "exports `proxy_on_request_headers` with the wrong type",
            "unknown (2):",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        let json: Value = serde_json::from_slice(&tollgate(&["inspect", &module, "--json"]).stdout).unwrap();
        assert_eq!(json["problems"].as_array().unwrap().len(), 5);
    }

    #[test]
    fn inspecting_a_file_that_is_not_a_module_fails() {
        let dir = tempdir();
        let text = file(&dir, "text.wasm", "this is text");
        for (module, expected) in [
            (text.as_str(), "is not a WebAssembly module"),
            ("no/such.wasm", "cannot read no/such.wasm"),
            ("builtin:nothing", "there is no built-in filter `nothing`; available: router"),
        ] {
            let output = tollgate(&["inspect", module]);
            assert!(!output.status.success() && stderr(&output).contains(expected), "{}", stderr(&output));
        }
    }
}

mod new {
    use super::*;

    /// The shell of a user who has this program and Rust, but not this repository.
    struct Newcomer {
        home: tempfile::TempDir,
    }

    impl Newcomer {
        fn new() -> Newcomer {
            Newcomer { home: tempdir() }
        }

        /// Runs a program that must succeed in a folder below the home.
        fn runs(&self, folder: &str, program: &str, args: &[&str]) -> String {
            let mut command = Command::new(program);
            command.current_dir(self.home.path().join(folder)).args(args);
            // Everything that the project needs was downloaded for this workspace, so the network is not needed.
            command.env("CARGO_NET_OFFLINE", "true");
            for (name, _) in std::env::vars_os() {
                let text = name.to_string_lossy();
                let own = text.starts_with("CARGO") && !["CARGO_HOME", "CARGO_NET_OFFLINE"].contains(&&*text);
                if own || text.starts_with("RUSTFLAGS") || text.starts_with("RUSTC") {
                    command.env_remove(&name);
                }
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "{program} {args:?}\n{}{}", stdout(&output), stderr(&output));
            stdout(&output)
        }
    }

    const TOLLGATE: &str = env!("CARGO_BIN_EXE_tollgate");

    #[test]
    fn a_new_filter_builds_and_passes_its_tests_out_of_the_box() {
        let newcomer = Newcomer::new();
        let said = newcomer.runs(".", TOLLGATE, &["new", "api-keys"]);
        assert!(said.contains("created api-keys") && said.contains("cargo test"), "{said}");
        // The lock file is the one that cargo would write.
        newcomer.runs("api-keys", env!("CARGO"), &["metadata", "--format-version", "1", "--locked"]);
        let tests = newcomer.runs("api-keys", env!("CARGO"), &["test"]);
        assert!(tests.contains("2 passed"), "{tests}");
        newcomer.runs("api-keys", env!("CARGO"), &["build", "--target", "wasm32-unknown-unknown", "--release"]);
        newcomer.runs("api-keys", env!("CARGO"), &["wasm"]);

        let module = "target/wasm32-unknown-unknown/release/api_keys.wasm";
        let inspected = newcomer.runs("api-keys", TOLLGATE, &["inspect", module, "--config", r#"{"key": "k"}"#]);
        assert!(inspected.contains("subscribed    request headers, response headers"), "{inspected}");
        let tested = newcomer.runs("api-keys", TOLLGATE, &["test", module, "cases.yaml"]);
        assert!(tested.contains("2 cases passed, none failed"), "{tested}");
        let checked = newcomer.runs("api-keys", TOLLGATE, &["check", "tollgate.yaml"]);
        assert!(checked.contains("1 listener, 1 filter, 1 cluster"), "{checked}");
    }

    #[test]
    fn a_new_filter_inside_a_workspace_is_a_separate_workspace() {
        let newcomer = Newcomer::new();
        let root = newcomer.home.path();
        fs::write(root.join("Cargo.toml"), "[workspace]\nmembers = [\"other\"]\nresolver = \"3\"\n").unwrap();
        newcomer.runs(".", TOLLGATE, &["new", "keys", "--path", "inside/keys"]);
        let metadata = newcomer.runs("inside/keys", env!("CARGO"), &["metadata", "--format-version", "1"]);
        let metadata: Value = serde_json::from_str(&metadata).unwrap();
        let folder = |path: &Value| fs::canonicalize(path.as_str().unwrap()).unwrap();
        assert_eq!(folder(&metadata["workspace_root"]), fs::canonicalize(root.join("inside/keys")).unwrap());
        assert_eq!(
            metadata["workspace_members"].as_array().unwrap().len(),
            1,
            "the SDK's own tests are not the project's"
        );
    }

    #[test]
    fn invalid_names_and_existing_folders_are_rejected() {
        let dir = tempdir();
        let there = dir.path().join("there");
        fs::create_dir(&there).unwrap();
        fs::write(there.join("mine"), "precious").unwrap();
        let there = there.display().to_string();
        let other = dir.path().join("other").display().to_string();
        for (args, expected) in [
            (&["new", "Bad Name", "--path", &other][..], "cannot be a filter's name"),
            (&["new", "fn", "--path", &other], "is a Rust keyword"),
            (&["new", "keys", "--path", &there], "already exists"),
        ] {
            let output = tollgate(args);
            assert!(!output.status.success() && stderr(&output).contains(expected), "{args:?}: {}", stderr(&output));
        }
        assert!(!Path::new(&other).exists(), "nothing is created on an error");
        assert_eq!(fs::read_dir(&there).unwrap().count(), 1);
    }
}

mod test {
    use super::*;

    /// Runs cases for a module. Returns whether they passed, and the output.
    fn run(module: &str, cases: &str) -> (bool, String) {
        let dir = tempdir();
        let cases = file(&dir, "cases.yaml", cases);
        let output = tollgate(&["test", module, &cases]);
        let said = stdout(&output) + &stderr(&output);
        (output.status.success(), said.replace(&cases, "cases.yaml"))
    }

    fn passes(module: &str, cases: &str) {
        let (passed, said) = run(module, cases);
        assert!(passed, "{said}");
    }

    fn third_party(dir: &tempfile::TempDir) -> String {
        file(dir, "third_party.wasm", wasm::example("third-party"))
    }

    #[test]
    fn the_examples_in_the_documentation_pass() {
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/tools.md");
        let text = fs::read_to_string(docs).unwrap();
        let dir = tempdir();
        let mut found = Vec::new();
        for block in text.split("\n```yaml cases=").skip(1) {
            let (module, rest) = block.split_once('\n').unwrap();
            let (cases, _) = rest.split_once("\n```").unwrap();
            let path = match module.starts_with("builtin:") {
                true => module.to_owned(),
                false => file(&dir, &format!("{module}.wasm"), wasm::example(module)),
            };
            passes(&path, cases);
            found.push(module);
        }
        assert_eq!(found, ["hello", "builtin:authz"]);
    }

    #[test]
    fn failures_show_their_place_and_the_difference() {
        let cases = "\
cases:
  - name: wrong in every way
    clusters: {upstream: {headers: {x-a: '1', x-b: '2'}, json: {a: 1, b: 2}}}
    steps:
      - request: GET /x
        expect:
          response: {status: 404, headers: {x-a: '2', x-b: null}, json: {a: 1, b: 3}}
          upstream: {path: /y}
          flags: [NR]
          cluster: {matches: '^api'}
          takes: 5ms
          metrics: {none.such: 1}
          logs: [a line]
          calls: [{}]
  - name: right
    steps: [{request: GET /}]
";
        let (passed, said) = run("builtin:fault", cases);
        assert!(!passed);
        for expected in [
            "FAIL  wrong in every way",
            "response.status  cases.yaml:7:30\n        - expected: 404\n        + actual:   200\n",
            "response.headers.x-a  cases.yaml:7:50\n        - expected: 2\n        + actual:   1\n",
            "- expected: nothing\n        + actual:   2\n",
            "        -   \"b\": 3\n        +   \"b\": 2\n",
            "upstream.path  cases.yaml:8:28\n        - expected: /y\n        + actual:   /x\n",
            "- expected: NR\n        + actual:   none\n",
            "- expected: a text that matches `^api`\n        + actual:   upstream\n",
            "- expected: 5 ms\n        + actual:   0 ms\n",
            "metrics.none.such",
            "logs[0]  cases.yaml:13:18",
            "- expected: 1 call\n        + actual:   none\n",
            "ok    right",
            "1 case passed, 1 failed",
        ] {
            assert!(said.contains(expected), "{expected}\n{said}");
        }
        assert!(!said.contains('\x1b'), "no colours in a pipe");

        let dir = tempdir();
        let path = file(&dir, "cases.yaml", cases);
        let output = tollgate(&["test", "builtin:fault", &path, "--json"]);
        assert_eq!(output.status.code(), Some(1));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&json["passed"], &json["failed"], &json["ok"]), (&1.into(), &1.into(), &false.into()));
        let first = &json["cases"][0]["steps"][0]["failures"][0];
        assert_eq!(
            (&first["what"], &first["line"], &first["column"]),
            (&"response.status".into(), &7.into(), &30.into())
        );
        assert!(ok(&["test", "builtin:fault", &path, "--only", "right"]).contains("1 case passed, none failed"));
    }

    #[test]
    fn a_filters_calls_get_scripted_responses() {
        let dir = tempdir();
        passes(
            &third_party(&dir),
            "\
filter:
  config:
    tag: demo
    verify: {header: authorization, cluster: auth, path: /auth, timeout_ms: 500}
clusters:
  auth: {}
cases:
  - name: the service is asked, and says yes
    steps:
      - request: {method: POST, path: /x, headers: {authorization: a}, body: hello}
        expect:
          calls: [{cluster: auth, method: GET, path: /auth, host: auth, headers: {authorization: a}}]
          upstream: {method: POST, path: /x, body: hello, headers: {x-verified: 'yes', x-seen: {contains: POST /x}}}
          response: {status: 200, headers: {x-third-party: demo}}
          metrics: {third_party.requests: 1}
      - {request: GET /, expect: {calls: [], upstream: {headers: {x-verified: null}}, metrics: {third_party.requests: 2}}}
  - name: it takes its time
    clusters: {auth: {delay: 400ms}}
    steps: [{request: {path: /, headers: {authorization: a}}, expect: {response: {status: 200}, takes: 400ms}}]
  - name: it takes too long
    clusters: {auth: {delay: 600ms}}
    steps:
      - request: {path: /, headers: {authorization: a}}
        expect:
          response: {status: 503, body: {contains: could not be verified}}
          upstream: none
          takes: 500ms
          flags: [LR]
          logs: [WARN the service does not answer]
  - name: it fails in every way
    clusters: {auth: [{fail: connect}, {fail: reset}, {fail: hang}, {status: 403}]}
    steps:
      - {request: {path: /, headers: {authorization: a}}, expect: {response: {status: 503}, calls: [], takes: 0ms}}
      - {request: {path: /, headers: {authorization: a}}, expect: {response: {status: 503}, takes: 0ms}}
      - {request: {path: /, headers: {authorization: a}}, expect: {response: {status: 503}, takes: 500ms}}
      - {request: {path: /, headers: {authorization: a}}, expect: {response: {status: 403}, takes: 0ms}}
",
        );
    }

    #[test]
    fn routes_retries_and_failures_work_as_in_the_proxy() {
        passes(
            "builtin:router",
            "\
listener: {cluster: null}
clusters:
  api: [{status: 503}, {fail: reset}, {status: 201, body: done}]
  slow: {delay: 1m}
filter:
  config:
    virtual_hosts:
      - name: all
        domains: ['*']
        routes:
          - {name: api, match: {path: {prefix: /api}}, cluster: api, prefix_rewrite: /v1,
             retry: {on: [gateway_error, reset], attempts: 2, backoff: 25ms}}
          - {name: slow, match: {path: {prefix: /slow}}, cluster: slow, timeout: 2s}
cases:
  - name: the third try succeeds
    steps:
      - request: {path: /api/x}
        expect:
          route: all/api
          cluster: api
          upstream: {cluster: api, path: /v1/x, attempts: 3}
          response: {status: 201, body: done}
          flags: []
      - {request: {method: HEAD, path: /api}, expect: {response: {status: 201, body: null}}}
      - {request: {method: HEAD, path: /api}, expect: {response: {body: ''}}}
  - name: time is over, also after long waits
    steps:
      - wait: 2h
      - {request: GET /slow, expect: {response: {status: 504}, takes: 2000ms, flags: [UT], details: response_timeout}}
  - name: nobody is responsible
    steps: [{request: GET /, expect: {response: {status: 404}, flags: [LR, NR], upstream: none, route: null}}]
",
        );
    }

    #[test]
    fn cases_control_the_time() {
        passes(
            "builtin:ratelimit",
            "\
filter: {config: {limits: [{name: all, requests: 2, per: 10s}]}}
cases:
  - name: tokens come back
    steps: &steps
      - {request: GET /, expect: {response: {status: 200}}}
      - {request: GET /, expect: {response: {status: 200}}}
      - {request: GET /, expect: {response: {status: 429}, upstream: none, flags: [LR, RL]}}
      - wait: 5s
      - {request: GET /, expect: {response: {status: 200}}}
      - {request: GET /, expect: {response: {status: 429}}}
  - {name: cases do not share their buckets, steps: *steps}
",
        );
        passes(
            "builtin:fault",
            "\
cases:
  - name: ten seconds in no time
    config: {delay: {fixed: 10s, percent: 100}}
    steps: [{request: GET /, expect: {response: {status: 200}, takes: 10s, flags: [DI]}}]
",
        );
    }

    /// A filter that traps at `/trap`, holds at `/hold` and closes at `/close`, by the second byte of the path.
    const ODD: &str = r#"(module
        (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
        (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 16) ":path")
        (data (i32.const 32) "seen")
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "malloc") (param i32) (result i32) (i32.const 1024))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (local $c i32)
            (drop (call $get (i32.const 0) (i32.const 16) (i32.const 5) (i32.const 0) (i32.const 4)))
            (local.set $c (i32.load8_u offset=1 (i32.load (i32.const 0))))
            (drop (call $log (i32.const 2) (i32.const 32) (i32.const 4)))
            (if (i32.eq (local.get $c) (i32.const 116)) (then unreachable))
            (if (i32.eq (local.get $c) (i32.const 104)) (then (return (i32.const 1))))
            (if (i32.eq (local.get $c) (i32.const 99)) (then (drop (call $close (i32.const 0))) (return (i32.const 1))))
            (i32.const 0)))"#;

    #[test]
    fn traps_and_held_and_closed_requests() {
        let dir = tempdir();
        let module = file(&dir, "odd.wasm", wasm::from_text(ODD));
        passes(
            &module,
            "\
cases:
  - name: another instance comes after a trap
    steps:
      - request: GET /trap
        expect: {response: {status: 503}, flags: [FF], details: filter_failed, logs: [INFO seen, 'ERROR the filter failed: trap']}
      - {request: GET /, expect: {response: {status: 200}, flags: [], metrics: {'tollgate_filter_rebuilds_total{filter=\"odd\"}': 1}}}
  - name: a held request is given up
    steps: [{request: GET /hold, expect: {response: {status: 504}, details: filter_stalled, takes: 300s, flags: [SI]}}]
  - name: a closed connection
    steps: [{request: GET /close, expect: {response: none, upstream: none, details: closed_by_filter}}]
",
        );
        let (passed, said) = run(
            &module,
            "listener: {timeouts: {idle: 0s}}\ncases: [{name: held for ever, steps: [{request: GET /hold}]}]\n",
        );
        assert!(!passed && said.contains("none: the request is held forever"), "{said}");
        let (passed, said) = run(
            &module,
            "filter: {on_failure: bypass}\ncases: [{name: bypassed, steps: [{request: GET /trap, expect: {response: {status: 200}}}]}]\n",
        );
        assert!(passed, "{said}");
    }

    #[test]
    fn a_tcp_filter_is_rejected() {
        let dir = tempdir();
        let module = file(&dir, "tcp_token.wasm", wasm::example("tcp-token"));
        let cases = "filter: {config: {tokens: {ann: open-sesame}, per_minute: 10}}\n\
                     cases: [{name: a, steps: [{request: GET /}]}]\n";
        let (passed, said) = run(&module, cases);
        assert!(!passed && said.contains("the SDK's `TcpHost`"), "{said}");
    }

    #[test]
    fn rejected_configurations_can_be_expected() {
        passes(
            "builtin:fault",
            "cases: [{name: a, config: {delay: {fixed: 5}}, refused: {matches: '^delay.fixed: '}}]\n",
        );
        let (passed, said) =
            run("builtin:fault", "cases:\n- name: a\n  config: {delay: {fixt: 5s}}\n  steps: [{request: GET /}]\n");
        assert!(!passed && said.contains("config.delay.fixt  cases.yaml:3:26"), "{said}");
        let (passed, said) = run("builtin:fault", "cases:\n- {name: a, refused: no reason}\n");
        assert!(!passed && said.contains("actual:   it was accepted"), "{said}");
    }

    #[test]
    fn errors_in_the_file_show_their_place() {
        for (cases, expected) in [
            ("cases: [{name: a, steps: [{request: GET /, expct: {}}]}]\n", "--> cases.yaml:1:44"),
            ("cases: [{name: a, steps: [{request: GET /, expct: {}}]}]\n", "did you mean `expect`?"),
            ("cases: [\n", "this is not YAML"),
            ("cases: []\n", "no case matches"),
            ("cases: [{name: a, steps: [{request: G@T /}]}]\n", "case `a`: step 1: `G@T` is not a method"),
        ] {
            let (passed, said) = run("builtin:fault", cases);
            assert!(!passed && said.contains(expected), "{expected}\n{said}");
        }
        let output = tollgate(&["test", "builtin:fault", "no-such.yaml"]);
        assert!(!output.status.success() && stderr(&output).contains("cannot read the file"), "{}", stderr(&output));
    }
}
