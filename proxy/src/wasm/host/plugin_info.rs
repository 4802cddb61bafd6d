//! What a filter can ask about itself.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

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
    pub config: Bytes,
    /// Its VM's configuration.
    pub vm_config: Bytes,
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
    /// Identifies the filter among all that exist.
    pub fn store_address(&self) -> usize {
        Arc::as_ptr(&self.store).addr()
    }

    /// Logs a warning about an invalid action of the filter.
    pub fn complain(&self, line: std::fmt::Arguments<'_>) {
        self.log.say(&self.name, tracing::Level::WARN, line);
    }
}

/// Which filter, or variant of one, a call is for, and which of the guest's root contexts represents it.
pub struct RootIdentity {
    /// Identifies it within its VM. It is never used again there.
    pub number: u32,
    /// The index of the root context among the guest's.
    pub root: usize,
    /// What the guest's root contexts stand for: by index, their filters and variants. If filters share a root context,
    /// those of one of these filters.
    pub infos: Arc<[Arc<PluginInfo>]>,
}

impl RootIdentity {
    /// The filter's identity.
    pub fn info(&self) -> &Arc<PluginInfo> {
        &self.infos[self.root]
    }
}
