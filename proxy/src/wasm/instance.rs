//! An instance of a filter and its exported callbacks.

pub mod availability;
pub mod compiled;
pub mod facts;
pub(super) mod failures;
pub mod gauges;
pub mod groups;
pub mod plugin;
pub mod template;
pub(super) mod trampoline;
pub(crate) mod trap;

use std::time::Duration;

use tollgate_abi::fast::phase;
use wasmtime::{Store, TypedFunc, WasmParams, WasmResults};

use self::trampoline::Trampoline;
use super::{engine::Engine, host::Host};

/// A ready instance. It can move to a worker, which is then the only one to call it.
pub struct Instance {
    pub(super) store: Store<Host>,
    pub(super) exports: Exports,
    /// Processor time that creating it took.
    pub made_in: Duration,
}

impl Instance {
    /// The callbacks that one of its filters has subscribed to, as bits of [`tollgate_abi::fast::phase`]; `None` if it
    /// never subscribed.
    pub fn subscribed(&self, filter: usize) -> Option<u32> {
        let root = &self.store.data().roots[filter];
        root.subscribes.then_some(root.subscribed)
    }

    /// Whether one of its filters has a timer tick (`proxy_on_tick`).
    pub fn ticks(&self, filter: usize) -> bool {
        self.store.data().roots[filter].tick.is_some()
    }

    /// The filters and variants that the routes of a root context select.
    pub fn selections(&self, root: usize) -> impl Iterator<Item = (String, String)> {
        let all = self.store.data().roots[root].selects.values().flat_map(|filters| filters.iter());
        all.map(|(filter, variant)| (filter.to_owned(), variant.to_owned()))
    }

    /// Whether it did something, while it was started and configured, that concerns only a filter of the given name: it set
    /// a tick, made a call, or used queues, shared data, metrics, buckets or its name.
    pub fn has_named_effect(&self) -> bool {
        self.store.data().has_named_effect()
    }

    /// The callbacks that one of its filters exports and subscribes to, as bits of [`phase`].
    pub fn phases(&self, filter: usize) -> u32 {
        let e = &self.exports;
        let has = [
            (phase::REQUEST_HEADERS, e.headers[0].is_some()),
            (phase::RESPONSE_HEADERS, e.headers[1].is_some()),
            (phase::REQUEST_BODY, e.body[0].is_some()),
            (phase::RESPONSE_BODY, e.body[1].is_some()),
            (phase::REQUEST_TRAILERS, e.trailers[0].is_some()),
            (phase::RESPONSE_TRAILERS, e.trailers[1].is_some()),
            (phase::NEW_CONNECTION, e.new_connection.is_some()),
            (phase::DOWNSTREAM_DATA, e.data[0].is_some()),
            (phase::UPSTREAM_DATA, e.data[1].is_some()),
            (phase::DOWNSTREAM_CLOSE, e.close[0].is_some()),
            (phase::UPSTREAM_CLOSE, e.close[1].is_some()),
            (phase::LOG, e.log.is_some()),
            (phase::LIFECYCLE, e.context_create.is_some() || e.done.is_some() || e.delete.is_some()),
        ];
        let exported = has.iter().filter(|(_, has)| *has).fold(0, |all, (bit, _)| all | bit);
        exported & self.store.data().roots[filter].subscribed
    }
}

/// The callback for a message's head. Version 0.1.0 lacks the `end_of_stream` parameter.
#[derive(Clone)]
pub(super) enum OnHeaders {
    WithEnd(TypedFunc<(u32, u32, u32), i32>),
    Short(TypedFunc<(u32, u32), i32>),
}

/// Parameters: context, call id, and number of headers or bytes.
type OnGrpc = TypedFunc<(u32, u32, u32), ()>;

type OnStream<P> = Option<TypedFunc<P, i32>>;

/// Parameters: context, call id, number of headers, body bytes, number of trailers.
type OnCallResponse = TypedFunc<(u32, u32, u32, u32, u32), ()>;

/// The callbacks that a module exports.
pub(super) struct Exports {
    pub(super) context_create: Option<TypedFunc<(u32, u32), ()>>,
    pub(super) vm_start: Option<TypedFunc<(u32, u32), u32>>,
    pub(super) configure: Option<TypedFunc<(u32, u32), u32>>,
    pub(super) tick: Option<TypedFunc<u32, ()>>,
    pub(super) queue_ready: Option<TypedFunc<(u32, u32), ()>>,
    /// By direction.
    pub(super) headers: [Option<OnHeaders>; 2],
    pub(super) body: [OnStream<(u32, u32, u32)>; 2],
    pub(super) trailers: [OnStream<(u32, u32)>; 2],
    pub(super) new_connection: OnStream<u32>,
    /// By side.
    pub(super) data: [OnStream<(u32, u32, u32)>; 2],
    pub(super) close: [Option<TypedFunc<(u32, i32), ()>>; 2],
    pub(super) http_call_response: Option<OnCallResponse>,
    pub(super) grpc_initial: Option<OnGrpc>,
    pub(super) grpc_message: Option<OnGrpc>,
    pub(super) grpc_trailing: Option<OnGrpc>,
    pub(super) grpc_close: Option<OnGrpc>,
    pub(super) timer: Option<TypedFunc<(u32, i64), ()>>,
    pub(super) done: Option<TypedFunc<u32, u32>>,
    pub(super) log: Option<TypedFunc<u32, ()>>,
    pub(super) delete: Option<TypedFunc<u32, ()>>,
    /// Several callbacks combined into one call.
    pub(super) trampoline: Option<Trampoline>,
}

impl Exports {
    /// Looks up all callbacks once. Their types were checked when the module was loaded.
    pub(super) fn find(engine: &Engine, instance: &wasmtime::Instance, store: &mut Store<Host>) -> Exports {
        fn get<P: WasmParams, R: WasmResults>(
            instance: &wasmtime::Instance,
            store: &mut Store<Host>,
            name: &str,
        ) -> Option<TypedFunc<P, R>> {
            instance.get_typed_func(&mut *store, name).ok()
        }
        let mut headers = |name| {
            let with_end = get(instance, store, name).map(OnHeaders::WithEnd);
            with_end.or_else(|| get(instance, store, name).map(OnHeaders::Short))
        };
        Exports {
            headers: [headers("proxy_on_request_headers"), headers("proxy_on_response_headers")],
            context_create: get(instance, store, "proxy_on_context_create"),
            vm_start: get(instance, store, "proxy_on_vm_start"),
            configure: get(instance, store, "proxy_on_configure"),
            queue_ready: get(instance, store, "proxy_on_queue_ready"),
            tick: get(instance, store, "proxy_on_tick"),
            body: ["proxy_on_request_body", "proxy_on_response_body"].map(|n| get(instance, store, n)),
            trailers: ["proxy_on_request_trailers", "proxy_on_response_trailers"].map(|n| get(instance, store, n)),
            new_connection: get(instance, store, "proxy_on_new_connection"),
            data: ["proxy_on_downstream_data", "proxy_on_upstream_data"].map(|n| get(instance, store, n)),
            close: ["proxy_on_downstream_connection_close", "proxy_on_upstream_connection_close"]
                .map(|n| get(instance, store, n)),
            http_call_response: get(instance, store, "proxy_on_http_call_response"),
            grpc_initial: get(instance, store, "proxy_on_grpc_receive_initial_metadata"),
            grpc_message: get(instance, store, "proxy_on_grpc_receive"),
            grpc_trailing: get(instance, store, "proxy_on_grpc_receive_trailing_metadata"),
            grpc_close: get(instance, store, "proxy_on_grpc_close"),
            timer: get(instance, store, "tollgate_on_timer"),
            done: get(instance, store, "proxy_on_done"),
            log: get(instance, store, "proxy_on_log"),
            delete: get(instance, store, "proxy_on_delete"),
            trampoline: Trampoline::find(engine, instance, store),
        }
    }
}
