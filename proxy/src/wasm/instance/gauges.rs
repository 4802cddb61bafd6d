//! The gauges of a VM's instances. They belong to the VM's template, not to its filters, so that nothing is counted anew when
//! filters join or leave, and a failure costs the same however many filters share the VM.

use std::{collections::HashSet, sync::Arc};

use super::plugin::Plugin;
use crate::observe::Gauge;

/// The gauges of a VM's instances, over all workers. Those of its filters include them.
#[derive(Clone)]
pub struct VmGauges {
    /// Bytes of linear memory. Charged to the first filter.
    pub memory: Gauge,
    /// Bytes that the host holds for the instances. Charged to the first filter.
    pub host_memory: Gauge,
    /// Ready instances.
    pub instances: Gauge,
    /// Instances for clients whose requests made a filter fail.
    pub quarantine: Gauge,
}

impl VmGauges {
    pub(super) fn new(shards: usize) -> VmGauges {
        let gauge = || Gauge::new(shards);
        VmGauges { memory: gauge(), host_memory: gauge(), instances: gauge(), quarantine: gauge() }
    }

    /// Makes them a part of the filters' gauges.
    pub(super) fn join(&self, plugins: &[Arc<Plugin>]) {
        for Plugin { metrics, .. } in plugins.iter().map(|plugin| &**plugin) {
            metrics.instances.include(&self.instances);
            metrics.quarantine.include(&self.quarantine);
        }
        if let Some(first) = plugins.first() {
            first.metrics.memory.include(&self.memory);
            first.metrics.host_memory.include(&self.host_memory);
        }
    }

    /// The opposite.
    pub(super) fn leave(&self, plugins: &[Arc<Plugin>]) {
        self.pass_on(plugins, &[]);
    }

    /// Makes them a part of the gauges of other filters than before. Those of filters that stay show no gap.
    pub(super) fn pass_on(&self, before: &[Arc<Plugin>], now: &[Arc<Plugin>]) {
        self.join(now);
        let stay: HashSet<_> = now.iter().map(Arc::as_ptr).collect();
        for Plugin { metrics, .. } in before.iter().filter(|old| !stay.contains(&Arc::as_ptr(old))).map(|old| &**old) {
            metrics.instances.exclude(&self.instances);
            metrics.quarantine.exclude(&self.quarantine);
        }
        if let Some(before) = before.first()
            && now.first().is_none_or(|now| !Arc::ptr_eq(before, now))
        {
            before.metrics.memory.exclude(&self.memory);
            before.metrics.host_memory.exclude(&self.host_memory);
        }
    }
}
