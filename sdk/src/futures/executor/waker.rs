//! A waker that is nothing but a task's number: what it does is done by the executor of the thread.
#![allow(unsafe_code)]

use std::{
    ptr,
    task::{RawWaker, RawWakerVTable, Waker},
};

static VTABLE: RawWakerVTable = RawWakerVTable::new(|task| RawWaker::new(task, &VTABLE), wake, wake, |_| {});

fn wake(task: *const ()) {
    super::wake(task.addr() as u32);
}

/// The waker of a task.
pub(crate) fn waker(task: u32) -> Waker {
    // SAFETY: the pointer is a number and never followed, so nothing is owned, and copies need no care. On whichever thread
    // it is used, `wake` looks only at what belongs to that thread.
    unsafe { Waker::from_raw(RawWaker::new(ptr::without_provenance(task as usize), &VTABLE)) }
}
