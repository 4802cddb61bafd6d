//! Whose requests make a filter fail: the most frequent clients and paths, and a rate limit on logging failures.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{net::Client, wasm::scope::stream_ref::StreamRef};

/// Number of clients, and of paths, that are kept.
const ENTRIES: usize = 8;

/// Maximum bytes of a path in output.
const MAX_SHOWN: usize = 256;

/// Number of failures of one filter that are logged in a burst; after that, one per [`INTERVAL`].
const BURST: u32 = 10;
const INTERVAL: Duration = Duration::from_secs(5);

/// What is known of a filter's failures.
#[derive(Debug, Default)]
pub struct FailureLog(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    clients: TopKeys,
    paths: TopKeys,
    pace: LogRate,
}

/// The request or connection that made a filter fail, escaped for output.
#[derive(Debug)]
pub(in crate::wasm) struct FailureSource {
    /// The client's address and port.
    pub client: String,
    /// The method; `None` for a TCP connection.
    pub method: Option<String>,
    /// The path with the query: truncated, control characters escaped.
    pub path: Option<String>,
    counted_client: String,
    counted_path: Option<String>,
}

impl FailureSource {
    /// Describes a stream.
    pub(in crate::wasm) fn of(subject: &StreamRef) -> FailureSource {
        let client = subject.client();
        let line = match subject {
            StreamRef::Http(stream) => {
                let state = stream.state.borrow();
                Some((state.request.method.to_string(), state.request.path.clone()))
            }
            StreamRef::Tcp(_) => None,
        };
        let counted_path = line.as_ref().map(|(method, path)| {
            let path = path.split(|b| *b == b'?').next().unwrap_or_default();
            format!("{} {}", shown(method.as_bytes()), shown(path))
        });
        FailureSource {
            client: client.to_string(),
            method: line.as_ref().map(|(method, _)| shown(method.as_bytes())),
            path: line.as_ref().map(|(_, path)| shown(path)),
            counted_client: Client::of(client.ip()).to_string(),
            counted_path,
        }
    }
}

/// Escapes and truncates bytes of a request for output.
fn shown(bytes: &[u8]) -> String {
    match bytes.get(..MAX_SHOWN) {
        Some(start) if bytes.len() > MAX_SHOWN => format!("{}…", start.escape_ascii()),
        _ => bytes.escape_ascii().to_string(),
    }
}

impl FailureLog {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a failure. Returns `None` if it should not be logged, otherwise the number of failures left out since the
    /// last logged one.
    pub(in crate::wasm) fn note(&self, cause: Option<&FailureSource>) -> Option<u64> {
        let mut kept = self.kept();
        if let Some(cause) = cause {
            kept.clients.count(&cause.counted_client);
            cause.counted_path.iter().for_each(|path| kept.paths.count(path));
        }
        kept.pace.may_log(Instant::now())
    }

    /// The clients and paths that made the filter fail, for the admin API.
    pub fn json(&self) -> Value {
        let kept = self.kept();
        json!({ "clients": kept.clients.json("client"), "paths": kept.paths.json("path") })
    }
}

/// The most frequent keys of a stream in little memory (Metwally, Agrawal, El Abbadi: "Space-Saving"). A new key
/// replaces the rarest one and inherits its count, which may therefore be too high by up to `excess`.
#[derive(Debug, Default)]
struct TopKeys(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    key: String,
    count: u64,
    excess: u64,
}

impl TopKeys {
    fn count(&mut self, key: &str) {
        if let Some(entry) = self.0.iter_mut().find(|entry| entry.key == key) {
            entry.count += 1;
        } else if self.0.len() < ENTRIES {
            self.0.push(Entry { key: key.to_owned(), count: 1, excess: 0 });
        } else if let Some(rarest) = self.0.iter_mut().min_by_key(|entry| entry.count) {
            *rarest = Entry { key: key.to_owned(), count: rarest.count + 1, excess: rarest.count };
        }
    }

    fn json(&self, name: &str) -> Vec<Value> {
        let mut entries: Vec<_> = self.0.iter().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.count));
        let each = |e: &Entry| json!({ name: e.key, "failures": e.count, "at_most_too_many": e.excess });
        entries.into_iter().map(each).collect()
    }
}

/// A rate limit on log lines.
#[derive(Debug, Default)]
struct LogRate {
    logged: u32,
    last: Option<Instant>,
    left_out: u64,
}

impl LogRate {
    fn may_log(&mut self, now: Instant) -> Option<u64> {
        let gained = self.last.map_or(0, |last| now.saturating_duration_since(last).as_nanos() / INTERVAL.as_nanos());
        if gained > 0 {
            self.logged = self.logged.saturating_sub(u32::try_from(gained).unwrap_or(u32::MAX));
            self.last = Some(now);
        }
        if self.logged >= BURST {
            self.left_out += 1;
            return None;
        }
        self.logged += 1;
        self.last.get_or_insert(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_frequent_keys_are_kept_among_many_others() {
        let mut top = TopKeys::default();
        for nth in 0..10_000 {
            top.count(&format!("once-{nth}"));
            if nth % 4 == 0 {
                top.count("often");
            }
        }
        assert_eq!(top.0.len(), ENTRIES);
        let often = top.0.iter().find(|entry| entry.key == "often").expect("the frequent key is kept");
        assert!(often.count >= 2500 && often.count - often.excess <= 2500, "{often:?}");
        assert_eq!(top.0.iter().map(|entry| entry.count).sum::<u64>(), 12_500, "no more than were counted");
    }

    #[test]
    fn failure_logging_is_rate_limited() {
        let (mut pace, start) = (LogRate::default(), Instant::now());
        let each_100_ms = (0..600).filter_map(|nth| pace.may_log(start + nth * Duration::from_millis(100)));
        let logged: Vec<_> = each_100_ms.collect();
        assert_eq!(&logged[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 40, 49]);
        assert_eq!(logged.len(), 10 + 11);
    }

    #[test]
    fn logged_values_are_truncated_and_escaped() {
        assert_eq!(shown(b"/a\x1b[31m\n\"\xff"), r#"/a\x1b[31m\n\"\xff"#);
        assert_eq!(shown(&[b'a'; 300]).chars().count(), MAX_SHOWN + 1);
    }
}
