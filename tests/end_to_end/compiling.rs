//! Compiling is bounded: disproportionate modules are rejected, the rest is compiled in a separate process with
//! resource limits, and nothing waits for it.

mod cache;

use std::{
    fs,
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::PathBuf,
    thread,
};

use rustix::process::Pid;

use crate::{
    guest,
    harness::{Config, Proxy, Signal, Upstream, run_in, wait_for, wait_until},
};

/// A module that takes the compiler far longer than any test: compile time grows with the number of blocks and
/// variables of a function.
fn slow() -> Vec<u8> {
    let block = "(block (br_if 0 (local.get 0)) (local.set 1 (i32.add (local.get 1) (i32.const 1))))";
    module(&format!("(func (local{}) {})", " i32".repeat(9_900), block.repeat(70_000)))
}

/// A module with a function that needs several hundred MiB to compile.
fn hungry() -> Vec<u8> {
    let code = "(local.set 0 (i32.mul (i32.add (local.get 0) (i32.const 3)) (i32.const 5)))";
    module(&format!("(func (local i32) {})", code.repeat(200_000)))
}

/// A module with a function of more than 1 MiB.
fn out_of_proportion() -> Vec<u8> {
    module(&format!("(func {})", "nop ".repeat((1 << 20) + 1)))
}

fn module(functions: &str) -> Vec<u8> {
    guest::filter(functions)
}

/// The process id of the compiler that a proxy started, if it is running.
fn compiler(proxy: &Proxy) -> Option<u32> {
    let is_child = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains(&format!("PPid:\t{}\n", proxy.pid())) && status.contains("Name:\ttollgate-compil")
    };
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid| is_child(*pid))
}

/// Whether a process is running; a zombie is not.
fn runs(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

/// A proxy with a filter, which is then compiling another one for a long time; returns the compiler's process id.
fn compiling(config: &Config, files: &[(&str, &[u8])]) -> (Proxy, u32) {
    let mut proxy = Proxy::start_with(config.clone(), files);
    proxy.put("slow.wasm", slow());
    proxy.put_config(config.clone().filter("slow", "slow.wasm", ""));
    let pid = wait_for("a compiler", || compiler(&proxy));
    (proxy, pid)
}

/// Runs `tollgate check` on a filter's module with these settings.
fn check(module: &[u8], settings: &str) -> (bool, String) {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("f.wasm"), module).expect("a file");
    let config = String::from(Config::to("127.0.0.1:1").top(settings).filter("f", "f.wasm", ""));
    fs::write(dir.path().join("config.yaml"), config.replace("@main@", "127.0.0.1:1")).expect("a file");
    // Without a cache directory.
    run_in(dir.path(), &["check", "config.yaml"], &[])
}

#[test]
fn a_disproportionate_function_is_rejected_unless_the_limit_is_raised() {
    let upstream = Upstream::saying("ok");
    let mut proxy = Proxy::start_with(Config::to(&upstream), &[("f.wasm", &out_of_proportion())]);
    proxy.put_config(Config::to(&upstream).filter("f", "f.wasm", ""));
    let (status, response) = proxy.reload();
    assert_eq!(status, 422, "{response}");
    let error = &response["errors"][0];
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("1048579 bytes of code, and `compile.function_size` allows 1MiB"), "{message}");
    assert!(error["help"].as_str().is_some_and(|help| help.contains("`compile: {function_size: 2MiB}`")), "{error}");
    assert_eq!(proxy.get("/").text(), "ok");

    proxy.change_config(Config::to(&upstream).top("compile: {function_size: 2MiB}").filter("f", "f.wasm", ""));
    assert_eq!(proxy.get("/").text(), "ok");
}

#[test]
fn the_module_size_limit_is_checked_before_reading() {
    let (fine, output) = check(&vec![0; 2 << 20], "compile: {module_size: 1MiB}");
    assert!(!fine);
    assert!(output.contains("it has 2097152 bytes, and `compile.module_size` allows 1MiB"), "{output}");
}

#[test]
fn the_compiler_memory_limit_is_enforced() {
    let (fine, output) = check(&hungry(), "compile: {function_size: 4MiB, memory: 256MiB}");
    assert!(!fine);
    assert!(output.contains("more memory than `compile.memory` allows (256MiB)"), "{output}");
    let help = "= help: few modules need that; if you trust this one, allow it with `compile: {memory: 512MiB}`";
    assert!(output.contains(help), "{output}");
}

#[test]
fn the_minimum_compiler_memory_suffices_for_built_in_filters() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = "compile: {memory: 256MiB}\nlisteners: [{name: main, address: '127.0.0.1:1', chain: [a, f, l, r]}]\n\
        filters:\n  - {name: a, wasm: 'builtin:authz', config: {rules: []}}\n  - {name: f, wasm: 'builtin:fault', config: {}}\n  \
        - {name: l, wasm: 'builtin:ratelimit', config: {}}\n  - {name: r, wasm: 'builtin:router', config: {}}\n";
    fs::write(dir.path().join("config.yaml"), text).expect("a file");
    let (_, said) = run_in(dir.path(), &["check", "config.yaml"], &[]);
    assert!(!said.contains("was not compiled"), "{said}");
}

#[test]
fn the_compiler_time_limit_is_enforced() {
    let (fine, output) = check(&slow(), "compile: {time: 1s}");
    assert!(!fine);
    assert!(output.contains("more processor time than `compile.time` allows (1s)"), "{output}");
}

#[test]
fn sigterm_ends_a_compiler_and_then_the_proxy() {
    let (mut proxy, compiler) = compiling(&Config::to("127.0.0.1:1"), &[]);
    proxy.signal(Signal::TERM);
    wait_until("the compiler's end", || !runs(compiler));
    assert_eq!(proxy.wait_exit().code(), Some(0));
    let output = proxy.last_words();
    assert!(
        !output.contains("rejected") && !output.contains("configuration applied"),
        "the load was abandoned, not finished: {output}"
    );
}

#[test]
fn sigterm_ends_the_compiler_of_the_first_configuration() {
    let mut proxy = Proxy::begin(Config::to("127.0.0.1:1").filter("slow", "slow.wasm", ""), &[("slow.wasm", &slow())]);
    let compiler = wait_for("a compiler", || compiler(&proxy));
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    wait_until("the compiler's end", || !runs(compiler));
}

#[test]
fn a_compiler_dies_with_the_proxy() {
    let (mut proxy, compiler) = compiling(&Config::to("127.0.0.1:1"), &[]);
    proxy.signal(Signal::KILL);
    proxy.wait_exit();
    wait_until("the compiler's end", || !runs(compiler));
}

#[test]
fn serving_and_recovery_continue_while_a_module_compiles() {
    let upstream = Upstream::saying("ok");
    let weak = guest::filter(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (call $has (i32.const 0) %"x-trap") (then (unreachable)))
            (i32.const 0))"#,
    );
    let config = Config::to(&upstream).filter("weak", "weak.wasm", "");
    let (proxy, compiler) = compiling(&config, &[("weak.wasm", &weak)]);
    for path in ["/live", "/ready", "/metrics"] {
        assert_eq!(proxy.admin("GET", path, "").status(), 200, "{path}");
    }
    // The spare instance replaces the first one; the second replacement must be created now.
    for _ in 0..2 {
        proxy.request("GET", "/", &[("x-trap", "1")], b"");
        wait_until("another instance", || proxy.get("/").status() == 200);
    }
    proxy.asks_all_workers();
    assert!(runs(compiler), "none of this waited for the compiler");
    assert_eq!(proxy.version(), 1);
}

#[test]
fn changes_that_arrive_during_a_compilation_are_coalesced() {
    let upstream = Upstream::saying("ok");
    let config = Config::to(&upstream);
    let (mut proxy, compiler) = compiling(&config, &[]);
    for n in 1..=5 {
        proxy.put_config(config.clone().listener(&format!("via: version-{n}")));
        // The signal does not wait for a result.
        proxy.signal(Signal::HUP);
    }
    assert!(runs(compiler), "all changes arrived during the compilation");
    // The compiler has a low priority: on a busy machine it would take minutes to finish.
    rustix::process::kill_process(Pid::from_raw(compiler.cast_signed()).expect("a process"), Signal::KILL)
        .expect("it is running");
    wait_until("the newest", || proxy.get("/").field("via") == Some("1.1 version-5"));
    assert_eq!(proxy.version(), 2, "all changes were applied in one load");
}

#[test]
fn a_compiler_inherits_nothing_and_runs_at_low_priority() {
    // A descriptor that the proxy inherits from its parent process.
    let left = rustix::io::dup(fs::File::open("/dev/null").expect("it exists")).expect("a descriptor");
    let (proxy, compiler) = compiling(&Config::to("127.0.0.1:1"), &[]);
    let file = |name: &str| fs::read_to_string(format!("/proc/{compiler}/{name}")).expect("it runs");
    let open = fs::read_dir(format!("/proc/{compiler}/fd")).expect("it runs").flatten();
    let mut open: Vec<_> = open.map(|fd| fd.file_name().into_string().expect("a number")).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
    let inherited = fs::read_link(format!("/proc/{}/fd/{}", proxy.pid(), left.as_raw_fd()));
    assert_eq!(inherited.expect("the proxy has inherited it"), PathBuf::from("/dev/null"));
    let environment = file("environ");
    let names: Vec<_> = environment.split_terminator('\0').filter_map(|entry| Some(entry.split_once('=')?.0)).collect();
    assert!(names.iter().all(|name| name.starts_with("MIMALLOC_")), "{names:?}");
    assert_eq!(file("cmdline"), "tollgate compile-module 1073741824 60 ".replace(' ', "\0"));
    let limit = |name: &str| {
        let limits = file("limits");
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("a limit");
        line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(limit("Max data size"), "1073741824 1073741824");
    assert_eq!(limit("Max cpu time"), "60 61");
    assert_eq!(limit("Max core file size"), "0 0");
    let nice = |pid: u32| -> i32 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        stat.rsplit(") ")
            .next()
            .and_then(|rest| rest.split(' ').nth(16))
            .and_then(|n| n.parse().ok())
            .expect("a number")
    };
    assert_eq!(nice(compiler), (nice(proxy.pid()) + 5).min(19));
}

/// While the proxy runs, its executable is replaced by another version, and no directory is writable.
#[test]
fn compiling_needs_neither_a_directory_nor_the_executable_file() {
    let (upstream, dir) = (Upstream::saying("ok"), tempfile::tempdir().expect("a folder"));
    let executable = dir.path().join("tollgate");
    let original = PathBuf::from(env!("CARGO_BIN_EXE_tollgate"));
    if fs::hard_link(&original, &executable).is_err() {
        fs::copy(&original, &executable).expect("a copy");
        fs::set_permissions(&executable, fs::Permissions::from_mode(0o755)).expect("its mode");
    }
    let mut proxy = Proxy::begin_as(&executable, Config::to(&upstream));
    wait_until("the proxy to be ready", || proxy.is_ready());
    fs::remove_file(&executable).expect("it can be deleted");
    fs::write(&executable, "another version").expect("a file");
    proxy.put("marker.wasm", guest::version("v1"));
    proxy.change_config(Config::to(&upstream).filter("marker", "marker.wasm", ""));
    assert_eq!(proxy.get("/").field("x-version"), Some("v1"));
}

/// Reading from a FIFO without a writer would block forever.
#[test]
fn a_fifo_instead_of_a_file_is_rejected_and_blocks_nothing() {
    use rustix::fs::{CWD, Mode, mkfifoat};
    let upstream = Upstream::saying("ok");
    let mut proxy = Proxy::start(Config::to(&upstream));
    let fifo = |proxy: &Proxy, name: &str| {
        let path = proxy.dir().join(name);
        let _ = fs::remove_file(&path);
        mkfifoat(CWD, path, Mode::RWXU).expect("a FIFO");
    };
    let refused = |proxy: &Proxy, reason: &str| {
        let (status, response) = proxy.reload();
        assert_eq!(status, 422, "{response}");
        assert!(response.to_string().contains(reason), "{response}");
    };
    fifo(&proxy, "config.yaml");
    refused(&proxy, "it is a FIFO, not a regular file");
    fifo(&proxy, "f.wasm");
    proxy.put_config(Config::to(&upstream).filter("f", "f.wasm", ""));
    refused(&proxy, "f.wasm` is not a file");
    let pair = rcgen::generate_simple_self_signed(["web.test".to_owned()]).expect("a certificate");
    for name in ["certificate", "key"] {
        proxy.put("certificate.pem", pair.cert.pem());
        proxy.put("key.pem", pair.signing_key.serialize_pem());
        fifo(&proxy, &format!("{name}.pem"));
        let tls = "tls: {certificates: [{certificate: certificate.pem, key: key.pem}]}";
        proxy.put_config(Config::to(&upstream).listener(tls));
        refused(&proxy, "it is a FIFO, not a regular file");
    }
    fifo(&proxy, "ca.pem");
    proxy.put_config(Config::to_with(&upstream, "tls: {ca: [ca.pem]}"));
    refused(&proxy, "it is a FIFO, not a regular file");
    proxy.change_config(Config::to(&upstream).listener("via: after"));
    assert_eq!(proxy.get("/").field("via"), Some("1.1 after"));
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

/// Compilers that are no longer needed are terminated.
#[test]
fn no_compiler_is_left_behind() {
    let mut proxy = Proxy::start(Config::to("127.0.0.1:1"));
    thread::scope(|scope| {
        for n in 0..3 {
            let proxy = &proxy;
            scope.spawn(move || proxy.put(&format!("{n}.wasm"), guest::version(&n.to_string())));
        }
    });
    let config =
        (0..3).fold(Config::to("127.0.0.1:1"), |config, n| config.filter(&format!("f{n}"), &format!("{n}.wasm"), ""));
    proxy.change_config(config);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", proxy.pid())).unwrap_or_default();
    assert_eq!(children.trim(), "");
}
