//! A large array of 64-bit atomics that start at 0 and use memory only where they are written: the kernel maps its
//! pages on first write. An allocator may instead write zeros over the whole array up front (ours does at these sizes).

use std::ops::Deref;

use memmap2::MmapMut;

/// The array.
#[derive(Debug)]
pub struct ZeroedAtomics {
    map: MmapMut,
    len: usize,
}

impl ZeroedAtomics {
    /// Creates an array of `len` atomics. `None` if there is not enough address space.
    pub fn new(len: usize) -> Option<ZeroedAtomics> {
        let map = MmapMut::map_anon(len.checked_mul(size_of::<u64>())?.max(1)).ok()?;
        Some(ZeroedAtomics { map, len })
    }
}

impl Deref for ZeroedAtomics {
    type Target = [std::sync::atomic::AtomicU64];

    #[allow(unsafe_code)]
    fn deref(&self) -> &Self::Target {
        // SAFETY: the mapping is private to this value and lives as long as it does; it starts at a page boundary, so
        // it is aligned, and has room for `len` words of 8 bytes; it was zero-filled, and 0 is a valid `AtomicU64`; it
        // is accessed only through these atomics.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn atomics_start_at_zero_and_keep_written_values() {
        let words = ZeroedAtomics::new(1 << 22).unwrap();
        assert!(words.len() == 1 << 22 && words.iter().step_by(4096).all(|word| word.load(Relaxed) == 0));
        std::thread::scope(|s| {
            for n in 0..4 {
                let words = &words;
                s.spawn(move || {
                    words.iter().skip(n).step_by(4).take(1000).for_each(|word| word.store(n as u64, Relaxed))
                });
            }
        });
        assert!(words.iter().take(4000).enumerate().all(|(i, word)| word.load(Relaxed) == i as u64 % 4));
        assert_eq!(words[(1 << 22) - 1].load(Relaxed), 0);
        assert_eq!(ZeroedAtomics::new(0).unwrap().len(), 0);
        assert!(ZeroedAtomics::new(usize::MAX).is_none());
    }
}
