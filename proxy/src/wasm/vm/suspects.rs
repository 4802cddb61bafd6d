//! The clients whose requests made a filter fail, recorded for a limited time.

use std::time::Duration;

use tokio::time::Instant;

use crate::net::Client;

/// How long a client stays recorded after its last failure.
pub(super) const MEMORY: Duration = Duration::from_secs(60);

/// Maximum number of recorded clients; beyond it, the one whose last failure is longest ago is replaced.
const MOST: usize = 256;

/// Clients, each with the time when its record expires and its number of failures until then.
#[derive(Debug, Default)]
pub(super) struct SuspectClients(Vec<(Client, Instant, u32)>);

impl SuspectClients {
    /// Records that a client's request made the filter fail.
    pub(crate) fn add(&mut self, client: Client, now: Instant) {
        let new = (client, now + MEMORY, self.failures(client, now).saturating_add(1));
        let known = self.0.iter().position(|(other, ..)| *other == client);
        let first = || (0..MOST).min_by_key(|at| self.0[*at].1);
        match known.or_else(|| if self.0.len() < MOST { None } else { first() }) {
            Some(at) => self.0[at] = new,
            None => self.0.push(new),
        }
    }

    /// The number of a client's failures.
    pub(in crate::wasm) fn failures(&self, client: Client, now: Instant) -> u32 {
        let known = self.0.iter().find(|(other, end, _)| *other == client && *end > now);
        known.map_or(0, |(.., failures)| *failures)
    }

    /// Drops expired records. Returns whether none are left.
    pub(super) fn forget(&mut self, now: Instant) -> bool {
        self.0.retain(|(_, end, _)| *end > now);
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(number: usize) -> Client {
        Client::of(Ipv4Addr::from(number as u32).into())
    }

    #[test]
    fn records_expire_without_further_failures() {
        let (mut suspects, start) = (SuspectClients::default(), Instant::now());
        suspects.add(client(1), start);
        suspects.add(client(2), start);
        let later = start + MEMORY / 2;
        suspects.add(client(1), later);
        let failures = |suspects: &SuspectClients, now| [1, 2, 3].map(|nth| suspects.failures(client(nth), now));
        assert_eq!(failures(&suspects, later), [2, 1, 0]);
        let end = start + MEMORY;
        assert_eq!(failures(&suspects, end), [2, 0, 0]);
        assert!(!suspects.forget(end));
        assert!(suspects.forget(later + MEMORY));
    }

    #[test]
    fn number_of_records_is_limited_to_the_latest() {
        let (mut suspects, start) = (SuspectClients::default(), Instant::now());
        for nth in 0..2 * MOST {
            suspects.add(client(nth), start + Duration::from_millis(nth as u64));
        }
        let now = start + Duration::from_secs(1);
        assert_eq!(suspects.0.len(), MOST);
        assert!((0..2 * MOST).all(|nth| (suspects.failures(client(nth), now) > 0) == (nth >= MOST)));
    }
}
