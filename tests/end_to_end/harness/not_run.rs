//! Tests that need programs which not every machine has. If TOLLGATE_REQUIRE_TOOLS is set, as in continuous
//! integration, a missing program fails the test. Otherwise the test does not run and is recorded in the file that
//! TOLLGATE_NOT_RUN names; `tests/summary.sh` counts these.

use std::{env, fs::File, io::Write, thread};

/// Reports a missing program, which `script` installs.
#[allow(dead_code, reason = "unit tests include this file, and need no programs")]
pub fn missing(what: &str, script: &str) {
    assert!(env::var_os("TOLLGATE_REQUIRE_TOOLS").is_none(), "{what} is missing; {script} brings it here");
    for_want_of(what, &format!("{script} brings it here"));
}

/// Reports something that the machine lacks and no script can install, such as a privilege or a protocol. This never
/// fails a test.
pub fn for_want_of(what: &str, why: &str) {
    // The test harness names a test's thread after the test.
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    eprintln!("*** NOT RUN for want of {what}: {test} ({why})");
    if let Some(file) = env::var_os("TOLLGATE_NOT_RUN") {
        let line = format!("{what}\t{test}\n");
        let file = File::options().create(true).append(true).open(file);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the skipped test can be recorded");
    }
}
