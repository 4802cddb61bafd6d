//! An instance apart for clients whose requests make filters fail.
//!
//! A failure takes all streams with it that are inside the instance. So whoever knows one crashing request could end everybody's by
//! sending it again and again. From its first failure on, a client is served by a VM of its own kind beside the worker's: with
//! others of its kind, and with nobody else. That one is made when such a client comes again, and dropped when it has not been
//! needed for a while.
//!
//! Making it takes a moment. A client that has failed once is served with everybody meanwhile, since many a failure is no attack and
//! other people may share its address; one that has failed again gets what it would get if the filter had no instance at all.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    RootContext, Vm,
    suspects::{MEMORY, SuspectClients},
};
use crate::{
    net::Client,
    observe::{Gauge, target},
    wasm::{instance::Instance, scope::stream_ref::StreamRef},
};

/// Whom a VM serves apart, and by what.
#[derive(Default)]
pub(super) struct Quarantine {
    suspects: RefCell<SuspectClients>,
    vm: RefCell<Option<Rc<Vm>>>,
    /// There are suspects, or streams of theirs. Looked at for each call.
    active: Cell<bool>,
}

impl Vm {
    /// The VM that this one stands beside, if it serves clients apart.
    pub(super) fn main(&self) -> Option<Rc<Vm>> {
        self.main.as_ref().and_then(Weak::upgrade)
    }

    /// Whether it serves clients apart.
    pub(super) fn is_apart(&self) -> bool {
        self.main.is_some()
    }

    /// The VM beside it that serves clients apart, once there is one.
    pub(super) fn quarantine_vm(&self) -> Option<Rc<Vm>> {
        self.quarantine.vm.borrow().clone()
    }

    /// Where its instance is counted.
    pub(super) fn gauge<'t>(&self, tenant: &'t RootContext) -> &'t Gauge {
        let figures = &tenant.plugin.metrics;
        if self.is_apart() { &figures.quarantine } else { &figures.instances }
    }

    /// The VM that serves a stream apart, if one does. Decided when the stream meets the filter, and never changed.
    #[inline]
    pub(super) fn apart(&self, stream: &StreamRef, position: usize) -> Option<Rc<Vm>> {
        if self.quarantine.active.get() { self.look_apart(stream, position) } else { None }
    }

    #[cold]
    fn look_apart(&self, stream: &StreamRef, position: usize) -> Option<Rc<Vm>> {
        let (met, quarantined) = stream.with_position(position, |p| (p.context != 0, p.quarantined));
        if met {
            return if quarantined { self.quarantine_vm() } else { None };
        }
        let client = Client::of(stream.client().ip());
        let failures = self.quarantine.suspects.borrow().failures(client, Instant::now());
        if failures == 0 {
            return None;
        }
        let vm = self.quarantine_vm().unwrap_or_else(|| self.open());
        if failures == 1 && vm.instance.borrow().is_none() {
            return None;
        }
        stream.with_position(position, |p| p.quarantined = true);
        Some(vm)
    }

    /// A client's request has made it fail.
    pub(super) fn suspect(&self, stream: &StreamRef) {
        let Quarantine { suspects, active, .. } = match self.main() {
            Some(main) => return main.suspect(stream),
            None => &self.quarantine,
        };
        suspects.borrow_mut().add(Client::of(stream.client().ip()), Instant::now());
        if !active.replace(true) {
            let me = self.me.clone();
            tokio::task::spawn_local(async move {
                loop {
                    tokio::time::sleep(MEMORY).await;
                    match me.upgrade() {
                        Some(vm) if !vm.close() => {}
                        _ => return,
                    }
                }
            });
        }
    }

    /// Begins to serve suspects apart, as soon as there is an instance for them.
    fn open(&self) -> Rc<Vm> {
        tracing::info!(
            target: target::FILTER,
            filter = self.machine.names(),
            "clients whose requests have made it fail get an instance of their own"
        );
        let vm = Vm::without_instance(self.machine.clone(), self.site.clone(), Some(self.me.clone()));
        *self.quarantine.vm.borrow_mut() = Some(vm.clone());
        if let Some(instance) = self.instance_to_spare() {
            vm.adopt(instance);
        }
        self.restock();
        vm
    }

    /// How long to wait until another instance should be made for suspects, if they have none.
    pub(super) fn lacks_apart(&self) -> Option<Duration> {
        let vm = self.quarantine_vm().filter(|vm| vm.instance.borrow().is_none());
        vm.map(|vm| vm.rest())
    }

    /// Takes an instance into use for suspects, if they have none. Given back otherwise.
    pub(super) fn deliver_apart(&self, instance: Instance) -> Option<Instance> {
        match self.quarantine_vm() {
            Some(vm) if self.lacks_apart() == Some(Duration::ZERO) => {
                vm.replace(instance);
                None
            }
            _ => Some(instance),
        }
    }

    /// Serves nobody apart any more, if nobody is suspected and no stream of such a client is under way. Whether it is so.
    fn close(&self) -> bool {
        let Quarantine { suspects, vm, active } = &self.quarantine;
        let used = vm.borrow().as_ref().is_some_and(|vm| !vm.contexts.borrow().is_empty());
        if !suspects.borrow_mut().forget(Instant::now()) || used {
            return false;
        }
        active.set(false);
        // Its guest is told, and must not find this borrowed.
        let unused = vm.take();
        drop(unused);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::SocketAddr, sync::Arc};

    use serde_json::json;
    use tokio::task::LocalSet;

    use super::*;
    use crate::{
        chain::{
            Action, OnFailure,
            network::{NetworkChain, NetworkFilter, NetworkStream},
            stream::ConnectionInfo,
        },
        config::model::{self, Compile},
        observe::Registry,
        upstream::{PoolOptions, Pools},
        wasm::{
            CompiledModule, Compiler, Engine, FilterEnv, InstanceSupply, Plugin, SharedStore, VmBinding, VmTemplate,
        },
    };

    /// A filter that traps for each connection.
    fn machine() -> Arc<VmTemplate> {
        let text = r#"(module
            (memory (export "memory") 1)
            (func (export "malloc") (param i32) (result i32) unreachable)
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "proxy_on_new_connection") (param i32) (result i32) unreachable))"#;
        let engine = Engine::new(Compiler::in_process()).unwrap();
        let code =
            CompiledModule::load(&engine, "f.wasm", &wat::parse_str(text).unwrap(), &Compile::default()).unwrap();
        let filter: model::Filter = serde_json::from_value(json!({"name": "f", "wasm": "f.wasm"})).unwrap();
        let world = FilterEnv::new(Arc::new(HashMap::new()), SharedStore::new(Registry::new(1)));
        VmTemplate::of(Arc::new(Plugin::new(&filter, code, &engine, &world).unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_apart_stays_for_as_long_as_somebody_needs_it() {
        let test = async {
            let machine = machine();
            let new = || machine.instantiate().map_err(|failed| failed.error).unwrap();
            let site = VmBinding { upstream: Pools::new(PoolOptions::default()), supply: InstanceSupply::new(|_| ()) };
            let vm = Vm::new(machine.clone(), new(), site);
            (0..4).for_each(|_| vm.deliver(new()));
            let filter = vm.filters().next().unwrap();
            let chain = Rc::new(NetworkChain::new(vec![filter.clone() as Rc<dyn NetworkFilter>]));
            let connect = |client: [u8; 4]| {
                let client = SocketAddr::from((client, 1));
                let connection = Rc::new(ConnectionInfo::new("l".into(), client, client));
                let stream = NetworkStream::new(connection, chain.clone(), None, 10);
                assert_eq!(filter.on_connection(&stream, 0), Action::Failed(OnFailure::Deny));
                stream
            };
            let figures = &machine.plugins()[0].metrics;
            let counted = || (figures.instances.value(), figures.quarantine.value());
            let main = || vm.incarnation.get();

            connect([192, 0, 2, 1]);
            assert_eq!((counted(), main()), ((1, 0), 2), "the first failure is everybody's");
            connect([192, 0, 2, 1]);
            assert_eq!(main(), 2, "the second is not");
            assert_eq!(vm.quarantine_vm().map(|apart| apart.incarnation.get() >= 1), Some(true));
            connect([192, 0, 2, 2]);
            assert_eq!(main(), 3, "this one was not known");

            // A stream that is inside keeps it.
            let apart = vm.quarantine_vm().unwrap();
            vm.deliver(new());
            vm.deliver(new());
            assert!(apart.instance.borrow().is_some());
            let inside = connect([192, 0, 2, 3]);
            apart.contexts.borrow_mut().insert(
                1000,
                crate::wasm::scope::contexts::StreamContext {
                    stream: StreamRef::Tcp(inside).downgrade(),
                    position: 0,
                    root: 0,
                },
            );
            tokio::time::sleep(3 * MEMORY).await;
            assert!(vm.quarantine_vm().is_some());
            apart.contexts.borrow_mut().remove(1000);
            drop(apart);
            tokio::time::sleep(2 * MEMORY).await;
            assert!(vm.quarantine_vm().is_none());
            assert_eq!(figures.quarantine.value(), 0);
            connect([192, 0, 2, 1]);
            assert!(vm.quarantine_vm().is_none(), "nothing is remembered");
        };
        LocalSet::new().run_until(test).await;
    }
}
