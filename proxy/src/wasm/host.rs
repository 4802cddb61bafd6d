//! What the host keeps for one instance of a filter: the data of its store. All of it can move between threads, because an
//! instance is made on the control thread and then handed to a worker; what belongs to the worker's streams is reached
//! through [`super::current`].

pub(super) mod filter_log;
pub(crate) mod grpc;
mod name_cache;
pub(crate) mod plugin_info;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use tollgate_abi::{fast::phase, proxy_wasm::Status};
use wasmtime::{Memory, ResourceLimiter, TypedFunc};

use self::{
    grpc::{CallCommand, CallEvent, EndedCalls, OpenCall},
    name_cache::NameCache,
    plugin_info::PluginInfo,
};
use super::{
    engine::clock::CallTimer,
    stores::{bucket::Bucket, env::FilterEnv},
};
use crate::{
    chain::{
        RequestHead, ResponseHead, Route,
        charge::{DeferredCharge, ITEM, MemoryBudget, MemoryCharge},
        head::{self, Name},
        limits::ConcurrencyLimit,
    },
    observe::metrics::Handle,
    upstream::Cluster,
};

/// What the guest is doing, which decides what it may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Starting: `_initialize`, `main`.
    Start,
    /// `proxy_on_vm_start`.
    VmStart,
    /// `proxy_on_configure`.
    Configure,
    /// Everything later.
    Running,
}

/// An HTTP request that the guest wants to be sent.
#[derive(Debug)]
pub struct HttpCall {
    /// The guest's handle.
    pub id: u32,
    /// For which root context.
    pub root: usize,
    /// Where to.
    pub cluster: Arc<Cluster>,
    /// The head.
    pub head: RequestHead,
    /// The body.
    pub body: Bytes,
    /// The trailers.
    pub trailers: HeaderMap,
    /// For what the guest has given for it, and for its answer.
    pub charge: MemoryCharge,
    /// How long it may take, in all.
    pub timeout: Option<Duration>,
}

/// A timer that the guest has set for a stream.
#[derive(Debug)]
pub struct Timer {
    /// The stream's context.
    pub context: u32,
    /// How long.
    pub after: Duration,
    /// What the guest gets back.
    pub token: i64,
    /// For it, until it is over.
    pub charge: MemoryCharge,
}

/// The answer to an HTTP call, while `proxy_on_http_call_response` runs.
#[derive(Debug, Default)]
pub struct CallResponse {
    /// The head; none if the call failed.
    pub head: Option<ResponseHead>,
    /// The body.
    pub body: Bytes,
    /// The trailers.
    pub trailers: HeaderMap,
    /// Why it failed: what `proxy_get_status` says.
    pub failure: Option<(u32, &'static str)>,
}

/// What calls have brought, while the guest is told of it.
#[derive(Debug, Default)]
pub struct Answers {
    /// The answer to an HTTP call.
    pub call_response: Option<CallResponse>,
    /// What a gRPC call has brought.
    pub grpc_event: Option<CallEvent>,
    /// For what the guest adds to their headers.
    owed: DeferredCharge,
}

impl Answers {
    /// Charges the guest for so many bytes more in the headers of what is told. Whether they may be added.
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

    /// Nothing is told any more.
    pub fn clear(&mut self) {
        *self = Answers::default();
    }
}

/// The bound on an instance's memory. A guest that is refused more sees `memory.grow` fail, as the standard says; most then
/// trap, and it is remembered why.
#[derive(Debug)]
pub struct Limiter {
    memory: usize,
    /// For its tables, which are the host's memory.
    tables: MemoryCharge,
    /// It has been refused memory.
    pub denied: bool,
}

/// Elements of a table; far more than compilers make.
const TABLE_ELEMENTS: usize = 100_000;

/// Bytes of an element, at most.
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

/// What the host keeps for a root context: one of the filters in an instance.
pub struct RootState {
    /// Who the filter is.
    pub identity: Arc<PluginInfo>,
    /// The callbacks it wants, as bits of [`phase`].
    pub subscribed: u32,
    /// It has said which callbacks it wants.
    pub subscribes: bool,
    /// Its tick.
    pub tick: Option<Duration>,
}

/// The data of a store.
pub struct Host {
    /// The filters that share the instance.
    pub roots: Box<[RootState]>,
    /// For which of them it is called.
    pub root: usize,
    /// Who that is.
    pub identity: Arc<PluginInfo>,
    /// What all filters share.
    pub world: Arc<FilterEnv>,
    /// The bound on its memory.
    pub limiter: Limiter,
    /// Its memory, once it is instantiated.
    pub memory: Option<Memory>,
    /// Its allocator. In a box, because it is taken out for each call of it.
    pub allocate: Option<Box<TypedFunc<u32, u32>>>,
    /// How far the call under way has come.
    pub clock: CallTimer,
    /// What it is doing.
    pub phase: Phase,
    /// The context that host functions act on.
    pub effective: u32,
    /// The version of the ABI that it was made for.
    pub abi: &'static str,
    /// The last thing it has logged while it was configured.
    pub said: String,
    /// Mistakes in its configuration, with their places.
    pub config_errors: Vec<(String, String)>,
    /// A tick has been set.
    pub ticks_changed: bool,
    /// What the host keeps for it.
    pub ledger: Arc<MemoryBudget>,
    /// For what it has defined: names, routes, ids.
    pub defined: MemoryCharge,
    /// Header names by id.
    pub names: Vec<Name>,
    /// Ids of header names.
    pub name_ids: HashMap<Vec<u8>, u32>,
    /// Header names that it has spelled out.
    pub spelled: NameCache,
    /// Routes by id.
    pub routes: Vec<Arc<Route>>,
    /// Buckets by id.
    pub buckets: Vec<Arc<Bucket>>,
    /// Limits by id, with their bounds.
    pub stream_limits: Vec<(Arc<ConcurrencyLimit>, u32)>,
    /// Queues that it wants to read from now on, and for which root.
    pub reads: Vec<(usize, u32)>,
    /// Metrics by id.
    pub metrics: Vec<Handle>,
    /// Calls that have not been answered yet.
    pub calls_under_way: usize,
    /// The last id given to a call.
    pub last_call: u32,
    /// Calls to be sent once the guest has returned.
    pub calls: Vec<HttpCall>,
    /// gRPC calls that have not ended.
    pub grpc_calls: HashMap<u32, OpenCall>,
    /// gRPC calls that the other side has ended, and the guest has not.
    pub grpc_over: EndedCalls,
    /// What is wanted of gRPC calls once the guest has returned.
    pub grpc_wishes: Vec<CallCommand>,
    /// Timers to be set once the guest has returned.
    pub timers: Vec<Timer>,
    /// What calls have brought.
    pub answers: Answers,
    /// A buffer used again and again for data on its way to the guest.
    pub scratch: Vec<u8>,
    /// How often the guest has called the host.
    pub hostcalls: u64,
    /// Bytes copied to and from the guest.
    pub copied: u64,
}

impl Host {
    /// Whether it was made for the first version of the ABI, which differs in small things.
    pub fn is_0_1(&self) -> bool {
        self.abi == "0.1.0"
    }

    /// A call begins that acts for one of the filters, on a context.
    pub fn act_for(&mut self, root: usize, context: u32) {
        self.effective = context;
        if self.root != root {
            self.root = root;
            self.identity = self.roots[root].identity.clone();
        }
    }

    /// Charges it for something that it keeps for as long as it lives.
    pub fn define(&mut self, bytes: usize) -> Result<(), Status> {
        self.defined.grow(bytes + ITEM).map_err(|_| Status::InternalFailure)
    }

    /// The data of a new instance of these filters, at least one.
    pub fn new(
        identities: impl Iterator<Item = Arc<PluginInfo>>,
        world: Arc<FilterEnv>,
        memory_limit: usize,
        ledger: Arc<MemoryBudget>,
    ) -> Host {
        let root = |identity| RootState { identity, subscribed: phase::ALL, subscribes: false, tick: None };
        let roots: Box<[RootState]> = identities.map(root).collect();
        Host {
            identity: roots[0].identity.clone(),
            roots,
            root: 0,
            world,
            limiter: Limiter { memory: memory_limit, tables: ledger.open(), denied: false },
            memory: None,
            allocate: None,
            clock: CallTimer::default(),
            phase: Phase::Start,
            effective: 0,
            abi: "",
            said: String::new(),
            config_errors: Vec::new(),
            ticks_changed: false,
            defined: ledger.open(),
            ledger,
            names: Vec::new(),
            name_ids: HashMap::new(),
            spelled: NameCache::default(),
            routes: Vec::new(),
            buckets: Vec::new(),
            stream_limits: Vec::new(),
            reads: Vec::new(),
            metrics: Vec::new(),
            calls_under_way: 0,
            last_call: 0,
            calls: Vec::new(),
            grpc_calls: HashMap::new(),
            grpc_over: EndedCalls::default(),
            grpc_wishes: Vec::new(),
            timers: Vec::new(),
            answers: Answers::default(),
            scratch: Vec::new(),
            hostcalls: 0,
            copied: 0,
        }
    }
}

/// The id of an instance's first root context. Those of the filters that share it follow, and then the streams.
pub const FIRST_ROOT: u32 = 1;

impl AsMut<CallTimer> for Host {
    fn as_mut(&mut self) -> &mut CallTimer {
        &mut self.clock
    }
}
