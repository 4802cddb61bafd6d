//! Decides which VMs of the running configuration a new one keeps, and creates the first instances of the others.

use std::{collections::HashMap, sync::Arc};

use super::configure::configured;
use crate::{
    config::{Diagnostic, Loaded},
    snapshot::Snapshot,
    wasm::{self, FilterSettings, Instance, KnownNames, Plugin, Sharing, VmGroup, VmTemplate},
};

/// The filters that share a VM.
type Members = Vec<Arc<Plugin>>;

/// The VMs of a configuration.
#[derive(Default)]
pub(super) struct Vms {
    /// The templates, each with the filters that it has in this configuration.
    pub templates: Vec<(Arc<VmTemplate>, Arc<Members>)>,
    /// Those that are new, each with an instance.
    pub new: Vec<(Arc<VmTemplate>, Vec<Instance>)>,
    /// Filters that stay, with the settings that they get.
    pub settings: Vec<(Arc<Plugin>, FilterSettings)>,
    /// Running templates whose root context is shared by other filters than before, with these filters.
    pub joined: Vec<(Arc<VmTemplate>, Members)>,
}

/// Groups the filters by VM, and keeps or creates their templates. `plugins` are the filters in the order of the
/// configuration; those that stay are replaced by the running ones.
pub(super) fn plan(
    loaded: &Loaded,
    known: &KnownNames,
    previous: Option<&Snapshot>,
    plugins: &mut [Arc<Plugin>],
    wrong: &mut Vec<Diagnostic>,
) -> Vms {
    let mut running = HashMap::<_, Vec<_>>::new();
    for template in previous.into_iter().flat_map(|previous| &previous.templates) {
        running.entry(template.key().as_str()).or_default().push(template);
    }
    let groups = wasm::groups(plugins);
    let mut planner = Planner { loaded, known, running, plugins, wrong, vms: Vms::default() };
    for group in groups {
        match group.sharing {
            Sharing::Vm => planner.vm(group),
            Sharing::RootContext => planner.equal(group),
        }
    }
    planner.vms
}

struct Planner<'p> {
    loaded: &'p Loaded,
    known: &'p KnownNames,
    /// The running templates by key.
    running: HashMap<&'p str, Vec<&'p Arc<VmTemplate>>>,
    plugins: &'p mut [Arc<Plugin>],
    wrong: &'p mut Vec<Diagnostic>,
    vms: Vms,
}

impl<'p> Planner<'p> {
    /// The running template of a key, if its instances are right for this configuration.
    fn running(&self, key: &str) -> Option<&'p Arc<VmTemplate>> {
        self.running.get(key)?.iter().copied().find(|running| running.fits(self.known))
    }

    fn members(&self, filters: &[usize]) -> Members {
        filters.iter().map(|index| self.plugins[*index].clone()).collect()
    }

    /// Plans the VM of filters with a root context each.
    fn vm(&mut self, VmGroup { sharing, filters, key }: VmGroup) {
        let Some(running) = self.running(&key) else {
            let mut template = VmTemplate::with_key(self.members(&filters), sharing, key);
            match configured(self.loaded, &mut template, self.plugins) {
                Ok(instance) => self.create(template, instance),
                Err(mistakes) => self.wrong.extend(mistakes),
            }
            return;
        };
        let kept = running.plugins();
        for (index, kept) in filters.into_iter().zip(&*kept) {
            self.keep(index, kept);
        }
        self.vms.templates.push((running.clone(), kept));
    }

    /// Plans the VM of equal filters. They share a root context, unless the guest does something when it is configured
    /// that concerns only one of them.
    fn equal(&mut self, group: VmGroup) {
        let filters = &group.filters;
        if let Some(running) = self.running(&group.key) {
            return self.join(running, filters);
        }
        // Before their configurations are converted.
        let alone: Vec<_> = filters.iter().map(|index| VmGroup::alone(&self.plugins[*index], *index)).collect();
        let runs_alone = |group: &VmGroup| {
            let same = self.running.get(group.key.as_str());
            same.is_some_and(|same| same.iter().any(|template| template.has_named_effect()))
        };
        if alone.iter().any(runs_alone) {
            return alone.into_iter().for_each(|group| self.vm(group));
        }
        let mut template = VmTemplate::with_key(self.members(filters), group.sharing, group.key);
        match configured(self.loaded, &mut template, self.plugins) {
            Ok(instance) if instance.has_named_effect() => {
                let mut alone = alone.into_iter();
                if let Some(first) = alone.next() {
                    self.create(template.separated(first.key), instance);
                }
                alone.for_each(|group| self.vm(group));
            }
            Ok(instance) => {
                template.define_metrics(template.plugins().iter().skip(1));
                self.create(template, instance);
            }
            Err(mistakes) => {
                self.wrong.extend(mistakes);
                // The others have the same errors, each at its own place.
                for index in filters.iter().skip(1) {
                    let mut alone = VmTemplate::of(self.plugins[*index].clone());
                    self.wrong.extend(configured(self.loaded, &mut alone, self.plugins).err().into_iter().flatten());
                }
            }
        }
    }

    /// Lets equal filters share the root context of a running VM. Those that already do keep their places.
    fn join(&mut self, running: &Arc<VmTemplate>, filters: &[usize]) {
        let before = running.plugins();
        let index: HashMap<_, _> =
            filters.iter().map(|index| (self.plugins[*index].info.name.clone(), *index)).collect();
        let (mut all, mut stay) = (Vec::with_capacity(filters.len()), vec![]);
        for kept in &*before {
            if let Some(index) = index.get(&kept.info.name) {
                self.keep(*index, kept);
                all.push(kept.clone());
                stay.push(*index);
            }
        }
        stay.sort_unstable();
        let mut new = Vec::new();
        for index in filters.iter().filter(|index| stay.binary_search(index).is_err()) {
            let plugin = &mut self.plugins[*index];
            if !plugin.is_configured_like(&before[0]) {
                *plugin = Arc::new(plugin.configured_like(&before[0]));
            }
            new.push(plugin.clone());
        }
        running.define_metrics(new.iter());
        all.extend(new);
        let same = all.len() == before.len() && all.iter().zip(&*before).all(|(one, other)| Arc::ptr_eq(one, other));
        if !same {
            self.vms.joined.push((running.clone(), all.clone()));
        }
        self.vms.templates.push((running.clone(), Arc::new(all)));
    }

    fn keep(&mut self, index: usize, kept: &Arc<Plugin>) {
        let new = std::mem::replace(&mut self.plugins[index], kept.clone());
        self.vms.settings.push((kept.clone(), new.settings()));
    }

    fn create(&mut self, template: Arc<VmTemplate>, instance: Instance) {
        self.vms.templates.push((template.clone(), template.plugins()));
        self.vms.new.push((template, vec![instance]));
    }
}
