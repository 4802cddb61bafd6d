//! What needs a module of its own: refusing a configuration, ending, failing.

use super::{
    Verdict, files,
    harness::{Config, Proxy, Upstream, wait_until, wasm},
    host::Host,
    module,
    script::{Case, File, Kind, Statement},
    verdict,
};

#[test]
fn a_configuration_error_is_told_with_its_place() {
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
    let Err(said) = Proxy::try_start(config, &[("refusing.wasm", &module)]) else { panic!("it has started") };
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
    wait_until("the failure to be counted", || host.proxy.filter("conformance")["traps"] == 1);
    host.proxy.wait_for_output("it has ended itself with exit status 3");
}

#[test]
fn a_trap_in_each_callback() {
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
            assert!(matches!(told, Verdict::Open(_)), "{id}: another instance knows nothing of it: {told:?}");
        }
    }
}

/// Whether a case runs as far as into its own callback, and that is not one of the start: those have tests of their own.
fn traps_in(case: &Case) -> bool {
    let early = ["proxy_on_vm_start", "proxy_on_configure", "proxy_on_context_create"];
    let last = case.phases.last().map(|phase| phase.callback.name);
    last == Some(&*case.function) && !early.contains(&&*case.function)
}
