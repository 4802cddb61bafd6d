//! The configuration as it is written.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use tollgate_sdk::{
    matching::RequestMatch,
    units::{Duration, Percent},
};

/// The filter's configuration: what is injected into which requests. Nothing at all: nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Faults for some requests: the first rule that matches counts, and a rule without faults exempts its requests.
    pub rules: Vec<Rule>,
    /// How requests that no rule matches are delayed. Default: not at all.
    pub delay: Option<Delay>,
    /// How requests that no rule matches are aborted. Default: not at all.
    pub abort: Option<Abort>,
    /// Lets a request ask for its own fault, by Envoy's headers. `true`: both kinds, with their defaults. Default: `false`.
    pub headers: Headers,
    /// How many requests may be under a fault at one time, over all workers; further ones pass untouched and are counted as
    /// `fault.overflow`. A delayed request counts until its delay is over. Default: unlimited.
    pub max_active: Option<u32>,
}

/// Faults for some requests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which requests.
    pub r#match: RequestMatch,
    /// How they are delayed. Default: not at all.
    #[serde(default)]
    pub delay: Option<Delay>,
    /// How they are aborted. Default: not at all.
    #[serde(default)]
    pub abort: Option<Abort>,
}

/// A delay before the request goes on: exactly one of `fixed`, `uniform` and `exponential`. At most an hour.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// Always this long.
    #[serde(default)]
    pub fixed: Option<Duration>,
    /// Any length between two, each as likely.
    #[serde(default)]
    pub uniform: Option<Uniform>,
    /// Mostly short, sometimes long, as with a queue.
    #[serde(default)]
    pub exponential: Option<Exponential>,
    /// How many of the requests: 0 to 100, in steps of 0.0001 (one in a million).
    pub percent: Percent,
}

/// A delay of any length between two.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uniform {
    /// The shortest.
    pub min: Duration,
    /// The longest.
    pub max: Duration,
}

/// A delay of exponentially distributed length.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exponential {
    /// The mean (before the bound).
    pub mean: Duration,
    /// What would be longer is made this long.
    pub max: Duration,
}

/// A response in the upstream's place. If the request is delayed too, it comes after the delay.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// Its status: 200 to 599.
    pub status: u16,
    /// How many of the requests: 0 to 100, in steps of 0.0001 (one in a million). Thrown apart from the delay's.
    pub percent: Percent,
}

/// Faults that a request asks for, instead of those of the rules: anybody who can send these headers can have them.
///
/// The headers with percentages are whole numbers from 0 to 100. What is no number, or no status, is not heeded.
#[derive(Debug, Clone, Default)]
pub struct Headers {
    /// `x-envoy-fault-delay-request` (milliseconds) and `x-envoy-fault-delay-request-percentage`. Default: not heeded.
    pub delay: Option<HeaderDelay>,
    /// `x-envoy-fault-abort-request` (a status) and `x-envoy-fault-abort-request-percentage`. Default: not heeded.
    pub abort: Option<HeaderAbort>,
}

/// Delays that requests ask for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderDelay {
    /// The longest; what is asked for beyond it is made this long. Default: 5s. At most an hour.
    pub max: Duration,
    /// How many of the requests that ask, at most; also if they do not say how many. Default: 100.
    pub percent: Percent,
}

impl Default for HeaderDelay {
    fn default() -> Self {
        HeaderDelay { max: Duration::new(std::time::Duration::from_secs(5)), percent: Percent::ALL }
    }
}

/// Aborts that requests ask for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderAbort {
    /// How many of the requests that ask, at most; also if they do not say how many. Default: 100.
    pub percent: Percent,
}

impl Default for HeaderAbort {
    fn default() -> Self {
        HeaderAbort { percent: Percent::ALL }
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Each {
            #[serde(default)]
            delay: Option<HeaderDelay>,
            #[serde(default)]
            abort: Option<HeaderAbort>,
        }

        // An untagged enum would lose the place and the reason of a mistake inside.
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Headers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true`, `false` or `{delay: {...}, abort: {...}}`")
            }
            fn visit_bool<E>(self, both: bool) -> Result<Headers, E> {
                Ok(Headers { delay: both.then(HeaderDelay::default), abort: both.then(HeaderAbort::default) })
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Headers, A::Error> {
                let Each { delay, abort } = Each::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Headers { delay, abort })
            }
        }
        d.deserialize_any(Either)
    }
}
