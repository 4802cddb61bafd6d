//! Chains of filters that pause, resume, change and add data.

use std::{cell::RefCell, net::SocketAddr};

use super::*;
use crate::chain::{
    slot::{Slot, SlottedChain, Version},
    tests::route,
};

type Act = Box<dyn Fn(&Rc<NetworkStream>, usize, &str) -> Action>;

/// A filter that logs its callbacks and acts as a test specifies.
struct Scripted {
    name: &'static str,
    phases: u32,
    log: Rc<RefCell<Vec<String>>>,
    act: Act,
}

impl Scripted {
    fn told(&self, stream: &Rc<NetworkStream>, position: usize, what: String) -> Action {
        self.log.borrow_mut().push(format!("{} {what}", self.name));
        // Like a real filter, it has a context from now on.
        stream.state.borrow_mut().positions[position].context = 2;
        (self.act)(stream, position, &what)
    }
}

impl NetworkFilter for Scripted {
    fn name(&self) -> &str {
        self.name
    }

    fn variants(&self) -> Variants<dyn NetworkFilter> {
        let variant =
            |name| Scripted { name, phases: phase::ALL, log: self.log.clone(), act: always(Action::Continue) };
        match self.name {
            "limits" => vec![("strict".to_owned(), Rc::new(variant("limits/strict")) as Rc<dyn NetworkFilter>)],
            _ => Vec::new(),
        }
    }

    fn phases(&self) -> u32 {
        self.phases
    }

    fn on_connection(&self, stream: &Rc<NetworkStream>, position: usize) -> Action {
        self.told(stream, position, "new".into())
    }

    fn on_data(&self, side: Side, stream: &Rc<NetworkStream>, position: usize, len: usize, end: bool) -> Action {
        let bytes = shown(stream, position, side);
        assert_eq!(bytes.len(), len);
        let way = if side == Side::Downstream { "down" } else { "up" };
        self.told(stream, position, format!("{way} {bytes}{}", if end { "." } else { "" }))
    }

    fn on_upstream_close(&self, stream: &Rc<NetworkStream>, position: usize, closed: ClosedBy) {
        self.told(stream, position, format!("upstream closed {closed:?}"));
    }

    fn on_end(&self, stream: &Rc<NetworkStream>, position: usize, downstream: ClosedBy, upstream: Option<ClosedBy>) {
        self.told(stream, position, format!("end {downstream:?} {upstream:?}"));
    }
}

fn shown(stream: &NetworkStream, position: usize, side: Side) -> String {
    let state = stream.state.borrow();
    let buffer = state.filters[position].buffers[side as usize].as_ref();
    String::from_utf8(buffer.map_or(&[][..], Buffer::as_slice).to_vec()).unwrap()
}

struct World {
    log: Rc<RefCell<Vec<String>>>,
    stream: Rc<NetworkStream>,
    flow: ConnectionFlow,
}

impl World {
    fn new(filters: Vec<(&'static str, u32, Act)>) -> World {
        let log = Rc::default();
        let filters = filters.into_iter().map(|(name, phases, act)| {
            Rc::new(Scripted { name, phases, log: Rc::clone(&log), act }) as Rc<dyn NetworkFilter>
        });
        let chain = Rc::new(NetworkChain::new(filters.collect()));
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        let connection = Rc::new(ConnectionInfo::new("l".into(), nobody, nobody));
        World { log, stream: NetworkStream::new(connection, chain, None, 10), flow: ConnectionFlow::default() }
    }

    fn data(&mut self, side: Side, data: &'static str, end: bool) {
        self.flow.data(&self.stream, side, data.into(), end).unwrap();
    }

    fn resume(&mut self, position: usize, side: Side) {
        self.stream.resume(position, side);
        self.flow.resume(&self.stream).unwrap();
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.borrow_mut())
    }

    fn out(&mut self, side: Side) -> String {
        let parts = std::iter::from_fn(|| self.flow.pop(side));
        String::from_utf8(parts.flatten().collect()).unwrap()
    }
}

fn always(action: Action) -> Act {
    Box::new(move |_, _, _| action)
}

/// Pauses in callbacks whose description starts with `at`.
fn pausing(at: &'static str) -> Act {
    Box::new(move |_, _, what| if what.starts_with(at) { Action::Pause } else { Action::Continue })
}

use Side::{Downstream, Upstream};

#[test]
fn data_passes_in_order_and_back_in_reverse_order() {
    let pass = || always(Action::Continue);
    let mut w = World::new(vec![("a", phase::ALL, pass()), ("b", phase::ALL, pass())]);
    w.flow.advance(&w.stream).unwrap();
    assert!(w.flow.is_open(&w.stream));
    w.data(Downstream, "x", false);
    w.data(Upstream, "y", true);
    let closed = "upstream closed Remote";
    assert_eq!(
        w.log(),
        [
            "a new",
            "b new",
            "a down x",
            "b down x",
            "b up y.",
            &format!("b {closed}"),
            "a up y.",
            &format!("a {closed}")
        ]
    );
    assert_eq!((w.out(Downstream), w.out(Upstream)), ("x".into(), "y".into()));
    assert!(w.flow.is_over(Upstream) && !w.flow.is_over(Downstream));
    w.stream.end(ClosedBy::Local, Some(ClosedBy::Remote));
    assert_eq!(w.log(), ["a end Local None", "b end Local None"], "both were already notified of the upstream");
}

#[test]
fn held_connection_goes_no_further_although_its_data_is_passed_to_the_filter() {
    let mut w = World::new(vec![("a", phase::ALL, pausing("new")), ("b", phase::ALL, always(Action::Continue))]);
    w.flow.advance(&w.stream).unwrap();
    w.data(Downstream, "x", false);
    w.data(Downstream, "y", true);
    assert_eq!(w.log(), ["a new", "a down x", "a down y."]);
    assert!(w.stream.is_held() && !w.flow.is_open(&w.stream) && w.flow.is_clear(Downstream));
    w.resume(0, Upstream);
    assert!(!w.flow.is_open(&w.stream), "the other side does not release the connection");
    w.resume(0, Downstream);
    assert_eq!(w.log(), ["b new", "b down xy."], "data that was let pass is not passed again");
    assert_eq!(w.out(Downstream), "xy");
    assert!(w.flow.is_open(&w.stream) && w.flow.is_over(Downstream) && !w.stream.is_held());
}

#[test]
fn filter_decides_by_the_first_bytes() {
    let act: Act = Box::new(|stream, position, what| match what {
        "new" | "down x" => Action::Pause,
        _ => {
            stream.resume(position, Downstream);
            Action::Continue
        }
    });
    let mut w = World::new(vec![("a", phase::ALL, act), ("b", phase::ALL, always(Action::Continue))]);
    w.flow.advance(&w.stream).unwrap();
    w.data(Downstream, "x", false);
    w.data(Downstream, "y", false);
    assert_eq!(w.log(), ["a new", "a down x", "a down xy", "b new", "b down xy"]);
    w.data(Downstream, "z", true);
    assert_eq!(w.log(), ["a down z.", "b down z."]);
    assert_eq!(w.out(Downstream), "xyz");
}

#[test]
fn held_data_grows_until_it_is_released() {
    for side in Side::BOTH {
        let at = if side == Downstream { "down" } else { "up" };
        let mut w = World::new(vec![("a", phase::ALL, always(Action::Continue)), ("b", phase::ALL, pausing(at))]);
        w.flow.advance(&w.stream).unwrap();
        w.data(side, "1234", false);
        w.data(side, "5678", false);
        assert!(!w.flow.is_full(&w.stream, side));
        assert_eq!(shown(&w.stream, 1, side), "12345678", "it can still be read");
        w.stream.splice(1, side, (0, 2), b"ab");
        w.data(side, "9_", true);
        assert!(w.flow.is_full(&w.stream, side));
        assert_eq!(w.out(side), "");
        assert!(w.log().contains(&format!("b {at} ab3456789_.")));
        w.resume(1, side);
        assert_eq!(w.out(side), "ab3456789_");
        assert!(w.flow.is_over(side) && !w.flow.is_full(&w.stream, side));
    }
}

#[test]
fn resume_within_the_callback_takes_effect() {
    let act: Act = Box::new(|stream, position, _| {
        stream.resume(position, Downstream);
        Action::Pause
    });
    let mut w = World::new(vec![("a", phase::ALL, act)]);
    w.flow.advance(&w.stream).unwrap();
    assert!(w.flow.is_open(&w.stream));
    w.data(Downstream, "x", true);
    assert_eq!(w.out(Downstream), "x");
    assert!(w.flow.is_over(Downstream));
}

#[test]
fn bytes_can_be_added_to_either_side() {
    let mut w = World::new(vec![("a", phase::ALL, pausing("new")), ("b", phase::ALL, always(Action::Continue))]);
    w.flow.advance(&w.stream).unwrap();
    w.stream.splice(0, Upstream, (0, 0), b"hello");
    w.stream.splice(0, Downstream, (5, 5), b"by a");
    w.flow.resume(&w.stream).unwrap();
    assert_eq!(w.out(Upstream), "hello", "no filter is between it and the client");
    w.resume(0, Downstream);
    assert_eq!(w.log(), ["a new", "b new", "b down by a"]);
    w.stream.splice(1, Upstream, (0, 0), b"by b");
    w.flow.resume(&w.stream).unwrap();
    assert_eq!(w.log(), ["a up by b"]);
    assert_eq!((w.out(Downstream), w.out(Upstream)), ("by a".into(), "by b".into()));
    w.data(Upstream, "", true);
    w.stream.splice(0, Upstream, (0, 0), b"late");
    w.flow.resume(&w.stream).unwrap();
    assert_eq!(w.out(Upstream), "", "nothing follows the end");
}

#[test]
fn filter_that_adds_too_much_ends_the_connection() {
    let mut w = World::new(vec![("a", phase::ALL, always(Action::Continue))]);
    w.flow.advance(&w.stream).unwrap();
    for _ in 0..2 {
        w.stream.splice(0, Upstream, (0, 0), b"123456");
        w.flow.resume(&w.stream).unwrap();
    }
    assert!(!w.stream.state.borrow().closed, "the first one has passed");
    w.stream.splice(0, Upstream, (0, 0), b"123456");
    let state = w.stream.state.borrow();
    assert_eq!((state.closed, state.flags, &*state.details), (true, flag::BODY_TOO_LARGE, "filter_buffer_full"));
}

#[test]
fn failed_filter_is_bypassed_or_ends_the_connection() {
    let fails = |policy| always(Action::Failed(policy));
    for phases in [phase::NEW_CONNECTION, phase::DOWNSTREAM_DATA] {
        let mut w = World::new(vec![("a", phases, fails(super::super::OnFailure::Bypass))]);
        w.flow.advance(&w.stream).unwrap();
        w.data(Downstream, "x", false);
        assert_eq!(w.out(Downstream), "x");

        let mut w = World::new(vec![("a", phases, fails(super::super::OnFailure::Deny))]);
        let opened = w.flow.advance(&w.stream);
        assert_eq!(opened.is_err(), phases == phase::NEW_CONNECTION);
        assert!(opened.is_err() || w.flow.data(&w.stream, Downstream, "x".into(), false).is_err());
    }
}

#[test]
fn data_held_by_a_failed_filter_goes_on() {
    let mut w = World::new(vec![("a", phase::ALL, always(Action::Pause))]);
    w.flow.advance(&w.stream).unwrap();
    w.data(Downstream, "x", true);
    w.stream.state.borrow_mut().positions[0].gone = true;
    w.flow.resume(&w.stream).unwrap();
    assert_eq!(w.out(Downstream), "x");
    assert!(w.flow.is_open(&w.stream) && w.flow.is_over(Downstream));
    w.data(Upstream, "y", true);
    assert_eq!(w.out(Upstream), "y");
    w.stream.end(ClosedBy::Remote, None);
    assert_eq!(w.log(), ["a new", "a down x."], "it receives no further callbacks");
}

#[test]
fn filters_receive_only_the_callbacks_they_subscribe_to() {
    let mut w = World::new(vec![
        ("a", phase::DOWNSTREAM_CLOSE, always(Action::Pause)),
        ("b", phase::REQUEST_HEADERS, always(Action::Pause)),
    ]);
    assert!(!w.stream.chain.wants_data(Downstream) && !w.stream.chain.wants_data(Upstream));
    w.flow.advance(&w.stream).unwrap();
    w.data(Downstream, "x", true);
    assert_eq!(w.out(Downstream), "x");
    w.stream.end(ClosedBy::Remote, Some(ClosedBy::Local));
    assert_eq!(w.log(), ["a end Remote Some(Local)"]);
}

#[test]
fn selected_variants_process_the_whole_connection() {
    let select: Act = Box::new(|stream, position, what| {
        if what == "down x" {
            stream.select(position, Some(route(&[("before", "off"), ("limits", "strict"), ("other", "off")])));
            stream.resume(position, Downstream);
        }
        if what == "new" { Action::Pause } else { Action::Continue }
    });
    let pass = || always(Action::Continue);
    let mut w = World::new(vec![
        ("before", phase::ALL, pass()),
        ("router", phase::ALL, select),
        ("limits", phase::DOWNSTREAM_DATA, pass()),
        ("other", phase::ALL, pass()),
    ]);
    w.flow.advance(&w.stream).unwrap();
    assert_eq!(w.log(), ["before new", "router new"]);
    w.data(Downstream, "x", false);
    w.flow.resume(&w.stream).unwrap();
    assert_eq!(w.log(), ["before down x", "router down x", "limits/strict new", "limits/strict down x"]);
    assert_eq!(w.out(Downstream), "x");
    // The connection has reached every filter.
    w.stream.select(1, None);
    w.data(Upstream, "y", false);
    assert_eq!(w.log(), ["limits/strict up y", "router up y", "before up y"]);
    w.stream.end(ClosedBy::Remote, None);
    let end = ["before", "router", "limits/strict"].map(|name| format!("{name} end Remote None"));
    assert_eq!(w.log(), end);
}

#[test]
fn resume_without_held_data_has_no_effect() {
    for side in Side::BOTH {
        let at = if side == Downstream { "down" } else { "up" };
        let mut w = World::new(vec![("a", phase::ALL, pausing(at))]);
        w.flow.advance(&w.stream).unwrap();
        w.stream.resume(0, side);
        w.data(side, "x", false);
        w.flow.resume(&w.stream).unwrap();
        assert_eq!(w.out(side), "");
        // Held data is released, even if more arrives at that moment.
        w.stream.resume(0, side);
        w.data(side, "y", false);
        w.flow.resume(&w.stream).unwrap();
        assert_eq!(w.out(side), "xy");
    }
}

#[test]
fn bytes_after_a_failure_follow_the_held_bytes() {
    for side in Side::BOTH {
        let at = if side == Downstream { "down" } else { "up" };
        for end in [false, true] {
            let mut w = World::new(vec![("a", phase::ALL, pausing(at))]);
            w.flow.advance(&w.stream).unwrap();
            w.data(side, "held", false);
            // It fails in a callback for the other side, and more data arrives before anything has reacted.
            w.stream.state.borrow_mut().positions[0].gone = true;
            w.data(side, "new", end);
            w.flow.resume(&w.stream).unwrap();
            assert_eq!((w.out(side), w.flow.is_over(side)), ("heldnew".into(), end));
        }
    }
}

#[test]
fn connections_get_versions_by_weight() {
    let versions = [("old", 3), ("new", 1)].map(|(name, weight)| {
        let filter = Scripted { name, phases: phase::ALL, log: Rc::default(), act: always(Action::Continue) };
        Version { filter: Rc::new(filter) as Rc<dyn NetworkFilter>, weight }
    });
    let chain = SlottedChain::<NetworkChain>::new(vec![Slot::weighted(versions.into()).unwrap()]);
    let name = |key: u64| chain.pin(|| key).table.filters()[0].name() == "new";
    let new = (0..4000).filter(|key| name(*key)).count();
    assert!((850..1150).contains(&new), "{new} of 4000");
}
