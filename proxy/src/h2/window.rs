//! Whether a client may send at all: the window of its connection, which all its streams share.
//!
//! What others send and nobody reads takes from it, so a body may not come although its own stream has room. h2 does not tell, so the
//! frames are counted, as the client counts them.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Waker},
};

use super::frames::{DATA, FrameEvent, Scanner, WINDOW_UPDATE};

/// What every connection begins with (RFC 9113 section 6.9.2).
const INITIAL: i64 = 65_535;

/// The window of a client's connection.
#[derive(Debug)]
pub struct Window {
    left: Cell<i64>,
    /// Who waits for it to open.
    shut: RefCell<Vec<Waker>>,
}

impl Default for Window {
    fn default() -> Window {
        Window { left: Cell::new(INITIAL), shut: RefCell::default() }
    }
}

impl Window {
    /// A frame has come.
    pub fn received(&self, kind: u8, length: u32) {
        if kind == DATA {
            self.left.set(self.left.get() - i64::from(length));
        }
    }

    /// Whether the client may send something. If not, the task is woken when it may.
    pub fn is_open(&self, cx: &Context<'_>) -> bool {
        let open = self.left.get() > 0;
        let mut shut = self.shut.borrow_mut();
        if !open && !shut.iter().any(|waker| waker.will_wake(cx.waker())) {
            shut.push(cx.waker().clone());
        }
        open
    }

    fn widen(&self, bytes: u32) {
        self.left.set(self.left.get() + i64::from(bytes));
        if self.left.get() > 0 {
            self.shut.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// Finds in what is sent to a client how its window is widened.
#[derive(Debug)]
pub struct Widening {
    scanner: Scanner,
    /// Bytes of the increment that have gone out, if this is what goes out.
    part: Option<([u8; 4], usize)>,
}

impl Default for Widening {
    fn default() -> Widening {
        Widening { scanner: Scanner::after(0), part: None }
    }
}

impl Widening {
    /// These bytes have been sent.
    pub fn sent(&mut self, bytes: &[u8], window: &Window) {
        let part = &mut self.part;
        self.scanner.scan_all(bytes, |seen| match seen {
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
    fn who_waits_for_it_is_woken_when_it_opens() {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let cx = Context::from_waker(&waker);
        let frame = |stream: u32, bytes: u32| {
            [&[0, 0, 4, WINDOW_UPDATE, 0][..], &stream.to_be_bytes(), &bytes.to_be_bytes()].concat()
        };
        // A stream's own window is another matter.
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
