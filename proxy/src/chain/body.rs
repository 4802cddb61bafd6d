//! Moves a message's body and trailers past the filters of a chain.
//!
//! Data that a filter holds by pausing (backpressure) is stored here, up to a limit per filter and one for all bodies
//! of a worker. Data that has passed all filters is emitted as frames. If no filter subscribes to bodies, a message
//! passes straight through.

use std::{cell::Cell, collections::VecDeque, rc::Rc};

use bytes::Bytes;
use http::HeaderMap;

use super::{Action, Direction, OnFailure, Stream, body_bit, stream::Buffer, trailers_bit};

/// Maximum bytes of all bodies that a worker's filters hold together.
const MAX_HELD: usize = 256 << 20;

thread_local! {
    /// Bytes that this worker's filters hold.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// A frame that has passed all filters.
#[derive(Debug)]
pub enum FilteredFrame {
    /// A part of the body.
    Data(Bytes),
    /// The trailers, always last.
    Trailers(HeaderMap),
}

/// Why a body was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyAborted {
    /// A filter exceeded its buffer limit.
    #[error("a filter exceeded its limit on a buffered body")]
    TooLarge,
    /// The worker's filters exceeded the limit on all bodies.
    #[error("filters exceeded the worker's limit on buffered bodies")]
    Crowded,
    /// A filter failed and its policy is to deny.
    #[error("a filter has failed")]
    FilterFailed,
}

/// What one filter holds of a body.
#[derive(Debug, Default)]
struct HeldBody {
    data: Buffer,
    /// Whether `data` includes the end of the body.
    end: bool,
    /// The filter has paused in a body or trailers callback.
    paused: bool,
    /// The held trailers, and whether the filter's callback has seen them.
    trailers: Option<(HeaderMap, bool)>,
}

/// One body's share of the bytes that the worker's filters hold.
#[derive(Debug, Default)]
struct BufferShare(usize);

impl BufferShare {
    /// Updates the share to this size.
    fn set(&mut self, bytes: usize) -> Result<(), BodyAborted> {
        let all = HELD.get() - self.0 + bytes;
        if bytes > self.0 && all > MAX_HELD {
            return Err(BodyAborted::Crowded);
        }
        HELD.set(all);
        self.0 = bytes;
        Ok(())
    }
}

impl Drop for BufferShare {
    fn drop(&mut self) {
        HELD.set(HELD.get() - self.0);
    }
}

/// The progress of a body.
#[derive(Debug)]
pub struct BodyFlow {
    direction: Direction,
    limit: usize,
    /// Per filter, in this direction's order.
    held: Vec<HeldBody>,
    share: BufferShare,
    /// The first filter that sees it.
    first: usize,
    out: VecDeque<FilteredFrame>,
    /// The end was emitted.
    ended: bool,
    /// Bytes that entered and bytes that were emitted; they differ if filters change the body.
    lengths: (u64, u64),
}

impl BodyFlow {
    /// Starts a body; each filter may hold up to `limit` bytes of it.
    pub fn new(stream: &Stream, direction: Direction, limit: usize) -> BodyFlow {
        // If no filter subscribes to bodies, the list is never used.
        let filters = if stream.chain.wants_body(direction) { stream.chain.filters().len() } else { 0 };
        let held = (0..filters).map(|_| HeldBody::default()).collect();
        BodyFlow {
            direction,
            limit,
            held,
            share: BufferShare::default(),
            first: 0,
            out: VecDeque::new(),
            ended: false,
            lengths: (0, 0),
        }
    }

    /// For a local reply: skips this many filters, counted from the upstream's end.
    pub fn skipping(self, filters: usize) -> BodyFlow {
        BodyFlow { first: filters, ..self }
    }

    /// Takes the next emitted frame.
    pub fn pop(&mut self) -> Option<FilteredFrame> {
        self.out.pop_front()
    }

    /// Whether the end was emitted and every frame taken.
    pub fn is_over(&self) -> bool {
        self.ended && self.out.is_empty()
    }

    /// Whether the end was emitted, even if frames remain to be taken.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether trailers remain to be taken.
    pub fn has_trailers(&self) -> bool {
        self.out.iter().any(|frame| matches!(frame, FilteredFrame::Trailers(_)))
    }

    /// Whether frames remain to be taken.
    pub fn is_ready(&self) -> bool {
        !self.out.is_empty()
    }

    /// Bytes that entered, and bytes that were emitted (taken or not).
    pub fn lengths(&self) -> (u64, u64) {
        self.lengths
    }

    /// Bytes that remain to be taken.
    pub fn waiting(&self) -> u64 {
        self.out.iter().map(|f| if let FilteredFrame::Data(d) = f { d.len() as u64 } else { 0 }).sum()
    }

    /// Processes a part of the body. `until`: the filter (its number in this direction) that still holds the head, if
    /// any; it receives the part, and later filters do not. Returns whether that filter releases the head.
    pub fn data(
        &mut self,
        stream: &Rc<Stream>,
        data: Bytes,
        end: bool,
        until: Option<usize>,
    ) -> Result<bool, BodyAborted> {
        self.lengths.0 += data.len() as u64;
        let lets_head_go = self.push(stream, self.first, Buffer::new(data), end, until)?;
        self.count()?;
        Ok(lets_head_go)
    }

    /// Processes the trailers. `until` and the result are as for [`data`](Self::data).
    pub fn trailers(
        &mut self,
        stream: &Rc<Stream>,
        trailers: HeaderMap,
        until: Option<usize>,
    ) -> Result<bool, BodyAborted> {
        let lets_head_go = self.push_trailers(stream, self.first, trailers, until)?;
        self.count()?;
        Ok(lets_head_go)
    }

    /// Updates the accounting of held bytes.
    fn count(&mut self) -> Result<(), BodyAborted> {
        self.share.set(self.held.iter().map(|held| held.data.as_slice().len()).sum())
    }

    /// Releases what is held by filters that have resumed the stream. `until` is as for [`data`](Self::data).
    pub fn resume(&mut self, stream: &Rc<Stream>, until: Option<usize>) -> Result<(), BodyAborted> {
        for nth in 0..until.unwrap_or(self.held.len()).min(self.held.len()) {
            if !self.held[nth].paused {
                continue;
            }
            let position = stream.chain.position(self.direction, nth);
            {
                let p = &mut stream.state.borrow_mut().filters[position];
                if !std::mem::take(&mut p.resumed[self.direction as usize]) && !p.gone {
                    continue;
                }
                p.paused[self.direction as usize] = false;
            }
            self.release(stream, nth, until)?;
        }
        Ok(())
    }

    /// Releases what the filter `nth` holds. `until` is as for [`data`](Self::data).
    pub fn release(&mut self, stream: &Rc<Stream>, nth: usize, until: Option<usize>) -> Result<(), BodyAborted> {
        let Some(held) = self.held.get_mut(nth) else { return Ok(()) };
        held.paused = false;
        let (mut data, end, trailers) = (std::mem::take(&mut held.data), held.end, held.trailers.take());
        let anything = !data.as_slice().is_empty() || end;
        if anything {
            self.push(stream, nth + 1, Buffer::new(data.take()), end, until)?;
        }
        if let Some((trailers, seen)) = trailers {
            self.push_trailers(stream, nth + usize::from(seen), trailers, until)?;
        }
        self.count()
    }

    fn push(
        &mut self,
        stream: &Rc<Stream>,
        from: usize,
        data: Buffer,
        end: bool,
        until: Option<usize>,
    ) -> Result<bool, BodyAborted> {
        let mut data = data;
        for nth in from..self.held.len() {
            let position = stream.chain.position(self.direction, nth);
            let filter = stream.filter(position);
            let holds_head = until == Some(nth);
            let held = &mut self.held[nth];
            if !held.data.as_slice().is_empty() {
                held.data.append(data.take());
                data = std::mem::take(&mut held.data);
                if data.as_slice().len() > self.limit {
                    return Err(BodyAborted::TooLarge);
                }
            }
            held.end |= end;
            let wanted = filter.phases() & body_bit(self.direction) != 0;
            if !wanted || self.is_gone(stream, position)? {
                if holds_head {
                    return self.hold(nth, data).map(|()| false);
                }
                // A failed filter no longer holds anything: its data goes on with this part.
                self.held[nth].paused = false;
                continue;
            }
            let len = data.as_slice().len();
            {
                let mut state = stream.state.borrow_mut();
                state.buffers[self.direction as usize] = Some(std::mem::take(&mut data));
                state.buffer_limit = self.limit;
                state.shows_end[self.direction as usize] = end;
                state.filters[position].begin(self.direction as usize);
            }
            let action = filter.on_body(self.direction, stream, position, len, end);
            let mut state = stream.state.borrow_mut();
            state.shows_end[self.direction as usize] = false;
            data = state.buffers[self.direction as usize].take().unwrap_or_default();
            if data.is_overflown() {
                return Err(BodyAborted::TooLarge);
            }
            // If the filter has added trailers, the end of the body is no longer the end of the message.
            let added = if end { state.trailers[self.direction as usize].take() } else { None };
            let added = added.filter(|trailers| !trailers.is_empty());
            let p = &mut state.filters[position];
            // A resume during the callback has the same effect as `Continue`.
            let resumed = std::mem::take(&mut p.resumed[self.direction as usize]);
            match action {
                Action::Pause if !resumed => {
                    p.paused[self.direction as usize] = true;
                    drop(state);
                    self.keep_added(nth, added);
                    return self.hold(nth, data).map(|()| false);
                }
                Action::Failed(OnFailure::Deny) => return Err(BodyAborted::FilterFailed),
                _ => {
                    p.paused[self.direction as usize] = false;
                    drop(state);
                    self.held[nth].paused = false;
                    if holds_head {
                        self.keep_added(nth, added);
                        return self.hold(nth, data).map(|()| true);
                    }
                    if let Some(trailers) = added {
                        return self.push_with(stream, nth + 1, data, trailers, until);
                    }
                }
            }
        }
        let data = data.take();
        self.lengths.1 += data.len() as u64;
        if !data.is_empty() {
            self.out.push_back(FilteredFrame::Data(data));
        }
        self.ended |= end;
        Ok(false)
    }

    /// Stores the trailers that a filter has added, with the data it holds.
    fn keep_added(&mut self, nth: usize, added: Option<HeaderMap>) {
        if let Some(trailers) = added {
            (self.held[nth].end, self.held[nth].trailers) = (false, Some((trailers, true)));
        }
    }

    /// Moves on a last part and the trailers that were added to it.
    fn push_with(
        &mut self,
        stream: &Rc<Stream>,
        from: usize,
        mut data: Buffer,
        trailers: HeaderMap,
        until: Option<usize>,
    ) -> Result<bool, BodyAborted> {
        let lets_head_go = match data.as_slice().is_empty() {
            true => false,
            false => self.push(stream, from, Buffer::new(data.take()), false, until)?,
        };
        match until {
            // The filter that has held the head holds the part until the head is gone, and receives the trailers then.
            Some(nth) if lets_head_go => {
                self.held[nth].trailers = Some((trailers, false));
                Ok(true)
            }
            _ => self.push_trailers(stream, from, trailers, until),
        }
    }

    fn is_gone(&self, stream: &Stream, position: usize) -> Result<bool, BodyAborted> {
        match stream.gone(position) {
            (_, true) => Err(BodyAborted::FilterFailed),
            (gone, false) => Ok(gone),
        }
    }

    fn hold(&mut self, nth: usize, data: Buffer) -> Result<(), BodyAborted> {
        if data.as_slice().len() > self.limit {
            return Err(BodyAborted::TooLarge);
        }
        let held = &mut self.held[nth];
        held.data = data;
        held.paused = true;
        Ok(())
    }

    /// Returns whether the filter that holds the head releases it.
    fn push_trailers(
        &mut self,
        stream: &Rc<Stream>,
        from: usize,
        trailers: HeaderMap,
        until: Option<usize>,
    ) -> Result<bool, BodyAborted> {
        let way = self.direction as usize;
        let mut trailers = trailers;
        for nth in from..self.held.len() {
            let position = stream.chain.position(self.direction, nth);
            let filter = stream.filter(position);
            let holds_head = until == Some(nth);
            let wants = |bit| filter.phases() & bit != 0;
            let gone = self.is_gone(stream, position)?;
            // A filter that waits for more of the body but does not subscribe to trailers must be notified of the end.
            let notify_body = !wants(trailers_bit(self.direction)) && wants(body_bit(self.direction));
            let notify_body = notify_body && (holds_head || self.held[nth].paused);
            if gone || !(notify_body || wants(trailers_bit(self.direction))) {
                if holds_head || self.held[nth].paused {
                    (self.held[nth].paused, self.held[nth].trailers) = (true, Some((trailers, !holds_head)));
                    return Ok(false);
                }
                continue;
            }
            let held = std::mem::take(&mut self.held[nth].data);
            let len = held.as_slice().len();
            {
                let mut state = stream.state.borrow_mut();
                (state.buffers[way], state.trailers[way]) = (Some(held), Some(trailers));
                state.buffer_limit = self.limit;
                state.filters[position].begin(way);
            }
            let action = match notify_body {
                true => filter.on_body(self.direction, stream, position, len, true),
                false => filter.on_trailers(self.direction, stream, position),
            };
            let mut state = stream.state.borrow_mut();
            trailers = state.trailers[way].take().unwrap_or_default();
            let mut data = state.buffers[way].take().unwrap_or_default();
            if data.is_overflown() {
                return Err(BodyAborted::TooLarge);
            }
            let p = &mut state.filters[position];
            let resumed = std::mem::take(&mut p.resumed[way]);
            let pauses = action == Action::Pause && !resumed;
            p.paused[way] = pauses;
            drop(state);
            if action == Action::Failed(OnFailure::Deny) {
                return Err(BodyAborted::FilterFailed);
            }
            let held = &mut self.held[nth];
            held.paused = pauses || holds_head;
            if held.paused {
                (held.data, held.trailers) = (data, Some((trailers, true)));
                return Ok(!pauses);
            }
            let data = data.take();
            if !data.is_empty() {
                self.push(stream, nth + 1, Buffer::new(data), false, until)?;
            }
        }
        self.out.push_back(FilteredFrame::Trailers(trailers));
        self.ended = true;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_of_held_bodies_is_limited_and_returned() {
        let (mut first, mut second) = (BufferShare::default(), BufferShare::default());
        assert_eq!((first.set(MAX_HELD - 10), second.set(10)), (Ok(()), Ok(())));
        assert_eq!(second.set(11), Err(BodyAborted::Crowded));
        assert_eq!((HELD.get(), second.0), (MAX_HELD, 10), "a rejected part is not counted");
        assert_eq!((first.set(MAX_HELD - 20), second.set(20)), (Ok(()), Ok(())));
        drop(first);
        assert_eq!(HELD.get(), 20);
        drop(second);
        assert_eq!(HELD.get(), 0);
    }
}
