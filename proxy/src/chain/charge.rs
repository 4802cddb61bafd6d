//! What the host keeps for guests, counted in bytes. Each instance has a [`Ledger`] with a budget (`limits.host_memory`). Whatever a
//! guest makes the host keep holds a [`Charge`], which gives its bytes back when it is dropped, on whichever thread that is.
//! Past the budget nothing more is kept, and the host function says so.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;

use crate::observe::{self, Gauge};

/// A call under way: its task, its head, its share of a connection.
pub const CALL: usize = 4096;

/// A timer: its task.
pub const TIMER: usize = 512;

/// Anything small in a list or a map, beside its bytes.
pub const ITEM: usize = 128;

/// How far filters may make a stream's heads and log fields grow before they are weighed: less than the stream itself takes.
const UNWEIGHED: usize = 4096;

/// Bytes of all heads and trailers of a stream, once filters make them grow.
const MAX_HEADS: usize = 2 << 20;

/// There is no room for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the budget (`limits.host_memory`) is used up")]
pub struct BudgetExceeded;

/// A budget, and how much of it is used.
#[derive(Debug)]
pub struct MemoryBudget {
    held: AtomicUsize,
    limit: usize,
    /// Shows it in the metrics.
    gauge: Option<Gauge>,
}

impl MemoryBudget {
    /// A budget of which nothing is used yet.
    pub fn new(limit: usize, gauge: Option<Gauge>) -> Arc<MemoryBudget> {
        Arc::new(MemoryBudget { held: AtomicUsize::new(0), limit, gauge })
    }

    /// Charges these bytes, if they fit.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Result<MemoryCharge, BudgetExceeded> {
        let mut charge = self.open();
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// A charge of nothing, which may grow.
    pub fn open(self: &Arc<Self>) -> MemoryCharge {
        MemoryCharge { ledger: self.clone(), bytes: 0 }
    }

    /// How much is used.
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

/// Bytes of a budget; dropping it gives them back.
#[derive(Debug)]
pub struct MemoryCharge {
    ledger: Arc<MemoryBudget>,
    bytes: usize,
}

impl MemoryCharge {
    /// Charges more, if that fits.
    pub fn grow(&mut self, bytes: usize) -> Result<(), BudgetExceeded> {
        self.ledger.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Charges so much in all, if that fits.
    pub fn set(&mut self, bytes: usize) -> Result<(), BudgetExceeded> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.ledger.give_back(self.bytes - bytes);
                self.bytes = bytes;
                Ok(())
            }
        }
    }

    /// Whether it is of this budget.
    pub fn is_of(&self, ledger: &Arc<MemoryBudget>) -> bool {
        Arc::ptr_eq(&self.ledger, ledger)
    }

    /// Bytes that hold the charge for as long as any part of them is there.
    pub fn hold(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(ChargedBytes { bytes, _charge: self })
    }
}

impl Drop for MemoryCharge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.ledger.give_back(self.bytes);
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

/// What filters are charged for what they make a stream's heads, trailers and log fields grow by. To weigh those takes a look at
/// each field, so it is done only once for a few kilobytes more.
#[derive(Debug, Default)]
pub struct DeferredCharge {
    grown: usize,
    /// One for each instance that has made it grow that far.
    charges: Vec<MemoryCharge>,
}

impl DeferredCharge {
    /// Whether so many bytes more need not be weighed.
    #[inline]
    pub fn add(&mut self, more: usize) -> bool {
        if more > 0 {
            self.grown = self.grown.saturating_add(more);
        }
        more == 0 || self.grown <= UNWEIGHED
    }

    /// Charges an instance for all that there is, and for so many bytes more. Whether they may be added.
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
    fn a_budget_is_never_exceeded_and_everything_is_given_back() {
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
        assert_eq!(ledger.charge(usize::MAX).unwrap_err(), BudgetExceeded, "it does not wrap");
        drop(second);
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn bytes_hold_their_charge_to_the_last_part_on_any_thread() {
        let ledger = MemoryBudget::new(100, None);
        let bytes = ledger.charge(5).unwrap().hold(b"hello".to_vec());
        let part = bytes.slice(1..3);
        drop(bytes);
        assert_eq!((&*part, ledger.held()), (&b"el"[..], 5));
        std::thread::spawn(move || drop(part)).join().unwrap();
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn what_a_stream_owes_is_what_it_weighs_and_never_past_the_budget() {
        let ledger = MemoryBudget::new(10_000, None);
        let mut owed = DeferredCharge::default();
        assert!(owed.add(UNWEIGHED) && owed.add(0), "a little is free");
        assert!(!owed.add(1));
        assert!(owed.weigh(&ledger, 6000, 1) && ledger.held() == 6001);
        assert!(owed.add(UNWEIGHED) && !owed.add(1));
        assert!(!owed.weigh(&ledger, 10_000, 1), "past the budget");
        assert!(!owed.add(1), "and so it stays until there is less");
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
