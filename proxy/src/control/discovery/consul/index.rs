//! The index of blocking queries, by the rules that Consul documents for clients.

/// The state of which the last answer told; a query with it is held until there is a newer one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Index(u64);

impl Index {
    /// The index for the next query; `None`: it is not held, and answered with the state as it is.
    pub(super) fn held_by(self) -> Option<u64> {
        Some(self.0).filter(|index| *index > 0)
    }

    /// The index after an answer with this `X-Consul-Index`.
    ///
    /// * An index that goes backwards, as after a restore of Consul's data, starts over: a query with the old index would be
    ///   held until the new numbers have reached it.
    /// * A query with the index 0 is not held, so an index of 0, or none, would be asked for without a pause. It counts as 1,
    ///   the least that is held.
    pub(super) fn after(self, header: Option<&str>) -> Index {
        let told = header.and_then(|text| text.trim().parse().ok()).unwrap_or(0).max(1);
        match told < self.0 {
            true => Index::default(),
            false => Index(told),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(headers: &[Option<&str>]) -> Option<u64> {
        headers.iter().fold(Index::default(), |index, header| index.after(*header)).held_by()
    }

    #[test]
    fn first_query_is_not_held_and_the_next_one_has_the_index() {
        assert_eq!(after(&[]), None);
        assert_eq!(after(&[Some("42")]), Some(42));
        assert_eq!(after(&[Some("42"), Some("42")]), Some(42));
        assert_eq!(after(&[Some("42"), Some("18446744073709551615")]), Some(u64::MAX));
    }

    #[test]
    fn index_that_goes_backwards_starts_over() {
        assert_eq!(after(&[Some("42"), Some("41")]), None);
        assert_eq!(after(&[Some("42"), Some("41"), Some("41")]), Some(41));
        assert_eq!(after(&[Some("42"), Some("0")]), None);
    }

    #[test]
    fn missing_or_zero_index_counts_as_one() {
        for header in [None, Some("0"), Some(""), Some("-1"), Some("nonsense"), Some("18446744073709551616")] {
            assert_eq!(after(&[header]), Some(1), "{header:?}");
            assert_eq!(after(&[Some("42"), header]), None, "{header:?}");
        }
    }
}
