//! The host's state for one instance: the data of its wasmtime store. All of it is `Send`, because an instance is
//! created on the control thread and then moved to a worker; the worker's streams are reached through
//! [`super::scope::call_scope`].

pub(super) mod definitions;
pub(super) mod filter_log;
pub(crate) mod grpc;
mod name_cache;
pub(crate) mod plugin_info;

use std::{cell::Cell, collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use rustc_hash::{FxHashMap, FxHashSet};
use tollgate_abi::{fast::phase, proxy_wasm::Status};
use wasmtime::{Memory, ResourceLimiter, TypedFunc};

use self::{
    definitions::{Definitions, SharedDefinitions},
    grpc::{CallCommand, CallEvent, EndedCalls, OpenCall},
    name_cache::NameCache,
    plugin_info::{PluginInfo, RootIdentity},
};
use super::{
    engine::clock::CallTimer,
    stores::{env::FilterEnv, known_names::NameAnswers},
};
use crate::{
    chain::{
        RequestHead, ResponseHead, Route,
        charge::{DeferredCharge, ITEM, MemoryBudget, MemoryCharge},
        head::{self, Name},
        variants::RouteFilters,
    },
    upstream::ClusterHandle,
};

/// The guest's phase, which decides what it may access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Starting: `_initialize`, `main`.
    Start,
    /// `proxy_on_vm_start`.
    VmStart,
    /// `proxy_on_configure`.
    Configure,
    /// Everything after configuration.
    Running,
}

/// An HTTP call requested by the guest.
#[derive(Debug)]
pub struct HttpCall {
    /// The guest's handle.
    pub id: u32,
    /// The filter or variant that made the call, as the number of its [`RootIdentity`].
    pub caller: u32,
    /// The destination.
    pub cluster: ClusterHandle,
    /// The head.
    pub head: RequestHead,
    /// The body.
    pub body: Bytes,
    /// The trailers.
    pub trailers: HeaderMap,
    /// The memory charge for the request and its response.
    pub charge: MemoryCharge,
    /// The timeout for the whole call.
    pub timeout: Option<Duration>,
}

/// A timer that the guest has set for a stream.
#[derive(Debug)]
pub struct Timer {
    /// The stream's context.
    pub context: u32,
    /// The delay.
    pub after: Duration,
    /// Returned to the guest.
    pub token: i64,
    /// The memory charge until the timer has fired.
    pub charge: MemoryCharge,
}

/// The response to an HTTP call, while `proxy_on_http_call_response` runs.
#[derive(Debug, Default)]
pub struct CallResponse {
    /// The head; `None` if the call failed.
    pub head: Option<ResponseHead>,
    /// The body.
    pub body: Bytes,
    /// The trailers.
    pub trailers: HeaderMap,
    /// Why the call failed, as returned by `proxy_get_status`.
    pub failure: Option<(u32, &'static str)>,
}

/// The results of calls, while the guest's callback for them runs.
#[derive(Debug, Default)]
pub struct Answers {
    /// The response to an HTTP call.
    pub call_response: Option<CallResponse>,
    /// An event of a gRPC call.
    pub grpc_event: Option<CallEvent>,
    /// The charge for headers that the guest adds to them.
    owed: DeferredCharge,
}

impl Answers {
    /// Charges the guest for `more` additional bytes of headers in the current result. Returns whether they may be
    /// added.
    pub fn owe(&mut self, ledger: &Arc<MemoryBudget>, more: usize) -> bool {
        if self.owed.add(more) {
            return true;
        }
        let of_call = self.call_response.as_ref().map_or(0, |call| {
            call.head.as_ref().map_or(0, |head| head::size(&head.fields)) + head::size(&call.trailers)
        });
        let of_grpc = match &self.grpc_event {
            Some(CallEvent::Initial(fields) | CallEvent::Trailing(fields)) => head::size(fields),
            _ => 0,
        };
        self.owed.weigh(ledger, of_call + of_grpc, more)
    }

    /// Drops the results.
    pub fn clear(&mut self) {
        *self = Answers::default();
    }
}

/// The memory limit of an instance. If memory is refused, the guest sees `memory.grow` fail, as the WebAssembly
/// specification requires; most guests then trap, and `denied` records the cause.
#[derive(Debug)]
pub struct Limiter {
    memory: usize,
    /// The charge for its tables, which are host memory.
    tables: MemoryCharge,
    /// Whether it has been refused memory.
    pub denied: bool,
}

/// Maximum number of elements in a table; far more than compilers create.
const TABLE_ELEMENTS: usize = 100_000;

/// Upper bound of an element's size in bytes.
const TABLE_ELEMENT: usize = 16;

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let granted = desired <= self.memory;
        self.denied |= !granted;
        Ok(granted)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        if desired > TABLE_ELEMENTS {
            return Ok(false);
        }
        let more = desired.saturating_sub(current).saturating_mul(TABLE_ELEMENT);
        let granted = self.tables.grow(more).is_ok();
        self.denied |= !granted;
        Ok(granted)
    }

    fn memories(&self) -> usize {
        1
    }
}

/// The host's state for a root context of the guest.
pub struct RootState {
    /// The callbacks that it subscribes to, as bits of [`phase`].
    pub subscribed: u32,
    /// Whether it has subscribed explicitly.
    pub subscribes: bool,
    /// The period of its tick.
    pub tick: Option<Duration>,
    /// The variants of filters that its routes select, by address.
    pub selects: FxHashMap<usize, Arc<RouteFilters>>,
}

/// The data of a store.
pub struct Host {
    /// The guest's root contexts.
    pub roots: Box<[RootState]>,
    /// The root context that the current call is for, as an index.
    pub root: usize,
    /// The filter or variant that the current call is for, as the number of its [`RootIdentity`].
    pub acting: u32,
    /// The identity of that filter.
    pub identity: Arc<PluginInfo>,
    /// The identities of all root contexts, for that filter.
    infos: Arc<[Arc<PluginInfo>]>,
    /// Whether the guest, while it was started and configured, did something that concerns only the filter of the given
    /// name. Then filters of other names cannot share its root context.
    named_effect: Cell<bool>,
    /// The environment that all filters of the snapshot share.
    pub env: Arc<FilterEnv>,
    /// What its filters were told about clusters and variants while they were configured.
    pub name_answers: Arc<NameAnswers>,
    /// Its memory limit.
    pub limiter: Limiter,
    /// Its memory, once it is instantiated.
    pub memory: Option<Memory>,
    /// Its allocator. Boxed because it is taken out during each call to it.
    pub allocate: Option<Box<TypedFunc<u32, u32>>>,
    /// The timer of the current call.
    pub clock: CallTimer,
    /// The guest's phase.
    pub phase: Phase,
    /// The context that host functions act on.
    pub effective: u32,
    /// The ABI version that it was built for.
    pub abi: &'static str,
    /// The last line it logged while it was configured.
    pub last_logged: String,
    /// Errors in its configuration, with their paths.
    pub config_errors: Vec<(String, String)>,
    /// Whether a tick was set or cleared.
    pub ticks_changed: bool,
    /// The budget of host memory.
    pub budget: Arc<MemoryBudget>,
    /// The charge for what it has defined: names, routes, ids.
    pub defined: MemoryCharge,
    /// Header names by id.
    pub names: Vec<Name>,
    /// Ids of header names.
    pub name_ids: HashMap<Vec<u8>, u32>,
    /// Header names that it has passed as text.
    pub name_cache: NameCache,
    /// Routes by id.
    pub routes: Vec<Arc<Route>>,
    /// Buckets, limits and metrics of the filter that the current call is for.
    pub definitions: Definitions,
    /// Those of other filters, if filters share its root context.
    pub shared_definitions: Option<Box<SharedDefinitions>>,
    /// Queues that it registered in this call, each with the number of the filter's [`RootIdentity`].
    pub reads: Vec<(u32, u32)>,
    /// Calls without a response so far.
    pub calls_under_way: usize,
    /// The last call id assigned.
    pub last_call: u32,
    /// Calls to send when the guest has returned.
    pub calls: Vec<HttpCall>,
    /// gRPC calls that have not ended.
    pub grpc_calls: HashMap<u32, OpenCall>,
    /// gRPC calls that the other side has ended and the guest has not.
    pub grpc_over: EndedCalls,
    /// Commands for gRPC calls, executed when the guest has returned.
    pub grpc_commands: Vec<CallCommand>,
    /// Timers to set when the guest has returned.
    pub timers: Vec<Timer>,
    /// The results of calls.
    pub answers: Answers,
    /// A reusable buffer for data on its way to the guest.
    pub scratch: Vec<u8>,
    /// Number of host calls by the guest.
    pub hostcalls: u64,
    /// Bytes copied to and from the guest.
    pub copied: u64,
}

impl Host {
    /// Whether it was built for the first ABI version, which differs in details.
    pub fn is_0_1(&self) -> bool {
        self.abi == "0.1.0"
    }

    /// Begins a call for a filter, on a context.
    #[inline]
    pub fn act_for(&mut self, root: &RootIdentity, context: u32) {
        self.effective = context;
        if self.acting != root.number {
            self.change_filter(root);
        }
    }

    fn change_filter(&mut self, root: &RootIdentity) {
        (self.acting, self.root) = (root.number, root.root);
        let before = std::mem::replace(&mut self.identity, root.info().clone());
        if let Some(shared) = &mut self.shared_definitions
            && !Arc::ptr_eq(&before.store, &self.identity.store)
        {
            shared.exchange(&mut self.definitions, &before, &self.identity, &self.env);
        }
        if !Arc::ptr_eq(&self.infos, &root.infos) {
            self.infos = root.infos.clone();
        }
    }

    /// Makes the current call continue for one of the guest's root contexts, on a context. If filters share the root
    /// contexts, it continues for the same filter.
    pub fn act_for_root(&mut self, root: usize, context: u32) {
        let number = self.acting.wrapping_sub(self.root as u32).wrapping_add(root as u32);
        self.act_for(&RootIdentity { number, root, infos: self.infos.clone() }, context);
    }

    /// Drops what it holds for filters that no longer share its root contexts. `first`: the identities of the root contexts
    /// for a filter that does; `filters`: all that do, by the addresses of their stores.
    pub fn retain_filters(&mut self, first: &Arc<[Arc<PluginInfo>]>, filters: &FxHashSet<usize>) {
        if !filters.contains(&self.identity.store_address()) {
            self.change_filter(&RootIdentity { number: u32::MAX, root: 0, infos: first.clone() });
        }
        if let Some(shared) = &mut self.shared_definitions {
            shared.retain(filters);
        }
    }

    /// Called when the guest is configured: the next call is for a filter of the worker, whose number is another.
    pub fn begin_running(&mut self) {
        (self.phase, self.acting) = (Phase::Running, u32::MAX);
    }

    /// Called by functions that concern only the filter of the current name.
    #[inline]
    pub fn note_named_effect(&self) {
        if self.phase != Phase::Running {
            self.named_effect.set(true);
        }
    }

    /// Whether a function was called, while the guest was started and configured, that concerns only the filter of the
    /// given name.
    pub fn has_named_effect(&self) -> bool {
        self.named_effect.get()
    }

    /// The cluster of this name: while the guest is configured, one that the configuration has or may get; afterwards, one
    /// that there is now.
    pub fn cluster(&self, name: &str) -> Option<ClusterHandle> {
        if self.phase == Phase::Running {
            return self.env.find(name);
        }
        let is_known = self.name_answers.cluster(name, |name| self.env.knows(name));
        is_known.then(|| self.env.clusters.handle(name))
    }

    /// Whether a route may name this variant of a filter, as the result of `variant_exists`.
    pub fn variant_exists(&self, filter: &str, name: &str) -> i32 {
        match self.phase {
            Phase::Running => self.env.variant_exists(filter, name),
            _ => self.name_answers.variant(filter, name, |filter, name| self.env.variant_exists(filter, name)),
        }
    }

    /// Charges for something that lives as long as the instance.
    pub fn define(&mut self, bytes: usize) -> Result<(), Status> {
        self.defined.grow(bytes + ITEM).map_err(|_| Status::InternalFailure)
    }

    /// Creates the data of a new instance with these root contexts, at least one. `shared`: filters with other names may
    /// share them.
    pub fn new(
        infos: Arc<[Arc<PluginInfo>]>,
        shared: bool,
        env: Arc<FilterEnv>,
        name_answers: Arc<NameAnswers>,
        memory_limit: usize,
        ledger: Arc<MemoryBudget>,
    ) -> Host {
        let root =
            |_| RootState { subscribed: phase::ALL, subscribes: false, tick: None, selects: FxHashMap::default() };
        Host {
            roots: infos.iter().map(root).collect(),
            root: 0,
            acting: 0,
            identity: infos[0].clone(),
            infos,
            named_effect: Cell::new(false),
            env,
            name_answers,
            limiter: Limiter { memory: memory_limit, tables: ledger.open(), denied: false },
            memory: None,
            allocate: None,
            clock: CallTimer::default(),
            phase: Phase::Start,
            effective: 0,
            abi: "",
            last_logged: String::new(),
            config_errors: Vec::new(),
            ticks_changed: false,
            defined: ledger.open(),
            budget: ledger,
            names: Vec::new(),
            name_ids: HashMap::new(),
            name_cache: NameCache::default(),
            routes: Vec::new(),
            definitions: Definitions::default(),
            shared_definitions: shared.then(Box::default),
            reads: Vec::new(),
            calls_under_way: 0,
            last_call: 0,
            calls: Vec::new(),
            grpc_calls: HashMap::new(),
            grpc_over: EndedCalls::default(),
            grpc_commands: Vec::new(),
            timers: Vec::new(),
            answers: Answers::default(),
            scratch: Vec::new(),
            hostcalls: 0,
            copied: 0,
        }
    }
}

/// The id of an instance's first root context. The other filters' root contexts follow, and then the streams.
pub const FIRST_ROOT: u32 = 1;

impl AsMut<CallTimer> for Host {
    fn as_mut(&mut self) -> &mut CallTimer {
        &mut self.clock
    }
}
