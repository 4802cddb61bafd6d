//! `tollgate new`: begins a filter's project, that builds and passes its tests as it is.

mod sdk;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use clap::Args;

use self::sdk::Sdk;
use super::Paint;

/// The command line.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// The filter's name: of its package, its module, and in configurations. Small letters, digits, `-` and `_`.
    name: String,
    /// The folder to make. It must not be there yet. Default: the name, in the current folder.
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// The SDK: a folder (such as `../tollgate/sdk`), a version on crates.io (such as `0.1`), or the URL of a git
    /// repository. Default: this program's own version on crates.io.
    #[arg(long, value_name = "PATH|VERSION|GIT")]
    sdk: Option<String>,
}

/// The files of a project: where they go, and what is in them.
const TEMPLATE: [(&str, &str); 7] = [
    ("Cargo.toml", include_str!("template/Cargo.toml.in")),
    ("src/lib.rs", include_str!("template/lib.rs.in")),
    (".cargo/config.toml", include_str!("template/cargo-config.toml.in")),
    ("tollgate.yaml", include_str!("template/tollgate.yaml.in")),
    ("cases.yaml", include_str!("template/cases.yaml.in")),
    ("README.md", include_str!("template/README.md.in")),
    (".gitignore", include_str!("template/gitignore.in")),
];

/// Makes the project. What is there already is never touched.
pub fn run(args: &NewArgs) -> anyhow::Result<()> {
    let name = &args.name;
    check_name(name)?;
    let sdk = Sdk::named(args.sdk.as_deref())?;
    let dir = args.path.clone().unwrap_or_else(|| PathBuf::from(name));
    make(&dir, name, &sdk)?;

    let paint = Paint::stdout();
    let module = format!("target/wasm32-unknown-unknown/release/{}.wasm", crate_name(name));
    println!("{} {}", paint.green("made"), dir.display());
    println!("  cd {}", dir.display());
    for (command, what) in [
        ("cargo test".to_owned(), "the tests, native"),
        ("cargo wasm".to_owned(), "the module"),
        (format!("tollgate test {module} cases.yaml"), "the module in the real host"),
        ("tollgate run tollgate.yaml".to_owned(), "a proxy with it"),
    ] {
        println!("  {command}  {}", paint.faint(&format!("# {what}")));
    }
    Ok(())
}

fn make(dir: &Path, name: &str, sdk: &Sdk) -> anyhow::Result<()> {
    let there = || format!("cannot make {}", dir.display());
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).with_context(there)?;
    }
    // Not `exists`, then this: nobody else may have made it in between.
    match fs::create_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} is there already; choose another folder with --path", dir.display());
        }
        made => made.with_context(there)?,
    }
    for (file, text) in TEMPLATE {
        let text = text
            .replace("{{name}}", name)
            .replace("{{crate}}", &crate_name(name))
            .replace("{{type}}", &type_name(name))
            .replace("{{sdk}}", &sdk.dependency());
        let path = dir.join(file);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Bytes of a name: it becomes the name of files.
const LONGEST_NAME: usize = 64;

/// Names that cargo refuses, or that would hide something in the filter's own code.
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
        "`{name}` cannot be a filter's name: it begins with a small letter, and has small letters, digits, `-` and `_` \
         (a folder is named with --path)"
    );
    ensure!(name.len() <= LONGEST_NAME, "a filter's name has at most {LONGEST_NAME} characters, not {}", name.len());
    ensure!(!TAKEN.contains(&name), "`{name}` cannot be a filter's name: it means something to Rust");
    Ok(())
}

/// The name of the library, and so of the module.
fn crate_name(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the filter's type: `api-keys` makes `ApiKeysFilter`, so that it is none of the SDK's.
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
