//! What a configuration changes in another: the resources that it adds, changes and removes, and the filters that get new
//! instances. For the log, and for `tollgate check --against`.
//!
//! Resources are compared by their hashes, so the cost of a comparison is that of its differences. Values are not shown,
//! since they may be secrets.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use rustc_hash::FxHashMap;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::snapshot::Built;
use crate::{
    config::{FileResources, Loaded, model},
    snapshot::Snapshot,
};

/// Further differences are only counted.
const MOST: usize = 20;

/// What a configuration changes in another.
#[derive(Debug, Default)]
pub struct Changes {
    /// The differences.
    pub list: Vec<Change>,
    /// The filters that get new instances.
    pub new_instances: Vec<String>,
    /// The filters that keep their instances but get other settings.
    pub new_settings: Vec<String>,
}

/// A difference between two configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A setting outside the lists of resources has another value.
    Setting(String),
    /// A resource is new.
    Added(Named),
    /// Some fields of a resource have other values.
    Changed(Named, Vec<String>),
    /// A resource is gone.
    Removed(Named),
    /// The same resources are in another order.
    Reordered(Kind),
    /// A TLS file has another content.
    File(PathBuf),
}

/// A resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The kind.
    pub kind: Kind,
    /// The name.
    pub name: String,
    /// The source that supplies it, in words; `None` for the files.
    pub source: Option<String>,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.kind.as_str(), self.name)?;
        self.source.iter().try_for_each(|source| write!(f, " of {source}"))
    }
}

/// A kind of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An upstream.
    Cluster,
    /// A listener.
    Listener,
    /// A filter.
    Filter,
}

impl Kind {
    /// All kinds, in the order in which changes are listed.
    pub const ALL: [Kind; 3] = [Kind::Cluster, Kind::Listener, Kind::Filter];

    /// The name of the kind.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Cluster => "cluster",
            Kind::Listener => "listener",
            Kind::Filter => "filter",
        }
    }

    /// The name of the list of its resources in a configuration.
    pub fn section(self) -> &'static str {
        match self {
            Kind::Cluster => "clusters",
            Kind::Listener => "listeners",
            Kind::Filter => "filters",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Setting(name) => write!(f, "changed `{name}`"),
            Change::Added(named) => write!(f, "added {named}"),
            Change::Changed(named, fields) => write!(f, "changed {named} ({})", fields.join(", ")),
            Change::Removed(named) => write!(f, "removed {named}"),
            Change::Reordered(kind) => write!(f, "reordered {}", kind.section()),
            Change::File(path) => write!(f, "changed file {}", path.display()),
        }
    }
}

impl Change {
    /// Returns the change in the form of `tollgate check --json`.
    pub fn to_json(&self) -> Value {
        match self {
            Change::Setting(name) => json!({ "change": "changed", "kind": "setting", "name": name }),
            Change::Added(named) => json!({ "change": "added", "kind": named.kind.as_str(), "name": named.name }),
            Change::Changed(named, fields) => {
                json!({ "change": "changed", "kind": named.kind.as_str(), "name": named.name, "fields": fields })
            }
            Change::Removed(named) => json!({ "change": "removed", "kind": named.kind.as_str(), "name": named.name }),
            Change::Reordered(kind) => json!({ "change": "reordered", "kind": kind.as_str() }),
            Change::File(path) => json!({ "change": "changed", "kind": "file", "name": path.display().to_string() }),
        }
    }
}

impl Changes {
    /// Compares what was built with the running snapshot.
    pub(crate) fn of_built(old: &Snapshot, built: &Built) -> Changes {
        let names = built.vms.iter().flat_map(|(template, _)| (*template.plugins()).clone());
        let kept = built.settings.iter().filter(|(plugin, settings)| plugin.settings() != *settings);
        Changes {
            list: compare(&Listing::of(old), &Listing::of(&built.snapshot)),
            new_instances: names.map(|plugin| plugin.info.name.clone()).collect(),
            new_settings: kept.map(|(plugin, _)| plugin.info.name.clone()).collect(),
        }
    }

    /// Returns the differences in one line.
    pub fn line(&self) -> String {
        match self.list.is_empty() {
            // For example, a default was made explicit.
            true => "none with an effect".to_owned(),
            false => joined(&self.list, "; "),
        }
    }

    /// Returns the names of the filters that get new instances; `None` if there are none.
    pub fn new_instances(&self) -> Option<String> {
        (!self.new_instances.is_empty()).then(|| joined(&self.new_instances, ", "))
    }

    /// Returns the names of the filters that get other settings; `None` if there are none.
    pub fn new_settings(&self) -> Option<String> {
        (!self.new_settings.is_empty()).then(|| joined(&self.new_settings, ", "))
    }
}

/// Lists the first items; the others are counted.
fn joined(all: &[impl fmt::Display], separator: &str) -> String {
    let mut listed = all.iter().take(MOST).map(ToString::to_string).collect::<Vec<_>>().join(separator);
    if all.len() > MOST {
        listed += &format!("{separator}and {} more", all.len() - MOST);
    }
    listed
}

/// The parts of a configuration that are compared.
pub struct Listing<'c> {
    /// The settings outside the lists of resources.
    pub settings: Entry<'c>,
    /// The resources by kind, in the order of [`Kind::ALL`].
    pub resources: [Vec<Entry<'c>>; 3],
    /// The hashes of the TLS files.
    pub files: Cow<'c, BTreeMap<PathBuf, [u8; 32]>>,
}

/// A resource, or the settings, which have no name.
pub struct Entry<'c> {
    /// The name.
    pub name: &'c str,
    /// The hash of everything that was written about it.
    pub sha256: [u8; 32],
    /// The source that supplies it, in words.
    pub source: Option<&'c str>,
    /// The hash of a filter's module.
    pub module: Option<&'c str>,
    /// The values.
    pub fields: Fields<'c>,
    /// The fields whose values are unknown on the other side. They are the ones that differ if nothing else does.
    pub hidden: Vec<String>,
}

/// The values of a resource.
pub enum Fields<'c> {
    /// A cluster.
    Cluster(&'c model::Cluster),
    /// A listener.
    Listener(&'c model::Listener),
    /// A filter.
    Filter(&'c model::Filter),
    /// The settings of a configuration.
    Settings(&'c model::Config),
    /// Any of them, as JSON.
    Json(Cow<'c, Value>),
}

impl Fields<'_> {
    fn to_json(&self) -> Cow<'_, Value> {
        fn json<'v>(value: impl Serialize) -> Cow<'v, Value> {
            Cow::Owned(serde_json::to_value(value).unwrap_or_default())
        }
        match self {
            Fields::Cluster(cluster) => json(cluster),
            Fields::Listener(listener) => json(listener),
            Fields::Filter(filter) => json(filter),
            Fields::Settings(config) => {
                let (listeners, filters, clusters) = (Vec::new(), Vec::new(), Vec::new());
                let config = model::Config { listeners, filters, clusters, ..(*config).clone() };
                Cow::Owned(settings(json(config).into_owned()))
            }
            Fields::Json(value) => Cow::Borrowed(value),
        }
    }
}

impl<'c> Entry<'c> {
    fn new(name: &'c str, sha256: [u8; 32], fields: Fields<'c>) -> Entry<'c> {
        Entry { name, sha256, source: None, module: None, fields, hidden: Vec::new() }
    }

    fn supplied_by(self, file: &'c FileResources) -> Entry<'c> {
        Entry { source: file.supplied().map(|(source, _)| source), ..self }
    }

    fn named(&self, kind: Kind) -> Named {
        Named { kind, name: self.name.to_owned(), source: self.source.map(str::to_owned) }
    }

    /// Returns the fields in which an entry differs from this one.
    fn changed_fields(&self, new: &Entry<'_>) -> Vec<String> {
        let mut fields = Vec::new();
        if self.sha256 != new.sha256 {
            fields = different_fields(&self.fields.to_json(), &new.fields.to_json());
            if fields.is_empty() {
                fields.extend(new.hidden.iter().cloned());
            }
        }
        // The code may differ although nothing in the file does.
        if self.module.zip(new.module).is_some_and(|(old, new)| old != new) {
            fields.push("module".to_owned());
        }
        fields
    }
}

impl<'c> Listing<'c> {
    /// The parts of a snapshot.
    pub fn of(snapshot: &'c Snapshot) -> Listing<'c> {
        let modules = snapshot.plugins.iter().map(|plugin| plugin.code.hash.as_str());
        Listing::of_parts(&snapshot.effective, modules, snapshot.tls.files())
    }

    /// `modules`: the hashes of the filters' modules.
    fn of_parts(
        loaded: &'c Loaded,
        modules: impl Iterator<Item = &'c str>,
        files: &'c BTreeMap<PathBuf, [u8; 32]>,
    ) -> Listing<'c> {
        let source = loaded.source.files();
        let clusters = source.iter().flat_map(|file| &file.clusters);
        let listeners = source.iter().flat_map(|file| file.listeners.iter().map(move |one| (file, one)));
        let filters = source.iter().flat_map(|file| file.filters.iter().map(move |one| (file, one))).zip(modules);
        let resources = [
            clusters.map(|one| Entry::new(&one.value.name, one.sha256, Fields::Cluster(&one.value))).collect(),
            listeners
                .map(|(file, one)| {
                    Entry::new(&one.value.name, one.sha256, Fields::Listener(&one.value)).supplied_by(file)
                })
                .collect(),
            filters
                .map(|((file, one), module)| Entry {
                    module: Some(module),
                    ..Entry::new(&one.value.name, one.sha256, Fields::Filter(&one.value)).supplied_by(file)
                })
                .collect(),
        ];
        let settings = Entry::new("", loaded.source.settings_hash(), Fields::Settings(&loaded.config));
        Listing { settings, resources, files: Cow::Borrowed(files) }
    }
}

/// Returns the settings of a configuration outside the lists of resources.
pub fn settings(mut config: Value) -> Value {
    if let Some(fields) = config.as_object_mut() {
        fields.retain(|field, _| Kind::ALL.iter().all(|kind| kind.section() != field));
    }
    config
}

/// Returns the differences between two configurations.
pub fn compare(old: &Listing<'_>, new: &Listing<'_>) -> Vec<Change> {
    let mut all: Vec<Change> = old.settings.changed_fields(&new.settings).into_iter().map(Change::Setting).collect();
    for (kind, (old, new)) in Kind::ALL.into_iter().zip(old.resources.iter().zip(&new.resources)) {
        compare_section(kind, old, new, &mut all);
    }
    let has_changed = |(path, digest): &(&PathBuf, &[u8; 32])| old.files.get(*path).is_some_and(|old| old != *digest);
    all.extend(new.files.iter().filter(has_changed).map(|(path, _)| Change::File(path.clone())));
    all
}

/// Lists the entries of a section that were added, changed and removed, by name.
fn compare_section(kind: Kind, old: &[Entry<'_>], new: &[Entry<'_>], all: &mut Vec<Change>) {
    let same = |(one, other): (&Entry<'_>, &Entry<'_>)| one.sha256 == other.sha256 && one.module == other.module;
    if old.len() == new.len() && old.iter().zip(new).all(same) {
        return;
    }
    let before = all.len();
    let (were, are) = (by_name(old), by_name(new));
    for entry in new {
        let Some(old) = were.get(entry.name) else {
            all.push(Change::Added(entry.named(kind)));
            continue;
        };
        let fields = old.changed_fields(entry);
        if !fields.is_empty() {
            all.push(Change::Changed(entry.named(kind), fields));
        }
    }
    let gone = old.iter().filter(|entry| !are.contains_key(entry.name));
    all.extend(gone.map(|entry| Change::Removed(entry.named(kind))));
    let names = |entries: &[Entry<'_>]| entries.iter().map(|entry| entry.name.to_owned()).collect::<Vec<_>>();
    if all.len() == before && names(old) != names(new) {
        all.push(Change::Reordered(kind));
    }
}

fn by_name<'e, 'c>(entries: &'e [Entry<'c>]) -> FxHashMap<&'e str, &'e Entry<'c>> {
    entries.iter().map(|entry| (entry.name, entry)).collect()
}

/// Returns the fields in which two objects differ.
pub fn different_fields(old: &Value, new: &Value) -> Vec<String> {
    let keys = [old, new].into_iter().filter_map(Value::as_object).flat_map(Map::keys);
    let names: BTreeSet<&String> = keys.collect();
    names.into_iter().filter(|name| old.get(name) != new.get(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Format, parse};

    fn loaded(text: &str) -> Loaded {
        parse("x.yaml", text, Format::Yaml).unwrap()
    }

    static NO_FILES: BTreeMap<PathBuf, [u8; 32]> = BTreeMap::new();

    fn listing<'c>(loaded: &'c Loaded, modules: &[&'c str], files: &[(&str, u8)]) -> Listing<'c> {
        let files = files.iter().map(|(path, digest)| (path.into(), [*digest; 32])).collect();
        Listing { files: Cow::Owned(files), ..Listing::of_parts(loaded, modules.iter().copied(), &NO_FILES) }
    }

    fn said(old: &Listing<'_>, new: &Listing<'_>) -> Vec<String> {
        compare(old, new).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn additions_changes_and_removals_are_listed() {
        let filter = |name: &str, config: u8| format!("{{name: {name}, wasm: 'builtin:fault', config: {config}}}");
        let text = |drain: &str, listeners: &str, clusters: &str, f: u8| {
            loaded(&format!(
                "drain_timeout: {drain}\nlisteners: [{listeners}]\nclusters: [{clusters}]\nfilters: [{}, {}]",
                filter("f", f),
                filter("g", 1)
            ))
        };
        let listener = |name: &str, port: u16, more: &str| {
            format!("{{name: {name}, address: '127.0.0.1:{port}', cluster: web{more}}}")
        };
        let (web, api) = ("{name: web, endpoints: ['127.0.0.1:1']}", "{name: api, endpoints: ['127.0.0.1:2']}");
        let old =
            text("30s", &[listener("a", 1, ", via: x"), listener("b", 3, "")].join(","), &[web, api].join(","), 1);
        let new =
            text("31s", &[listener("a", 2, ", via: y"), listener("c", 4, "")].join(","), &[api, web].join(","), 2);
        let (old, new) = (
            listing(&old, &["1", "1"], &[("a.pem", 1), ("b.pem", 1)]),
            listing(&new, &["1", "2"], &[("a.pem", 2), ("c.pem", 1)]),
        );
        assert_eq!(
            said(&old, &new),
            [
                "changed `drain_timeout`",
                "reordered clusters",
                "changed listener `a` (address, via)",
                "added listener `c`",
                "removed listener `b`",
                "changed filter `f` (config)",
                "changed filter `g` (module)",
                "changed file a.pem",
            ]
        );
        assert!(compare(&old, &old).is_empty());
    }

    #[test]
    fn explicit_default_has_no_effect() {
        let text = |more: &str| loaded(&format!("listeners: [{{name: a, address: '127.0.0.1:1'{more}}}]"));
        let (old, new) = (text(""), text(", connect: false"));
        assert_ne!(old.hash(), new.hash());
        assert!(compare(&listing(&old, &[], &[]), &listing(&new, &[], &[])).is_empty());
        assert_eq!(Changes::default().line(), "none with an effect");
    }

    #[test]
    fn hidden_fields_differ_if_nothing_else_does() {
        let text = |via: &str, more: &str| {
            loaded(&format!("listeners: [{{name: a, address: '127.0.0.1:1', via: {via}{more}}}]"))
        };
        let (old, new, more) = (text("x", ""), text("y", ""), text("y", ", http3: false, connect: true"));
        let shown = serde_json::to_value(&*old.config.listeners[0]).unwrap();
        let masked = |loaded: &Loaded| {
            let mut other = serde_json::to_value(&*loaded.config.listeners[0]).unwrap();
            other["via"] = "x".into();
            other
        };
        let compared = |new: &Loaded| {
            let value = masked(new);
            let (mut before, mut after) = (listing(&old, &[], &[]), listing(new, &[], &[]));
            before.resources[1][0].fields = Fields::Json(Cow::Borrowed(&shown));
            after.resources[1][0].fields = Fields::Json(Cow::Borrowed(&value));
            after.resources[1][0].hidden = vec!["via".to_owned()];
            said(&before, &after)
        };
        assert_eq!(compared(&new), ["changed listener `a` (via)"]);
        assert_eq!(compared(&more), ["changed listener `a` (connect)"]);
        assert!(compared(&old).is_empty());
    }

    #[test]
    fn long_lists_are_cut() {
        let added = |n: usize| Change::Added(Named { kind: Kind::Cluster, name: n.to_string(), source: None });
        let list = (0..MOST + 2).map(added).collect();
        let line = Changes { list, ..Changes::default() }.line();
        assert!(line.starts_with("added cluster `0`; ") && line.ends_with("`19`; and 2 more"), "{line}");
    }
}
