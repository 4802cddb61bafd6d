//! Where a new filter's SDK comes from.

use std::{fs, path::PathBuf};

use anyhow::{Context, ensure};

/// The SDK's package.
const PACKAGE: &str = "tollgate-sdk";

/// Where the SDK comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Sdk {
    /// crates.io, in this version.
    Version(String),
    /// A folder.
    Path(PathBuf),
    /// A git repository.
    Git(String),
}

impl Sdk {
    /// By what the user says; if nothing, this program's own version.
    ///
    /// # Errors
    /// It is a folder, and the SDK is not in there.
    pub fn named(text: Option<&str>) -> anyhow::Result<Sdk> {
        let Some(text) = text else {
            let (major, minor) = (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
            return Ok(Sdk::Version(format!("{major}.{minor}")));
        };
        let is_version = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
        if text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(is_version) {
            return Ok(Sdk::Version(text.to_owned()));
        }
        if text.contains("://") || (text.starts_with("git@") && text.contains(':')) {
            return Ok(Sdk::Git(text.to_owned()));
        }
        // The project lies elsewhere, so a relative path would mean another folder there.
        let path = fs::canonicalize(text).with_context(|| format!("--sdk {text}: there is no such folder"))?;
        let manifest = path.join("Cargo.toml");
        let said =
            fs::read_to_string(&manifest).with_context(|| format!("--sdk {text}: cannot read its Cargo.toml"))?;
        let said: toml::Table =
            toml::from_str(&said).with_context(|| format!("--sdk {text}: cannot read its Cargo.toml"))?;
        let name = said.get("package").and_then(|p| p.get("name")).and_then(toml::Value::as_str);
        ensure!(name == Some(PACKAGE), "--sdk {text}: the package in there is not `{PACKAGE}`");
        Ok(Sdk::Path(path))
    }

    /// What stands in `Cargo.toml` for it.
    pub fn dependency(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        match self {
            Sdk::Version(version) => quoted(version),
            Sdk::Path(path) => format!("{{ path = {} }}", quoted(&path.to_string_lossy())),
            Sdk::Git(url) => format!("{{ git = {} }}", quoted(url)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sdk_is_a_version_or_a_repository_or_a_folder() {
        let line = |text: Option<&str>| Sdk::named(text).unwrap().dependency();
        assert_eq!(line(Some("0.3.1")), "\"0.3.1\"");
        assert_eq!(line(Some("https://h/t.git")), "{ git = \"https://h/t.git\" }");
        assert!(line(None).starts_with('"'));
        let sdk = concat!(env!("CARGO_MANIFEST_DIR"), "/../sdk");
        assert!(line(Some(sdk)).starts_with("{ path = \"/"));
        for (wrong, why) in [("no/such", "no such folder"), (env!("CARGO_MANIFEST_DIR"), "is not `tollgate-sdk`")] {
            let error = format!("{:#}", Sdk::named(Some(wrong)).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}
