//! What the host gives: memory of the guest's that it has filled, and random bytes.
#![allow(unsafe_code)]

use std::ptr;

/// Takes over what the host has allocated through `dispatch::allocate`.
///
/// # Safety
/// `data` is null, or was allocated by `dispatch::allocate(size)` and `size` bytes of it have been written; nobody else has a
/// claim to it.
pub(crate) unsafe fn owned(data: *mut u8, size: usize) -> Vec<u8> {
    if data.is_null() || size == 0 {
        return Vec::new();
    }
    // SAFETY: it was leaked from a `Box` of exactly this size, and is written.
    unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(data, size)) }.into_vec()
}

/// Fills `bytes` by a function that gives at most 64 KiB at a time, and answers with an error's number.
///
/// # Panics
/// If it gives an error: what it has not written is all zeros, say, and would be taken for a key.
pub(crate) fn fill(bytes: &mut [u8], give: impl Fn(&mut [u8]) -> i32) {
    for part in bytes.chunks_mut(1 << 16) {
        assert!(give(part) == 0, "the host has no random bytes to give");
    }
}

#[cfg(test)]
mod tests {
    use std::{
        alloc::{GlobalAlloc, Layout, System},
        cell::{Cell, RefCell},
    };

    use super::*;
    use crate::filter::dispatch::allocate;

    thread_local! {
        /// Where memory of this layout is expected to be freed, and whether it was, with which layout.
        static WATCHED: Cell<(usize, Option<Layout>)> = const { Cell::new((0, None)) };
    }

    /// Notes with which layout watched memory is freed. The system's allocator does not mind a wrong one; that of a guest may.
    struct Watching;

    // SAFETY: everything is the system's.
    unsafe impl GlobalAlloc for Watching {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's promise is the same.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
            let _ = WATCHED.try_with(|watched| {
                if watched.get().0 == memory.addr() {
                    watched.set((0, Some(layout)));
                }
            });
            // SAFETY: the caller's promise is the same.
            unsafe { System.dealloc(memory, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Watching = Watching;

    #[test]
    fn memory_that_the_host_has_filled_is_freed_as_it_was_allocated() {
        for size in [1, 3, 8, 100, 4097] {
            let data = allocate(size);
            // SAFETY: there is room for so many bytes.
            unsafe { data.write_bytes(7, size) };
            WATCHED.set((data.addr(), None));
            // SAFETY: it was allocated just now, and written.
            let bytes = unsafe { owned(data, size) };
            assert_eq!((bytes.len(), bytes.capacity()), (size, size));
            assert!(bytes.iter().all(|byte| *byte == 7));
            drop(bytes);
            assert_eq!(WATCHED.get().1, Some(Layout::array::<u8>(size).unwrap()), "{size}");
        }
    }

    #[test]
    fn nothing_is_nothing() {
        // SAFETY: neither is read.
        let nothing = unsafe { [owned(ptr::null_mut(), 0), owned(ptr::null_mut(), 5), owned(ptr::dangling_mut(), 0)] };
        assert!(nothing.iter().all(Vec::is_empty));
    }

    #[test]
    fn random_bytes_come_in_parts_that_the_host_gives() {
        let asked = RefCell::new(Vec::new());
        let mut bytes = vec![0; (1 << 17) + 5];
        fill(&mut bytes, |part| {
            asked.borrow_mut().push(part.len());
            part.fill(1);
            0
        });
        assert_eq!(*asked.borrow(), [1 << 16, 1 << 16, 5]);
        assert!(bytes.iter().all(|byte| *byte == 1));
    }

    #[test]
    #[should_panic = "the host has no random bytes to give"]
    fn bytes_that_are_not_random_are_not_taken_for_some() {
        fill(&mut [0; 16], |_| 29);
    }
}
