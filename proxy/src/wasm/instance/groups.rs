//! Which filters share a VM, and the digests that identify VMs.
//!
//! Filters with the same `vm_id` share a VM if everything else that defines it is the same: the code, the VM's
//! configuration, the environment and the memory limits (Envoy's key is the first three with the `vm_id`). Filters
//! without a `vm_id` share one if their own configurations are equal as well; then they even share a root context.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::plugin::Plugin;
use crate::digest::sha256_hex;

/// A digest of everything that a VM's instances are made of: code, VM configuration, environment, memory limits, and the
/// filters' configurations; with the filters' names, unless they share a root context. As long as it is the same,
/// instances are kept.
pub type VmKey = String;

/// What the filters of a VM share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// The VM. Each filter has its own root context.
    Vm,
    /// A root context. The filters are equal except for their names, and each call acts for one of the names.
    RootContext,
}

/// Filters that share a VM.
#[derive(Debug)]
pub struct VmGroup {
    /// What they share.
    pub sharing: Sharing,
    /// Their indices, at least one.
    pub filters: Vec<usize>,
    /// Identifies the VM.
    pub key: VmKey,
}

impl VmGroup {
    /// The group of a filter that has a VM alone.
    pub fn alone(plugin: &Arc<Plugin>, index: usize) -> VmGroup {
        let key = key(std::slice::from_ref(plugin), Sharing::Vm);
        VmGroup { sharing: Sharing::Vm, filters: vec![index], key }
    }
}

/// What filters with the same `vm_id` must have in common to share a VM.
#[derive(PartialEq, Eq, Hash)]
struct SameVm<'p> {
    vm_id: &'p str,
    code: &'p str,
    vm_config: &'p [u8],
    env: &'p BTreeMap<String, String>,
    limits: (usize, usize),
}

impl SameVm<'_> {
    fn of(plugin: &Plugin) -> SameVm<'_> {
        SameVm {
            vm_id: &plugin.info.vm_id,
            code: &plugin.code.hash,
            vm_config: &plugin.info.vm_config,
            env: &plugin.info.env,
            limits: (plugin.memory_limit, plugin.host_memory_limit),
        }
    }
}

/// Groups filters by VM, in the order of each group's first filter.
pub fn groups(plugins: &[Arc<Plugin>]) -> Vec<VmGroup> {
    let (mut same_vm, mut known) = (Vec::<Vec<usize>>::new(), HashMap::new());
    for (index, plugin) in plugins.iter().enumerate() {
        let group = *known.entry(SameVm::of(plugin)).or_insert(same_vm.len());
        match same_vm.get_mut(group) {
            Some(group) => group.push(index),
            None => same_vm.push(vec![index]),
        }
    }
    let (mut groups, mut equal) = (Vec::<VmGroup>::new(), HashMap::<VmKey, usize>::new());
    for filters in same_vm {
        let first = &plugins[filters[0]];
        // A filter without a `vm_id` has its name as one, which others may have as well.
        if filters.len() > 1 || first.has_vm_id {
            let members: Vec<_> = filters.iter().map(|index| plugins[*index].clone()).collect();
            groups.push(VmGroup { sharing: Sharing::Vm, key: key(&members, Sharing::Vm), filters });
            continue;
        }
        let key = key(std::slice::from_ref(first), Sharing::RootContext);
        match equal.get(&key) {
            Some(group) => groups[*group].filters.extend(filters),
            None => {
                equal.insert(key.clone(), groups.len());
                groups.push(VmGroup { sharing: Sharing::RootContext, key, filters });
            }
        }
    }
    groups
}

/// Computes a VM's key. Each part is preceded by its length, so that no two lists of parts look the same.
pub(super) fn key(plugins: &[Arc<Plugin>], sharing: Sharing) -> VmKey {
    let mut all = Vec::new();
    let mut part = |bytes: &[u8]| {
        all.extend_from_slice(&bytes.len().to_le_bytes());
        all.extend_from_slice(bytes);
    };
    let (first, named) = (&plugins[0], sharing == Sharing::Vm);
    part(&[named.into()]);
    if named {
        part(first.info.vm_id.as_bytes());
    }
    part(first.code.hash.as_bytes());
    part(&first.info.vm_config);
    part(&first.memory_limit.to_le_bytes());
    part(&first.host_memory_limit.to_le_bytes());
    part(&first.info.env.len().to_le_bytes());
    for (name, value) in &first.info.env {
        part(name.as_bytes());
        part(value.as_bytes());
    }
    // Equal filters are represented by the first one.
    for plugin in if named { plugins } else { &plugins[..1] } {
        if named {
            part(plugin.info.name.as_bytes());
        }
        part(plugin.info.root_id.as_bytes());
        part(&plugin.info.config);
        part(&plugin.variants.len().to_le_bytes());
        for (name, variant) in &plugin.variants {
            part(name.as_bytes());
            part(&variant.config);
        }
    }
    sha256_hex(&all)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        config::model::{self, Compile},
        observe::Registry,
        wasm::{CompiledModule, Compiler, Engine, FilterEnv, SharedStore},
    };

    /// Groups filters of one module, given by their configurations.
    fn grouped(filters: &[Value]) -> Vec<VmGroup> {
        let engine = Engine::new(Compiler::in_process()).unwrap();
        let code = r#"(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32) unreachable))"#;
        let code = wat::parse_str(code).unwrap();
        let code = CompiledModule::load(&engine, "f.wasm", &code, &Compile::default()).unwrap();
        let env = FilterEnv::new(Arc::default(), None, SharedStore::new(Registry::new(1)));
        let plugin = |config: &Value| {
            let mut config = config.clone();
            config["wasm"] = "f.wasm".into();
            let filter: model::Filter = serde_json::from_value(config).unwrap();
            Arc::new(Plugin::new(&filter, code.clone(), &engine, &env).unwrap())
        };
        groups(&filters.iter().map(plugin).collect::<Vec<_>>())
    }

    fn members(groups: &[VmGroup]) -> Vec<(Sharing, &[usize])> {
        groups.iter().map(|group| (group.sharing, &*group.filters)).collect()
    }

    #[test]
    fn equal_filters_without_a_vm_id_share_a_root_context() {
        use Sharing::RootContext;
        let groups = grouped(&[
            json!({"name": "a", "config": 1}),
            json!({"name": "b", "config": 2}),
            json!({"name": "c", "config": 1, "on_failure": "bypass", "limits": {"call_time": "1ms"}}),
            json!({"name": "d", "config": 1, "root_id": "r"}),
            json!({"name": "e", "config": 1, "env": {"A": "b"}}),
            json!({"name": "f", "config": 1, "limits": {"memory": "1MiB"}}),
            json!({"name": "g", "config": 1, "vm_config": 1}),
            json!({"name": "h", "config": 1, "variants": {"v": 1}}),
            json!({"name": "i", "config": 1, "variants": {"v": 1}}),
            json!({"name": "j", "config": 1, "variants": {"v": 2}}),
        ]);
        let expected: [(_, &[usize]); 8] = [
            (RootContext, &[0, 2]),
            (RootContext, &[1]),
            (RootContext, &[3]),
            (RootContext, &[4]),
            (RootContext, &[5]),
            (RootContext, &[6]),
            (RootContext, &[7, 8]),
            (RootContext, &[9]),
        ];
        assert_eq!(members(&groups), expected);
        let renamed = grouped(&[json!({"name": "other", "config": 1})]);
        assert_eq!(renamed[0].key, groups[0].key, "the name is not part of the key");
    }

    #[test]
    fn vm_id_decides_about_filters_that_have_one() {
        use Sharing::{RootContext, Vm};
        let groups = grouped(&[
            json!({"name": "a"}),
            json!({"name": "b", "vm_id": "v"}),
            json!({"name": "c", "vm_id": "v"}),
            json!({"name": "d", "vm_id": "other"}),
            json!({"name": "e"}),
            json!({"name": "f", "vm_id": "e"}),
            json!({"name": "g"}),
        ]);
        let expected: [(_, &[usize]); 4] = [(RootContext, &[0, 6]), (Vm, &[1, 2]), (Vm, &[3]), (Vm, &[4, 5])];
        assert_eq!(members(&groups), expected);
        let renamed = grouped(&[json!({"name": "renamed", "vm_id": "other"})]);
        assert_ne!(renamed[0].key, groups[2].key, "the name is part of the key");
    }
}
