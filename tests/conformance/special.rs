//! Cases that need a separate module: rejecting a configuration, exiting, failing.

use tollgate_abi::{Function, Ty, fast, proxy_wasm, wasi};

use super::{
    Verdict, files,
    harness::{Config, Proxy, Upstream, wait_until, wasm},
    host::Host,
    module,
    script::{Case, File, Kind, OLD, Operand, Slot, Statement, ty},
    verdict,
};

/// Returns all functions that a module can import, except the one that ends it, with their import modules.
fn functions() -> Vec<(&'static str, &'static Function)> {
    let standard = proxy_wasm::HOSTCALLS.iter().chain(OLD).map(|f| (proxy_wasm::MODULE, f));
    let stubs = wasi::STUBS.iter().map(|(f, _)| f);
    let wasi = wasi::HOSTCALLS.iter().chain(stubs).map(|f| (wasi::MODULES[0], f));
    let all = standard.chain(fast::HOSTCALLS.iter().map(|f| (fast::MODULE, f))).chain(wasi);
    all.filter(|(_, f)| f.name != "proc_exit").collect()
}

/// Returns valid arguments: addresses that do not overlap, short lengths, the smallest value of everything else. For
/// maps the last one, so that nothing is removed that others need.
fn harmless(f: &Function) -> Vec<i32> {
    let argument = |(nth, (name, _)): (usize, &(&str, Ty))| match *name {
        name if ["ptr", "out"].iter().any(|end| name.ends_with(end)) => 0x1000 + 64 * nth as i32,
        name if name.ends_with("len") || name.ends_with("_cap") => 4,
        "map" => 3,
        _ => 0,
    };
    f.params.iter().enumerate().map(argument).collect()
}

#[test]
fn configuration_error_is_reported_with_its_location() {
    let module = wasm::from_text(
        r#"(module
            (import "tollgate_v1" "config_error" (func $error (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32) (i32.const 1024))
            (func (export "proxy_on_configure") (param i32 i32) (result i32)
                (local $n i32)
                (if (call $error (i32.const 0) (i32.const 4) (i32.const 4) (i32.const 8)) (then unreachable))
                ;; 64 in all; the next one is refused.
                (loop $more
                    (local.set $n (i32.add (local.get $n) (i32.const 1)))
                    (if (call $error (i32.const 0) (i32.const 4) (i32.const 4) (i32.const 8)) (then
                        (if (i32.ne (local.get $n) (i32.const 64)) (then unreachable))
                        (return (i32.const 0))))
                    (br $more))
                (i32.const 0))
            (data (i32.const 0) "nameis wrong"))"#,
    );
    let upstream = Upstream::saying("hello");
    let config = Config::to(&upstream).filter("refusing", "refusing.wasm", "config: {name: x}");
    let Err(said) = Proxy::try_start(config, &[("refusing.wasm", &module)]) else { panic!("the proxy has started") };
    assert!(said.contains("is wrong") && said.contains("name"), "{said}");
    assert!(!said.contains("unreachable"), "{said}");
}

#[test]
fn proc_exit_ends_the_instance_and_nothing_else() {
    let code = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "malloc") (param i32) (result i32) (i32.const 1024))
        (global $asked (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $exit (i32.const 3)) (i32.const 0)))"#;
    let host = Host::start(&wasm::from_text(code), false);
    assert_eq!(host.proxy.get("/").status(), 503);
    wait_until("the failure count", || host.proxy.filter("conformance")["traps"] == 1);
    host.proxy.wait_for_output("the module exited with status 3");
}

#[test]
fn trap_in_each_callback_fails_the_instance() {
    let of_callbacks = |file: &File| file.cases.iter().any(|case| case.function.contains("_on_"));
    for file in files().into_iter().filter(of_callbacks) {
        for case in file.cases.iter().filter(|case| traps_in(case)) {
            let mut case = case.clone();
            let last = case.phases.last_mut().expect("its callback");
            last.statements.push(Statement { line: 0, kind: Kind::Raw("unreachable".into()) });
            let tcp = case.is_tcp();
            let file = File { cases: vec![case.clone()], ..file };
            let host = Host::start(&module::module(&file), tcp);
            host.run(&case, "000");
            let id = case.id();
            wait_until(&format!("{id} to trap"), || host.proxy.filter("conformance")["traps"] == 1);
            wait_until(&format!("another instance after {id}"), || host.proxy.filter("conformance")["instances"] == 1);
            assert_eq!(host.proxy.get("/").status(), 200, "{id}");
            let told = verdict(&host.ask("x-result", "000").body);
            assert!(matches!(told, Verdict::Open(_)), "{id}: the new instance has no verdict: {told:?}");
        }
    }
}

/// Reports whether a case reaches its own callback, and that is not a start callback: those have separate tests.
fn traps_in(case: &Case) -> bool {
    let early = ["proxy_on_vm_start", "proxy_on_configure", "proxy_on_context_create"];
    let last = case.phases.last().map(|phase| phase.callback.name);
    last == Some(&*case.function) && !early.contains(&&*case.function)
}

#[test]
fn every_function_in_every_callback() {
    // Functions that end a stream, or decide what follows, are left out where they would interfere.
    let leave_out = [
        "proxy_send_local_response",
        "proxy_close_stream",
        "proxy_continue_stream",
        "proxy_continue_request",
        "subscribe",
        "config_error",
        "timer_set",
    ];
    let call = |f: &'static Function| {
        let slots = harmless(f).iter().map(|value| Slot::Value(value.to_string())).collect();
        Statement { line: 0, kind: Kind::Do(Operand::Call(f, slots)) }
    };
    let functions = functions().into_iter().filter(|(_, f)| !leave_out.contains(&f.name) && f.result.is_some());
    let calls: Vec<Statement> = functions.map(|(_, f)| call(f)).collect();
    for mut file in files() {
        file.cases.retain(|case| case.function.contains("_on_"));
        let phases = file.cases.iter_mut().flat_map(|case| &mut case.phases);
        phases.for_each(|phase| phase.statements.splice(0..0, calls.iter().cloned()).for_each(drop));
        if !file.cases.is_empty() {
            super::run(&file);
        }
    }
}

/// A module that calls every function before its memory is available (in its start function), during initialization,
/// and in its allocator, which the host has called from a function. Each result must be a status.
#[test]
fn every_function_before_the_start_and_within_the_allocator() {
    let (mut imports, mut calls) = (String::new(), String::new());
    for (nth, (module, f)) in functions().into_iter().enumerate() {
        let params: String = f.params.iter().map(|(_, t)| format!(" {}", ty(*t))).collect();
        let result = f.result.map_or("", ty);
        imports += &format!("(import \"{module}\" \"{}\" (func $f{nth} (param{params}) (result {result})))\n", f.name);
        let arguments = f.params.iter().zip(harmless(f)).map(|((_, t), value)| format!("({}.const {value})", ty(*t)));
        let call = format!("(call $f{nth} {})", arguments.collect::<String>());
        calls += &match f.result {
            Some(Ty::I32)
                if !["subscribe", "config_error", "proxy_send_local_response", "proxy_close_stream"]
                    .contains(&f.name) =>
            {
                format!("(call $known {call})\n")
            }
            Some(Ty::I64) => format!("(drop {call})\n"),
            _ => String::new(),
        };
    }
    let code = format!(
        r#"(module {imports}
        (memory (export "memory") 16)
        (func (export "proxy_abi_version_0_2_1"))
        (global $depth (mut i32) (i32.const 0))
        (global $calls (mut i32) (i32.const 0))
        ;; A status of any kind, or a short length.
        (func $known (param i32)
            (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
            (if (i32.or (i32.lt_s (local.get 0) (i32.const -12)) (i32.gt_s (local.get 0) (i32.const 76)))
                (then unreachable)))
        (func $all {calls})
        (func $start (call $all))
        (start $start)
        (func (export "_initialize") (call $all))
        (func (export "malloc") (param i32) (result i32)
            (if (i32.eqz (global.get $depth)) (then
                (global.set $depth (i32.const 1))
                (call $all)
                (global.set $depth (i32.const 0))))
            (i32.const 0x80000))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $all)
            (drop (call $get (i32.const 0) (i32.const 16) (i32.const 5) (i32.const 64) (i32.const 68)))
            (drop (call $reply (i32.const 200) (i32.const 0) (i32.const 0)
                (i32.load (i32.const 64)) (i32.load (i32.const 68)) (i32.const 0) (i32.const 0) (i32.const -1)))
            (i32.const 1))
        (data (i32.const 16) "x-one"))"#
    );
    let number = |name: &str| functions().iter().position(|(_, f)| f.name == name).expect("a function");
    let code = code.replace("$get ", &format!("$f{} ", number("proxy_get_header_map_value")));
    let code = code.replace("$reply ", &format!("$f{} ", number("proxy_send_local_response")));
    let host = Host::start(&wasm::from_text(&code), false);
    let response = host.proxy.request("GET", "/", &[("x-one", "value")], b"");
    assert_eq!((response.status(), response.text()), (200, "value"));
    assert_eq!(host.proxy.filter("conformance")["traps"], 0);
}
