//! Tests that need what not every machine has. A program that is missing fails its test where TOLLGATE_REQUIRE_TOOLS is
//! set, as it is in continuous integration. Elsewhere the test does not run, and says so in the file that
//! TOLLGATE_NOT_RUN names: `tests/summary.sh` counts these.

use std::{env, fs::File, io::Write, thread};

/// A program is missing that `script` brings.
#[allow(dead_code, reason = "unit tests include this file, and need no programs")]
pub fn missing(what: &str, script: &str) {
    assert!(env::var_os("TOLLGATE_REQUIRE_TOOLS").is_none(), "{what} is missing; {script} brings it here");
    for_want_of(what, &format!("{script} brings it here"));
}

/// The machine lacks something that no script can bring: the right to do something, a protocol. That is a failure nowhere.
pub fn for_want_of(what: &str, why: &str) {
    // The test harness names a test's thread after the test.
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    eprintln!("*** NOT RUN for want of {what}: {test} ({why})");
    if let Some(file) = env::var_os("TOLLGATE_NOT_RUN") {
        let line = format!("{what}\t{test}\n");
        let file = File::options().create(true).append(true).open(file);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("what has not run can be written down");
    }
}
