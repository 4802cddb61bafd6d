//! The process's allocator.
#![expect(unsafe_code, reason = "an allocator is one")]

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys as mi;

/// mimalloc: many small allocations for each request, all freed on the thread that made them, are what it is made for. The
/// crate's own [`GlobalAlloc`] asks for an alignment each time, which for larger sizes is a slow way through more memory.
pub struct Mimalloc;

/// What `mi_malloc` aligns any block to that is at least as large (`MI_MAX_ALIGN_SIZE`).
const ALIGNED: usize = 16;

/// Whether a block is aligned without being asked to be. Smaller ones are aligned to a power of two that is not less than their
/// size, or to 8.
fn is_aligned_anyway(layout: Layout) -> bool {
    layout.align() <= 8 || (layout.align() <= ALIGNED && layout.size() >= ALIGNED)
}

// SAFETY: mimalloc gives blocks of at least the size asked for, which stay where they are until they are freed, null when there
// is no memory, and never unwinds. The alignment is asked for, or holds as said at `is_aligned_anyway`.
unsafe impl GlobalAlloc for Mimalloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size may be asked for, and any alignment that is a power of two, as a layout's is.
        unsafe {
            match is_aligned_anyway(layout) {
                true => mi::mi_malloc(layout.size()).cast(),
                false => mi::mi_malloc_aligned(layout.size(), layout.align()).cast(),
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        unsafe {
            match is_aligned_anyway(layout) {
                true => mi::mi_zalloc(layout.size()).cast(),
                false => mi::mi_zalloc_aligned(layout.size(), layout.align()).cast(),
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the caller has the block from here, and does not use it any more.
        unsafe { mi::mi_free(block.cast()) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as for `dealloc`; the alignment holds for the new size too, as it is asked about with that.
        unsafe {
            match Layout::from_size_align(size, layout.align()).is_ok_and(is_aligned_anyway) {
                true => mi::mi_realloc(block.cast(), size).cast(),
                false => mi::mi_realloc_aligned(block.cast(), size, layout.align()).cast(),
            }
        }
    }
}

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    fn malloc_trim(pad: usize) -> std::ffi::c_int;
}

unsafe extern "C" {
    // In mimalloc.h; the crate has it in a feature that brings more.
    fn mi_collect(force: bool);
}

/// Gives memory back to the system that this thread does not use any more. Without this it keeps what it may need again, and
/// what a thread leaves behind that ends is kept for a second or more. Takes milliseconds, so never on a worker.
pub fn give_back() {
    // SAFETY: it may be called at any time, and moves no block that is in use.
    unsafe { mi_collect(true) }
    #[cfg(target_env = "gnu")]
    // SAFETY: as above. Libraries in C, zstd among them, do not use our allocator but the system's.
    unsafe {
        malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_zeroed_and_keep_what_is_in_them() {
        for size in [1, 7, 8, 15, 16, 17, 40, 100, 1000, 1025, 5000, 20_000, 100_000, 3_000_000] {
            for align in [1, 2, 4, 8, 16, 32, 64, 128, 4096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the layout is not empty; the block is used within its size, and freed once with its layout.
                unsafe {
                    let block = Mimalloc.alloc_zeroed(layout);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align), "{size} {align}");
                    assert!(std::slice::from_raw_parts(block, size).iter().all(|byte| *byte == 0));
                    block.write_bytes(7, size);
                    let block = Mimalloc.realloc(block, layout, size * 3);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align), "{size} {align}");
                    assert!(std::slice::from_raw_parts(block, size).iter().all(|byte| *byte == 7));
                    Mimalloc.dealloc(block, Layout::from_size_align(size * 3, align).unwrap());
                    let block = Mimalloc.alloc(layout);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align), "{size} {align}");
                    Mimalloc.dealloc(block, layout);
                }
            }
        }
    }
}
