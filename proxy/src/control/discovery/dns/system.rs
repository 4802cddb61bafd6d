//! What the system knows about host names: resolv.conf(5) and hosts(5).

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use hickory_resolver::{Hosts, proto::rr::Name, system_conf::parse_resolv_conf};

use crate::{config::model::Dns, observe::target};

/// The port of name servers.
const PORT: u16 = 53;

/// What was read from the files.
#[derive(Clone)]
pub(super) struct System {
    pub(super) servers: Arc<[SocketAddr]>,
    pub(super) search: Arc<[Name]>,
    /// How many dots a name must have to be looked up unchanged before search domains are appended.
    pub(super) ndots: usize,
    pub(super) hosts: Arc<Hosts>,
    texts: Texts,
}

/// The content of resolv.conf and hosts, or why they could not be read.
type Texts = [Result<Vec<u8>, String>; 2];

impl System {
    /// Reads the files. The system's defaults replace what cannot be read.
    pub(super) fn read(config: &Dns) -> System {
        System::of(texts(config), config, None)
    }

    /// Reads the files again. What cannot be read stays as it was. Returns `None` if the files have not changed.
    pub(super) fn read_again(&self, config: &Dns) -> Option<System> {
        let texts = texts(config);
        (texts != self.texts).then(|| System::of(texts, config, Some(self)))
    }

    fn of(texts: Texts, config: &Dns, previous: Option<&System>) -> System {
        let [resolv_conf, hosts] = &texts;
        let parsed = resolv_conf.clone().and_then(|text| parse_resolv_conf(text).map_err(|e| e.to_string()));
        let mut system = match (parsed, previous) {
            (Ok((parsed, options)), _) => {
                let (domain, search, servers) = parsed.into_parts();
                // Without search domains, names are relative to the machine's own domain.
                let search = if search.is_empty() { domain.into_iter().collect() } else { search };
                System {
                    servers: servers.iter().map(|server| SocketAddr::new(server.ip, PORT)).collect(),
                    search: search.into(),
                    ndots: options.ndots,
                    ..System::default()
                }
            }
            (Err(error), Some(previous)) => {
                warn(&config.resolv_conf, &error);
                previous.clone()
            }
            (Err(error), None) => {
                if *resolv_conf != Ok(Vec::new()) {
                    warn(&config.resolv_conf, &error);
                }
                System::default()
            }
        };
        if !config.name_servers.is_empty() {
            system.servers = config.name_servers.as_slice().into();
        }
        let mut known = Hosts::default();
        let read = hosts.as_ref().map_err(String::clone);
        match read.and_then(|text| known.read_hosts_conf(&**text).map_err(|e| e.to_string())) {
            Ok(()) => system.hosts = Arc::new(known),
            Err(error) => {
                warn(&config.hosts, &error);
                system.hosts = previous.map(|previous| previous.hosts.clone()).unwrap_or_default();
            }
        }
        System { texts, ..system }
    }
}

/// The defaults of resolv.conf(5).
impl Default for System {
    fn default() -> Self {
        let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);
        let texts = [Ok(Vec::new()), Ok(Vec::new())];
        System { servers: [local].into(), search: Arc::default(), ndots: 1, hosts: Arc::default(), texts }
    }
}

/// Reads both files. A missing file counts as empty.
fn texts(config: &Dns) -> Texts {
    [&config.resolv_conf, &config.hosts].map(|file| match fs::read(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|e| e.to_string()),
    })
}

fn warn(file: &std::path::Path, error: &str) {
    tracing::warn!(target: target::CONFIG, file = %file.display(), error, "file for host names not used");
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::{op::Query, rr::RecordType};

    use super::*;

    /// The content of the two files as text.
    fn words(system: &System, host: &str) -> String {
        let query = Query::query(host.parse().unwrap(), RecordType::A);
        let found = system.hosts.lookup_static_host(&query);
        let addresses = found.iter().flat_map(|found| found.answers()).filter_map(|record| record.data.ip_addr());
        let addresses: Vec<_> = addresses.collect();
        let search: Vec<_> = system.search.iter().map(ToString::to_string).collect();
        format!("{:?} {search:?} {} {addresses:?}", system.servers, system.ndots)
    }

    #[test]
    fn unreadable_files_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let config = Dns { resolv_conf: dir.path().join("r"), hosts: dir.path().join("h"), ..Dns::default() };
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(words(&System::read(&config), "a"), "[127.0.0.1:53] [] 1 []", "the system's defaults");
        put("r", "search a.test b.test\noptions ndots:5\nnameserver 10.0.0.2\nnameserver fd00::2\n");
        put("h", "10.1.1.1 a a.test\nnonsense\n10.1.1.2 a\n");
        let system = System::read(&config);
        let all = "[10.0.0.2:53, [fd00::2]:53] [\"a.test\", \"b.test\"] 5 [10.1.1.1, 10.1.1.2]";
        assert_eq!(words(&system, "a"), all);
        assert!(system.read_again(&config).is_none(), "nothing has changed");
        put("r", "# half of a file\n");
        fs::write(&config.hosts, [0xff, 0xfe]).unwrap();
        assert_eq!(words(&system.read_again(&config).unwrap(), "a"), all);
        fs::remove_file(&config.hosts).unwrap();
        put("r", "nameserver 10.0.0.3\n");
        let own = Dns { name_servers: vec!["10.0.0.9:5353".parse().unwrap()], ..config.clone() };
        assert!(words(&system.read_again(&config).unwrap(), "a").starts_with("[10.0.0.3:53]"));
        assert!(words(&system.read_again(&own).unwrap(), "a").starts_with("[10.0.0.9:5353]"));
    }
}
