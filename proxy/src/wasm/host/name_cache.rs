//! A cache of header names that a guest passes as text. A standard filter uses the same few names on each request, and
//! parsing a name (its case, whether it is well known) costs more than comparing it with the previous one.

use std::hash::Hasher;

use rustc_hash::FxHasher;

use crate::chain::head::Name;

/// The number of cached names: one per value of 6 bits of a hash.
const PLACES: usize = 64;

/// Longer names are parsed each time.
const LONGEST: usize = 64;

/// The names as text and parsed.
#[derive(Debug, Default)]
pub struct NameCache {
    /// Empty until first used.
    places: Vec<Option<(Box<[u8]>, Name)>>,
    /// The latest name that is not cached.
    last: Option<Name>,
}

impl NameCache {
    /// Parses a name. `None` if it is not a valid name.
    pub fn name(&mut self, text: &[u8]) -> Option<&Name> {
        if text.len() > LONGEST {
            self.last = Name::parse(text);
            return self.last.as_ref();
        }
        if self.places.is_empty() {
            self.places.resize(PLACES, None);
        }
        let mut hasher = FxHasher::default();
        hasher.write(text);
        let place = &mut self.places[hasher.finish() as usize % PLACES];
        if place.as_ref().is_none_or(|(known, _)| **known != *text) {
            *place = Some((text.into(), Name::parse(text)?));
        }
        place.as_ref().map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_name_equals_the_parsed_name() {
        let mut spelled = NameCache::default();
        let long = "x".repeat(LONGEST + 1);
        let many = (0..4 * PLACES).map(|i| format!("X-{i}"));
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
