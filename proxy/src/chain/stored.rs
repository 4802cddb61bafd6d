//! Data that filters store with a stream, for themselves and each other: Envoy's filter state (bytes by key) and
//! dynamic metadata (typed values in namespaces). Limited in size, because guests are not trusted.

use std::sync::Arc;

use tollgate_abi::{fast::limit, value::Value};

use super::charge::{ITEM, MemoryBudget, MemoryCharge};

/// The state that names the cluster of a TCP connection; filters made for Envoy select it this way.
pub const CLUSTER_STATE: &[u8] = b"envoy.tcp_proxy.cluster";

/// Maximum bytes of all keys and values of a stream's state.
const MAX_STATE: usize = 1 << 20;

type Key = Box<[u8]>;

/// The filter state and dynamic metadata of a stream.
#[derive(Debug, Default)]
pub struct StreamMetadata {
    state: Vec<(Key, Box<[u8]>, MemoryCharge)>,
    metadata: Vec<Metadatum>,
}

#[derive(Debug)]
struct Metadatum {
    space: Key,
    key: Key,
    kind: i32,
    value: Box<[u8]>,
    charge: MemoryCharge,
}

/// Why a value was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A name or value is too large, or the value does not match its type.
    #[error("too large, or the value does not match its type")]
    Bad,
    /// The budget or a limit is exhausted.
    #[error("the limit is reached")]
    Full,
}

impl crate::observe::access_log::Stored for StreamMetadata {
    fn state(&self, key: &[u8]) -> Option<&[u8]> {
        StreamMetadata::state(self, key)
    }

    fn metadata(&self, space: &[u8], key: &[u8]) -> Option<(i32, &[u8])> {
        StreamMetadata::metadata(self, space, key)
    }
}

impl StreamMetadata {
    /// The state under a key.
    pub fn state(&self, key: &[u8]) -> Option<&[u8]> {
        self.find_state(|known| known == key)
    }

    /// The first state whose key satisfies `fits`.
    pub fn find_state(&self, fits: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
        self.state.iter().find(|(known, ..)| fits(known)).map(|(_, value, _)| &**value)
    }

    /// Sets the state under a key, charged to `ledger`.
    pub fn set_state(&mut self, key: &[u8], value: &[u8], ledger: &Arc<MemoryBudget>) -> Result<(), StoreError> {
        if key.len() > limit::STATE_BYTES || value.len() > limit::STATE_BYTES {
            return Err(StoreError::Bad);
        }
        let at = self.state.iter().position(|(known, ..)| **known == *key);
        let others = self.state.iter().enumerate().filter(|(i, _)| Some(*i) != at);
        let others: usize = others.map(|(_, (key, value, _))| key.len() + value.len()).sum();
        if others + key.len() + value.len() > MAX_STATE {
            return Err(StoreError::Full);
        }
        if at.is_none() && self.state.len() >= limit::STATE {
            return Err(StoreError::Full);
        }
        let charge = ledger.charge(ITEM + key.len() + value.len()).map_err(|_| StoreError::Full)?;
        match at {
            Some(at) => (self.state[at].1, self.state[at].2) = (value.into(), charge),
            None => self.state.push((key.into(), value.into(), charge)),
        }
        Ok(())
    }

    /// Removes the state under a key. Returns whether it existed.
    pub fn delete_state(&mut self, key: &[u8]) -> bool {
        let at = self.state.iter().position(|(known, ..)| **known == *key);
        at.map(|at| self.state.swap_remove(at)).is_some()
    }

    fn position(&self, space: &[u8], key: &[u8]) -> Option<usize> {
        self.metadata.iter().position(|m| *m.space == *space && *m.key == *key)
    }

    /// The type and bytes of a metadata value.
    pub fn metadata(&self, space: &[u8], key: &[u8]) -> Option<(i32, &[u8])> {
        let m = &self.metadata[self.position(space, key)?];
        Some((m.kind, &m.value))
    }

    /// The keys of a namespace, with the bytes of their values.
    pub fn space(&self, space: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.metadata.iter().filter(move |m| *m.space == *space).map(|m| (&*m.key, &*m.value))
    }

    /// Sets a metadata value, charged to `ledger`.
    pub fn set_metadata(
        &mut self,
        (space, key): (&[u8], &[u8]),
        kind: i32,
        value: &[u8],
        ledger: &Arc<MemoryBudget>,
    ) -> Result<(), StoreError> {
        let names_fit = [space, key].iter().all(|name| name.len() <= limit::METADATA_NAME);
        if !names_fit || value.len() > limit::METADATA_BYTES || Value::decode(kind, value).is_none() {
            return Err(StoreError::Bad);
        }
        let at = self.position(space, key);
        if at.is_none() && self.metadata.len() >= limit::METADATA {
            return Err(StoreError::Full);
        }
        let size = ITEM + space.len() + key.len() + value.len();
        let charge = ledger.charge(size).map_err(|_| StoreError::Full)?;
        let value = value.into();
        match at {
            Some(at) => {
                let known = &mut self.metadata[at];
                (known.kind, known.value, known.charge) = (kind, value, charge);
            }
            None => self.metadata.push(Metadatum { space: space.into(), key: key.into(), kind, value, charge }),
        }
        Ok(())
    }

    /// Removes a metadata value. Returns whether it existed.
    pub fn delete_metadata(&mut self, space: &[u8], key: &[u8]) -> bool {
        self.position(space, key).map(|at| self.metadata.swap_remove(at)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use tollgate_abi::value::kind;

    use super::*;

    fn ledger() -> Arc<MemoryBudget> {
        MemoryBudget::new(usize::MAX, None)
    }

    #[test]
    fn state_is_set_read_and_deleted() {
        let mut stored = StreamMetadata::default();
        stored.set_state(b"a", b"1", &ledger()).unwrap();
        stored.set_state(b"b", b"2", &ledger()).unwrap();
        stored.set_state(b"a", b"3", &ledger()).unwrap();
        assert_eq!(
            (stored.state(b"a"), stored.state(b"b"), stored.state(b"c")),
            (Some(&b"3"[..]), Some(&b"2"[..]), None)
        );
        assert_eq!((stored.delete_state(b"a"), stored.delete_state(b"a"), stored.state(b"a")), (true, false, None));
    }

    #[test]
    fn metadata_has_types_and_namespaces() {
        let mut stored = StreamMetadata::default();
        stored.set_metadata((b"one", b"k"), kind::TEXT, b"text", &ledger()).unwrap();
        stored.set_metadata((b"two", b"k"), kind::BOOL, &[1], &ledger()).unwrap();
        stored.set_metadata((b"one", b"l"), kind::INTEGER, &7i64.to_le_bytes(), &ledger()).unwrap();
        stored.set_metadata((b"one", b"k"), kind::TEXT, b"other", &ledger()).unwrap();
        assert_eq!(stored.metadata(b"one", b"k"), Some((kind::TEXT, &b"other"[..])));
        assert_eq!(stored.space(b"one").map(|(key, _)| key).collect::<Vec<_>>(), [b"k", b"l"]);
        assert!(stored.delete_metadata(b"one", b"k") && !stored.delete_metadata(b"one", b"k"));
        assert_eq!(stored.metadata(b"two", b"k"), Some((kind::BOOL, &[1][..])));
        for (kind, value) in [(kind::BOOL, &b"2"[..]), (kind::NUMBER, b"1"), (9, b""), (kind::TEXT, b"\xff")] {
            assert_eq!(stored.set_metadata((b"one", b"k"), kind, value, &ledger()), Err(StoreError::Bad));
        }
    }

    #[test]
    fn stored_values_are_limited() {
        let mut stored = StreamMetadata::default();
        let set = (0..1000u32).take_while(|i| stored.set_state(&i.to_le_bytes(), b"", &ledger()).is_ok()).count();
        assert_eq!(set, limit::STATE);
        assert_eq!(stored.set_state(b"more", b"", &ledger()), Err(StoreError::Full));
        stored.set_state(&0u32.to_le_bytes(), b"again", &ledger()).unwrap();
        assert_eq!(
            stored.set_state(&0u32.to_le_bytes(), &vec![0; limit::STATE_BYTES + 1], &ledger()),
            Err(StoreError::Bad)
        );
        let large = vec![0; limit::STATE_BYTES];
        let set = (0..64u32).take_while(|i| stored.set_state(&i.to_le_bytes(), &large, &ledger()).is_ok()).count();
        assert_eq!(set, 15, "1 MiB in total");

        let set = (0..1000u32)
            .take_while(|i| stored.set_metadata((b"s", &i.to_le_bytes()), kind::BYTES, b"", &ledger()).is_ok());
        assert_eq!(set.count(), limit::METADATA);
        let long = vec![b'x'; limit::METADATA_BYTES + 1];
        let bad = |stored: &mut StreamMetadata, space: &[u8], key: &[u8], value: &[u8]| {
            stored.set_metadata((space, key), kind::BYTES, value, &ledger()) == Err(StoreError::Bad)
        };
        assert!(bad(&mut stored, b"s", &0u32.to_le_bytes(), &long));
        assert!(bad(&mut stored, &long[..257], b"k", b"") && bad(&mut stored, b"s", &long[..257], b""));
    }

    #[test]
    fn stored_values_are_charged_to_their_owner_until_removed() {
        let (ledger, mut stored) = (MemoryBudget::new(2 * ITEM + 20, None), StreamMetadata::default());
        stored.set_state(b"k", b"12345", &ledger).unwrap();
        stored.set_metadata((b"s", b"k"), kind::TEXT, b"text", &ledger).unwrap();
        assert_eq!(ledger.held(), 2 * ITEM + 12);
        assert_eq!(stored.set_state(b"more", b"", &ledger), Err(StoreError::Full));
        assert_eq!(stored.state(b"k"), Some(&b"12345"[..]));
        assert!(stored.delete_state(b"k") && ledger.held() == ITEM + 6);
        drop(stored);
        assert_eq!(ledger.held(), 0);
    }
}
