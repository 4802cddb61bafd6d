//! Resources of the simulated host: buckets, limits, metrics, shared data, queues.

use std::collections::{HashMap, VecDeque};

use tollgate_abi::{
    fast::{Take, expected, limit},
    gcra::{Figures, TICKS_PER_NANO},
    proxy_wasm::{Status, metric},
};

use super::host::Host;
use crate::doc;

/// Token buckets of one name.
pub(super) struct Buckets {
    figures: Figures,
    /// 0: a single bucket, whatever the key.
    max_keys: usize,
    /// When each bucket will be full.
    full_at: HashMap<Vec<u8>, u64>,
}

impl Buckets {
    fn take(&mut self, key: &[u8], now: u64, tokens: i32) -> (i32, Take) {
        let key = if self.max_keys == 0 { &[] } else { key };
        if !self.full_at.contains_key(key) && self.full_at.len() >= self.max_keys.max(1) {
            // Evict the bucket nearest to full, as the real host does.
            let nearest = self.full_at.iter().min_by_key(|(_, full_at)| **full_at).map(|(key, _)| key.clone());
            self.full_at.remove(&nearest.unwrap_or_default());
        }
        let full_at = self.full_at.entry(key.to_vec()).or_default();
        let (taken, next, take) = self.figures.take(*full_at, now, tokens);
        *full_at = next;
        (taken.into(), take)
    }
}

/// A metric.
pub(super) struct Metric {
    name: String,
    kind: i32,
    value: i64,
    /// Values recorded by a histogram.
    recorded: Vec<i64>,
}

/// A value of the shared data.
pub(super) struct SharedValue {
    value: Vec<u8>,
    version: u32,
    /// When the value expires.
    until_ns: u64,
}

/// A queue and its messages.
pub(super) struct SharedQueue {
    name: String,
    messages: VecDeque<Vec<u8>>,
    /// Whether the filter has registered it.
    pub(super) read: bool,
}

impl Host {
    pub(crate) fn define_bucket(&mut self, bucket: &doc::Bucket) -> i32 {
        let Some(figures) = Figures::new(bucket) else { return -(Status::BadArgument as i32) };
        self.buckets.push(Buckets { figures, max_keys: bucket.max_keys as usize, full_at: HashMap::new() });
        self.buckets.len() as i32 - 1
    }

    pub(crate) fn take(&mut self, bucket: u32, key: &[u8], tokens: i32) -> (i32, Take) {
        let now = self.now_ns * TICKS_PER_NANO;
        self.buckets[bucket as usize].take(key, now, tokens)
    }

    pub(crate) fn acquire(&mut self, limit: u32) -> i32 {
        let (max, held) = &mut self.limits[limit as usize];
        if held >= max {
            return 0;
        }
        *held += 1;
        self.stream().limits_held.push(limit);
        1
    }

    pub(crate) fn release(&mut self, limit: u32) {
        let held = &mut self.stream().limits_held;
        if let Some(at) = held.iter().position(|l| *l == limit) {
            held.swap_remove(at);
            self.limits[limit as usize].1 -= 1;
        }
    }

    /// Metrics of the same name are the same metric.
    pub(crate) fn define_metric(&mut self, kind: i32, name: &str) -> u32 {
        let known = self.metrics.iter().position(|m| m.name == name && m.kind == kind);
        known.unwrap_or_else(|| {
            self.metrics.push(Metric { name: name.into(), kind, value: 0, recorded: Vec::new() });
            self.metrics.len() - 1
        }) as u32
    }

    pub(crate) fn increment_metric(&mut self, id: u32, delta: i64) {
        self.metrics[id as usize].value += delta;
    }

    pub(crate) fn record_metric(&mut self, id: u32, value: i64) {
        let metric = &mut self.metrics[id as usize];
        match metric.kind {
            metric::GAUGE => metric.value = value,
            metric::HISTOGRAM => metric.recorded.push(value),
            _ => metric.value += value,
        }
    }

    pub(crate) fn metric_value(&self, id: u32) -> u64 {
        self.metrics[id as usize].value as u64
    }

    pub(super) fn metric(&self, name: &str) -> i64 {
        self.metrics.iter().find(|m| m.name == name).map_or(0, |m| m.value)
    }

    pub(super) fn recorded(&self, name: &str) -> Vec<i64> {
        self.metrics.iter().find(|m| m.name == name).map_or_else(Vec::new, |m| m.recorded.clone())
    }

    pub(crate) fn shared_get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        let found = self.shared.get(key).filter(|found| found.until_ns > self.now_ns)?;
        Some((found.value.clone(), found.version))
    }

    pub(crate) fn shared_set(&mut self, key: &[u8], value: &[u8], version: u32) -> i32 {
        let expected = if version == 0 { expected::ANY } else { i64::from(version) };
        self.shared_set_if(key, value, expected, 0)
    }

    /// Reports whether a key's version is the expected one.
    fn is_as_expected(&self, key: &[u8], expected: i64) -> bool {
        let known = self.shared_get(key).map_or(expected::ABSENT, |(_, version)| version.into());
        expected == expected::ANY || expected == known
    }

    pub(crate) fn shared_set_if(&mut self, key: &[u8], value: &[u8], expected: i64, ttl_ms: u64) -> i32 {
        if !self.is_as_expected(key, expected) {
            return Status::CasMismatch as i32;
        }
        self.shared_version += 1;
        let until_ns = match ttl_ms {
            0 => u64::MAX,
            ms => self.now_ns.saturating_add(ms.saturating_mul(1_000_000)),
        };
        let new = SharedValue { value: value.to_vec(), version: self.shared_version, until_ns };
        self.shared.insert(key.to_vec(), new);
        Status::Ok as i32
    }

    pub(crate) fn shared_delete(&mut self, key: &[u8], expected: i64) -> i32 {
        if self.shared_get(key).is_none() {
            return Status::NotFound as i32;
        }
        if !self.is_as_expected(key, expected) {
            return Status::CasMismatch as i32;
        }
        self.shared.remove(key);
        Status::Ok as i32
    }

    /// Enforces the real host's limits.
    pub(crate) fn set_state(&mut self, key: &[u8], value: &[u8]) -> i32 {
        let state = &mut self.stream().state;
        if key.len() > limit::STATE_BYTES || value.len() > limit::STATE_BYTES {
            return Status::BadArgument as i32;
        }
        if !state.contains_key(key) && state.len() >= limit::STATE {
            return Status::InternalFailure as i32;
        }
        state.insert(key.to_vec(), value.to_vec());
        Status::Ok as i32
    }

    /// Enforces the real host's limits.
    pub(crate) fn set_metadata(&mut self, space: &[u8], key: &[u8], kind: i32, value: &[u8]) -> i32 {
        let metadata = &mut self.stream().metadata;
        if space.len().max(key.len()) > limit::METADATA_NAME || value.len() > limit::METADATA_BYTES {
            return Status::BadArgument as i32;
        }
        let name = (space.to_vec(), key.to_vec());
        if !metadata.contains_key(&name) && metadata.len() >= limit::METADATA {
            return Status::InternalFailure as i32;
        }
        metadata.insert(name, (kind, value.to_vec()));
        Status::Ok as i32
    }

    /// Returns the queue's number, creating the queue if necessary.
    pub(crate) fn queue(&mut self, name: &str, read: bool) -> u32 {
        let known = self.queues.iter().position(|q| q.name == name);
        let at = known.unwrap_or_else(|| {
            self.queues.push(SharedQueue { name: name.into(), messages: VecDeque::new(), read: false });
            self.queues.len() - 1
        });
        self.queues[at].read |= read;
        at as u32 + 1
    }

    pub(crate) fn find_queue(&self, name: &str) -> Option<u32> {
        self.queues.iter().position(|q| q.name == name).map(|at| at as u32 + 1)
    }

    pub(crate) fn push(&mut self, queue: u32, message: &[u8]) -> bool {
        let Some(found) = self.queues.get_mut(queue as usize - 1) else { return false };
        found.messages.push_back(message.to_vec());
        if found.read {
            self.ready.push_back(queue);
        }
        true
    }

    pub(crate) fn pop(&mut self, queue: u32) -> Option<Vec<u8>> {
        self.queues.get_mut(queue as usize - 1)?.messages.pop_front()
    }
}
