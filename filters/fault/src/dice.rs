//! Randomness: whether a fault is injected, and how long a delay lasts.

use std::time::Duration;

use tollgate_sdk::{random, units::Percent};

/// The distribution of a delay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Length {
    Fixed(Duration),
    Uniform { min: Duration, max: Duration },
    Exponential { mean: Duration, max: Duration },
}

impl Length {
    /// Draws a duration. Uses randomness only if needed.
    pub(crate) fn sample(self) -> Duration {
        match self {
            Length::Fixed(time) => time,
            Length::Uniform { min, max } => min + max.saturating_sub(min).mul_f64(unit()),
            Length::Exponential { mean, max } => {
                // Inverse transform sampling; 1 - unit() is never 0, so the logarithm is finite.
                let times = -(1.0 - unit()).ln();
                Duration::try_from_secs_f64(mean.as_secs_f64() * times).map_or(max, |time| time.min(max))
            }
        }
    }
}

/// A uniform number in [0, 1), with the 53 bits that an `f64` holds.
fn unit() -> f64 {
    (random() >> 11) as f64 / (1u64 << 53) as f64
}

/// Whether a fault with this share is injected. Uses randomness only if needed.
pub(crate) fn strikes(percent: Percent) -> bool {
    match percent.per_million() {
        0 => false,
        1_000_000 => true,
        _ => percent.includes(random()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_sdk::testing::TestHost;

    const MS: Duration = Duration::from_millis(1);

    /// The host that provides randomness.
    fn host() -> TestHost<crate::Fault> {
        TestHost::new(serde_json::json!({})).unwrap()
    }

    #[test]
    fn shares_match_the_configuration() {
        let _host = host();
        for (percent, throws, at_least, at_most) in [
            (0.0, 10_000, 0, 0),
            (100.0, 10_000, 10_000, 10_000),
            (50.0, 100_000, 49_500, 50_500),
            (12.5, 100_000, 12_200, 12_800),
            (0.1, 100_000, 70, 130),
            // One in a million: four are expected; the probability of none or of more than ten is below 3 %.
            (0.0001, 4_000_000, 1, 10),
        ] {
            let percent = Percent::new(percent).unwrap();
            let hits = (0..throws).filter(|_| strikes(percent)).count();
            assert!((at_least..=at_most).contains(&hits), "{hits} of {throws} with {percent:?}");
        }
    }

    #[test]
    fn uniform_lengths_fill_their_range() {
        let _host = host();
        let length = Length::Uniform { min: 10 * MS, max: 30 * MS };
        let samples: Vec<_> = (0..10_000).map(|_| length.sample()).collect();
        assert!(samples.iter().all(|time| (10 * MS..=30 * MS).contains(time)));
        for from in [10, 15, 20, 25] {
            let quarter = samples.iter().filter(|time| (from * MS..(from + 5) * MS).contains(time)).count();
            assert!((2300..2700).contains(&quarter), "{quarter} from {from}");
        }
        assert_eq!(Length::Uniform { min: MS, max: MS }.sample(), MS);
    }

    #[test]
    fn exponential_lengths_have_their_mean_and_maximum() {
        let _host = host();
        let length = Length::Exponential { mean: 10 * MS, max: 50 * MS };
        let samples: Vec<_> = (0..20_000).map(|_| length.sample()).collect();
        assert!(samples.iter().all(|time| *time <= 50 * MS));
        // 1/e are longer than the mean; 1/e^5 would exceed the maximum.
        let share = |test: fn(&Duration) -> bool| samples.iter().filter(|time| test(time)).count() as f64 / 20_000.0;
        assert!((share(|time| *time > 10 * MS) - 0.3679).abs() < 0.01);
        assert!((share(|time| *time == 50 * MS) - 0.0067).abs() < 0.002);
        let mean = samples.iter().sum::<Duration>() / 20_000;
        assert!(mean > Duration::from_micros(9700) && mean < Duration::from_micros(10_200), "{mean:?}");
    }

    #[test]
    fn fixed_length_is_constant() {
        assert_eq!(Length::Fixed(MS).sample(), MS, "and needs no randomness, so no host");
    }
}
