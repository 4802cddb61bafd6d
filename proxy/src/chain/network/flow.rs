//! Moves a connection and its bytes past the filters of a chain.
//!
//! The connection itself goes first: each filter is notified of it in order, and a filter that pauses then withholds it
//! from later filters and from the upstream. Bytes follow. Data that a filter holds stays in its
//! [`ConnectionFilterState`](super::ConnectionFilterState), where it can still read it; data that has passed all
//! filters is emitted here.
//!
//! A filter that holds the connection still receives the client's bytes, so that it can decide based on them. Bytes
//! that it lets pass wait with the connection.

use std::{collections::VecDeque, rc::Rc};

use bytes::Bytes;
use tollgate_abi::fast::phase;

use super::{ClosedBy, NetworkStream, Side};
use crate::chain::{Action, OnFailure, stream::Buffer};

/// A filter failed and its policy is to deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a filter has failed")]
pub struct ConnectionDenied;

/// The progress of a connection through a chain.
#[derive(Debug, Default)]
pub struct ConnectionFlow {
    /// How many filters the connection has passed.
    passed: usize,
    out: [VecDeque<Bytes>; 2],
    ended: [bool; 2],
}

impl ConnectionFlow {
    /// Moves the connection on as far as filters allow.
    pub fn advance(&mut self, stream: &Rc<NetworkStream>) -> Result<(), ConnectionDenied> {
        while self.passed < stream.chain.len() {
            let position = self.passed;
            let filter = stream.filter(position);
            let begins = !std::mem::replace(&mut stream.state.borrow_mut().filters[position].begun, true);
            if begins {
                let wants = filter.phases() & phase::NEW_CONNECTION != 0;
                let open = match is_gone(stream, position)? {
                    false if wants => match filter.on_connection(stream, position) {
                        Action::Pause => false,
                        Action::Failed(OnFailure::Deny) => return Err(ConnectionDenied),
                        Action::Continue | Action::Failed(OnFailure::Bypass) => true,
                    },
                    _ => true,
                };
                let mut state = stream.state.borrow_mut();
                // A resume during the callback has the same effect as `Continue`.
                let resumed = std::mem::take(&mut state.positions[position].resumed[0]);
                state.filters[position].open = open || resumed;
            }
            if !stream.state.borrow().filters[position].open {
                break;
            }
            self.passed += 1;
        }
        Ok(())
    }

    /// Whether the connection has passed all filters.
    pub fn is_open(&self, stream: &NetworkStream) -> bool {
        self.passed == stream.chain.len()
    }

    /// Processes bytes from a side. `end`: nothing follows.
    pub fn data(
        &mut self,
        stream: &Rc<NetworkStream>,
        side: Side,
        data: Bytes,
        end: bool,
    ) -> Result<(), ConnectionDenied> {
        self.deliver(stream, side, 0, Buffer::new(data), end)
    }

    /// Whether a filter has reached its buffer limit for a side, so that reading there must stop (backpressure).
    pub fn is_full(&self, stream: &NetworkStream, side: Side) -> bool {
        let state = stream.state.borrow();
        let full = |buffer: &Buffer| buffer.as_slice().len() >= stream.buffer_limit;
        state.filters.iter().any(|place| {
            place.buffers[side as usize].as_ref().is_some_and(full)
                || (side == Side::Downstream && full(&place.waiting.0))
        })
    }

    /// Takes the next emitted bytes.
    pub fn pop(&mut self, side: Side) -> Option<Bytes> {
        self.out[side as usize].pop_front()
    }

    /// Whether everything emitted of a side was taken, and its end was not emitted.
    pub fn is_clear(&self, side: Side) -> bool {
        self.out[side as usize].is_empty() && !self.ended[side as usize]
    }

    /// Whether the end of a side was emitted and everything before it taken.
    pub fn is_over(&self, side: Side) -> bool {
        self.ended[side as usize] && self.out[side as usize].is_empty()
    }

    /// Releases what is held by filters that have resumed it, and what they have added.
    pub fn resume(&mut self, stream: &Rc<NetworkStream>) -> Result<(), ConnectionDenied> {
        for position in 0..stream.chain.len() {
            let goes_on = |side: Side| {
                let p = &mut stream.state.borrow_mut().positions[position];
                std::mem::take(&mut p.resumed[side as usize]) || p.gone
            };
            for side in Side::BOTH {
                let resumed = goes_on(side) && stream.is_held_by(position);
                if resumed {
                    self.release(stream, side, position)?;
                }
                // Emitted data is sent first: a filter that adds faster than that reaches its limit.
                if !self.out[side as usize].is_empty() {
                    continue;
                }
                let added = stream.state.borrow_mut().filters[position].added[side as usize].take();
                if !added.is_empty() {
                    self.pass(stream, side, stream.chain.position(side, position), Buffer::new(added), false)?;
                }
            }
        }
        Ok(())
    }

    /// Releases the data of one side that a filter holds back and, on the downstream side, the connection that it holds.
    fn release(&mut self, stream: &Rc<NetworkStream>, side: Side, position: usize) -> Result<(), ConnectionDenied> {
        let (held, waited) = {
            let mut state = stream.state.borrow_mut();
            let held = std::mem::take(&mut state.positions[position].paused[side as usize]);
            let place = &mut state.filters[position];
            let waited = side == Side::Downstream && place.begun && !std::mem::replace(&mut place.open, true);
            let held =
                held.then(|| (place.buffers[side as usize].take().unwrap_or_default(), place.ends[side as usize]));
            (held, waited)
        };
        if waited {
            self.advance(stream)?;
        }
        if held.is_none() && !waited {
            return Ok(());
        }
        let (data, end) = held.unwrap_or_default();
        // The filter's number in this direction; the mapping is its own inverse.
        self.pass(stream, side, stream.chain.position(side, position), data, end)
    }

    /// Moves on bytes that filter `nth` has let pass, after those that wait there with the connection.
    fn pass(
        &mut self,
        stream: &Rc<NetworkStream>,
        side: Side,
        nth: usize,
        data: Buffer,
        end: bool,
    ) -> Result<(), ConnectionDenied> {
        match wait(stream, side, nth, data, end) {
            Some((data, end)) => self.deliver(stream, side, nth + 1, data, end),
            None => Ok(()),
        }
    }

    /// Passes bytes to the filters from `nth` on.
    fn deliver(
        &mut self,
        stream: &Rc<NetworkStream>,
        side: Side,
        nth: usize,
        data: Buffer,
        end: bool,
    ) -> Result<(), ConnectionDenied> {
        let (mut data, mut end) = (data, end);
        for nth in nth..stream.chain.len() {
            if data.as_slice().is_empty() && !end {
                return Ok(());
            }
            let Some(shown) = self.show(stream, side, nth, data, end)? else { return Ok(()) };
            let Some(passed) = wait(stream, side, nth, shown.0, shown.1) else { return Ok(()) };
            (data, end) = passed;
        }
        let data = data.take();
        // Nothing follows the end, whatever filters add.
        if !data.is_empty() && !self.ended[side as usize] {
            self.out[side as usize].push_back(data);
        }
        self.ended[side as usize] |= end;
        Ok(())
    }

    /// Passes bytes to one filter, appended to those that it holds. `None`: it holds all of them.
    fn show(
        &mut self,
        stream: &Rc<NetworkStream>,
        side: Side,
        nth: usize,
        data: Buffer,
        end: bool,
    ) -> Result<Option<(Buffer, bool)>, ConnectionDenied> {
        let (position, way) = (stream.chain.position(side, nth), side as usize);
        let filter = stream.filter(position);
        let closes = || {
            if end && side == Side::Upstream {
                stream.state.borrow_mut().filters[position].upstream_closed = true;
                if filter.phases() & phase::UPSTREAM_CLOSE != 0 {
                    filter.on_upstream_close(stream, position, ClosedBy::Remote);
                }
            }
        };
        let gone = is_gone(stream, position)?;
        if gone {
            return Ok(Some(behind_held(stream, side, position, data, end)));
        }
        if filter.phases() & side.data_bit() == 0 {
            closes();
            return Ok(Some((data, end)));
        }
        let len = {
            let mut state = stream.state.borrow_mut();
            state.positions[position].begin(way);
            let place = &mut state.filters[position];
            place.ends[way] |= end;
            let buffer = place.buffers[way].get_or_insert_default();
            let mut data = data;
            buffer.append(data.take());
            buffer.as_slice().len()
        };
        let action = filter.on_data(side, stream, position, len, end);
        if action == Action::Failed(OnFailure::Deny) {
            return Err(ConnectionDenied);
        }
        let (held, opens) = {
            let mut state = stream.state.borrow_mut();
            let p = &mut state.positions[position];
            let resumed = std::mem::take(&mut p.resumed[way]);
            p.paused[way] = action == Action::Pause && !resumed;
            let held = p.paused[way];
            let place = &mut state.filters[position];
            let opens =
                side == Side::Downstream && !place.open && (resumed || action == Action::Failed(OnFailure::Bypass));
            place.open |= opens;
            (held, opens)
        };
        closes();
        if opens {
            self.advance(stream)?;
        }
        if held {
            return Ok(None);
        }
        let place = &mut stream.state.borrow_mut().filters[position];
        Ok(Some((place.buffers[way].take().unwrap_or_default(), end)))
    }
}

/// Appends bytes that a filter has let pass to those that wait with the connection. Returns the bytes that may proceed.
fn wait(stream: &NetworkStream, side: Side, nth: usize, mut data: Buffer, end: bool) -> Option<(Buffer, bool)> {
    if side == Side::Upstream {
        return Some((data, end));
    }
    let place = &mut stream.state.borrow_mut().filters[nth];
    let (before, ended) = &mut place.waiting;
    if place.open && before.as_slice().is_empty() {
        return Some((data, end || std::mem::take(ended)));
    }
    before.append(data.take());
    *ended |= end;
    place.open.then(|| (std::mem::take(before), std::mem::take(ended)))
}

/// Bytes for a filter that has failed, after those that it held.
fn behind_held(stream: &NetworkStream, side: Side, position: usize, mut data: Buffer, end: bool) -> (Buffer, bool) {
    let mut state = stream.state.borrow_mut();
    if !std::mem::take(&mut state.positions[position].paused[side as usize]) {
        return (data, end);
    }
    let place = &mut state.filters[position];
    let mut held = place.buffers[side as usize].take().unwrap_or_default();
    held.append(data.take());
    (held, end || place.ends[side as usize])
}

fn is_gone(stream: &NetworkStream, position: usize) -> Result<bool, ConnectionDenied> {
    match stream.gone(position) {
        (_, true) => Err(ConnectionDenied),
        (gone, false) => Ok(gone),
    }
}
