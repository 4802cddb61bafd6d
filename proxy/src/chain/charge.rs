//! Accounting of the memory that the host holds for guests. Each instance has a [`MemoryBudget`]
//! (`limits.host_memory`), and everything that the host stores for it holds a [`MemoryCharge`], which returns its bytes
//! when dropped, on any thread. When the budget is used up, nothing more is stored and the host function returns an
//! error.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;

use crate::observe::{self, Gauge};

/// Bytes charged for a call: its task, its head, its share of a connection.
pub const CALL: usize = 4096;

/// Bytes charged for a timer: its task.
pub const TIMER: usize = 512;

/// Overhead charged for a small item in a list or map.
pub const ITEM: usize = 128;

/// Bytes by which filters may grow a stream's heads and log fields before they are measured: less than the stream
/// itself takes.
const UNWEIGHED: usize = 4096;

/// Maximum bytes of all heads and trailers of a stream when filters grow them.
const MAX_HEADS: usize = 2 << 20;

/// The budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the budget (`limits.host_memory`) is used up")]
pub struct BudgetExceeded;

/// A budget and its usage.
#[derive(Debug)]
pub struct MemoryBudget {
    held: AtomicUsize,
    limit: usize,
    /// Exports the usage.
    gauge: Option<Gauge>,
}

impl MemoryBudget {
    /// Creates an unused budget.
    pub fn new(limit: usize, gauge: Option<Gauge>) -> Arc<MemoryBudget> {
        Arc::new(MemoryBudget { held: AtomicUsize::new(0), limit, gauge })
    }

    /// Charges these bytes if they fit.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Result<MemoryCharge, BudgetExceeded> {
        let mut charge = self.open();
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// Creates an empty charge, which may grow.
    pub fn open(self: &Arc<Self>) -> MemoryCharge {
        MemoryCharge { budget: self.clone(), bytes: 0 }
    }

    /// The usage in bytes.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    fn take(&self, bytes: usize) -> Result<(), BudgetExceeded> {
        let fits = |held: usize| held.checked_add(bytes).filter(|all| *all <= self.limit);
        self.held.try_update(Relaxed, Relaxed, fits).map_err(|_| BudgetExceeded)?;
        if let Some(gauge) = &self.gauge {
            gauge.add(observe::shard(), bytes as i64);
        }
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Relaxed);
        if let Some(gauge) = &self.gauge {
            gauge.sub(observe::shard(), bytes as i64);
        }
    }
}

/// Bytes charged to a budget, returned on drop.
#[derive(Debug)]
pub struct MemoryCharge {
    budget: Arc<MemoryBudget>,
    bytes: usize,
}

impl MemoryCharge {
    /// Charges more bytes if they fit.
    pub fn grow(&mut self, bytes: usize) -> Result<(), BudgetExceeded> {
        self.budget.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Changes the total charge to `bytes` if that fits.
    pub fn set(&mut self, bytes: usize) -> Result<(), BudgetExceeded> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.budget.give_back(self.bytes - bytes);
                self.bytes = bytes;
                Ok(())
            }
        }
    }

    /// Whether it is a charge on this budget.
    pub fn is_of(&self, ledger: &Arc<MemoryBudget>) -> bool {
        Arc::ptr_eq(&self.budget, ledger)
    }

    /// Wraps bytes so that they hold the charge for as long as any part of them exists.
    pub fn hold(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(ChargedBytes { bytes, _charge: self })
    }
}

impl Drop for MemoryCharge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(self.bytes);
        }
    }
}

struct ChargedBytes {
    bytes: Vec<u8>,
    _charge: MemoryCharge,
}

impl AsRef<[u8]> for ChargedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What filters are charged for the growth of a stream's heads, trailers and log fields. Measuring these visits each
/// field, so it is done only once per a few kilobytes of growth.
#[derive(Debug, Default)]
pub struct DeferredCharge {
    grown: usize,
    /// One per instance that has caused such growth.
    charges: Vec<MemoryCharge>,
}

impl DeferredCharge {
    /// Adds to the growth. Returns whether it is too small to measure.
    #[inline]
    pub fn add(&mut self, more: usize) -> bool {
        if more > 0 {
            self.grown = self.grown.saturating_add(more);
        }
        more == 0 || self.grown <= UNWEIGHED
    }

    /// Charges an instance for everything that exists plus `more` bytes. Returns whether they may be added.
    #[cold]
    pub fn weigh(&mut self, ledger: &Arc<MemoryBudget>, there: usize, more: usize) -> bool {
        let all = there.saturating_add(more);
        if all > MAX_HEADS {
            return false;
        }
        let at = self.charges.iter().position(|charge| charge.is_of(ledger));
        let at = at.unwrap_or_else(|| {
            self.charges.push(ledger.open());
            self.charges.len() - 1
        });
        let fits = self.charges[at].set(all).is_ok();
        if fits {
            self.grown = 0;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_never_exceeded_and_everything_is_returned() {
        let ledger = MemoryBudget::new(100, None);
        let first = ledger.charge(60).unwrap();
        assert_eq!(ledger.charge(41).unwrap_err(), BudgetExceeded);
        let mut second = ledger.charge(30).unwrap();
        assert_eq!((second.grow(11), second.set(41)), (Err(BudgetExceeded), Err(BudgetExceeded)));
        second.set(40).unwrap();
        assert_eq!(ledger.held(), 100);
        drop(first);
        second.set(1).unwrap();
        assert_eq!(ledger.held(), 1);
        assert_eq!(ledger.charge(usize::MAX).unwrap_err(), BudgetExceeded, "it does not overflow");
        drop(second);
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn bytes_hold_their_charge_until_the_last_part_is_dropped() {
        let ledger = MemoryBudget::new(100, None);
        let bytes = ledger.charge(5).unwrap().hold(b"hello".to_vec());
        let part = bytes.slice(1..3);
        drop(bytes);
        assert_eq!((&*part, ledger.held()), (&b"el"[..], 5));
        std::thread::spawn(move || drop(part)).join().unwrap();
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn deferred_charge_matches_the_size_and_respects_the_budget() {
        let ledger = MemoryBudget::new(10_000, None);
        let mut owed = DeferredCharge::default();
        assert!(owed.add(UNWEIGHED) && owed.add(0), "small growth is free");
        assert!(!owed.add(1));
        assert!(owed.weigh(&ledger, 6000, 1) && ledger.held() == 6001);
        assert!(owed.add(UNWEIGHED) && !owed.add(1));
        assert!(!owed.weigh(&ledger, 10_000, 1), "over the budget");
        assert!(!owed.add(1), "stays rejected until usage drops");
        assert!(owed.weigh(&ledger, 50, 1) && ledger.held() == 51);
        let wide = MemoryBudget::new(usize::MAX, None);
        assert!(!owed.weigh(&wide, MAX_HEADS, 1));
        drop(owed);
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn threads_share_a_budget_exactly() {
        let ledger = MemoryBudget::new(1000, None);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        let held: Vec<_> = (0..400).map_while(|_| ledger.charge(1).ok()).collect();
                        assert!(ledger.held() <= 1000);
                        drop(held);
                    }
                });
            }
        });
        assert_eq!(ledger.held(), 0);
    }
}
