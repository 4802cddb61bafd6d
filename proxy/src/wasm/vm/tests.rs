//! A VM with a guest that pauses, traps, loops and allocates on demand: which actions the chain gets, and what becomes of the other
//! streams in the instance.

use std::{cell::Cell, rc::Rc, sync::Arc};

use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::task::LocalSet;

use super::{recovery::CHEAP, *};
use crate::{
    chain::{Action, Direction, Filter, OnFailure, Stream, tests},
    config::model::{self, Compile},
    observe::Registry,
    upstream::PoolOptions,
    wasm::{CompiledModule, Compiler, Engine, FilterEnv, Plugin, SharedStore, instance::trap::TrapKind},
};

/// The number of the request's header fields tells the guest what to do. In the response's headers callback it pauses unless
/// exactly one stream context exists.
const GUEST: &str = r#"(module
    (memory (export "memory") 1)
    (global $streams (mut i32) (i32.const 0))
    (func (export "malloc") (param i32) (result i32) unreachable)
    (func (export "proxy_abi_version_0_2_1"))
    (func (export "proxy_on_context_create") (param $id i32) (param $parent i32)
        (if (local.get $parent) (then (global.set $streams (i32.add (global.get $streams) (i32.const 1))))))
    (func (export "proxy_on_request_headers") (param $id i32) (param $fields i32) (param $end i32) (result i32)
        (if (i32.eq (local.get $fields) (i32.const 5)) (then (return (i32.const 1))))
        (if (i32.eq (local.get $fields) (i32.const 6)) (then unreachable))
        (if (i32.eq (local.get $fields) (i32.const 7)) (then (loop $forever (br $forever))))
        (if (i32.eq (local.get $fields) (i32.const 8))
            (then (if (i32.eq (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable))))
        (i32.const 0))
    (func (export "proxy_on_response_headers") (param $id i32) (param $fields i32) (param $end i32) (result i32)
        (i32.ne (global.get $streams) (i32.const 1)))
    (func (export "proxy_on_done") (param $id i32) (result i32) (i32.const 1))
    (func (export "proxy_on_delete") (param $id i32)
        (global.set $streams (i32.sub (global.get $streams) (i32.const 1)))))"#;

/// What a request asks the guest for.
#[derive(Clone, Copy)]
enum Ask {
    Continue = 4,
    Pause = 5,
    Trap = 6,
    Loop = 7,
    Allocate = 8,
}

/// A VM with the guest.
struct Fixture {
    vm: Rc<Vm>,
    /// How many instances were ordered.
    orders: Rc<Cell<usize>>,
}

impl Fixture {
    fn new(filter: Value) -> Fixture {
        let engine = Engine::new(Compiler::in_process()).unwrap();
        let code = wat::parse_str(GUEST).unwrap();
        let code = CompiledModule::load(&engine, "f.wasm", &code, &Compile::default()).unwrap();
        let mut config = json!({"name": "f", "wasm": "f.wasm"});
        filter.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        let filter: model::Filter = serde_json::from_value(config).unwrap();
        let env = FilterEnv::new(Arc::default(), None, SharedStore::new(Registry::new(1)));
        let template = VmTemplate::of(Arc::new(Plugin::new(&filter, code, &engine, &env).unwrap()));
        let instance = template.instantiate().map_err(|failed| failed.error).unwrap();
        // The first one pays for cold caches, and what takes long is not created by a worker.
        for _ in 0..100 {
            if template.making() < CHEAP {
                break;
            }
            drop(template.instantiate());
        }
        let orders = Rc::new(Cell::new(0));
        let counted = orders.clone();
        let supply = InstanceSupply::new(move |_| counted.set(counted.get() + 1));
        let vm = Vm::new(template, instance, VmBinding { upstream: Pools::new(PoolOptions::default()), supply });
        Fixture { vm, orders }
    }

    /// A stream whose request asks for this, and the action of the request's headers callback.
    fn request(&self, ask: Ask) -> (Rc<Stream>, Action) {
        let filter = self.vm.filters().next().unwrap();
        let stream = tests::stream(vec![filter.clone()]);
        for n in 4..ask as usize {
            let name = HeaderName::try_from(format!("x-{n}")).unwrap();
            stream.state.borrow_mut().request.fields.append(name, HeaderValue::from_static("1"));
        }
        let action = filter.on_headers(Direction::Request, &stream, 0, true);
        (stream, action)
    }

    fn response(&self, stream: &Rc<Stream>) -> Action {
        stream.chain.filters()[0].on_headers(Direction::Response, stream, 0, true)
    }

    fn traps(&self, kind: TrapKind) -> u64 {
        self.vm.template().plugins()[0].metrics.traps[kind as usize].value()
    }
}

/// Runs a test where a VM can spawn tasks.
fn run(test: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { test() });
}

#[test]
fn guests_return_values_become_actions() {
    run(|| {
        let fixture = Fixture::new(json!({}));
        assert_eq!(fixture.request(Ask::Continue).1, Action::Continue);
        assert_eq!(fixture.request(Ask::Pause).1, Action::Pause);
    });
}

#[test]
fn stream_context_exists_from_the_first_callback_to_the_end() {
    run(|| {
        let fixture = Fixture::new(json!({}));
        let (first, _) = fixture.request(Ask::Continue);
        assert_eq!(fixture.response(&first), Action::Continue, "one context");
        let (second, _) = fixture.request(Ask::Continue);
        assert_eq!(fixture.response(&first), Action::Pause, "two contexts");
        second.end();
        assert_eq!(fixture.response(&first), Action::Continue, "the second was deleted");
        assert_eq!(fixture.vm.contexts.borrow_mut().take().len(), 1);
    });
}

#[test]
fn trap_fails_the_streams_in_the_instance_and_the_next_stream_gets_another_instance() {
    run(|| {
        let fixture = Fixture::new(json!({}));
        let (bystander, _) = fixture.request(Ask::Continue);
        let before = fixture.vm.incarnation.get();
        assert_eq!(fixture.request(Ask::Trap).1, Action::Failed(OnFailure::Deny));
        assert_eq!((fixture.traps(TrapKind::Trap), fixture.vm.incarnation.get()), (1, before + 1));
        {
            let state = bystander.state.borrow();
            assert!(state.filters[0].gone && state.filters[0].denies, "its context is lost");
        }
        let (next, action) = fixture.request(Ask::Continue);
        assert_eq!(action, Action::Continue);
        assert_eq!(fixture.response(&next), Action::Continue, "the new instance knows one stream only");
        bystander.end();
        assert_eq!(fixture.response(&next), Action::Continue, "no callback reached the new instance");
        assert!(fixture.orders.get() > 0, "a spare was ordered");
    });
}

#[test]
fn bypassing_filter_lets_the_streams_in_the_instance_continue() {
    run(|| {
        let fixture = Fixture::new(json!({"on_failure": "bypass"}));
        let (bystander, _) = fixture.request(Ask::Continue);
        assert_eq!(fixture.request(Ask::Trap).1, Action::Failed(OnFailure::Bypass));
        let state = bystander.state.borrow();
        assert!(state.filters[0].gone && !state.filters[0].denies);
    });
}

#[test]
fn held_stream_is_denied_at_once_when_its_instance_fails() {
    run(|| {
        let fixture = Fixture::new(json!({}));
        let (held, _) = fixture.request(Ask::Pause);
        held.state.borrow_mut().filters[0].paused[Direction::Request as usize] = true;
        fixture.request(Ask::Trap);
        let state = held.state.borrow();
        let (reply, _) = state.reply.as_ref().expect("a reply");
        assert_eq!((reply.status.as_u16(), &*reply.details), (503, "filter_failed"));
    });
}

#[test]
fn endless_loop_ends_after_call_time() {
    run(|| {
        let fixture = Fixture::new(json!({"limits": {"call_time": "5ms"}}));
        assert_eq!(fixture.request(Ask::Loop).1, Action::Failed(OnFailure::Deny));
        assert_eq!(fixture.traps(TrapKind::Timeout), 1);
    });
}

#[test]
fn memory_beyond_the_limit_is_refused_and_counted() {
    run(|| {
        let fixture = Fixture::new(json!({"limits": {"memory": "32MiB"}}));
        let before = fixture.vm.memory_bytes();
        assert_eq!(fixture.request(Ask::Allocate).1, Action::Failed(OnFailure::Deny));
        assert_eq!((fixture.traps(TrapKind::Memory), fixture.traps(TrapKind::Trap)), (1, 0));
        assert_eq!(fixture.vm.memory_bytes(), before, "the next instance has its initial memory");

        let fixture = Fixture::new(json!({"limits": {"memory": "128MiB"}}));
        assert_eq!(fixture.request(Ask::Allocate).1, Action::Continue);
        assert_eq!(fixture.vm.memory_bytes(), before + (1000 << 16));
    });
}
