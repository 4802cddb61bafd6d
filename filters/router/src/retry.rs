//! A route's policies for retries and hedging.

use tollgate_sdk::doc;

use crate::{
    config::{HeaderMatch, Hedging, RateLimitedBackoff, Retry},
    headers,
    matcher::{method, whole},
    place::Place,
};

/// The policy at `place`, as the host reads it. Reports errors in it: the host would only reject the route.
pub(crate) fn retry(config: &Retry, place: &Place) -> doc::Retry {
    if config.on.is_empty() && config.retriable_status_codes.is_empty() && config.retriable_headers.is_empty() {
        place.field("on").wrong("is empty");
    }
    if !(1..=10).contains(&config.attempts) {
        place.field("attempts").wrong(format!("must be 1 to 10, not {}", config.attempts));
    }
    for (i, status) in config.retriable_status_codes.iter().enumerate() {
        if !(200..=599).contains(status) {
            place.field("retriable_status_codes").item(i).wrong(format!("a status is 200 to 599, not {status}"));
        }
    }
    let millis = |name: &str, text: &Option<String>| text.as_ref().and_then(|text| place.field(name).millis(text));
    let conditions = |name: &str, conditions: &[HeaderMatch]| {
        let place = place.field(name);
        conditions.iter().enumerate().map(|(i, condition)| header(condition, &place.item(i))).collect()
    };
    let backoff_ms = config.backoff.as_ref().map_or(Some(25), |text| place.field("backoff").millis(text));
    let backoff_ms = backoff_ms.unwrap_or_default();
    let max_backoff_ms = millis("max_backoff", &config.max_backoff);
    if max_backoff_ms.is_some_and(|max| max < backoff_ms) {
        place.field("max_backoff").wrong("is shorter than `backoff`, the longest delay before the first retry");
    }
    doc::Retry {
        on: config.on.clone(),
        attempts: config.attempts,
        per_try_timeout_ms: millis("per_try_timeout", &config.per_try_timeout).filter(|ms| *ms > 0),
        per_try_idle_timeout_ms: millis("per_try_idle_timeout", &config.per_try_idle_timeout).filter(|ms| *ms > 0),
        backoff_ms,
        max_backoff_ms,
        rate_limited_backoff: config
            .rate_limited_backoff
            .as_ref()
            .map(|section| rate_limited(section, &place.field("rate_limited_backoff"))),
        retriable_status_codes: config.retriable_status_codes.clone(),
        retriable_headers: conditions("retriable_headers", &config.retriable_headers),
        retriable_request_headers: conditions("retriable_request_headers", &config.retriable_request_headers),
    }
}

/// The hedging at `place`, as the host reads it. Reports errors in it.
pub(crate) fn hedging(config: &Hedging, place: &Place) -> doc::Hedging {
    for (i, name) in config.methods.iter().flatten().enumerate() {
        method(name, &place.field("methods").item(i));
    }
    doc::Hedging {
        delay_ms: config.delay.as_ref().and_then(|text| place.field("delay").millis(text)),
        methods: config.methods.clone(),
    }
}

fn rate_limited(config: &RateLimitedBackoff, place: &Place) -> doc::RateLimitedBackoff {
    let headers = place.field("reset_headers");
    if config.reset_headers.is_empty() {
        headers.wrong("is empty");
    }
    for (i, header) in config.reset_headers.iter().enumerate() {
        headers.item(i).field("name").take(headers::name(&header.name));
    }
    let max = config.max.as_ref().map_or(Some(300_000), |text| place.field("max").millis(text));
    doc::RateLimitedBackoff { reset_headers: config.reset_headers.clone(), max_ms: max.unwrap_or_default() }
}

/// A condition on a header of the messages as the host sees them, so without pseudo-headers.
fn header(config: &HeaderMatch, place: &Place) -> doc::HeaderMatch {
    place.field("name").take(headers::name(&config.name));
    let HeaderMatch { name, exact, prefix, suffix, regex, present, invert } = config;
    place.at_most_one_of([
        ("exact", exact.is_some().then_some(())),
        ("prefix", prefix.is_some().then_some(())),
        ("suffix", suffix.is_some().then_some(())),
        ("regex", regex.is_some().then_some(())),
        ("present", present.is_some().then_some(())),
    ]);
    if let Some(pattern) = regex {
        place.field("regex").take(whole(pattern));
    }
    doc::HeaderMatch {
        name: name.clone(),
        exact: exact.clone(),
        prefix: prefix.clone(),
        suffix: suffix.clone(),
        regex: regex.clone(),
        present: *present,
        invert: *invert,
    }
}
