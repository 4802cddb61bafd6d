//! What follows from the difference between two configurations: settings that need a restart, permissions to set, and
//! addresses for the log.

use crate::config::{model, units::Address};

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
    note("node", new.node != old.node && new.node != running.node);
    // The others are read each time.
    let bound =
        |config: &model::Config| model::Admin { unready_without_filters: false, history: 0, ..config.admin.clone() };
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
    use super::*;

    fn config(text: &str) -> model::Config {
        crate::config::parse("x.yaml", text, crate::config::Format::Yaml).unwrap().config
    }

    #[test]
    fn changes_that_need_a_restart_are_reported_once() {
        let listener = "listeners: [{name: a, address: '127.0.0.1:1', socket: {backlog: 100}}]\n";
        let running = config(listener);
        let other = config(&format!(
            "workers: 1023\nnode: {{region: eu}}\ncache_dir: x\nlog: {{format: json}}\nadmin: {{enabled: false}}\n{}",
            listener.replace("100", "101")
        ));
        let said = restarts(&running, &running, &other);
        for field in ["`workers`", "`node`", "`admin`", "`log.format`", "`cache_dir`", "`socket` of listener `a`"] {
            assert!(said.iter().any(|line| line.starts_with(&format!("{field} has changed"))), "{field}: {said:?}");
        }
        assert_eq!(said.len(), 6, "{said:?}");
        assert!(restarts(&running, &other, &other).is_empty());
        let strict = config(&format!("admin: {{unready_without_filters: true}}\n{listener}"));
        assert!(restarts(&running, &running, &strict).is_empty(), "readiness settings change immediately");
        let longer = config(&format!("admin: {{history: 11}}\n{listener}"));
        assert!(restarts(&running, &running, &longer).is_empty());
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
