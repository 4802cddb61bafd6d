//! What name servers answer about a name, and how an answer is combined with the one before.

use std::{net::IpAddr, sync::Arc, time::Duration};

/// The result of looking a name up, before it is combined with an earlier one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    /// One host, or the targets of SRV records.
    pub(super) hosts: Vec<FoundHost>,
    /// How long it may be used.
    pub(super) ttl: Duration,
}

/// The addresses of a host, by family. Each family is a query of its own, and may fail alone.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FoundHost {
    pub(super) srv: Option<Srv>,
    pub(super) v4: Result<Vec<IpAddr>, String>,
    pub(super) v6: Result<Vec<IpAddr>, String>,
}

/// The content of an SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Srv {
    pub(super) target: Arc<str>,
    pub(super) port: u16,
    pub(super) priority: u16,
    pub(super) weight: u16,
}

/// An answer with addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) hosts: Vec<Host>,
}

/// The addresses of a host, IPv4 before IPv6, in the order of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) srv: Option<Srv>,
    pub(super) addresses: Vec<IpAddr>,
}

/// An answer after it was combined with the one before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Combined {
    /// There are addresses. The error: what failed nevertheless, so that earlier addresses are used for it.
    Addresses(Answer, Option<String>),
    /// The name has no addresses.
    Empty,
    /// It is unknown which addresses the name has.
    Unknown(String),
}

impl Found {
    /// Combines it with the previous answer: a family, or a target, whose query has failed keeps its addresses. Without a
    /// single new address, an error leaves the whole answer as it was.
    pub(super) fn after(self, previous: Option<&Answer>) -> Combined {
        let (mut hosts, mut error) = (Vec::with_capacity(self.hosts.len()), None);
        let mut is_new = false;
        for FoundHost { srv, v4, v6 } in self.hosts {
            let is_same = |host: &&Host| match (&host.srv, &srv) {
                (Some(one), Some(other)) => one.target == other.target,
                (None, None) => true,
                _ => false,
            };
            let before = previous.iter().flat_map(|answer| &answer.hosts).find(is_same);
            let mut addresses = Vec::new();
            for (family, is_v4) in [(v4, true), (v6, false)] {
                match family {
                    Ok(found) => {
                        is_new |= !found.is_empty();
                        addresses.extend(found);
                    }
                    Err(wrong) => {
                        let kept = before.into_iter().flat_map(|host| &host.addresses);
                        addresses.extend(kept.filter(|address| address.is_ipv4() == is_v4));
                        error.get_or_insert(wrong);
                    }
                }
            }
            hosts.push(Host { srv, addresses });
        }
        match (is_new, error) {
            (true, error) => Combined::Addresses(Answer { hosts }, error),
            (false, None) => Combined::Empty,
            (false, Some(error)) => Combined::Unknown(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn ips(all: &[&str]) -> Vec<IpAddr> {
        all.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn found(v4: Result<&[&str], &str>, v6: Result<&[&str], &str>) -> Found {
        let family = |family: Result<&[&str], &str>| family.map(ips).map_err(str::to_owned);
        Found { hosts: vec![FoundHost { srv: None, v4: family(v4), v6: family(v6) }], ttl: Duration::ZERO }
    }

    fn answer(all: &[&str]) -> Answer {
        Answer { hosts: vec![Host { srv: None, addresses: ips(all) }] }
    }

    #[test]
    fn family_whose_query_fails_keeps_its_addresses() {
        let before = answer(&["10.0.0.1", "fd00::1"]);
        let combined = found(Ok(&["10.0.0.2"]), Err("time-out")).after(Some(&before));
        assert_eq!(combined, Combined::Addresses(answer(&["10.0.0.2", "fd00::1"]), Some("time-out".into())));
        // Never known: what is known is used.
        let combined = found(Ok(&["10.0.0.2"]), Err("time-out")).after(None);
        assert_eq!(combined, Combined::Addresses(answer(&["10.0.0.2"]), Some("time-out".into())));
    }

    #[test]
    fn answer_without_new_addresses_is_unknown_if_a_family_fails() {
        let before = answer(&["10.0.0.1", "fd00::1"]);
        for (v4, v6) in [(Err("time-out"), Err("time-out")), (Ok(&[][..]), Err("time-out"))] {
            assert_eq!(found(v4, v6).after(Some(&before)), Combined::Unknown("time-out".into()));
        }
    }

    #[test]
    fn name_is_empty_only_if_both_families_were_answered() {
        assert_eq!(found(Ok(&[]), Ok(&[])).after(Some(&answer(&["10.0.0.1"]))), Combined::Empty);
        assert_eq!(found(Ok(&[]), Err("SERVFAIL")).after(None), Combined::Unknown("SERVFAIL".into()));
        let combined = found(Ok(&[]), Err("SERVFAIL")).after(Some(&answer(&["10.0.0.1"])));
        assert_eq!(combined, Combined::Unknown("SERVFAIL".into()), "the IPv4 addresses are gone, IPv6 is unknown");
    }

    #[test]
    fn target_whose_query_fails_keeps_its_addresses() {
        let srv = |target: &str, port| Some(Srv { target: target.into(), port, priority: 0, weight: 1 });
        let host = |srv, addresses: &[&str]| Host { srv, addresses: ips(addresses) };
        let before = Answer { hosts: vec![host(srv("a", 1), &["10.0.0.1"]), host(srv("b", 1), &["10.0.0.2"])] };
        let failed = || Err("time-out".to_owned());
        let hosts = vec![
            FoundHost { srv: srv("b", 2), v4: failed(), v6: failed() },
            FoundHost { srv: srv("c", 1), v4: Ok(ips(&["10.0.0.3"])), v6: Ok(Vec::new()) },
        ];
        let Combined::Addresses(answer, error) = Found { hosts, ttl: Duration::ZERO }.after(Some(&before)) else {
            panic!()
        };
        assert_eq!(answer.hosts, [host(srv("b", 2), &["10.0.0.2"]), host(srv("c", 1), &["10.0.0.3"])]);
        assert_eq!(error.as_deref(), Some("time-out"));
    }
}
