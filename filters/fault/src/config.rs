//! The filter's configuration.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use tollgate_sdk::{
    matching::RequestMatch,
    units::{Duration, Percent},
};

/// The filter's configuration: which faults are injected into which requests. Default: none.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Faults for some requests: the first matching rule applies, and a rule without faults exempts its requests.
    pub rules: Vec<Rule>,
    /// The delay of requests that match no rule. Default: none.
    pub delay: Option<Delay>,
    /// The abort of requests that match no rule. Default: none.
    pub abort: Option<Abort>,
    /// Lets a request specify its own fault with Envoy's headers. `true`: both kinds, with their defaults. Default:
    /// `false`.
    pub headers: Headers,
    /// Maximum number of requests with an active fault, over all workers; further requests pass unaffected and are
    /// counted as `fault.overflow`. A delayed request counts until its delay has ended. Default: unlimited.
    pub max_active: Option<u32>,
}

/// Faults for some requests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The requests that it applies to.
    pub r#match: RequestMatch,
    /// The delay. Default: none.
    #[serde(default)]
    pub delay: Option<Delay>,
    /// The abort. Default: none.
    #[serde(default)]
    pub abort: Option<Abort>,
}

/// A delay before the request continues: exactly one of `fixed`, `uniform` and `exponential`. At most an hour.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// A constant duration.
    #[serde(default)]
    pub fixed: Option<Duration>,
    /// A duration between two bounds, uniformly distributed.
    #[serde(default)]
    pub uniform: Option<Uniform>,
    /// Mostly short, sometimes long, as with a queue.
    #[serde(default)]
    pub exponential: Option<Exponential>,
    /// The share of requests: 0 to 100, in steps of 0.0001 (one in a million).
    pub percent: Percent,
}

/// A uniformly distributed delay.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uniform {
    /// The minimum.
    pub min: Duration,
    /// The maximum.
    pub max: Duration,
}

/// An exponentially distributed delay.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exponential {
    /// The mean (before the maximum is applied).
    pub mean: Duration,
    /// The maximum; longer delays are shortened to it.
    pub max: Duration,
}

/// A local reply instead of the upstream's response. If the request is delayed too, it follows the delay.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// The status: 200 to 599.
    pub status: u16,
    /// The share of requests: 0 to 100, in steps of 0.0001 (one in a million). Independent of the delay's share.
    pub percent: Percent,
}

/// Faults requested by a request's headers, instead of the rules' faults. Any client that can send these headers can
/// use them.
///
/// The percentage headers are whole numbers from 0 to 100. Invalid numbers and statuses are ignored.
#[derive(Debug, Clone, Default)]
pub struct Headers {
    /// `x-envoy-fault-delay-request` (milliseconds) and `x-envoy-fault-delay-request-percentage`. Default: ignored.
    pub delay: Option<HeaderDelay>,
    /// `x-envoy-fault-abort-request` (a status) and `x-envoy-fault-abort-request-percentage`. Default: ignored.
    pub abort: Option<HeaderAbort>,
}

/// Delays requested by headers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderDelay {
    /// The maximum; longer delays are shortened to it. Default: 5s. At most an hour.
    pub max: Duration,
    /// Maximum share of these requests; also used if a request specifies none. Default: 100.
    pub percent: Percent,
}

impl Default for HeaderDelay {
    fn default() -> Self {
        HeaderDelay { max: Duration::new(std::time::Duration::from_secs(5)), percent: Percent::ALL }
    }
}

/// Aborts requested by headers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderAbort {
    /// Maximum share of these requests; also used if a request specifies none. Default: 100.
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

        // An untagged enum would lose the place and the reason of an error inside.
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
