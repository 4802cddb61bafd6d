//! Backpressure towards a client: the flow-control window of its connection, which all its streams share.
//!
//! Unread data of other streams fills it, so a body can be blocked although its own stream has room. h2 does not
//! expose the window, so it is tracked by the frames, as the client does.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Waker},
};

use super::frames::{DATA, FrameEvent, Scanner, WINDOW_UPDATE};

/// The initial window of a connection, in bytes (RFC 9113 section 6.9.2).
const INITIAL: i64 = 65_535;

/// The flow-control window of a client's connection.
#[derive(Debug)]
pub struct Window {
    left: Cell<i64>,
    /// The tasks that wait for it to open.
    waiting: RefCell<Vec<Waker>>,
}

impl Default for Window {
    fn default() -> Window {
        Window { left: Cell::new(INITIAL), waiting: RefCell::default() }
    }
}

impl Window {
    /// Records a received frame.
    pub fn received(&self, kind: u8, length: u32) {
        if kind == DATA {
            self.left.set(self.left.get() - i64::from(length));
        }
    }

    /// Returns whether the client may send data. If not, the task is woken when it may.
    pub fn is_open(&self, cx: &Context<'_>) -> bool {
        let open = self.left.get() > 0;
        let mut waiting = self.waiting.borrow_mut();
        if !open && !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        open
    }

    fn widen(&self, bytes: u32) {
        self.left.set(self.left.get() + i64::from(bytes));
        if self.left.get() > 0 {
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// Finds the updates of the window among the bytes sent to a client.
#[derive(Debug)]
pub struct Widening {
    scanner: Scanner,
    /// The sent part of the current increment, if any.
    part: Option<([u8; 4], usize)>,
}

impl Default for Widening {
    fn default() -> Widening {
        Widening { scanner: Scanner::after(0), part: None }
    }
}

impl Widening {
    /// Records sent bytes.
    pub fn sent(&mut self, bytes: &[u8], window: &Window) {
        let part = &mut self.part;
        self.scanner.scan_all(bytes, |event| match event {
            FrameEvent::Frame(frame) => {
                *part = (frame.kind == WINDOW_UPDATE && frame.stream == 0).then(Default::default)
            }
            FrameEvent::Payload(bytes) => {
                let Some((increment, filled)) = part else { return };
                for byte in bytes {
                    if let Some(place) = increment.get_mut(*filled) {
                        *place = *byte;
                        *filled += 1;
                    }
                }
                if *filled == increment.len() {
                    window.widen(u32::from_be_bytes(*increment) & (u32::MAX >> 1));
                    *part = None;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    };

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl std::task::Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn waiting_tasks_are_woken_when_the_window_opens() {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let cx = Context::from_waker(&waker);
        let frame = |stream: u32, bytes: u32| {
            [&[0, 0, 4, WINDOW_UPDATE, 0][..], &stream.to_be_bytes(), &bytes.to_be_bytes()].concat()
        };
        // Updates of a stream's own window are ignored.
        let sent =
            [frame(3, 500), frame(0, 100), [&[0, 0, 2, DATA, 0, 0, 0, 0, 1][..], b"ab"].concat(), frame(0, 7)].concat();
        for step in 1..sent.len() {
            let (window, mut widening) = (Window::default(), Widening::default());
            let before = wakes.0.load(Relaxed);
            assert!(window.is_open(&cx));
            window.received(DATA, 65_535 + 100);
            assert!(!window.is_open(&cx) && !window.is_open(&cx));
            sent.chunks(step).for_each(|part| widening.sent(part, &window));
            assert!(window.is_open(&cx));
            assert_eq!((window.left.get(), wakes.0.load(Relaxed) - before), (7, 1), "in steps of {step}");
        }
    }
}
