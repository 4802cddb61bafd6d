//! Data from the host: guest memory that the host has filled, and random bytes.
#![allow(unsafe_code)]

use std::ptr;

/// Takes ownership of memory that the host has allocated through `dispatch::allocate`.
///
/// # Safety
/// `data` is null, or was allocated by `dispatch::allocate(size)` and `size` bytes of it have been written; there is no
/// other owner.
pub(crate) unsafe fn owned(data: *mut u8, size: usize) -> Vec<u8> {
    if data.is_null() || size == 0 {
        return Vec::new();
    }
    // SAFETY: it was leaked from a `Box` of exactly this size, and is initialized.
    unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(data, size)) }.into_vec()
}

/// Fills `bytes` with a function that provides at most 64 KiB per call and returns an error number.
///
/// # Panics
/// If it returns an error: the unwritten bytes could be zeros and be mistaken for a key.
pub(crate) fn fill(bytes: &mut [u8], give: impl Fn(&mut [u8]) -> i32) {
    for part in bytes.chunks_mut(1 << 16) {
        assert!(give(part) == 0, "the host cannot provide random bytes");
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
        /// The address whose deallocation is watched, and the layout it was freed with.
        static WATCHED: Cell<(usize, Option<Layout>)> = const { Cell::new((0, None)) };
    }

    /// Records the layout with which watched memory is freed. The system allocator tolerates a wrong one; a guest's may
    /// not.
    struct Watching;

    // SAFETY: every call is forwarded to the system allocator.
    unsafe impl GlobalAlloc for Watching {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller upholds the same contract.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
            let _ = WATCHED.try_with(|watched| {
                if watched.get().0 == memory.addr() {
                    watched.set((0, Some(layout)));
                }
            });
            // SAFETY: the caller upholds the same contract.
            unsafe { System.dealloc(memory, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Watching = Watching;

    #[test]
    fn memory_from_the_host_is_freed_with_its_layout() {
        for size in [1, 3, 8, 100, 4097] {
            let data = allocate(size);
            // SAFETY: there is room for this many bytes.
            unsafe { data.write_bytes(7, size) };
            WATCHED.set((data.addr(), None));
            // SAFETY: it was just allocated and initialized.
            let bytes = unsafe { owned(data, size) };
            assert_eq!((bytes.len(), bytes.capacity()), (size, size));
            assert!(bytes.iter().all(|byte| *byte == 7));
            drop(bytes);
            assert_eq!(WATCHED.get().1, Some(Layout::array::<u8>(size).unwrap()), "{size}");
        }
    }

    #[test]
    fn empty_memory_is_an_empty_vec() {
        // SAFETY: none of them is read.
        let nothing = unsafe { [owned(ptr::null_mut(), 0), owned(ptr::null_mut(), 5), owned(ptr::dangling_mut(), 0)] };
        assert!(nothing.iter().all(Vec::is_empty));
    }

    #[test]
    fn random_bytes_are_requested_in_parts() {
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
    #[should_panic = "the host cannot provide random bytes"]
    fn failure_to_get_random_bytes_panics() {
        fill(&mut [0; 16], |_| 29);
    }
}
