//! One lookup of a name: search domains, both address families, SRV records and their targets.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use hickory_resolver::{
    Hosts, Resolver, TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
};

use super::{
    answer::{Found, FoundHost, Srv},
    state::Limits,
    system::System,
};
use crate::config::model::{AddressFamilies, Dns, DnsDiscovery, DnsMode};

/// Tries per query in addition to the first; a lookup that fails is repeated later in any case.
const RETRIES: usize = 1;

/// The most targets of SRV records that are looked up.
const MAX_TARGETS: usize = 64;

/// The most addresses of an answer that are read. A TCP response has room for 4,000 of IPv4.
const MAX_RECORDS: usize = 4096;

/// The time until the next lookup if an empty answer does not say how long it is valid.
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// What is asked. Equal questions are asked once, for all clusters.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    name: Box<str>,
    is_srv: bool,
    v4: bool,
    v6: bool,
    /// Own name servers; none: those of the system.
    pub(super) servers: Box<[SocketAddr]>,
    pub(super) limits: Limits,
}

impl Question {
    pub(super) fn new(discovery: &DnsDiscovery) -> Question {
        Question {
            name: discovery.name.to_ascii_lowercase().into(),
            is_srv: discovery.mode == DnsMode::Srv,
            v4: discovery.families != AddressFamilies::Ipv6,
            v6: discovery.families != AddressFamilies::Ipv4,
            servers: discovery.name_servers.as_slice().into(),
            limits: Limits { min_ttl: discovery.min_ttl.0, max_ttl: discovery.max_ttl.0 },
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// Records, or none, and how long that is valid.
type Records = Result<(Vec<Record>, Duration), String>;

/// The addresses of one family.
type Family = Result<(Vec<IpAddr>, Duration), String>;

/// Looks names up.
#[derive(Clone)]
pub(super) struct Lookups {
    resolver: TokioResolver,
    hosts: Arc<Hosts>,
    search: Arc<[Name]>,
    ndots: usize,
}

impl Lookups {
    /// Lookups at these name servers, or at those of the system.
    pub(super) fn new(config: &Dns, system: &System, servers: &[SocketAddr]) -> Result<Lookups, String> {
        let servers = if servers.is_empty() { &system.servers } else { servers };
        let servers = servers.iter().map(|address| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            server.connections.iter_mut().for_each(|connection| connection.port = address.port());
            server
        });
        let resolver = ResolverConfig::from_name_servers(servers.collect());
        let mut builder = Resolver::builder_with_config(resolver, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        (options.timeout, options.attempts) = (config.timeout.0, RETRIES);
        // The answers are kept here, and so are the hosts.
        (options.cache_size, options.use_hosts_file) = (0, ResolveHosts::Never);
        options.preserve_intermediates = false;
        let resolver = builder.build().map_err(|e| e.to_string())?;
        Ok(Lookups { resolver, hosts: system.hosts.clone(), search: system.search.clone(), ndots: system.ndots })
    }

    /// Answers a question.
    pub(super) async fn answer(&self, question: &Question) -> Result<Found, String> {
        match question.is_srv {
            true => self.targets(question).await,
            false => {
                let (host, ttl) = self.host(question.name(), question).await?;
                Ok(Found { hosts: vec![host], ttl })
            }
        }
    }

    /// Looks the addresses of a host up.
    async fn host(&self, name: &str, question: &Question) -> Result<(FoundHost, Duration), String> {
        let srv = None;
        if let Some((v4, v6)) = self.in_hosts(name, question) {
            return Ok((FoundHost { srv, v4: Ok(v4), v6: Ok(v6) }, Duration::MAX));
        }
        let names = candidates(name, &self.search, self.ndots)?;
        let (mut failed, mut shortest) = (None, Duration::MAX);
        for name in names {
            let (v4, v6) = tokio::join!(
                self.family(question.v4, &name, RecordType::A),
                self.family(question.v6, &name, RecordType::AAAA)
            );
            let ttl = [&v4, &v6].into_iter().flatten().map(|(_, ttl)| *ttl).min().unwrap_or(Duration::MAX);
            shortest = shortest.min(ttl);
            let has_some = [&v4, &v6].into_iter().flatten().any(|(addresses, _)| !addresses.is_empty());
            let [v4, v6] = [v4, v6].map(|family| family.map(|(addresses, _)| addresses));
            if has_some {
                return Ok((FoundHost { srv, v4, v6 }, ttl));
            }
            // Another search domain may have it. If none does, the name may be one of this domain.
            let error = [v4.err(), v6.err()].into_iter().flatten().next();
            failed = failed.or(error);
        }
        match failed {
            Some(error) => Err(error),
            None => Ok((FoundHost { srv, v4: Ok(Vec::new()), v6: Ok(Vec::new()) }, shortest)),
        }
    }

    /// The addresses of a name in the hosts file, IPv4 and IPv6.
    fn in_hosts(&self, name: &str, question: &Question) -> Option<(Vec<IpAddr>, Vec<IpAddr>)> {
        let name = Name::from_ascii(name).ok()?;
        let of = |is_asked: bool, record| {
            let found = self.hosts.lookup_static_host(&Query::query(name.clone(), record)).filter(|_| is_asked);
            let records = found.iter().flat_map(|found| found.answers());
            records.filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>()
        };
        let (v4, v6) = (of(question.v4, RecordType::A), of(question.v6, RecordType::AAAA));
        (!v4.is_empty() || !v6.is_empty()).then_some((v4, v6))
    }

    async fn family(&self, is_asked: bool, name: &Name, record: RecordType) -> Family {
        if !is_asked {
            return Ok((Vec::new(), Duration::MAX));
        }
        let (records, ttl) = self.query(name, record).await?;
        Ok((records.iter().filter_map(|record| record.data.ip_addr()).take(MAX_RECORDS).collect(), ttl))
    }

    /// Looks SRV records up, and then the addresses of their targets. Additional records are ignored: they may be
    /// incomplete.
    async fn targets(&self, question: &Question) -> Result<Found, String> {
        let (mut found, mut ttl, mut failed) = (Vec::new(), Duration::MAX, None);
        for name in candidates(question.name(), &self.search, self.ndots)? {
            match self.query(&name, RecordType::SRV).await {
                Ok((records, valid)) => {
                    ttl = ttl.min(valid);
                    found.extend(records.into_iter().filter_map(srv));
                    if !found.is_empty() {
                        ttl = valid;
                        failed = None;
                        break;
                    }
                }
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        // A target of `.` means that there is no such service.
        found.retain(|srv| &*srv.target != ".");
        found.sort_by(|a, b| (a.priority, &a.target, a.port).cmp(&(b.priority, &b.target, b.port)));
        found.truncate(MAX_TARGETS);
        let mut names: Vec<Arc<str>> = found.iter().map(|srv| srv.target.clone()).collect();
        names.sort();
        names.dedup();
        let lookups = names.iter().map(|name| self.host(name, question));
        let results: HashMap<_, _> = names.iter().cloned().zip(join_all(lookups).await).collect();
        let hosts = found.into_iter().filter_map(|srv| {
            Some(match results.get(&srv.target)? {
                Ok((host, valid)) => {
                    ttl = ttl.min(*valid);
                    FoundHost { srv: Some(srv), ..host.clone() }
                }
                Err(error) => FoundHost { srv: Some(srv), v4: Err(error.clone()), v6: Err(error.clone()) },
            })
        });
        let hosts = hosts.collect();
        Ok(Found { hosts, ttl })
    }

    async fn query(&self, name: &Name, record: RecordType) -> Records {
        match self.resolver.lookup(name.clone(), record).await {
            Ok(lookup) => {
                let left = lookup.valid_until().saturating_duration_since(Instant::now());
                // The time to live is in seconds, of which a moment has passed.
                let ttl = Duration::from_secs(left.as_secs_f64().ceil() as u64);
                let records = lookup.answers().iter().filter(|answer| answer.record_type() == record);
                Ok((records.take(MAX_RECORDS).cloned().collect(), ttl))
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none)))
                if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError) =>
            {
                let ttl = none.negative_ttl.map_or(NEGATIVE_TTL, |ttl| Duration::from_secs(ttl.into()));
                Ok((Vec::new(), ttl))
            }
            Err(error) => Err(format!("{name} {record}: {error}")),
        }
    }
}

fn srv(record: Record) -> Option<Srv> {
    let RData::SRV(srv) = record.data else { return None };
    let target = srv.target.to_ascii().to_ascii_lowercase().into();
    Some(Srv { target, port: srv.port, priority: srv.priority, weight: srv.weight })
}

/// The absolute names that a name may stand for, in the order in which they are tried (resolv.conf(5)).
fn candidates(name: &str, search: &[Name], ndots: usize) -> Result<Vec<Name>, String> {
    let mut own = Name::from_ascii(name).map_err(|e| format!("`{name}`: {e}"))?;
    if name.ends_with('.') {
        return Ok(vec![own]);
    }
    let below = search.iter().filter_map(|domain| own.clone().append_domain(domain).ok());
    let mut all: Vec<Name> = below.collect();
    own.set_fqdn(true);
    let dots = name.bytes().filter(|b| *b == b'.').count();
    all.insert(if dots >= ndots { 0 } else { all.len() }, own);
    all.iter_mut().for_each(|name| name.set_fqdn(true));
    let mut seen = std::collections::HashSet::new();
    all.retain(|name| seen.insert(name.clone()));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_domains_come_first_for_names_with_few_dots() {
        let search: Vec<Name> = ["ns.svc.local", "svc.local."].iter().map(|name| name.parse().unwrap()).collect();
        let names = |name: &str, ndots| {
            let all = candidates(name, &search, ndots).unwrap();
            all.iter().map(|name| name.to_ascii()).collect::<Vec<_>>()
        };
        assert_eq!(names("api", 1), ["api.ns.svc.local.", "api.svc.local.", "api."]);
        assert_eq!(
            names("api.internal", 1),
            ["api.internal.", "api.internal.ns.svc.local.", "api.internal.svc.local."]
        );
        assert_eq!(names("api.internal", 5)[2], "api.internal.");
        assert_eq!(names("api.internal.", 5), ["api.internal."]);
        assert_eq!(names("_http._tcp.api", 1)[0], "_http._tcp.api.");
        assert!(candidates("a..b", &search, 1).is_err());
    }
}
