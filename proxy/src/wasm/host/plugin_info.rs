//! What a filter can ask about itself.

use std::{collections::BTreeMap, sync::Arc};

use super::filter_log::FilterLog;
use crate::wasm::stores::env::{FilterStore, VmIdStore};

/// Who a filter is: what it can ask about itself, and what it keeps beyond its instances.
pub struct PluginInfo {
    /// Its name.
    pub name: String,
    /// The name of its root context.
    pub root_id: String,
    /// Filters with the same one share data, and perhaps a VM.
    pub vm_id: String,
    /// Its configuration.
    pub config: Vec<u8>,
    /// Its VM's configuration.
    pub vm_config: Vec<u8>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Its lines in the log.
    pub voice: FilterLog,
    /// What it has together with the other filters of its `vm_id`.
    pub estate: Arc<VmIdStore>,
    /// What all its instances have together, over swaps.
    pub holdings: Arc<FilterStore>,
}

impl PluginInfo {
    /// Logs that the filter has done something that cannot be.
    pub fn complain(&self, line: std::fmt::Arguments<'_>) {
        self.voice.say(&self.name, tracing::Level::WARN, line);
    }
}
