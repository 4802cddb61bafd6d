//! Scalar configuration types: times (`250ms`) and percentages. The proxy's own configuration uses the same notation
//! for times.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

/// A length of time, written as a number with a unit: `us`, `ms`, `s`, `m`, `h` (`250ms`, `1.5s`). From 0 to one year.
///
/// Use it for the fields of a filter's `Config`. [`std::time::Duration`] compiles there too, but serde reads it as a
/// map of seconds and nanoseconds. `From` converts both ways.
///
/// ```
/// use tollgate_sdk::units::Duration;
///
/// let time: Duration = "1.5s".parse().unwrap();
/// assert_eq!(std::time::Duration::from(time), std::time::Duration::from_millis(1500));
/// assert_eq!("7us".parse::<Duration>().unwrap().millis(), 1);
/// assert!("soon".parse::<Duration>().is_err());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(std::time::Duration);

impl Duration {
    /// Converts a time from std's type; usable in constants, where `From` is not.
    pub const fn new(time: std::time::Duration) -> Duration {
        Duration(time)
    }

    /// Returns the time as std's type.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }

    /// Returns the time in milliseconds, rounded up: a short time must not become 0, which often means "unlimited".
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

impl From<Duration> for std::time::Duration {
    fn from(time: Duration) -> std::time::Duration {
        time.0
    }
}

impl From<std::time::Duration> for Duration {
    fn from(time: std::time::Duration) -> Duration {
        Duration(time)
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a time; write a number with a unit (us, ms, s, m, h), such as 250ms");
        let trimmed = text.trim();
        let at = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = (&trimmed[..at], trimmed[at..].trim_start());
        let number: f64 = number.parse().map_err(|_| wrong())?;
        // Nanoseconds are whole numbers, so 0.1s is exactly 100ms.
        let nanos = number
            * match unit {
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(wrong()),
            };
        if nanos > 365.0 * 86_400e9 {
            return Err(format!("`{text}` is longer than a year"));
        }
        Ok(Duration(std::time::Duration::from_nanos(nanos.round() as u64)))
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Duration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time with a unit, such as 250ms")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                text.parse().map_err(E::custom)
            }
        }
        d.deserialize_str(Text)
    }
}

/// A percentage from 0 to 100, in steps of 0.0001.
///
/// ```
/// use tollgate_sdk::units::Percent;
///
/// assert_eq!(Percent::new(12.5).unwrap().per_million(), 125_000);
/// assert!(Percent::new(101.0).is_err());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u32);

impl Percent {
    /// 100 percent.
    pub const ALL: Percent = Percent(1_000_000);

    /// Creates a percentage.
    pub fn new(percent: f64) -> Result<Percent, String> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(format!("{percent} is not a percentage from 0 to 100"));
        }
        match (percent * 10_000.0).round() as u32 {
            0 if percent > 0.0 => Err(format!("{percent} percent is less than 0.0001, the smallest share there is")),
            n => Ok(Percent(n)),
        }
    }

    /// Returns the share in millionths.
    pub const fn per_million(self) -> u32 {
        self.0
    }

    /// Reports whether `random` (from [`random`](crate::random)) falls within this share of all numbers.
    pub const fn includes(self, random: u64) -> bool {
        // The high bits of the product are a uniformly distributed number below a million.
        ((random as u128 * 1_000_000) >> 64) < self.0 as u128
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Percent::new(f64::deserialize(d)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, us) in [
            ("250ms", 250_000),
            ("1.5s", 1_500_000),
            ("2m", 120_000_000),
            ("0s", 0),
            ("10us", 10),
            ("1 h", 3_600_000_000),
        ] {
            assert_eq!(text.parse::<Duration>().unwrap().get().as_micros(), us, "{text}");
        }
        for text in ["", "5", "ms", "-1s", "5 parsecs", "1e9s", "99999h", "1.2.3s"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
        let error = serde_json::from_str::<Duration>("5").unwrap_err().to_string();
        assert!(error.contains("such as 250ms"), "{error}");
        assert_eq!(serde_json::from_str::<Duration>("\"0.1s\"").unwrap().millis(), 100);
    }

    #[test]
    fn percentages_are_stored_in_millionths() {
        assert_eq!(Percent::new(100.0).unwrap(), Percent::ALL);
        assert_eq!(Percent::new(0.0001).unwrap().per_million(), 1);
        assert_eq!(serde_json::from_str::<Percent>("5").unwrap().per_million(), 50_000);
        for wrong in [-1.0, 100.1, f64::NAN, 0.00001] {
            assert!(Percent::new(wrong).is_err(), "{wrong}");
        }
        assert!(!Percent::default().includes(0));
        assert!(Percent::ALL.includes(u64::MAX));
        let half = Percent::new(50.0).unwrap();
        assert!(half.includes(u64::MAX / 2 - 1) && !half.includes(u64::MAX / 2 + 1));
    }
}
