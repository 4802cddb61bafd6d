//! A waker that consists only of a task's number; the thread's executor does the work.
#![allow(unsafe_code)]

use std::{
    ptr,
    task::{RawWaker, RawWakerVTable, Waker},
};

static VTABLE: RawWakerVTable = RawWakerVTable::new(|task| RawWaker::new(task, &VTABLE), wake, wake, |_| {});

fn wake(task: *const ()) {
    super::wake(task.addr() as u32);
}

/// Creates the waker of a task.
pub(crate) fn waker(task: u32) -> Waker {
    // SAFETY: the pointer is a number and never dereferenced, so nothing is owned and copies need no care. On any
    // thread, `wake` accesses only that thread's data.
    unsafe { Waker::from_raw(RawWaker::new(ptr::without_provenance(task as usize), &VTABLE)) }
}
