//! A simulated stream: its messages, and how far they have passed through the filter.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    rc::Rc,
};

use tollgate_abi::{fast::phase, proxy_wasm::action};

use super::{
    Selected,
    host::{Headers, with},
    reply,
    tcp::Tcp,
};
use crate::{Filter, Reply, doc, filter::dispatch::Dispatcher, sys::types::Half};

/// Metadata by namespace and key: the type and the bytes.
pub(crate) type MetadataMap = BTreeMap<(Vec<u8>, Vec<u8>), (i32, Vec<u8>)>;

/// One stream.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) request: Message,
    pub(crate) response: Message,
    pub(crate) eventual: Headers,
    pub(super) source: Option<SocketAddr>,
    pub(super) client: Option<SocketAddr>,
    pub(crate) selected: Option<SelectedRoute>,
    /// The filter's own response, once it has replaced the upstream's.
    pub(crate) reply: Option<Reply>,
    /// The response that the filter has sent in the current callback.
    pub(crate) answer: Option<Reply>,
    pub(crate) flags: u32,
    pub(crate) log_fields: Vec<(String, String)>,
    pub(crate) state: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) metadata: MetadataMap,
    pub(super) limits_held: Vec<u32>,
    /// Set for a TCP connection.
    pub(super) tcp: Option<Tcp>,
}

/// The selected route; the document is shared, because copying it would take much of a short request's time.
#[derive(Debug)]
pub(crate) struct SelectedRoute {
    pub(super) route: Rc<doc::Route>,
    pub(super) split: Option<u64>,
    pub(super) balance: Option<u64>,
}

impl SelectedRoute {
    /// The selection as a test sees it.
    pub(super) fn shown(&self) -> Selected {
        Selected { route: doc::Route::clone(&self.route), split: self.split, balance: self.balance }
    }
}

/// A request or a response.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) headers: Headers,
    pub(super) stage: Stage,
    pub(super) parts: VecDeque<Part>,
    /// Bytes available to the filter, or held by it.
    pub(crate) kept: Vec<u8>,
    /// Bytes that have left the filter.
    pub(super) out: Vec<u8>,
    /// Where the filter has paused, if it has.
    pub(super) held: Option<At>,
    pub(crate) resumed: bool,
}

/// Where a filter has paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Head,
    Body,
}

/// Progress of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// There is no message.
    #[default]
    None,
    /// The headers are about to be delivered; `end`: without a body.
    Head { end: bool },
    /// The headers were delivered.
    Body,
}

/// A part of a body.
#[derive(Debug)]
pub(super) enum Part {
    Data(Vec<u8>, bool),
    /// The end of the body; trailers follow.
    Trailers,
}

impl Stream {
    /// Reports whether the filter has resumed something that has not continued yet.
    pub(super) fn is_resumed(&self) -> bool {
        self.request.resumed || self.response.resumed || self.tcp.as_ref().is_some_and(Tcp::is_resumed)
    }

    /// Replaces the upstream's response with the filter's own, as the proxy does: the filter's response callbacks see
    /// an answer to a request, but not a replacement of a response that they have already seen.
    fn take_answer(&mut self) {
        let Some(reply) = self.answer.take() else { return };
        let seen = self.response.stage != Stage::None;
        let content_type = self.request.headers.iter().find(|(name, _)| name == "content-type");
        let (headers, body) = match content_type.is_some_and(|(_, value)| reply::is_grpc(value)) {
            true => (reply::grpc_headers(&reply), Vec::new()),
            false => (reply::headers(&reply), reply.body.clone()),
        };
        self.response = match seen {
            true => Message { headers, stage: Stage::Body, out: body, ..Message::default() },
            false => {
                let end = body.is_empty();
                let parts = (!end).then_some(Part::Data(body, true)).into_iter().collect();
                Message { headers, stage: Stage::Head { end }, parts, ..Message::default() }
            }
        };
        self.reply = Some(reply);
    }

    pub(crate) fn message(&mut self, half: Half) -> &mut Message {
        match half {
            Half::Request => &mut self.request,
            Half::Response => &mut self.response,
        }
    }
}

impl Message {
    fn let_go(&mut self) {
        self.held = None;
        let kept = std::mem::take(&mut self.kept);
        self.out.extend(kept);
    }
}

enum Step {
    Head(bool),
    Body(usize, bool),
    Trailers,
}

/// Moves a message through the filter as far as the filter allows.
pub(super) fn advance<F: Filter>(dispatcher: &Dispatcher<F>, context: u32, half: Half) {
    while let Some(step) = with(|h| next(h.streams.get_mut(&context)?, half, h.phases)) {
        let in_head = matches!(step, Step::Head(_));
        with(|h| h.enter(context, if in_head { None } else { Some(half) }));
        let action = match step {
            Step::Head(end) => dispatcher.headers(context, half, end),
            Step::Body(len, end) => dispatcher.body(context, half, len, end),
            Step::Trailers => dispatcher.trailers(context, half),
        };
        with(|h| {
            h.enter(0, None);
            let Some(stream) = h.streams.get_mut(&context) else { return };
            let message = stream.message(half);
            // Resuming within the callback counts.
            let resumed = std::mem::take(&mut message.resumed);
            if action == action::PAUSE && !resumed {
                message.held = Some(if in_head { At::Head } else { At::Body });
            } else {
                message.let_go();
            }
        });
    }
}

/// Returns the next step, skipping whatever the filter does not need to see.
fn next(stream: &mut Stream, half: Half, phases: u32) -> Option<Step> {
    let (head, body) = match half {
        Half::Request => (phase::REQUEST_HEADERS, phase::REQUEST_BODY),
        Half::Response => (phase::RESPONSE_HEADERS, phase::RESPONSE_BODY),
    };
    stream.take_answer();
    // A request that was answered goes no further.
    let over = half == Half::Request && stream.reply.is_some();
    let message = stream.message(half);
    if std::mem::take(&mut message.resumed) && message.held.is_some() {
        message.let_go();
    }
    if over {
        return None;
    }
    if let Stage::Head { end } = message.stage {
        message.stage = Stage::Body;
        if phases & head != 0 {
            return Some(Step::Head(end));
        }
    }
    // Held headers block the body; a held body accumulates.
    while message.stage == Stage::Body && message.held != Some(At::Head) {
        match message.parts.pop_front()? {
            Part::Data(data, _) if phases & body == 0 => message.out.extend(data),
            Part::Data(data, last) => {
                message.kept.extend(data);
                return Some(Step::Body(message.kept.len(), last));
            }
            Part::Trailers if phases & body == 0 => {}
            Part::Trailers => return Some(Step::Trailers),
        }
    }
    None
}
