//! Compiles the configuration to limits that are ready for requests, and reports all errors together.

use std::collections::HashSet;

use tollgate_sdk::{doc, prelude::*};

use crate::{
    Limited,
    config::{Config, LimitConfig},
    fields::Members,
    key::Key,
};

/// The default of `max_keys`.
const MAX_KEYS: u32 = 1_000_000;
/// The maximum of the host's buckets, and the maximum time they may take to fill.
const MOST: u32 = i32::MAX as u32;
const YEAR_MS: u64 = 365 * 86_400_000;

/// Compiles all limits, or returns all errors.
pub(crate) fn limits(config: Config, setup: &mut Setup) -> Result<Vec<Limited>, ConfigError> {
    let mistakes = Mistakes::default();
    let mut names = HashSet::new();
    let mut limits = Vec::with_capacity(config.limits.len());
    for (i, limit) in config.limits.into_iter().enumerate() {
        let at = format!("limits[{i}]");
        let name = limit.name.clone();
        if !(1..=64).contains(&name.len()) || !name.bytes().all(|b| b.is_ascii_graphic()) {
            mistakes.add(format!("{at}.name"), "a name has 1 to 64 visible ASCII characters, and no spaces");
        } else if !names.insert(name.clone()) {
            mistakes.add(format!("{at}.name"), format!("another limit is called `{name}` too"));
        }
        let key = Key::compile(&limit, &at, setup, &mistakes);
        let bucket = bucket(&limit, &key, &at, &mistakes).and_then(|doc| mistakes.take(setup.bucket(&at, &doc)));
        let members = Members::new(&name, limit.requests, limit.per.millis());
        let matcher = limit.r#match.compile(&format!("{at}.match"), setup, &mistakes);
        if let Some(bucket) = bucket {
            let enforced = !config.dry_run && !limit.dry_run;
            limits.push(Limited { matcher, key, bucket, enforced, members, details: format!("rate_limited[{name}]") });
        }
    }
    if !(400..=599).contains(&config.status) {
        let message = format!("{} is not an error status: write 400 to 599, such as 429", config.status);
        mistakes.add("status", message);
    }
    mistakes.finish()?;
    Ok(limits)
}

/// The bucket of a limit, if its parameters are valid.
fn bucket(limit: &LimitConfig, key: &Key, at: &str, mistakes: &Mistakes) -> Option<doc::Bucket> {
    let mut right = true;
    let mut wrong = |field: &str, message: String| {
        mistakes.add(format!("{at}.{field}"), message);
        right = false;
    };
    if !(1..=MOST).contains(&limit.requests) {
        wrong("requests", format!("{} is out of range: write 1 to {MOST}", limit.requests));
    }
    let per = limit.per.get();
    let whole = per.subsec_nanos().is_multiple_of(1_000_000);
    if !whole || per.is_zero() || limit.per.millis() > YEAR_MS {
        wrong("per", "an interval is 1ms to a year, in whole milliseconds".into());
    }
    let capacity = limit.burst.unwrap_or(limit.requests);
    if limit.burst.is_some() && !(1..=MOST).contains(&capacity) {
        wrong("burst", format!("{capacity} is out of range: write 1 to {MOST}"));
    } else if limit.requests > 0
        && u128::from(capacity) * u128::from(limit.per.millis()) > u128::from(limit.requests) * u128::from(YEAR_MS)
    {
        wrong("burst", format!("it takes over a year to gain {capacity} tokens: lower it, or raise `requests`"));
    }
    if limit.max_keys == Some(0) {
        wrong("max_keys", "0 is out of range: write at least 1".into());
    } else if limit.max_keys.is_some() && key.is_empty() {
        wrong("max_keys", "has no effect without a `key`: leave it out".into());
    }
    let max_keys = if key.is_empty() { 0 } else { limit.max_keys.unwrap_or(MAX_KEYS) };
    let (fill, interval_ms) = (limit.requests, limit.per.millis());
    right.then(|| doc::Bucket { name: limit.name.clone(), capacity, fill, interval_ms, max_keys })
}
