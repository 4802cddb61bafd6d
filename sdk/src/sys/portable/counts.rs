//! Token buckets and limits, kept as numbers in shared data and changed by compare-and-swap.
//!
//! Shared data cannot be deleted, so the buckets of keys are kept in a bounded number of values, each with slots for a
//! few keys. A key's hash selects its value; when all slots are taken, the bucket nearest to full is evicted. A
//! bucket's state is a single number (see `tollgate_abi::gcra`).

use tollgate_abi::{fast::Take, gcra::Figures};

/// Slots per value.
const PLACES: usize = 8;
/// Bytes per slot: a key's hash, and when its bucket will be full.
const PLACE: usize = 16;

/// Returns the number of values for this many keys. Keys spread unevenly, so there are twice as many slots.
fn values(max_keys: u32) -> u32 {
    max_keys.div_ceil(PLACES as u32 / 2)
}

/// Takes tokens for a key's hash, if available. Returns whether they were, the new value, and the state for the filter.
fn take(value: &[u8], figures: &Figures, key: u64, now: u64, tokens: i32) -> (bool, Vec<u8>, Take) {
    let word = |bytes: &[u8]| u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
    let places = value.chunks_exact(PLACE).take(PLACES).map(|place| (word(place), word(&place[8..])));
    // A full bucket is equivalent to an absent one.
    let mut places: Vec<_> = places.filter(|(known, full_at)| *known == key || *full_at > now).collect();
    let at = places.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
        if places.len() >= PLACES {
            let nearest = (0..places.len()).min_by_key(|at| places[*at].1).unwrap_or_default();
            places.swap_remove(nearest);
        }
        places.push((key, 0));
        places.len() - 1
    });
    let (taken, full_at, take) = figures.take(places[at].1, now, tokens);
    places[at].1 = full_at;
    (
        taken,
        places.iter().flat_map(|(key, full_at)| [key.to_le_bytes(), full_at.to_le_bytes()].concat()).collect(),
        take,
    )
}

#[cfg(target_arch = "wasm32")]
pub(super) mod host {
    //! The module's buckets and limits, backed by the host's shared data.

    use std::{
        cell::RefCell,
        hash::{DefaultHasher, Hasher},
        mem::ManuallyDrop,
    };

    use tollgate_abi::{
        fast::Take,
        gcra::{Figures, TICKS_PER_NANO},
        proxy_wasm::Status,
    };

    use crate::{
        doc,
        sys::{self, portable::streams},
        table::borrow,
    };

    /// A bucket, or one per key.
    #[derive(Clone)]
    struct Bucket {
        /// Its key in the shared data.
        key: Vec<u8>,
        figures: Figures,
        /// 0: a single bucket, whatever the key.
        values: u32,
        /// Prevents clients from choosing keys that share a slot.
        seed: u64,
    }

    struct Limit {
        key: Vec<u8>,
        max: u32,
    }

    thread_local! {
        static BUCKETS: ManuallyDrop<RefCell<Vec<Bucket>>> = const { ManuallyDrop::new(RefCell::new(Vec::new())) };
        static LIMITS: ManuallyDrop<RefCell<Vec<Limit>>> = const { ManuallyDrop::new(RefCell::new(Vec::new())) };
    }

    /// Builds a shared-data key that no other filter uses. The parameters are part of it: changed parameters start from
    /// scratch.
    fn key(kind: &str, name: &str, figures: &[u64]) -> Vec<u8> {
        let plugin = sys::property(b"plugin_name").unwrap_or_default();
        let mut key = [kind.as_bytes(), b"\0", &plugin, b"\0", name.as_bytes(), b"\0"].concat();
        figures.iter().for_each(|figure| key.extend(figure.to_le_bytes()));
        key
    }

    /// Replaces a value with a function of the current one, if that returns a value.
    fn update<T>(key: &[u8], mut change: impl FnMut(&[u8]) -> (Option<Vec<u8>>, T)) -> T {
        loop {
            let (before, version) = sys::shared_get(key).unwrap_or_default();
            let (after, result) = change(&before);
            let Some(after) = after else { return result };
            if sys::shared_set(key, &after, version) != Status::CasMismatch as i32 {
                return result;
            }
        }
    }

    pub(crate) fn bucket_define(bucket: &doc::Bucket) -> i32 {
        let Some(figures) = Figures::new(bucket) else { return -(Status::BadArgument as i32) };
        let doc::Bucket { name, capacity, fill, interval_ms, max_keys } = bucket;
        let key = key("tollgate_bucket", name, &[(*capacity).into(), (*fill).into(), *interval_ms, (*max_keys).into()]);
        // Shared by all workers' instances: the first one to start, which is the host's validation instance, sets it.
        let seed = update(&[&key[..], b"seed"].concat(), |known| match known.try_into() {
            Ok(seed) => (None, u64::from_le_bytes(seed)),
            Err(_) => {
                let mut seed = [0; 8];
                sys::random_bytes(&mut seed);
                (Some(seed.to_vec()), u64::from_le_bytes(seed))
            }
        });
        BUCKETS.with(|buckets| {
            let mut buckets = borrow(buckets);
            buckets.push(Bucket { key, figures, values: super::values(*max_keys), seed });
            buckets.len() as i32 - 1
        })
    }

    pub(crate) fn bucket_take(bucket: u32, key: &[u8], tokens: i32) -> (i32, Take) {
        let bucket = BUCKETS.with(|buckets| borrow(buckets).get(bucket as usize).cloned());
        let Some(mut bucket) = bucket else { return (-(Status::BadArgument as i32), Take::default()) };
        let mut hash = 0;
        if bucket.values > 0 {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(bucket.seed);
            hasher.write(key);
            hash = hasher.finish();
            bucket.key.extend(((hash % u64::from(bucket.values)) as u32).to_le_bytes());
        }
        update(&bucket.key, |value| {
            let now = sys::now().saturating_mul(TICKS_PER_NANO);
            let (taken, value, take) = super::take(value, &bucket.figures, hash, now, tokens);
            (taken.then_some(value), (taken.into(), take))
        })
    }

    pub(crate) fn limit_define(name: &str, max: u32) -> i32 {
        let key = key("tollgate_limit", name, &[]);
        LIMITS.with(|limits| {
            let mut limits = borrow(limits);
            limits.push(Limit { key, max });
            limits.len() as i32 - 1
        })
    }

    /// Changes the number of permits taken from a limit. Returns whether there was room.
    fn change(limit: u32, by: i32) -> bool {
        let limit = LIMITS.with(|limits| borrow(limits).get(limit as usize).map(|l| (l.key.clone(), l.max)));
        let Some((key, max)) = limit else { return false };
        update(&key, |value| {
            let taken = value.try_into().map_or(0, u32::from_le_bytes);
            let after = taken.saturating_add_signed(by);
            match after <= max || by < 0 {
                true => (Some(after.to_le_bytes().to_vec()), true),
                false => (None, false),
            }
        })
    }

    pub(crate) fn limit_acquire(limit: u32) -> i32 {
        if streams::has_place(limit) {
            return 1;
        }
        let acquired = change(limit, 1);
        if acquired {
            streams::add_place(limit);
        }
        acquired.into()
    }

    pub(crate) fn limit_release(limit: u32) {
        if streams::remove_place(limit) {
            give_back(limit);
        }
    }

    pub(in crate::sys::portable) fn give_back(limit: u32) {
        change(limit, -1);
    }
}

#[cfg(test)]
mod tests {
    use tollgate_abi::{doc::Bucket, gcra::TICKS_PER_NANO};

    use super::*;

    const SECOND: u64 = 1_000_000_000 * TICKS_PER_NANO;

    fn figures() -> Figures {
        Figures::new(&Bucket { name: "b".into(), capacity: 2, fill: 1, interval_ms: 1000, max_keys: 10 }).unwrap()
    }

    #[test]
    fn each_key_has_its_own_bucket() {
        let (figures, now) = (figures(), 100 * SECOND);
        let (mut value, mut taken) = (Vec::new(), Vec::new());
        for key in [1, 1, 2, 1, 2, 2] {
            let (there, after, _) = take(&value, &figures, key, now, 1);
            taken.push(there);
            value = after;
        }
        assert_eq!(taken, [true, true, true, false, true, false]);
        assert!(take(&value, &figures, 1, now + SECOND, 1).0, "one token is added per second");
    }

    #[test]
    fn value_stays_bounded_by_evicting_the_fullest_bucket() {
        let (figures, now) = (figures(), 100 * SECOND);
        let mut value = take(&[], &figures, 1, now, 1).1;
        for key in 2..=PLACES as u64 {
            value = take(&value, &figures, key, now, 2).1;
        }
        value = take(&value, &figures, 100, now, 2).1;
        assert_eq!(value.len(), PLACES * PLACE);
        assert!(!take(&value, &figures, 2, now, 1).0, "the key was not evicted");
        assert_eq!(take(&value, &figures, 1, now, 1).2.remaining, 1, "the bucket is full again");
        assert_eq!(take(&value, &figures, 7, now + 10 * SECOND, 1).1.len(), PLACE, "the other buckets are full again");
    }

    #[test]
    fn arbitrary_bytes_are_a_valid_value() {
        for bytes in [&b"x"[..], &[0xff; 40], &[0xff; 1000]] {
            assert!(take(bytes, &figures(), 1, SECOND, 1).1.len() <= PLACES * PLACE);
        }
        assert_eq!((values(0), values(1), values(10)), (0, 1, 3));
    }
}
