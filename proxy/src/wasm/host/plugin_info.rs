//! What a filter can ask about itself.

use std::{collections::BTreeMap, sync::Arc};

use super::filter_log::FilterLog;
use crate::wasm::stores::env::{FilterStore, VmIdStore};

/// A filter's identity and configuration, and its state that outlives its instances. A variant of the filter differs only
/// in the configuration.
#[derive(Clone)]
pub struct PluginInfo {
    /// Its name.
    pub name: String,
    /// The name of its root context.
    pub root_id: String,
    /// Filters with the same `vm_id` share data, and perhaps a VM.
    pub vm_id: String,
    /// Its configuration.
    pub config: Vec<u8>,
    /// Its VM's configuration.
    pub vm_config: Vec<u8>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Its log.
    pub log: Arc<FilterLog>,
    /// State shared with the other filters of its `vm_id`.
    pub vm_store: Arc<VmIdStore>,
    /// State shared by all its instances, also across hot reloads.
    pub store: Arc<FilterStore>,
}

impl PluginInfo {
    /// Logs a warning about an invalid action of the filter.
    pub fn complain(&self, line: std::fmt::Arguments<'_>) {
        self.log.say(&self.name, tracing::Level::WARN, line);
    }
}
