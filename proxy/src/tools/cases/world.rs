//! The environment of a case: the filter as a worker runs it, in a chain, with the production exchange around it. Only
//! the connections are not sockets.

use std::{
    cell::OnceCell,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
};

use anyhow::Context;
use tokio::{task::spawn_local, time::sleep};

use super::{load::Loaded, observer::Observer, script::Script};
use crate::{
    chain::{Chain, Filter, Route, slot::SlottedChain},
    config::model::{self, Listener},
    control::snapshot::SnapshotBuilder,
    exchange,
    observe::{Registry, target},
    tools::clusters,
    upstream::{Clusters, PoolOptions, Pools},
    wasm::{
        self, CompiledModule, Engine, Instance, InstanceOrder, InstanceSupply, InstantiateError, Plugin, SharedStore,
        Vm, VmTemplate,
    },
};

/// A filter that is ready to be tested.
pub struct World {
    pub context: Rc<exchange::ListenerContext>,
    pub local: SocketAddr,
    pub script: Rc<Script>,
    pub observer: Rc<Observer>,
    pub registry: Registry,
}

/// The filter's instance, or the reason why it rejected its configuration.
pub type Configured = Result<Instance, InstantiateError>;

/// Creates the filter with its configuration, and the clusters of its case. It shares nothing with other cases.
pub fn configure(
    engine: &Arc<Engine>,
    code: &Arc<CompiledModule>,
    filter: &model::Filter,
    script: &Script,
) -> anyhow::Result<(Arc<VmTemplate>, Arc<Clusters>, Registry, Configured)> {
    let clusters = clusters(script.names())?;
    let registry = Registry::new(1);
    let world = wasm::FilterEnv::new(clusters.clone(), None, SharedStore::new(registry.clone()));
    let template = VmTemplate::of(Arc::new(Plugin::new(filter, code.clone(), engine, &world)?));
    let configured = template.instantiate().map_err(|e| e.error);
    Ok((template, clusters, registry, configured))
}

impl World {
    /// Creates the environment of an instance. Must run where local tasks can be spawned.
    pub fn new(
        loaded: &Loaded,
        (template, instance): (Arc<VmTemplate>, Instance),
        clusters: &Clusters,
        script: Rc<Script>,
        registry: Registry,
    ) -> anyhow::Result<World> {
        let vm: Rc<OnceCell<Weak<Vm>>> = Rc::default();
        let failed = vm.clone();
        let supply = InstanceSupply::new(move |InstanceOrder { template, wait }| {
            let vm = failed.clone();
            spawn_local(async move {
                sleep(wait).await;
                match (vm.get().and_then(Weak::upgrade), template.instantiate()) {
                    (Some(vm), Ok(instance)) => vm.deliver(instance),
                    (_, Err(e)) => {
                        tracing::error!(target: target::FILTER, "cannot create another instance: {e}")
                    }
                    (None, Ok(_)) => {}
                }
            });
        });
        let calls = Pools::dialling(PoolOptions::default(), script.dial(true));
        calls.adopt(clusters);
        let the_vm = Vm::new(template, instance, wasm::VmBinding { upstream: calls, supply });
        // The first and only time that it is set.
        let _ = vm.set(Rc::downgrade(&the_vm));
        let observer = Rc::new(Observer::default());
        let filters = the_vm.filters().map(|filter| filter as Rc<dyn Filter>);
        let chain = SlottedChain::single(filters.chain([observer.clone() as Rc<dyn Filter>]).collect());
        let pools = Pools::dialling(PoolOptions::default(), script.dial(false));
        pools.adopt(clusters);
        let context = listener_context(&loaded.listener, chain, clusters, pools, &registry)?;
        Ok(World {
            context: Rc::new(context),
            local: loaded.listener.address.inet().unwrap_or(crate::net::socket::LOCAL),
            script,
            observer,
            registry,
        })
    }
}

fn listener_context(
    config: &Listener,
    chain: SlottedChain<Chain>,
    clusters: &Clusters,
    pools: Pools<crate::http::body::Body>,
    registry: &Registry,
) -> anyhow::Result<exchange::ListenerContext> {
    let default = config.cluster.as_ref().map(|name| {
        let cluster = clusters.find(name).with_context(|| format!("the listener's cluster `{name}` does not exist"))?;
        anyhow::Ok(Arc::new(Route::to_cluster(cluster)))
    });
    let figures = SnapshotBuilder::listener_metrics(registry, &config.name, config.tls.is_some())?;
    let mut context = exchange::ListenerContext::new(Arc::new(config.clone()), chain, figures, pools);
    context.default_route = default.transpose()?;
    Ok(context)
}
