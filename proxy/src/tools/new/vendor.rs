//! The dependencies of a new project: the sources of the SDK and of the ABI (`abi/`), as this program was built with
//! them.
//!
//! The packages are not on a registry, so the executable contains them and writes them to the project's `vendor/`
//! directory. Their manifests inherit from this repository's workspace, which is not available there, so inherited
//! values are written out.

use std::collections::BTreeSet;

use toml::{Table, Value};

include!(concat!(env!("OUT_DIR"), "/sources.rs"));

const WORKSPACE: &str = include_str!("../../../../Cargo.toml");
const LICENSE: &str = include_str!("../../../../LICENSE");

/// The packages and their manifests.
const MANIFESTS: [(&str, &str); 2] =
    [("tollgate-abi", include_str!("../../../../abi/Cargo.toml")), (SDK, include_str!("../../../../sdk/Cargo.toml"))];

pub const SDK: &str = "tollgate-sdk";

/// Returns all files below `vendor/` with their contents.
pub fn files() -> Vec<(String, String)> {
    let workspace = parse(WORKSPACE);
    let manifests = MANIFESTS.iter().map(|(package, text)| {
        let head = format!("# {package}, as `tollgate {}` was built with it.\n\n", env!("CARGO_PKG_VERSION"));
        (format!("{package}/Cargo.toml"), head + &manifest(parse(text), &workspace).to_string())
    });
    let sources = SOURCES.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
    manifests.chain(sources).chain([("LICENSE".to_owned(), LICENSE.to_owned())]).collect()
}

/// Parses a file of this repository. A test parses all of them.
pub fn parse(text: &str) -> Table {
    toml::from_str(text).expect("a file of this repository is TOML")
}

/// Makes a manifest self-contained: without its workspace, and without what only the package's own development needs.
fn manifest(mut manifest: Table, workspace: &Table) -> Table {
    let inherited = &workspace["workspace"];
    for (key, value) in manifest["package"].as_table_mut().into_iter().flatten() {
        if inherits(value) {
            *value = inherited["package"][key].clone();
        }
    }
    for (name, dependency) in dependencies(&mut manifest) {
        if inherits(dependency) {
            *dependency = inherit(name, dependency, &inherited["dependencies"][name]);
        }
    }
    manifest.remove("dev-dependencies");
    // A newer compiler may warn about code that is not the project's own.
    let quiet = Table::from_iter([("warnings".to_owned(), Value::from("allow"))]);
    manifest.insert("lints".to_owned(), Table::from_iter([("rust".to_owned(), quiet.into())]).into());
    manifest
}

/// Returns the dependencies, including target-specific ones.
fn dependencies(manifest: &mut Table) -> Vec<(&String, &mut Value)> {
    let mut sections = Vec::new();
    for (key, value) in manifest {
        match key.as_str() {
            "dependencies" => sections.push(value),
            "target" => {
                let targets = value.as_table_mut().into_iter().flat_map(Table::iter_mut);
                sections.extend(targets.filter_map(|(_, target)| target.get_mut("dependencies")));
            }
            _ => {}
        }
    }
    sections.into_iter().filter_map(Value::as_table_mut).flatten().collect()
}

fn inherits(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

/// Returns a dependency in full: the workspace's, merged with the package's additions.
fn inherit(name: &str, own: &Value, base: &Value) -> Value {
    let mut all = match base {
        Value::Table(table) => table.clone(),
        version => Table::from_iter([("version".to_owned(), version.clone())]),
    };
    for (key, value) in own.as_table().into_iter().flatten() {
        match (all.get_mut(key), value) {
            _ if key == "workspace" => {}
            (Some(Value::Array(features)), Value::Array(more)) => features.extend(more.iter().cloned()),
            _ => drop(all.insert(key.clone(), value.clone())),
        }
    }
    // The packages are in adjacent directories.
    if let Some(path) = all.get_mut("path") {
        *path = Value::from(format!("../{name}"));
    }
    all.into()
}

/// Returns a vendored package's dependencies in a project. Optional ones are included if the default features or the
/// other package enable them, by a feature of the same name. Returns `None` for other packages.
pub fn required(package: &str) -> Option<BTreeSet<String>> {
    let (_, text) = MANIFESTS.iter().find(|(name, _)| *name == package)?;
    let mut manifest = parse(text);
    let mut features: Vec<Value> = array(manifest.get("features").and_then(|features| features.get("default")));
    for (_, other) in MANIFESTS {
        let mut other = parse(other);
        let asked = dependencies(&mut other).into_iter().filter(|(name, _)| *name == package);
        features.extend(asked.flat_map(|(_, dependency)| array(dependency.get("features"))));
    }
    let is_on = |name: &str| features.iter().any(|feature| feature.as_str() == Some(name));
    let is_optional = |dependency: &Value| dependency.get("optional").and_then(Value::as_bool) == Some(true);
    let all = dependencies(&mut manifest).into_iter();
    let needed = all.filter(|(name, dependency)| !is_optional(dependency) || is_on(name));
    Some(needed.map(|(name, _)| name.clone()).collect())
}

fn array(value: Option<&Value>) -> Vec<Value> {
    value.and_then(Value::as_array).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendored_manifests_stand_alone() {
        let files = files();
        let text = |path: &str| &files.iter().find(|(name, _)| name == path).unwrap().1;
        for (package, _) in MANIFESTS {
            let manifest = parse(text(&format!("{package}/Cargo.toml")));
            let shown = manifest.to_string();
            assert!(!shown.contains("workspace") && !manifest.contains_key("dev-dependencies"), "{shown}");
            assert_eq!(manifest["package"]["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
            assert!(text(&format!("{package}/src/lib.rs")).contains("pub mod"));
        }
        let sdk = parse(text("tollgate-sdk/Cargo.toml"));
        let abi = &sdk["dependencies"]["tollgate-abi"];
        assert_eq!((abi["path"].as_str(), abi["features"][0].as_str()), (Some("../tollgate-abi"), Some("serde")));
        assert!(required(SDK).unwrap().contains("talc") && !required(SDK).unwrap().contains("log"));
        assert_eq!(required("tollgate-abi").unwrap(), BTreeSet::from(["serde".to_owned()]));
        assert_eq!(required("serde"), None);
    }
}
