//! A cache of header names that a guest passes as text. A standard filter uses the same few names on each request, and
//! parsing a name (its case, whether it is well known) costs more than comparing it with the previous one.

use std::hash::Hasher;

use rustc_hash::FxHasher;

use crate::chain::head::Name;

/// The number of cached names: one per value of 6 bits of a hash.
const SLOTS: usize = 64;

/// Longer names are parsed each time.
const MAX_CACHED: usize = 64;

/// The names as text and parsed.
#[derive(Debug, Default)]
pub struct NameCache {
    /// Empty until first used.
    slots: Vec<Option<(Box<[u8]>, Name)>>,
    /// The latest name that is not cached.
    last: Option<Name>,
}

impl NameCache {
    /// Parses a name. `None` if it is not a valid name.
    pub fn name(&mut self, text: &[u8]) -> Option<&Name> {
        if text.len() > MAX_CACHED {
            self.last = Name::parse(text);
            return self.last.as_ref();
        }
        if self.slots.is_empty() {
            self.slots.resize(SLOTS, None);
        }
        let mut hasher = FxHasher::default();
        hasher.write(text);
        let slot = &mut self.slots[hasher.finish() as usize % SLOTS];
        if slot.as_ref().is_none_or(|(known, _)| **known != *text) {
            *slot = Some((text.into(), Name::parse(text)?));
        }
        slot.as_ref().map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_name_equals_the_parsed_name() {
        let mut spelled = NameCache::default();
        let long = "x".repeat(MAX_CACHED + 1);
        let many = (0..4 * SLOTS).map(|i| format!("X-{i}"));
        let texts: Vec<String> =
            many.chain([":path", "Host", "accept", "Accept", "", "a b", "none", &long].map(String::from)).collect();
        for _ in 0..2 {
            for text in &texts {
                let text = text.as_bytes();
                assert_eq!(spelled.name(text).cloned(), Name::parse(text), "{}", text.escape_ascii());
                assert_eq!(spelled.name(text).cloned(), Name::parse(text), "{}, again", text.escape_ascii());
            }
        }
    }
}
