//! Test host that runs a TCP filter natively; the test determines what the client and the upstream send.

use std::{collections::VecDeque, marker::PhantomData, time::Duration};

use tollgate_abi::{
    fast::{flag, phase},
    proxy_wasm::{action, peer},
};

use super::{
    Driver, ROOT, Selected, address, advance, begin,
    grpc::GrpcEvent,
    host::{self, with},
    settle,
    stream::{SelectedRoute, Stream},
};
use crate::{
    ConfigError, TcpFilter,
    tcp::dispatch::{Side, TcpDispatcher},
};

/// A test host for one TCP filter.
pub struct TcpHost<F: TcpFilter> {
    dispatcher: TcpDispatcher<F>,
    // The host's state is thread-local, so the handle must not leave the thread.
    _not_send: PhantomData<*const ()>,
}

impl<F: TcpFilter> TcpHost<F> {
    /// Configures the filter. Every cluster except [`MISSING_CLUSTER`](super::MISSING_CLUSTER) exists.
    pub fn new(config: serde_json::Value) -> Result<Self, ConfigError> {
        host::reset(host::Host::new(serde_json::to_vec(&config).unwrap_or_default(), None));
        let host = TcpHost { dispatcher: TcpDispatcher::new(), _not_send: PhantomData };
        host.dispatcher.context_create(ROOT, 0);
        begin(host.dispatcher.configure(ROOT, usize::MAX))?;
        settle(&host.dispatcher);
        Ok(host)
    }

    /// Connects a client from `192.0.2.1`.
    pub fn connect(&self) -> TcpOutcome<'_, F> {
        self.connect_from("192.0.2.1")
    }

    /// Connects a client from an address, with or without a port.
    ///
    /// # Panics
    /// If the address is invalid.
    pub fn connect_from(&self, source: &str) -> TcpOutcome<'_, F> {
        let source = address(source);
        let context = with(|h| {
            h.insert(Stream {
                source: Some(source),
                client: Some(source),
                tcp: Some(Tcp::default()),
                ..Stream::default()
            })
        });
        if with(|h| h.phases & phase::LIFECYCLE != 0) {
            self.dispatcher.context_create(context, ROOT);
        }
        settle(&self.dispatcher);
        TcpOutcome { dispatcher: &self.dispatcher, context }
    }

    /// Advances the clock and runs what is due.
    pub fn advance(&self, time: Duration) {
        advance(&self.dispatcher, with(|h| h.now_ns) + time.as_nanos() as u64);
    }

    /// Returns a value of the shared data.
    pub fn shared(&self, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        with(|h| h.shared_get(key.as_ref())).map(|(value, _)| value)
    }

    /// Sets a value of the shared data, as another worker would.
    pub fn set_shared(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        with(|h| h.shared_set(key.as_ref(), value.as_ref(), 0));
    }

    /// Returns the value of a counter or gauge.
    pub fn metric(&self, name: &str) -> i64 {
        with(|h| h.metric(name))
    }

    /// Returns the messages that the filter has logged.
    pub fn logs(&self) -> Vec<String> {
        with(|h| h.logs.iter().map(|(_, message)| message.clone()).collect())
    }

    /// Triggers the tick.
    pub fn tick(&self) {
        with(|h| h.enter(0, None));
        self.dispatcher.tick(ROOT);
        settle(&self.dispatcher);
    }
}

/// A connection of a test. Dropping it ends the connection.
pub struct TcpOutcome<'h, F: TcpFilter> {
    dispatcher: &'h TcpDispatcher<F>,
    context: u32,
}

impl<F: TcpFilter> TcpOutcome<'_, F> {
    fn with<T>(&self, f: impl FnOnce(&mut Stream) -> T) -> T {
        with(|h| f(h.streams.get_mut(&self.context).expect("another host was created on this thread")))
    }

    fn tcp<T>(&self, f: impl FnOnce(&mut Tcp) -> T) -> T {
        self.with(|s| f(s.tcp.get_or_insert_default()))
    }

    fn receive(&self, side: Side, bytes: &[u8], end: bool) {
        self.tcp(|tcp| tcp.direction(side).incoming.push_back((bytes.to_vec(), end)));
        settle(self.dispatcher);
    }

    /// Sends bytes from the client.
    pub fn client_sends(&self, bytes: &[u8]) {
        self.receive(Side::Downstream, bytes, false);
    }

    /// Ends the client's side.
    pub fn client_ends(&self) {
        self.receive(Side::Downstream, b"", true);
    }

    /// Sends bytes from the upstream, which must be connected.
    ///
    /// # Panics
    /// If the filter holds the connection.
    pub fn upstream_sends(&self, bytes: &[u8]) {
        assert!(self.is_open(), "no upstream is connected: the filter holds the connection");
        self.receive(Side::Upstream, bytes, false);
    }

    /// Ends the upstream's side.
    pub fn upstream_ends(&self) {
        self.receive(Side::Upstream, b"", true);
    }

    /// Reports whether the filter has let the connection through, so that an upstream is connected.
    pub fn is_open(&self) -> bool {
        self.tcp(|tcp| tcp.open && !tcp.closed)
    }

    /// Reports whether the filter has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.tcp(|tcp| tcp.closed)
    }

    /// Returns the bytes that the upstream has received.
    pub fn upstream_got(&self) -> Vec<u8> {
        self.tcp(|tcp| tcp.direction(Side::Downstream).out.clone())
    }

    /// Returns the bytes that the client has received.
    pub fn client_got(&self) -> Vec<u8> {
        self.tcp(|tcp| tcp.direction(Side::Upstream).out.clone())
    }

    /// Returns how long the filter waits: the time until the connection's next timer.
    pub fn waits(&self) -> Option<Duration> {
        with(|h| Some(Duration::from_nanos(h.next_timer(self.context)?.saturating_sub(h.now_ns))))
    }

    /// Returns the route that the filter has selected.
    pub fn selected(&self) -> Option<Selected> {
        self.with(|s| s.selected.as_ref().map(SelectedRoute::shown))
    }

    /// Returns the short names of the response flags that the filter has set.
    pub fn flags(&self) -> Vec<&'static str> {
        let flags = self.with(|s| s.flags);
        flag::NAMES.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect()
    }

    /// Returns a field that the filter has set for the access log.
    pub fn log_field(&self, name: &str) -> Option<String> {
        self.with(|s| s.log_fields.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.clone()))
    }
}

impl<F: TcpFilter> Drop for TcpOutcome<'_, F> {
    fn drop(&mut self) {
        if with(|h| !h.streams.contains_key(&self.context)) {
            return;
        }
        let by = if self.tcp(|tcp| tcp.direction(Side::Downstream).ended) { peer::REMOTE } else { peer::LOCAL };
        with(|h| h.enter(self.context, None));
        if with(|h| h.phases & phase::DOWNSTREAM_CLOSE != 0) {
            self.dispatcher.close(self.context, by);
        }
        self.dispatcher.delete(self.context);
        with(|h| {
            h.enter(0, None);
            h.end(self.context);
        });
    }
}

/// A simulated connection.
#[derive(Debug, Default)]
pub(crate) struct Tcp {
    begun: bool,
    open: bool,
    pub(super) closed: bool,
    directions: [Direction; 2],
}

/// One direction of the connection.
#[derive(Debug, Default)]
struct Direction {
    incoming: VecDeque<(Vec<u8>, bool)>,
    /// Bytes available to the filter, or held by it.
    kept: Vec<u8>,
    shown: bool,
    held: bool,
    ended: bool,
    resumed: bool,
    /// Bytes that the filter adds outside of its data callback.
    added: Vec<u8>,
    /// Bytes that it has let pass while it holds the connection.
    waiting: Vec<u8>,
    out: Vec<u8>,
}

impl Tcp {
    fn direction(&mut self, side: Side) -> &mut Direction {
        &mut self.directions[side as usize]
    }

    /// Resumes a side.
    pub(super) fn resume(&mut self, side: Side) {
        self.direction(side).resumed = true;
    }

    pub(super) fn is_resumed(&self) -> bool {
        self.directions.iter().any(|direction| direction.resumed)
    }

    /// Returns the bytes that host functions work on.
    pub(super) fn buffer(&mut self, side: Side) -> &mut Vec<u8> {
        let direction = self.direction(side);
        if direction.shown || direction.held { &mut direction.kept } else { &mut direction.added }
    }

    /// Applies what the filter has resumed, and sends what has passed it.
    fn settle(&mut self) {
        for side in [Side::Downstream, Side::Upstream] {
            let open = &mut self.open;
            let direction = &mut self.directions[side as usize];
            if std::mem::take(&mut direction.resumed) {
                *open |= side == Side::Downstream && self.begun;
                direction.held = false;
            }
            let mut through =
                if direction.held || direction.shown { Vec::new() } else { std::mem::take(&mut direction.kept) };
            through.append(&mut direction.added);
            direction.waiting.append(&mut through);
            if side == Side::Upstream || *open {
                direction.out.append(&mut direction.waiting);
            }
        }
    }

    /// Takes the next bytes received from a side.
    fn next(&mut self) -> Option<(Side, Vec<u8>, bool)> {
        let sides = [Side::Downstream, Side::Upstream];
        sides.into_iter().find_map(|side| {
            let (bytes, end) = self.direction(side).incoming.pop_front()?;
            Some((side, bytes, end))
        })
    }
}

impl<F: TcpFilter> Driver for TcpDispatcher<F> {
    fn run_stream(&self, context: u32) {
        let tcp = |f: &mut dyn FnMut(&mut Tcp)| {
            with(|h| h.streams.get_mut(&context).and_then(|s| s.tcp.as_mut()).map(f));
        };
        let wants = |bit| with(|h| h.phases & bit != 0);
        let mut begins = false;
        tcp(&mut |tcp| begins = !std::mem::replace(&mut tcp.begun, true));
        if begins {
            with(|h| h.enter(context, None));
            let pauses = wants(phase::NEW_CONNECTION) && self.new_connection(context) == action::PAUSE;
            tcp(&mut |tcp| tcp.open |= !pauses);
        }
        loop {
            let mut next = None;
            tcp(&mut |tcp| {
                tcp.settle();
                next = if tcp.closed { None } else { tcp.next() };
            });
            let Some((side, bytes, end)) = next else { break };
            let bit = if side == Side::Downstream { phase::DOWNSTREAM_DATA } else { phase::UPSTREAM_DATA };
            let (shown, mut len) = (wants(bit), 0);
            tcp(&mut |tcp| {
                let direction = tcp.direction(side);
                direction.kept.extend_from_slice(&bytes);
                (direction.ended, direction.shown, len) = (end, shown, direction.kept.len());
            });
            if shown {
                with(|h| h.enter(context, None));
                let pauses = self.data(context, side, len, end) == action::PAUSE;
                tcp(&mut |tcp| {
                    let direction = tcp.direction(side);
                    (direction.shown, direction.held) = (false, pauses);
                });
            }
        }
        with(|h| h.enter(0, None));
    }

    fn queue_ready(&self, root: u32, queue: u32) {
        TcpDispatcher::queue_ready(self, root, queue);
    }

    fn timer(&self, context: u32, token: i64) {
        TcpDispatcher::timer(self, context, token);
    }

    fn http_call_response(&self, _: u32, _: u32, _: usize, _: usize, _: usize) {}

    fn grpc(&self, _: u32, _: u32, _: &GrpcEvent) {}
}
