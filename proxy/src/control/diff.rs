//! Describes the difference between two configurations for the log: which listeners, filters, clusters and files
//! changed, and which of their fields. Values are not shown, since they may be secrets.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use crate::{
    config::{model, units::Address},
    snapshot::Snapshot,
};

/// Further differences are only counted.
const MOST: usize = 20;

/// Returns the differences in one line.
pub fn describe(old: &Snapshot, new: &Snapshot) -> String {
    let value = |snapshot: &Snapshot| serde_json::to_value(&snapshot.loaded.config).unwrap_or_default();
    let mut all = of_configurations(&value(old), &value(new), |filter| has_other_code(old, new, filter));
    all.extend(new.tls.changed_since(&old.tls).map(|path| format!("changed file {}", path.display())));
    if all.is_empty() {
        // For example, a default was made explicit.
        return "none with an effect".to_owned();
    }
    let more = all.len().saturating_sub(MOST);
    all.truncate(MOST);
    let listed = all.join("; ");
    if more == 0 { listed } else { format!("{listed}; and {more} more") }
}

/// Whether both snapshots have a filter of this name, with different code.
fn has_other_code(old: &Snapshot, new: &Snapshot, filter: &str) -> bool {
    let hash = |s: &Snapshot| s.plugins.iter().find(|p| p.info.name == filter).map(|p| p.code.hash.clone());
    hash(old).zip(hash(new)).is_some_and(|(old, new)| old != new)
}

fn of_configurations(old: &Value, new: &Value, has_other_code: impl Fn(&str) -> bool) -> Vec<String> {
    let mut all = Vec::new();
    for field in different_fields(old, new) {
        let kind = match field {
            "listeners" => "listener",
            "clusters" => "cluster",
            // The code may differ although nothing in the file does.
            "filters" => continue,
            other => {
                all.push(format!("changed `{other}`"));
                continue;
            }
        };
        of_section(kind, &old[field], &new[field], |_| false, &mut all);
    }
    of_section("filter", &old["filters"], &new["filters"], has_other_code, &mut all);
    all
}

/// Lists the entries of a section that were added, changed and removed, by name.
fn of_section(kind: &str, old: &Value, new: &Value, has_other_code: impl Fn(&str) -> bool, all: &mut Vec<String>) {
    let (before, old, new) = (all.len(), items(old), items(new));
    let (were, are) = (by_name(old), by_name(new));
    for item in new {
        let name = name(item);
        let Some(old) = were.get(name) else {
            all.push(format!("added {kind} `{name}`"));
            continue;
        };
        let mut fields = different_fields(old, item);
        if has_other_code(name) {
            fields.push("module");
        }
        if !fields.is_empty() {
            all.push(format!("changed {kind} `{name}` ({})", fields.join(", ")));
        }
    }
    let gone = old.iter().map(name).filter(|name| !are.contains_key(name));
    all.extend(gone.map(|name| format!("removed {kind} `{name}`")));
    if all.len() == before && old != new {
        all.push(format!("reordered {kind}s"));
    }
}

fn items(section: &Value) -> &[Value] {
    section.as_array().map_or(&[], Vec::as_slice)
}

fn name(item: &Value) -> &str {
    item["name"].as_str().unwrap_or_default()
}

fn by_name(items: &[Value]) -> HashMap<&str, &Value> {
    items.iter().map(|item| (name(item), item)).collect()
}

/// Returns the fields in which two objects differ.
fn different_fields<'v>(old: &'v Value, new: &'v Value) -> Vec<&'v str> {
    let keys = |object: &'v Value| object.as_object().into_iter().flat_map(Map::keys);
    let names: BTreeSet<&str> = keys(old).chain(keys(new)).map(String::as_str).collect();
    names.into_iter().filter(|name| old.get(name) != new.get(name)).collect()
}

/// Returns warnings about changes that take effect only after a restart. `running` is the configuration that the
/// process was started with.
pub fn restarts(running: &model::Config, old: &model::Config, new: &model::Config) -> Vec<String> {
    let mut all = Vec::new();
    let mut note = |field: &str, is_other: bool| {
        if is_other {
            all.push(format!("`{field}` has changed; the change takes effect after a restart"));
        }
    };
    note("workers", new.workers != old.workers && new.workers != running.workers);
    // Readiness reads this field each time.
    let bound = |config: &model::Config| model::Admin { unready_without_filters: false, ..config.admin.clone() };
    note("admin", bound(new) != bound(old) && bound(new) != bound(running));
    note("workload", new.workload != old.workload && new.workload != running.workload);
    note("log.format", new.log.format != old.log.format && new.log.format != running.log.format);
    note("cache_dir", new.cache_dir != old.cache_dir && new.cache_dir != running.cache_dir);
    for listener in &new.listeners {
        let Some(before) = old.listeners.iter().find(|before| before.name == listener.name) else { continue };
        let is_kept = listener.all_addresses().any(|address| before.all_addresses().any(|a| a == address));
        // Explicit permissions are applied immediately.
        let mode = listener.socket.mode.as_ref().or(before.socket.mode.as_ref());
        let same = model::SocketOptions { mode: mode.cloned(), ..before.socket.clone() };
        if is_kept && listener.socket != same {
            all.push(format!(
                "`socket` of listener `{}` has changed; the change takes effect after a restart, or at another address",
                listener.name
            ));
        }
    }
    all
}

/// Returns the unix sockets that stay but get other permissions: the listener's name, the path, and the mode.
pub fn permissions<'n>(old: &model::Config, new: &'n model::Config) -> Vec<(&'n str, &'n std::path::Path, &'n str)> {
    let mut all = Vec::new();
    for listener in &new.listeners {
        let Some(before) = old.listeners.iter().find(|before| before.name == listener.name) else { continue };
        let Some(mode) = listener.socket.mode.as_deref().filter(|_| listener.socket.mode != before.socket.mode) else {
            continue;
        };
        for address in listener.all_addresses().filter(|address| before.all_addresses().any(|a| a == *address)) {
            if let Address::Unix(path) = address {
                all.push((listener.name.as_str(), &**path, mode));
            }
        }
    }
    all
}

/// Returns the name and address of each listener, and its URL for messages.
pub fn places(config: &model::Config) -> Vec<(&str, &Address, String)> {
    let of = |listener: &model::Listener, address: &Address| {
        let also = if listener.http3 && address.inet().is_some() { ", and HTTP/3" } else { "" };
        format!("{}://{address}{also}", listener.scheme())
    };
    let mut all = Vec::new();
    for listener in &config.listeners {
        all.extend(listener.all_addresses().map(|address| (listener.name.as_str(), address, of(listener, address))));
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn additions_changes_and_removals_are_listed() {
        let old = json!({
            "drain_timeout": "30s",
            "listeners": [{"name": "a", "address": "1", "via": "x"}, {"name": "b"}],
            "filters": [{"name": "f", "config": 1}, {"name": "g", "config": 1}],
            "clusters": [{"name": "web"}, {"name": "api"}],
        });
        let new = json!({
            "drain_timeout": "31s",
            "listeners": [{"name": "a", "address": "2", "via": "y"}, {"name": "c"}],
            "filters": [{"name": "f", "config": 2}, {"name": "g", "config": 1}],
            "clusters": [{"name": "api"}, {"name": "web"}],
        });
        let all = of_configurations(&old, &new, |filter| filter == "g");
        assert_eq!(
            all,
            [
                "reordered clusters",
                "changed `drain_timeout`",
                "changed listener `a` (address, via)",
                "added listener `c`",
                "removed listener `b`",
                "changed filter `f` (config)",
                "changed filter `g` (module)",
            ]
        );
        assert!(of_configurations(&old, &old, |_| false).is_empty());
    }

    fn config(text: &str) -> model::Config {
        crate::config::parse("x.yaml", text, crate::config::Format::Yaml).unwrap().config
    }

    #[test]
    fn changes_that_need_a_restart_are_reported_once() {
        let listener = "listeners: [{name: a, address: '127.0.0.1:1', socket: {backlog: 100}}]\n";
        let running = config(listener);
        let other = config(&format!(
            "workers: 1023\ncache_dir: x\nlog: {{format: json}}\nadmin: {{enabled: false}}\n{}",
            listener.replace("100", "101")
        ));
        let said = restarts(&running, &running, &other);
        for field in ["`workers`", "`admin`", "`log.format`", "`cache_dir`", "`socket` of listener `a`"] {
            assert!(said.iter().any(|line| line.starts_with(&format!("{field} has changed"))), "{field}: {said:?}");
        }
        assert_eq!(said.len(), 5, "{said:?}");
        assert!(restarts(&running, &other, &other).is_empty());
        let strict = config(&format!("admin: {{unready_without_filters: true}}\n{listener}"));
        assert!(restarts(&running, &running, &strict).is_empty(), "readiness settings change immediately");
        let back = restarts(&running, &other, &running);
        assert_eq!(back.len(), 1, "only the sockets may be from the other configuration: {back:?}");
        let mode = |mode: &str| config(&listener.replace("{backlog: 100}", mode));
        assert!(restarts(&running, &mode("{backlog: 100}"), &mode("{backlog: 100, mode: '660'}")).is_empty());
        assert_eq!(
            restarts(&running, &mode("{mode: '660'}"), &mode("{}")).len(),
            1,
            "the default permissions are not known"
        );
        let moved = config(&listener.replace("100", "101").replace(":1'", ":2'"));
        assert!(restarts(&running, &running, &moved).is_empty(), "a new address has new sockets");
    }
}
