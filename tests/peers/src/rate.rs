//! The rate at which a scenario measures latencies. It is the same for all of its proxies, so that their latencies are comparable,
//! and it is based on the capacity of each proxy on this machine: a rate that is easy for one machine
//! saturates the slowest proxy on another.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The share of the slowest proxy's capacity. It leaves room for a machine whose speed changes from one minute to the next.
const SHARE: f64 = 0.5;

/// A scenario's rate, and the capacities on which it is based.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Requests a second.
    pub rate: u32,
    /// The requests a second that each proxy carried at saturation. Empty in older results, with fixed rates.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub carried: BTreeMap<String, f64>,
}

impl Pace {
    /// Half of the slowest proxy's capacity, but at most `most`. `None` if nothing was measured.
    pub fn of(carried: BTreeMap<String, f64>, most: u32) -> Option<Pace> {
        let rate = share(slowest(&carried)?.1).min(most);
        Some(Pace { rate, carried })
    }

    /// The rate's relation to the slowest proxy, as a clause that follows the rate in a sentence.
    pub fn clause(&self) -> String {
        let Some((label, carried)) = slowest(&self.carried) else { return String::new() };
        let less = if self.rate < share(carried) { "less than " } else { "" };
        format!(", {less}half of what the slowest ({label}) carried")
    }
}

fn slowest(carried: &BTreeMap<String, f64>) -> Option<(&str, f64)> {
    carried.iter().map(|(label, rate)| (label.as_str(), *rate)).min_by(|a, b| a.1.total_cmp(&b.1))
}

/// `SHARE` of a capacity, rounded down to two digits, but at least one request a second.
fn share(carried: f64) -> u32 {
    let exact = (carried * SHARE) as u32;
    let unit = 10_u32.pow(exact.checked_ilog10().unwrap_or(0).saturating_sub(1));
    (exact / unit * unit).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(rates: &[(&str, f64)]) -> BTreeMap<String, f64> {
        rates.iter().map(|(label, rate)| ((*label).to_owned(), *rate)).collect()
    }

    #[test]
    fn the_rate_is_half_of_what_the_slowest_carried() {
        let pace = Pace::of(carried(&[("nginx", 21_000.0), ("Envoy", 7_936.4), ("Tollgate", 19_000.0)]), 5000).unwrap();
        assert_eq!(pace.rate, 3900);
        assert_eq!(pace.clause(), ", half of what the slowest (Envoy) carried");
        assert_eq!(
            Pace::of(carried(&[("a", 10_000.0)]), 5000).unwrap().clause(),
            ", half of what the slowest (a) carried"
        );
    }

    #[test]
    fn a_fast_machine_does_not_raise_the_rate_above_the_most() {
        let pace = Pace::of(carried(&[("nginx", 60_000.0), ("Envoy", 22_373.0)]), 5000).unwrap();
        assert_eq!(pace.rate, 5000);
        assert_eq!(pace.clause(), ", less than half of what the slowest (Envoy) carried");
    }

    #[test]
    fn rates_are_rounded_down_to_two_digits_and_never_zero() {
        let cases =
            [(0.0, 1), (1.9, 1), (5.0, 2), (39.9, 19), (199.0, 99), (250.0, 120), (1_999.0, 990), (2e6, 1_000_000)];
        for (slowest, expected) in cases {
            assert_eq!(share(slowest), expected, "half of {slowest}");
        }
    }

    #[test]
    fn without_a_measurement_there_is_no_rate() {
        assert_eq!(Pace::of(BTreeMap::new(), 5000), None);
        assert_eq!(Pace { rate: 5000, carried: BTreeMap::new() }.clause(), "");
    }
}
