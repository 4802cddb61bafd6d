//! Checks one file by itself, and turns it into resources: the schema, the checks that a schema cannot express, and the
//! model.

use std::{
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, Mutex},
};

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::{
    diagnostic::Diagnostic,
    env::Lookup,
    explain::{self, clip, did_you_mean},
    load::ExternalChecks,
    model::Config,
    node::{Node, Value},
    outline::Outline,
    parse::{self, Expanded},
    paths::{Rebase, dependencies},
    resources::{FileResources, Resource},
    schema, semantics, sockets,
    source::Source,
    suggest::meant,
};
use crate::digest::sha256;

/// The sections whose entries are resources. Included files have no others.
const SECTIONS: [&str; 3] = ["listeners", "filters", "clusters"];

/// Parses and checks a file. Errors are appended to `problems`; a file with errors has no resources.
pub(super) fn check(
    mut file: FileResources,
    text: String,
    env: &Lookup<'_>,
    foreign: &ExternalChecks,
    problems: &mut Vec<Diagnostic>,
) -> FileResources {
    let mut source = Source::new(&file.origin.path, text);
    let is_main = file.origin.included_from.is_none();
    match parse::configuration(source.text(), file.origin.format, env, problems) {
        None => {}
        Some(expanded) if expanded.is_empty(file.origin.format) && problems.is_empty() => {
            let help = match is_main {
                true => "a configuration needs at least a listener with a name and an address",
                false => "remove the file, or write `clusters: []`",
            };
            problems.push(Diagnostic::error(None, "the file is empty").help(help.to_owned()));
        }
        Some(Expanded { mut root, references, variables }) => {
            if !is_main {
                refuse_other_sections(&mut root, problems);
            }
            source.set_root(root);
            (file.references, file.variables) = (references, variables);
            file.outline = Outline::of(&source, is_main);
            file.dependencies = dependencies(&source);
            let patterns = source.root().get("include").map_or(&[][..], Node::items);
            file.includes = patterns.iter().filter_map(|node| Some((node.as_str()?.to_owned(), node.span))).collect();
            semantics::check(&source, foreign, problems);
            let dir = file.origin.included_from.clone();
            Values { source: &source, dir: dir.as_deref(), problems }.read(&mut file);
        }
    }
    file.open = Mutex::new(Some(Arc::new(source)));
    file
}

/// Reports the keys of an included file that only the main file can have, and removes them.
fn refuse_other_sections(root: &mut Node, problems: &mut Vec<Diagnostic>) {
    let Value::Map(entries) = &mut root.value else { return };
    entries.retain(|(key, _)| {
        let name = key.name.as_str();
        if SECTIONS.contains(&name) {
            return true;
        }
        let all = || "an included file has only `listeners`, `filters` and `clusters`".to_owned();
        let (message, help) = match schema::property(schema::root(), name) {
            Some(_) => (format!("`{name}` belongs in the main file"), None),
            None => {
                (format!("unknown field `{}`", clip(name)), meant("", name).or_else(|| did_you_mean(name, &SECTIONS)))
            }
        };
        problems.push(Diagnostic::error(key.span, message).help(help.unwrap_or_else(all)));
        false
    });
}

/// Turns the values of a file into the model.
struct Values<'s> {
    source: &'s Source,
    /// The directory of an included file, as seen from the main file.
    dir: Option<&'s Path>,
    problems: &'s mut Vec<Diagnostic>,
}

impl Values<'_> {
    fn read(mut self, file: &mut FileResources) {
        let (source, dir) = (self.source, self.dir);
        let complete = |config: &mut Config, problems: &mut Vec<Diagnostic>| {
            sockets::resolve(source, &mut config.admin.address, "/admin/address", problems);
            if let Some(address) = &mut config.consul.address {
                sockets::resolve(source, address, "/consul/address", problems);
            }
            for (i, entry) in config.sources.iter_mut().enumerate() {
                if let Some(address) = entry.http.as_mut().and_then(|http| http.address.as_mut()) {
                    sockets::resolve(source, address, &format!("/sources/{i}/http/address"), problems);
                }
            }
        };
        let bootstrap = read_value(source, "", "", &rest(source.root()), self.problems, complete);
        let listeners = self.section("listeners", sockets::resolve_listener);
        let filters = self.section("filters", |_, _, _, _| {});
        let clusters = self.section("clusters", sockets::resolve_cluster);
        let Some((mut config, hash)) = bootstrap else { return };
        if !self.problems.is_empty() {
            return;
        }
        config.listeners = listeners.iter().map(|listener| listener.value.clone()).collect();
        config.clusters = clusters.iter().map(|cluster| cluster.value.clone()).collect();
        semantics::warn(source, &config, &mut file.warnings);
        (config.listeners, config.clusters) = (Vec::new(), Vec::new());
        (file.listeners, file.filters, file.clusters) = (listeners, filters, clusters);
        file.bootstrap = dir.is_none().then(|| Box::new((config, hash)));
    }

    /// Returns the resources of a section, as far as they have no errors. `finish` completes each of them; it gets its
    /// pointer.
    fn section<T: DeserializeOwned + Rebase>(
        &mut self,
        name: &str,
        finish: impl Fn(&Source, &mut T, &str, &mut Vec<Diagnostic>),
    ) -> Vec<Resource<T>> {
        let entries = self.source.root().get(name).map_or(&[][..], Node::items);
        let mut lines = Lines { text: self.source.text().as_bytes(), at: 0, line: 1 };
        let mut all = Vec::with_capacity(entries.len());
        for (index, node) in entries.iter().enumerate() {
            let pointer = format!("/{name}/{index}");
            let complete = |value: &mut T, problems: &mut Vec<Diagnostic>| {
                finish(self.source, value, &pointer, problems);
                self.dir.iter().for_each(|dir| value.rebase(dir));
            };
            let value = read_value(self.source, name, &pointer, &node.to_json(), self.problems, complete);
            let Some((value, mut hash)) = value else { continue };
            // The same paths mean other files in another directory.
            if let Some(dir) = self.dir.filter(|dir| !dir.as_os_str().is_empty()) {
                hash = sha256(&[&hash, dir.as_os_str().as_bytes()].concat());
            }
            all.push(Resource {
                value: Arc::new(value),
                sha256: hash,
                span: node.span,
                line: lines.of(node.span.start),
            });
        }
        all
    }
}

/// Checks a value against the schema, and turns it into the model, which `finish` completes. Returns it with its hash.
pub(super) fn read_value<T: DeserializeOwned>(
    source: &Source,
    section: &str,
    pointer: &str,
    json: &serde_json::Value,
    problems: &mut Vec<Diagnostic>,
    finish: impl FnOnce(&mut T, &mut Vec<Diagnostic>),
) -> Option<(T, [u8; 32])> {
    if !explain::check(source, section, pointer, json, problems) {
        return None;
    }
    match T::deserialize(json) {
        Ok(mut value) => {
            finish(&mut value, problems);
            Some((value, sha256(json.to_string().as_bytes())))
        }
        Err(_) => {
            let error = serde_path_to_error::deserialize::<_, T>(json).err();
            problems.extend(error.map(|error| refused(source, pointer, &error)));
            None
        }
    }
}

/// Returns a file as JSON, without the entries of the sections.
fn rest(root: &Node) -> serde_json::Value {
    let Value::Map(entries) = &root.value else { return root.to_json() };
    let is_section = |key: &str, node: &Node| SECTIONS.contains(&key) && matches!(node.value, Value::Seq(_));
    let rest = entries.iter().filter(|(key, node)| !is_section(&key.name, node));
    rest.map(|(key, node)| (key.name.clone(), node.to_json())).collect()
}

/// Counts lines up to ascending offsets.
struct Lines<'t> {
    text: &'t [u8],
    at: usize,
    line: usize,
}

impl Lines<'_> {
    fn of(&mut self, offset: usize) -> usize {
        // An alias may repeat a value that is further up.
        if offset < self.at {
            (self.at, self.line) = (0, 1);
        }
        self.line += self.text.get(self.at..offset).map_or(0, |passed| memchr::memchr_iter(b'\n', passed).count());
        self.at = offset;
        self.line
    }
}

/// Reports a value that the schema accepts but the model does not. There are few cases, such as `2.0` for a whole
/// number.
fn refused(source: &Source, pointer: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> Diagnostic {
    let mut pointer = pointer.to_owned();
    for segment in error.path() {
        let segment = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.replace('~', "~0").replace('/', "~1"),
            Segment::Enum { .. } | Segment::Unknown => break,
        };
        pointer.push('/');
        pointer.push_str(&segment);
    }
    match &source.root().find(&pointer).node.value {
        Value::Number(n) if n.is_f64() => {
            source.diagnostic(&pointer, format!("expected a whole number, found `{n}`"), None)
        }
        _ => source.diagnostic(&pointer, error.inner().to_string(), None),
    }
}
