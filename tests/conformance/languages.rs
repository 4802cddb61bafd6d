//! Modules written with SDKs: they run their cases themselves and report the verdicts. See `README.md`.

use std::{collections::BTreeSet, fs, path::PathBuf};

use super::{
    files,
    harness::{peer, wasm},
    host::{Host, Verdict},
    script::Case,
};

/// A folder with a module's source.
pub struct Language {
    pub folder: &'static str,
    /// Column title in the table.
    pub title: &'static str,
    /// Names of the cases, from `cases.txt`.
    pub cases: BTreeSet<String>,
}

const LANGUAGES: &[(&str, &str)] = &[
    ("rust-0.2", "Rust 0.2"),
    ("rust-0.1", "Rust 0.1"),
    ("assemblyscript", "AssemblyScript"),
    ("go", "Go"),
    ("cpp", "C++"),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Lists all languages.
pub fn all() -> Vec<Language> {
    let read = |(folder, title): &(&'static str, &'static str)| {
        let text = fs::read_to_string(root().join("tests/conformance").join(folder).join("cases.txt"));
        let cases = text.expect("each language has a list of its cases").lines().map(str::to_owned).collect();
        Language { folder, title, cases }
    };
    LANGUAGES.iter().map(read).collect()
}

/// Returns the module, compiling it if it is in Rust; `None` if it has not been built.
fn module(folder: &str) -> Option<Vec<u8>> {
    if folder.starts_with("rust") {
        return Some(wasm::example(&format!("conformance-{}", folder.replace('.', "-"))));
    }
    peer::module(folder)
}

/// Runs the cases of a language's module, in the order of the case files.
fn run(folder: &str) {
    let language = all().into_iter().find(|l| l.folder == folder).expect("a language");
    let Some(module) = module(folder) else { return };
    let cases: Vec<Case> = files().into_iter().flat_map(|file| file.cases).collect();
    let (mine, tcp): (Vec<&Case>, Vec<&Case>) = (
        cases.iter().filter(|case| language.cases.contains(&case.id())).collect(),
        cases.iter().filter(|case| case.is_tcp()).collect(),
    );
    assert_eq!(mine.len(), language.cases.len(), "{folder}/cases.txt has names that are in no case file");
    let host = Host::start(&module, mine.iter().any(|case| tcp.iter().any(|t| t.id() == case.id())));
    let list = host.ask("x-cases", "list");
    let said: BTreeSet<String> = list.text().lines().map(str::to_owned).collect();
    assert_eq!(said, language.cases, "{folder}/cases.txt differs from the module's list");
    let mut wrong = Vec::new();
    for case in mine {
        let id = case.id();
        let got = host.run(case, &id);
        let look = || {
            let response = host.ask("x-result", &id);
            match response.status() {
                200 => Verdict::Passed,
                404 => Verdict::Open("no verdict".into()),
                status => Verdict::Failed(format!("{status} {}", String::from_utf8_lossy(&response.body))),
            }
        };
        match host.verdict(look) {
            Verdict::Passed => {}
            Verdict::Failed(why) | Verdict::Open(why) => wrong.push(format!("{id}: {why}")),
        }
        // These are generated from the case files, so their visible effects are the same.
        for check in case.checks.iter().filter(|_| ["go", "cpp"].contains(&folder)) {
            if let Err(why) = host.check(check, &id, got.as_ref()) {
                wrong.push(format!("{id}: {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{folder}:\n{}", wrong.join("\n"));
    assert_eq!(host.proxy.filter("conformance")["traps"], 0);
}

#[test]
fn rust_0_2() {
    run("rust-0.2");
}

#[test]
fn rust_0_1() {
    run("rust-0.1");
}

#[test]
fn assemblyscript() {
    run("assemblyscript");
}

#[test]
fn go() {
    run("go");
}

#[test]
fn cpp() {
    run("cpp");
}
