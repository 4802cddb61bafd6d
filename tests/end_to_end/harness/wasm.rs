//! WebAssembly modules for tests: written as text, or this repository's example filters. (For other languages:
//! `peer::module`.)

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// A module from its text form.
pub fn from_text(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|e| panic!("{e}"))
}

/// An example filter (`hello`, `third-party`) or a standard one, compiled by `cargo filters`.
pub fn example(name: &str) -> Vec<u8> {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    read(FOLDER.get_or_init(|| build("filters")), name)
}

/// The same for any Proxy-Wasm host, compiled by `cargo portable`.
#[allow(dead_code, reason = "tests of the tools have no use for it")]
pub fn portable(name: &str) -> Vec<u8> {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    read(FOLDER.get_or_init(|| build("portable")), name)
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    let file = folder.join(name.replace('-', "_")).with_extension("wasm");
    fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Runs one of the repository's cargo aliases; each has a target directory of the same name.
fn build(alias: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(&root).arg(alias);
    // The environment that the outer cargo has set is for its own target.
    let keep = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_TERM_"];
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let other = ["RUSTFLAGS", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"].contains(&&*text);
        if other || (text.starts_with("CARGO") && !keep.iter().any(|k| text.starts_with(k))) {
            cargo.env_remove(&name);
        }
    }
    let output = cargo.output().expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    root.join("target").join(alias).join("wasm32-unknown-unknown/filter")
}
