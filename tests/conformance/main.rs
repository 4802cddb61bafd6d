//! Conformance suite of the ABI: each host function's success and each of its statuses, each callback, each address and
//! length out of range, in modules generated from the case files and in modules built with other SDKs. See `README.md`.

#[path = "../end_to_end/harness/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod harness;

mod host;
mod languages;
mod memory;
mod module;
mod script;
mod special;
mod table;

use host::{Host, Verdict};
use script::File;

/// Lists the case files and defines a test per file.
macro_rules! files {
    ($($name:ident),+ $(,)?) => {
        /// All case files.
        fn files() -> Vec<File> {
            vec![$(script::parse(stringify!($name), include_str!(concat!("cases/", stringify!($name), ".case")))),+]
        }
        $(#[test]
        fn $name() {
            let file = script::parse(stringify!($name), include_str!(concat!("cases/", stringify!($name), ".case")));
            run(&file);
        })+
    };
}

files!(
    headers,
    basics,
    buffers,
    streams,
    shared,
    full,
    properties,
    calls,
    fast,
    old,
    callbacks,
    stored,
    tcp,
    wasi,
    wasi_unstable
);

/// Runs all cases of a file in one module, one after the other.
fn run(file: &File) {
    let host = Host::start(&module::module(file), file.cases.iter().any(script::Case::is_tcp));
    let mut wrong = Vec::new();
    for (nth, case) in file.cases.iter().enumerate() {
        let number = format!("{nth:03}");
        let got = host.run(case, &number);
        let mut fail = |what: String| wrong.push(format!("{} ({}.case): {what}", case.id(), file.name));
        match host.verdict(|| verdict(&host.ask("x-result", &number).body)) {
            Verdict::Passed => {}
            Verdict::Failed(why) => fail(why),
            Verdict::Open(why) => fail(why),
        }
        for check in &case.checks {
            if let Err(why) = host.check(check, &number, got.as_ref()) {
                fail(why);
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!(host.proxy.filter("conformance")["traps"], 0);
}

#[test]
fn addresses_and_lengths_out_of_range() {
    for file in files() {
        let cases = memory::cases(&file);
        if !cases.is_empty() {
            run(&File { cases, ..file });
        }
    }
}

/// Decodes the verdict of a module generated from a case file; see `module.rs`.
fn verdict(bytes: &[u8]) -> Verdict {
    let word = |nth: usize| bytes.get(4 * nth..4 * nth + 4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    match (word(0), word(1), word(2), word(3)) {
        (Some(1), ..) => Verdict::Passed,
        (Some(2), _, Some(line), Some(got)) => Verdict::Failed(format!("line {line}: got {got}")),
        (_, Some(done), ..) => Verdict::Open(format!("only {done} of its callbacks came")),
        _ => Verdict::Open(format!("it says {:?}", bytes.escape_ascii().to_string())),
    }
}
