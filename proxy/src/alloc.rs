//! The global allocator.
#![expect(unsafe_code, reason = "an allocator is one")]

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys as mi;

/// mimalloc, which is designed for many small allocations that are freed on the thread that made them. The crate's own
/// [`GlobalAlloc`] requests an alignment for every block, which is slower for larger sizes and uses more memory.
pub struct Mimalloc;

/// The alignment of all blocks of at least this size (`MI_MAX_ALIGN_SIZE`).
const ALIGNED: usize = 16;

/// Whether a block is aligned without requesting it. Smaller blocks are aligned to a power of two that is not less than
/// their size, or to 8.
fn is_aligned_anyway(layout: Layout) -> bool {
    layout.align() <= 8 || (layout.align() <= ALIGNED && layout.size() >= ALIGNED)
}

// SAFETY: mimalloc returns blocks of at least the requested size, which stay in place until they are freed, or null if
// there is no memory, and never unwinds. The alignment is requested, or guaranteed as described at `is_aligned_anyway`.
unsafe impl GlobalAlloc for Mimalloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size is allowed, and any alignment that is a power of two, which a layout's is.
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
        // SAFETY: the caller got the block from this allocator, and no longer uses it.
        unsafe { mi::mi_free(block.cast()) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as for `dealloc`; the alignment is checked for the new size, so it holds for that as well.
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
    // From mimalloc.h; the crate exposes it only with a feature that includes more.
    fn mi_collect(force: bool);
}

/// Returns memory that this thread no longer uses to the system. Otherwise the allocator keeps it for later, and the
/// memory of an ended thread stays for a second or more. This takes milliseconds, so it never runs on a worker.
pub fn give_back() {
    // SAFETY: it may be called at any time, and does not move blocks in use.
    unsafe { mi_collect(true) }
    #[cfg(target_env = "gnu")]
    // SAFETY: as above. C libraries such as zstd use the system's allocator instead of this one.
    unsafe {
        malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_zeroed_and_keep_their_contents() {
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
