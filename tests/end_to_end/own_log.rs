//! Tollgate's own log, on standard error.

use std::{
    fs::{self, File},
    process::{Child, Command, Stdio},
};

use crate::harness::{Config, Proxy, wait_until};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Each line that is written there is an event in a folder that is watched.
#[test]
fn a_log_beside_the_configuration_does_not_write_about_itself() {
    let dir = tempfile::tempdir().expect("a folder");
    let (config, log) = (dir.path().join("config.yaml"), dir.path().join("tollgate.log"));
    let text = |timeout: &str| {
        format!(
            "admin: {{enabled: false}}\nlog: {{level: trace}}\ndrain_timeout: {timeout}\n\
             listeners: [{{name: main, address: '127.0.0.1:0'}}]\n"
        )
    };
    fs::write(&config, text("1s")).expect("a file");
    let _proxy = Killed(
        Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .arg("run")
            .arg(&config)
            .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
            .env_remove("TOLLGATE_LOG")
            .stdin(Stdio::null())
            .stderr(File::create(&log).expect("a file"))
            .spawn()
            .expect("the proxy can be run"),
    );
    let said = |what: &str| fs::read_to_string(&log).expect("the log").contains(what);
    wait_until("the proxy to be ready", || said("ready workers="));
    for timeout in ["2s", "3s"] {
        fs::write(&config, text(timeout)).expect("a file");
        let version = format!("version={}", timeout.trim_end_matches('s'));
        wait_until("the change", || said(&version));
    }
    assert!(said("TRACE") || said("DEBUG") || said("INFO"));
    assert!(!said("notify"), "{}", fs::read_to_string(&log).expect("the log"));
}

#[test]
fn what_is_given_at_the_start_holds_whatever_the_configuration_says() {
    let first = Proxy::start(Config::new().top("log: {level: warn}"));
    assert_eq!(first.admin("GET", "/log", "").text(), "warn\n");
    drop(first);
    let first = Proxy::start(Config::new().top("log: {level: warn}"));
    let mut given = first.beside(&["--replace", &first.pid().to_string(), "--log-level", "info,tollgate=debug"]);
    given.wait_for_output("admin listener on");
    assert_eq!(given.admin("GET", "/log", "").text(), "tollgate=debug,info\n");
    assert_eq!(given.admin("POST", "/log", "debug").status(), 200);
    given.change_config(Config::new().top("log: {level: error}"));
    assert_eq!(given.admin("GET", "/log", "").text(), "tollgate=debug,info\n");
}
