//! A separate instance for clients whose requests make filters fail.
//!
//! A failure ends all streams inside the instance, so anyone who knows a crashing request could end every client's
//! streams by repeating it. From its first failure on, a client is therefore served by a separate VM next to the
//! worker's regular one, together with other such clients only. That VM is created when such a client returns, and
//! dropped when it has been unused for a while.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Vm,
    suspects::{MEMORY, SuspectClients},
};
use crate::{
    net::Client,
    observe::{Gauge, target},
    wasm::{instance::Instance, scope::stream_ref::StreamRef},
};

/// The suspect clients of a VM and the VM that serves them.
#[derive(Default)]
pub(super) struct Quarantine {
    suspects: RefCell<SuspectClients>,
    vm: RefCell<Option<Rc<Vm>>>,
    /// There are suspects, or streams of theirs. Checked on each call.
    active: Cell<bool>,
}

impl Vm {
    /// The regular VM, if this one is a quarantine VM.
    pub(super) fn main(&self) -> Option<Rc<Vm>> {
        self.main.as_ref().and_then(Weak::upgrade)
    }

    /// Whether this is a quarantine VM.
    pub(super) fn is_apart(&self) -> bool {
        self.main.is_some()
    }

    /// Its quarantine VM, if there is one.
    pub(super) fn quarantine_vm(&self) -> Option<Rc<Vm>> {
        self.quarantine.vm.borrow().clone()
    }

    /// The gauge that counts its instance.
    pub(super) fn gauge(&self) -> &Gauge {
        let gauges = &self.template.gauges;
        if self.is_apart() { &gauges.quarantine } else { &gauges.instances }
    }

    /// The quarantine VM for a stream, if it belongs there. Decided when the stream first reaches the filter, and never
    /// changed.
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

    /// Records that a client's request made the filter fail.
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

    /// Starts a quarantine VM, which serves suspects as soon as it has an instance.
    fn open(&self) -> Rc<Vm> {
        tracing::info!(
            target: target::FILTER,
            filter = self.template.names(),
            "clients whose requests made the filter fail get a separate instance"
        );
        let (roots, main) = (self.roots.clone(), Some(self.me.clone()));
        let vm = Vm::without_instance(self.template.clone(), roots, self.binding.clone(), main);
        *self.quarantine.vm.borrow_mut() = Some(vm.clone());
        if let Some(instance) = self.instance_to_spare() {
            vm.adopt(instance);
        }
        self.restock();
        vm
    }

    /// How long to wait before creating an instance for the quarantine VM; `None` if it needs none.
    pub(super) fn lacks_apart(&self) -> Option<Duration> {
        let vm = self.quarantine_vm().filter(|vm| vm.instance.borrow().is_none());
        vm.map(|vm| vm.rest())
    }

    /// Gives an instance to the quarantine VM if that has none. Returned if it is not needed.
    pub(super) fn deliver_apart(&self, instance: Instance) -> Option<Instance> {
        match self.quarantine_vm() {
            Some(vm) if self.lacks_apart() == Some(Duration::ZERO) => {
                vm.replace(instance);
                None
            }
            _ => Some(instance),
        }
    }

    /// Drops the quarantine VM if there are no suspects and no streams of theirs. Returns whether it did.
    fn close(&self) -> bool {
        let Quarantine { suspects, vm, active } = &self.quarantine;
        let used = vm.borrow().as_ref().is_some_and(|vm| !vm.contexts.borrow().is_empty());
        if !suspects.borrow_mut().forget(Instant::now()) || used {
            return false;
        }
        active.set(false);
        // Dropping it calls its guest, which must not find this cell borrowed.
        let unused = vm.take();
        drop(unused);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

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

    /// A filter that traps on each connection.
    fn template() -> Arc<VmTemplate> {
        let text = r#"(module
            (memory (export "memory") 1)
            (func (export "malloc") (param i32) (result i32) unreachable)
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "proxy_on_new_connection") (param i32) (result i32) unreachable))"#;
        let engine = Engine::new(Compiler::in_process()).unwrap();
        let code =
            CompiledModule::load(&engine, "f.wasm", &wat::parse_str(text).unwrap(), &Compile::default()).unwrap();
        let filter: model::Filter = serde_json::from_value(json!({"name": "f", "wasm": "f.wasm"})).unwrap();
        let world = FilterEnv::new(Arc::default(), None, SharedStore::new(Registry::new(1)));
        VmTemplate::of(Arc::new(Plugin::new(&filter, code, &engine, &world).unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn quarantine_instance_stays_as_long_as_it_is_needed() {
        let test = async {
            let template = template();
            let new = || template.instantiate().map_err(|failed| failed.error).unwrap();
            let binding =
                VmBinding { upstream: Pools::new(PoolOptions::default()), supply: InstanceSupply::new(|_| ()) };
            let vm = Vm::new(template.clone(), new(), binding);
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
            let plugins = template.plugins();
            let figures = &plugins[0].metrics;
            let counted = || (figures.instances.value(), figures.quarantine.value());
            let main = || vm.incarnation.get();

            connect([192, 0, 2, 1]);
            assert_eq!((counted(), main()), ((1, 0), 2), "the first failure hits the regular instance");
            connect([192, 0, 2, 1]);
            assert_eq!(main(), 2, "the second one does not");
            assert_eq!(vm.quarantine_vm().map(|apart| apart.incarnation.get() >= 1), Some(true));
            connect([192, 0, 2, 2]);
            assert_eq!(main(), 3, "this client was not known");

            // A stream inside keeps it alive.
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
                    root: vm.roots.filters()[0].identity.clone(),
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
            assert!(vm.quarantine_vm().is_none(), "no suspects are left");
        };
        LocalSet::new().run_until(test).await;
    }
}
