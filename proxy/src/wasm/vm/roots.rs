//! The root contexts of a VM: one per filter, and one per variant of a filter. If filters share the guest's root contexts,
//! each of them still has its own here, with its settings and metrics.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use rustc_hash::FxHashMap;

use crate::wasm::{
    Sharing, VmTemplate,
    host::{
        FIRST_ROOT,
        plugin_info::{PluginInfo, RootIdentity},
    },
    instance::{
        Instance,
        plugin::{FilterSettings, Plugin},
    },
};

/// The root context of a filter or of its variant in a VM.
pub(in crate::wasm) struct RootContext {
    /// The filter.
    pub plugin: Arc<Plugin>,
    /// What the guest sees of it.
    pub identity: Rc<RootIdentity>,
    /// The variants of the filter, with their names.
    pub variants: Box<[(Box<str>, Rc<RootContext>)]>,
    /// The callbacks that it subscribes to, as bits of [`phase`](tollgate_abi::fast::phase).
    pub phases: Cell<u32>,
    /// Whether it has subscribed explicitly.
    pub subscribes: Cell<bool>,
    pub settings: Cell<FilterSettings>,
    pub half_call: Cell<(Duration, u64)>,
}

impl RootContext {
    /// The id of the guest's root context.
    pub fn root(&self) -> u32 {
        FIRST_ROOT + self.identity.root as u32
    }

    /// Itself and its variants.
    fn family(self: &Rc<Self>) -> impl Iterator<Item = &Rc<RootContext>> {
        [self].into_iter().chain(self.variants.iter().map(|(_, variant)| variant))
    }

    fn adopt_settings(&self) {
        let settings = self.plugin.settings();
        self.settings.set(settings);
        self.half_call.set(settings.half_call());
    }
}

/// The root contexts of a VM and its quarantine VM.
pub(super) struct Roots {
    sharing: Sharing,
    /// The filters, as the template had them.
    plugins: RefCell<Arc<Vec<Arc<Plugin>>>>,
    /// The root contexts of these filters.
    filters: RefCell<Rc<[Rc<RootContext>]>>,
    /// All root contexts that exist by number, also of filters that are no longer among these, but are still used by
    /// streams.
    by_number: RefCell<FxHashMap<u32, Weak<RootContext>>>,
    /// The lowest number that was never assigned.
    next: Cell<u32>,
    /// What the last instance subscribes to, by the guest's root contexts: see [`RootContext`].
    subscribed: Box<[Cell<(u32, bool)>]>,
}

impl Roots {
    /// Creates the root contexts of the template's filters.
    pub fn new(template: &VmTemplate) -> Rc<Roots> {
        let plugins = template.plugins();
        let count = template.roots(&plugins).count();
        let roots = Roots {
            sharing: template.sharing(),
            plugins: RefCell::default(),
            filters: RefCell::new(Rc::new([])),
            by_number: RefCell::default(),
            next: Cell::new(0),
            subscribed: (0..count).map(|_| Cell::default()).collect(),
        };
        match roots.sharing {
            Sharing::RootContext => _ = roots.adopt(plugins),
            Sharing::Vm => {
                let infos: Arc<[_]> = template.roots(&plugins).map(|root| root.info.clone()).collect();
                let mut variant = plugins.len();
                let filter = |(index, plugin): (usize, &Arc<Plugin>)| {
                    let first = variant;
                    variant += plugin.variants.len();
                    roots.create(plugin, 0, &infos, (index, first))
                };
                let filters = plugins.iter().enumerate().map(filter).collect();
                roots.filters.replace(filters);
                roots.plugins.replace(plugins);
            }
        }
        Rc::new(roots)
    }

    /// Adopts the filters that share the root contexts now. Returns whether they have changed.
    pub fn adopt(&self, plugins: Arc<Vec<Arc<Plugin>>>) -> bool {
        if self.sharing == Sharing::Vm || Arc::ptr_eq(&self.plugins.borrow(), &plugins) {
            return false;
        }
        let before = self.filters();
        let before: HashMap<_, _> = before.iter().map(|root| (Arc::as_ptr(&root.plugin), root)).collect();
        let filter = |plugin: &Arc<Plugin>| match before.get(&Arc::as_ptr(plugin)) {
            Some(root) => Rc::clone(root),
            None => {
                let infos = plugin.infos().cloned().collect();
                let base = self.next.get();
                self.next.set(base.wrapping_add(self.subscribed.len() as u32));
                self.create(plugin, base, &infos, (0, 1))
            }
        };
        let filters = plugins.iter().map(filter).collect();
        self.filters.replace(filters);
        self.plugins.replace(plugins);
        self.by_number.borrow_mut().retain(|_, root| root.strong_count() > 0);
        true
    }

    /// Creates the root contexts of a filter, whose guest's root context has the first index, and of its variants, which
    /// follow from the second on. `base`: the number of the first root context.
    fn create(
        &self,
        plugin: &Arc<Plugin>,
        base: u32,
        infos: &Arc<[Arc<PluginInfo>]>,
        (own, variants): (usize, usize),
    ) -> Rc<RootContext> {
        let create = |root: usize, variants| {
            let (number, (phases, subscribes)) = (base + root as u32, self.subscribed[root].get());
            let context = Rc::new(RootContext {
                plugin: plugin.clone(),
                identity: Rc::new(RootIdentity { number, root, infos: infos.clone() }),
                variants,
                phases: Cell::new(phases),
                subscribes: Cell::new(subscribes),
                settings: Cell::new(plugin.settings()),
                half_call: Cell::new(plugin.settings().half_call()),
            });
            self.by_number.borrow_mut().insert(number, Rc::downgrade(&context));
            context
        };
        let variant =
            |(nth, (name, _)): (usize, &(String, _))| (name.as_str().into(), create(variants + nth, Box::default()));
        create(own, plugin.variants.iter().enumerate().map(variant).collect())
    }

    /// The number of the guest's root contexts.
    pub fn count(&self) -> usize {
        self.subscribed.len()
    }

    /// The root contexts of the filters, without those of variants.
    pub fn filters(&self) -> Rc<[Rc<RootContext>]> {
        self.filters.borrow().clone()
    }

    /// The root context with this number, if its filter still has requests.
    pub fn get(&self, number: u32) -> Option<Rc<RootContext>> {
        self.by_number.borrow().get(&number)?.upgrade()
    }

    /// The same for the result of a call. If the filter that made it is gone, another one that shares the guest's root
    /// context: the guest may have made the call for both.
    pub fn caller(&self, number: u32) -> Option<Rc<RootContext>> {
        self.get(number).or_else(|| self.first(number as usize % self.count()))
    }

    /// The first filter that one of the guest's root contexts stands for.
    pub fn first(&self, root: usize) -> Option<Rc<RootContext>> {
        let filters = self.filters.borrow();
        let mut all = filters.iter().flat_map(RootContext::family);
        all.find(|context| context.identity.root == root).cloned()
    }

    /// Adopts the filters' settings as they are now.
    pub fn adopt_settings(&self) {
        self.filters.borrow().iter().flat_map(RootContext::family).for_each(|context| context.adopt_settings());
    }

    /// Adopts what an instance subscribes to.
    pub fn adopt_phases(&self, instance: &Instance) {
        let of_root = |root| (instance.phases(root), instance.subscribed(root).is_some());
        let new: Vec<_> = (0..self.count()).map(of_root).collect();
        // Instances hardly ever differ, and there may be thousands of filters.
        if self.subscribed.iter().map(Cell::get).eq(new.iter().copied()) {
            return;
        }
        self.subscribed.iter().zip(&new).for_each(|(known, new)| known.set(*new));
        for context in self.filters.borrow().iter().flat_map(RootContext::family) {
            let (phases, subscribes) = new[context.identity.root];
            context.phases.set(phases);
            context.subscribes.set(subscribes);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        config::model::Compile,
        observe::Registry,
        wasm::{CompiledModule, Compiler, Engine, FilterEnv, SharedStore},
    };

    #[test]
    fn equal_filters_keep_their_root_contexts_while_others_join_and_leave() {
        let engine = Engine::new(Compiler::in_process()).unwrap();
        let code = r#"(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32) unreachable))"#;
        let code =
            CompiledModule::load(&engine, "f.wasm", &wat::parse_str(code).unwrap(), &Compile::default()).unwrap();
        let env = FilterEnv::new(Arc::default(), None, SharedStore::new(Registry::new(1)));
        let plugins = |names: &[&str]| -> Vec<Arc<Plugin>> {
            let plugin = |name: &&str| {
                let config = json!({"name": name, "wasm": "f.wasm", "variants": {"v": 1}});
                Arc::new(Plugin::new(&serde_json::from_value(config).unwrap(), code.clone(), &engine, &env).unwrap())
            };
            names.iter().map(plugin).collect()
        };
        let all = plugins(&["a", "b", "c"]);
        let roots = Roots::new(&VmTemplate::new(all[..2].to_vec(), Sharing::RootContext));
        assert_eq!(roots.count(), 2, "of a filter and its variant");
        let named = |root: Option<Rc<RootContext>>| {
            root.map(|root| (root.plugin.info.name.clone(), root.identity.root, root.identity.info().config.clone()))
        };
        let of = |name: &str, variant: bool| {
            let config = bytes::Bytes::from_static(if variant { b"1" } else { b"" });
            Some((name.to_owned(), usize::from(variant), config))
        };
        let numbers = || roots.filters().iter().map(|root| root.identity.number).collect::<Vec<_>>();
        assert_eq!(numbers(), [0, 2]);
        assert_eq!((named(roots.get(2)), named(roots.get(3))), (of("b", false), of("b", true)));

        let held = roots.filters()[1].clone();
        let now = Arc::new(vec![all[1].clone(), all[2].clone()]);
        assert!(roots.adopt(now.clone()) && !roots.adopt(now));
        assert!(Rc::ptr_eq(&held, &roots.filters()[0]), "it is the same for its streams");
        assert_eq!(numbers(), [2, 4]);
        assert_eq!((named(roots.get(0)), named(roots.get(1))), (None, None));
        assert_eq!((named(roots.caller(0)), named(roots.caller(1))), (of("b", false), of("b", true)));
        assert_eq!((named(roots.caller(4)), named(roots.caller(5))), (of("c", false), of("c", true)));

        // It leaves, but its streams have not ended.
        assert!(roots.adopt(Arc::new(plugins(&["a"]))));
        assert_eq!(numbers(), [6], "numbers are never assigned again");
        assert_eq!((named(roots.get(2)), named(roots.get(3))), (of("b", false), of("b", true)));
        drop(held);
        assert_eq!((named(roots.get(2)), named(roots.caller(3))), (None, of("a", true)));
    }
}
