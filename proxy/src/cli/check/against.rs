//! Compares a checked configuration with the one that a proxy runs, as its admin listener shows it: hashes of resources,
//! keys of VMs, and the values, in which environment variables are masked.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::admin::AdminListener;
use crate::{
    config::model,
    control::{
        changes::{Change, Changes, Entry, Fields, Kind, Listing, compare, different_fields, settings},
        diff,
    },
    digest::{from_hex, hex},
    snapshot::Snapshot,
    wasm::FilterSettings,
};

/// What applying a configuration would do.
pub(super) struct Comparison {
    url: String,
    /// The version and the hash of the running configuration.
    version: u64,
    hash: String,
    changes: Changes,
    /// Settings that need a restart.
    restarts: Vec<String>,
    /// Reasons why the comparison may be incomplete.
    pub(super) notes: Vec<String>,
}

impl Comparison {
    /// Whether anything would change.
    pub(super) fn has_changes(&self) -> bool {
        let Changes { list, new_instances, new_settings } = &self.changes;
        !(list.is_empty() && new_instances.is_empty() && new_settings.is_empty())
    }

    /// Returns the result for people.
    pub(super) fn text(&self) -> String {
        let Comparison { url, version, hash, changes, restarts, .. } = self;
        if !self.has_changes() {
            return format!("nothing would change: {url} runs this configuration (version {version}, hash {hash})\n");
        }
        let mut text = format!("this would change at {url} (version {version}, hash {hash}):\n");
        let mut line = |line: String| text += &format!("  {line}\n");
        changes.list.iter().for_each(|change| line(change.to_string()));
        if !changes.new_instances.is_empty() {
            line(format!("new instances: {}", changes.new_instances.join(", ")));
        }
        if !changes.new_settings.is_empty() {
            line(format!("new settings for the same instances: {}", changes.new_settings.join(", ")));
        }
        restarts.iter().for_each(|restart| line(restart.clone()));
        text
    }

    /// Returns the result as JSON.
    pub(super) fn json(&self) -> Value {
        json!({
            "url": self.url,
            "version": self.version,
            "hash": self.hash,
            "changes": self.changes.list.iter().map(Change::to_json).collect::<Vec<_>>(),
            "new_instances": self.changes.new_instances,
            "new_settings": self.changes.new_settings,
            "restarts": self.restarts,
            "notes": self.notes,
        })
    }
}

/// What the admin listener shows.
struct Running {
    tollgate: String,
    config: Value,
    filters: Value,
    resources: Value,
}

impl Running {
    async fn read(admin: &AdminListener) -> anyhow::Result<Running> {
        let tollgate = admin.get("/").await?["tollgate"].as_str().unwrap_or("unknown").to_owned();
        // A reload may happen in between.
        for _ in 0..5 {
            let config = admin.get("/config").await?;
            let (filters, resources) = (admin.get("/filters").await?, admin.get("/resources").await?);
            let after = admin.get("/config").await?;
            if [&filters, &after].iter().all(|other| other["version"] == config["version"]) {
                return Ok(Running { tollgate, config, filters, resources });
            }
        }
        bail!("the configuration at {} keeps changing", admin.url())
    }
}

/// Compares a configuration, which was built on trial, with the running one.
///
/// # Errors The admin listener cannot be asked.
pub(super) fn compared(snapshot: &Snapshot, admin: &AdminListener) -> anyhow::Result<Comparison> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let running = tokio::task::LocalSet::new().block_on(&runtime, Running::read(admin))?;
    of_running(snapshot, running, admin.url())
}

fn of_running(snapshot: &Snapshot, running: Running, url: &str) -> anyhow::Result<Comparison> {
    let Running { tollgate, config: document, filters, resources } = running;
    let incomplete = || format!("{url} does not show all that a comparison needs; it runs version {tollgate}");
    let version = document["version"].as_u64().with_context(incomplete)?;
    let hash = document["hash"].as_str().with_context(incomplete)?;
    let mut notes = Vec::new();
    if tollgate != env!("CARGO_PKG_VERSION") {
        let own = env!("CARGO_PKG_VERSION");
        notes.push(format!("{url} runs Tollgate {tollgate}, and this is {own}: other defaults may look like changes"));
    }
    if let Some(pinned) = document["pinned"].as_u64() {
        notes.push(format!("{url} is pinned to version {pinned}: files are applied after POST /config/resume"));
    }
    let loaded = &snapshot.loaded;
    let (shown, real) = (loaded.shown(), serde_json::to_value(&loaded.config)?);
    let mut config = document["config"].clone();
    reveal(&mut config, &shown, &real);
    let hashes = hashes(&resources);
    let running = running_listing(&document, &config, &filters, &hashes);
    let mut own = Listing::of(snapshot);
    let masked = Masked { shown: &shown, real: &real };
    own.settings.hidden = masked.settings();
    for (kind, entries) in Kind::ALL.into_iter().zip(&mut own.resources) {
        for (nth, entry) in entries.iter_mut().enumerate() {
            entry.hidden = masked.fields(kind, nth);
        }
    }
    let list = compare(&running, &own);
    let (new_instances, new_settings) = instances(snapshot, &config, &filters).with_context(incomplete)?;
    let restarts = match serde_json::from_value::<model::Config>(config.clone()) {
        Ok(old) => diff::restarts(&old, &old, &loaded.config),
        Err(_) => {
            notes.push("environment variables hide whether a setting needs a restart".to_owned());
            Vec::new()
        }
    };
    let changes = Changes { list, new_instances, new_settings };
    Ok(Comparison { url: url.to_owned(), version, hash: hash.to_owned(), changes, restarts, notes })
}

/// The hashes of the files' resources, by kind and name.
fn hashes(resources: &Value) -> HashMap<(&str, &str), [u8; 32]> {
    let all = resources["resources"].as_array().into_iter().flatten();
    let of_files = all.filter(|resource| resource["accepted"]["source"] == "file");
    let hash = |resource: &'_ Value| from_hex(resource["accepted"]["sha256"].as_str()?);
    let entry = |resource| Some(((text(resource, "kind")?, text(resource, "name")?), hash(resource)?));
    of_files.filter_map(entry).collect()
}

fn text<'v>(value: &'v Value, field: &str) -> Option<&'v str> {
    value[field].as_str()
}

fn items(config: &Value, kind: Kind) -> impl Iterator<Item = &Value> {
    config[kind.section()].as_array().into_iter().flatten()
}

/// The running configuration for the comparison. `document`: `GET /config`; `config`: the configuration in it, with as many
/// values as are known.
fn running_listing<'v>(
    document: &'v Value,
    config: &'v Value,
    filters: &'v Value,
    hashes: &HashMap<(&str, &str), [u8; 32]>,
) -> Listing<'v> {
    let modules = filters["filters"].as_array().into_iter().flatten();
    let modules: HashMap<_, _> = modules.filter_map(|filter| text(filter, "name").zip(text(filter, "hash"))).collect();
    let entry = |kind: Kind, value: &'v Value| {
        let name = text(value, "name").unwrap_or_default();
        Entry {
            name,
            // A resource of unknown hash is compared by its values.
            sha256: hashes.get(&(kind.as_str(), name)).copied().unwrap_or_default(),
            module: modules.get(name).copied().filter(|_| kind == Kind::Filter),
            fields: Fields::Json(Cow::Borrowed(value)),
            source: None,
            hidden: Vec::new(),
        }
    };
    let files = document["tls_files"].as_array().into_iter().flatten();
    let digest = |file: &Value| Some((text(file, "file")?.into(), from_hex(text(file, "sha256")?)?));
    Listing {
        settings: Entry {
            name: "",
            sha256: text(document, "settings_sha256").and_then(from_hex).unwrap_or_default(),
            module: None,
            fields: Fields::Json(Cow::Owned(settings(config.clone()))),
            source: None,
            hidden: Vec::new(),
        },
        resources: Kind::ALL.map(|kind| items(config, kind).map(|value| entry(kind, value)).collect()),
        files: Cow::Owned(files.filter_map(digest).collect::<BTreeMap<_, _>>()),
    }
}

/// The configuration with values of environment variables, and without.
struct Masked<'v> {
    shown: &'v Value,
    real: &'v Value,
}

impl Masked<'_> {
    /// The settings whose values are masked.
    fn settings(&self) -> Vec<String> {
        different_fields(&settings(self.shown.clone()), &settings(self.real.clone()))
    }

    /// The fields of a resource whose values are masked.
    fn fields(&self, kind: Kind, nth: usize) -> Vec<String> {
        different_fields(&self.shown[kind.section()][nth], &self.real[kind.section()][nth])
    }
}

/// Replaces masked values that are written alike in both configurations by this one's values. That they are equal is not
/// certain; hashes tell.
fn reveal(running: &mut Value, shown: &Value, real: &Value) {
    match (running, shown, real) {
        (Value::Object(running), Value::Object(shown), Value::Object(real)) => {
            for (field, value) in running {
                if let Some((shown, real)) = shown.get(field).zip(real.get(field)) {
                    reveal(value, shown, real);
                }
            }
        }
        (Value::Array(running), Value::Array(shown), Value::Array(real)) => {
            let by_name: HashMap<&str, usize> =
                shown.iter().enumerate().filter_map(|(nth, value)| Some((text(value, "name")?, nth))).collect();
            for (nth, value) in running.iter_mut().enumerate() {
                let nth = text(value, "name").map_or(Some(nth), |name| by_name.get(name).copied());
                if let Some((shown, real)) = nth.and_then(|nth| shown.get(nth).zip(real.get(nth))) {
                    reveal(value, shown, real);
                }
            }
        }
        (running, shown, real) if running == shown && shown != real => *running = real.clone(),
        _ => {}
    }
}

/// Returns the filters that would get new instances, and those that would get other settings; `None` if the proxy does not
/// show what its instances are made of.
fn instances(snapshot: &Snapshot, config: &Value, filters: &Value) -> Option<(Vec<String>, Vec<String>)> {
    let filters = filters["filters"].as_array()?;
    let vm = |filter| Some((text(filter, "vm_key")?, text(filter, "vm_answers")?));
    let running: HashSet<_> = filters.iter().map(vm).collect::<Option<_>>()?;
    let before: HashMap<&str, &Value> =
        items(config, Kind::Filter).filter_map(|filter| Some((text(filter, "name")?, filter))).collect();
    let (mut new_instances, mut new_settings) = (Vec::new(), Vec::new());
    for template in &snapshot.templates {
        let is_kept = running.contains(&(template.key().as_str(), hex(&template.answers()).as_str()));
        for plugin in &*template.plugins() {
            let name = &plugin.info.name;
            let old = || before.get(name.as_str()).and_then(|filter| parsed::<model::Filter>(filter));
            if !is_kept {
                new_instances.push(name.clone());
            } else if old().is_some_and(|old| FilterSettings::new(&old) != plugin.settings()) {
                new_settings.push(name.clone());
            }
        }
    }
    Some((new_instances, new_settings))
}

fn parsed<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_values_that_are_written_alike_are_revealed() {
        let shown =
            json!({"via": "${VIA}", "list": [{"name": "a", "x": "${X}"}, {"name": "b", "x": "1"}], "n": ["${N}"]});
        let real = json!({"via": "secret", "list": [{"name": "a", "x": 7}, {"name": "b", "x": "1"}], "n": [8]});
        let mut running = json!({
            "via": "${OTHER}",
            "list": [{"name": "b", "x": "2"}, {"name": "a", "x": "${X}"}, {"name": "c", "x": "${X}"}],
            "n": ["${N}", "${N}"],
        });
        reveal(&mut running, &shown, &real);
        let expected = json!({
            "via": "${OTHER}",
            "list": [{"name": "b", "x": "2"}, {"name": "a", "x": 7}, {"name": "c", "x": "${X}"}],
            "n": [8, "${N}"],
        });
        assert_eq!(running, expected);
    }
}
