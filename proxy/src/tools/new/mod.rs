//! `tollgate new`: creates a filter project that builds and passes its tests out of the box. It needs only this
//! program: required parts of this repository are unpacked into the project ([`vendor`]).

mod lock;
mod vendor;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use clap::Args;

use super::Paint;

/// The command line.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// The filter's name, used for its package, its module, and in configurations. Lowercase letters, digits, `-` and
    /// `_`
    name: String,
    /// The directory to create; it must not exist yet. [default: the name, in the current directory]
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
}

/// The files of a project: their paths and contents.
const TEMPLATE: [(&str, &str); 8] = [
    ("Cargo.toml", include_str!("template/Cargo.toml.in")),
    ("rust-toolchain.toml", include_str!("template/rust-toolchain.toml.in")),
    ("src/lib.rs", include_str!("template/lib.rs.in")),
    (".cargo/config.toml", include_str!("template/cargo-config.toml.in")),
    ("tollgate.yaml", include_str!("template/tollgate.yaml.in")),
    ("cases.yaml", include_str!("template/cases.yaml.in")),
    ("README.md", include_str!("template/README.md.in")),
    (".gitignore", include_str!("template/gitignore.in")),
];

/// Creates the project. Existing files are never modified.
pub fn run(args: &NewArgs) -> anyhow::Result<()> {
    let name = &args.name;
    check_name(name)?;
    let dir = args.path.clone().unwrap_or_else(|| PathBuf::from(name));
    make(&dir, name)?;

    let paint = Paint::stdout();
    let module = format!("target/wasm32-unknown-unknown/release/{}.wasm", crate_name(name));
    println!("{} {}", paint.green("created"), dir.display());
    println!("  cd {}", dir.display());
    for (command, what) in [
        ("cargo test".to_owned(), "run the unit tests natively"),
        ("cargo wasm".to_owned(), "build the module"),
        (format!("tollgate test {module} cases.yaml"), "test the module in the real host"),
        ("tollgate run tollgate.yaml".to_owned(), "run a proxy with it"),
    ] {
        println!("  {command}  {}", paint.faint(&format!("# {what}")));
    }
    Ok(())
}

fn make(dir: &Path, name: &str) -> anyhow::Result<()> {
    let there = || format!("cannot create {}", dir.display());
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).with_context(there)?;
    }
    // An atomic creation instead of a check with `exists`, which could race with another process.
    match fs::create_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} already exists; choose another directory with --path", dir.display());
        }
        made => made.with_context(there)?,
    }
    let own = TEMPLATE.into_iter().map(|(file, text)| {
        let text = text
            .replace("{{name}}", name)
            .replace("{{crate}}", &crate_name(name))
            .replace("{{type}}", &type_name(name))
            .replace("{{tollgate}}", env!("CARGO_PKG_VERSION"));
        (PathBuf::from(file), text)
    });
    let lock = [(PathBuf::from("Cargo.lock"), lock::text(name))];
    let vendored = vendor::files().into_iter().map(|(file, text)| (Path::new("vendor").join(file), text));
    for (file, text) in own.chain(lock).chain(vendored) {
        let path = dir.join(file);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The maximum length of a name in bytes: it is used in file names.
const LONGEST_NAME: usize = 64;

/// Names that cargo rejects, or that would shadow something in the filter's code.
const TAKEN: [&str; 64] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "proc_macro",
    "pub",
    "ref",
    "return",
    "self",
    "serde",
    "serde-json",
    "serde_json",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "tollgate-abi",
    "tollgate-sdk",
    "tollgate_abi",
    "tollgate_sdk",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

fn check_name(name: &str) -> anyhow::Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    ensure!(
        name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(fits),
        "`{name}` cannot be a filter's name: use lowercase letters, digits, `-` and `_`, starting with a letter (set \
         the directory with --path)"
    );
    ensure!(
        name.len() <= LONGEST_NAME,
        "a filter's name can have at most {LONGEST_NAME} characters, not {}",
        name.len()
    );
    ensure!(!TAKEN.contains(&name), "`{name}` cannot be a filter's name: it is a Rust keyword or the name of a crate");
    Ok(())
}

/// Returns the name of the library, and so of the module.
fn crate_name(name: &str) -> String {
    name.replace('-', "_")
}

/// Returns the name of the filter's type: `ApiKeysFilter` for `api-keys`, which cannot collide with the SDK's types.
fn type_name(name: &str) -> String {
    let capital = |word: &str| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_ascii_uppercase() + rest
    };
    name.split(['-', '_']).map(capital).collect::<String>() + "Filter"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_crates() {
        for good in ["a", "api-keys", "keys2", "a_b"] {
            check_name(good).unwrap();
        }
        for bad in ["", "Keys", "2keys", "-a", "a b", "a/b", "../a", "ä", "fn", "test", "serde", "tollgate-sdk"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name(&"a".repeat(65)).is_err());
        assert_eq!(
            (type_name("api-keys"), crate_name("api-keys")),
            ("ApiKeysFilter".to_owned(), "api_keys".to_owned())
        );
        assert_eq!(type_name("a__b-"), "ABFilter");
    }
}
