//! Resolves the paths of unix sockets relative to the configuration's directory, like all other paths.

use super::{
    diagnostic::Diagnostic,
    model::{Cluster, Endpoint, Listener},
    source::Source,
    units::Address,
};

/// The maximum length of a path in bytes: `sun_path` on Linux has 108 bytes, including the terminating NUL.
const LONGEST: usize = 107;

/// Resolves an address given in the configuration file.
pub(super) fn resolved(source: &Source, address: Address) -> Address {
    match address {
        Address::Unix(path) => Address::Unix(source.resolve(path).into()),
        other => other,
    }
}

/// Resolves the address at `pointer` in place.
pub(super) fn resolve(source: &Source, address: &mut Address, pointer: &str, problems: &mut Vec<Diagnostic>) {
    *address = resolved(source, address.clone());
    let Address::Unix(path) = address else { return };
    let length = path.as_os_str().len();
    if length > LONGEST {
        let message =
            format!("the path of a unix socket has at most {LONGEST} bytes; `{}` has {length}", path.display());
        let help = "a relative path begins at the configuration's folder".to_owned();
        problems.push(source.diagnostic(pointer, message, Some(help)));
    }
}

/// Resolves the addresses of a listener.
pub(super) fn resolve_listener(
    source: &Source,
    listener: &mut Listener,
    pointer: &str,
    problems: &mut Vec<Diagnostic>,
) {
    resolve(source, &mut listener.address, &format!("{pointer}/address"), problems);
    for (j, address) in listener.addresses.iter_mut().enumerate() {
        resolve(source, address, &format!("{pointer}/addresses/{j}"), problems);
    }
}

/// Resolves the addresses of a cluster, and the path of its endpoints' file: equal paths are watched once.
pub(super) fn resolve_cluster(source: &Source, cluster: &mut Cluster, pointer: &str, problems: &mut Vec<Diagnostic>) {
    if let Some(file) = cluster.discovery.as_mut().and_then(|discovery| discovery.file.as_mut()) {
        let path = source.resolve(&*file);
        // In the working directory, the directory of the configuration's file may be empty.
        *file = std::path::absolute(&path).unwrap_or(path);
    }
    let unix = |(_, endpoint): &(usize, &mut Endpoint)| matches!(endpoint.address, Address::Unix(_));
    for (j, endpoint) in cluster.endpoints.iter_mut().enumerate().filter(unix) {
        resolve(source, &mut endpoint.address, &format!("{pointer}/endpoints/{j}/address"), problems);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, parse};

    #[test]
    fn unix_sockets_are_relative_to_the_files_folder_everywhere() {
        let text = "admin: {address: 'unix:admin.sock'}\n\
            listeners: [{name: a, address: 'unix:./a.sock', addresses: ['unix:/run/b.sock', '127.0.0.1:1'], cluster: c}]\n\
            sources: [{name: s, http: {url: 'http://s', address: 'unix:s.sock'}}]\n\
            consul: {address: 'unix:consul.sock'}\n\
            clusters: [{name: c, endpoints: [{address: 'unix:../app/c.sock'}]}]";
        let config = parse("/etc/tollgate/x.yaml", text, Format::Yaml).unwrap().config;
        let listener = &config.listeners[0];
        let all = [&config.admin.address, &listener.address, &listener.addresses[0], &listener.addresses[1]];
        let server = config.sources[0].http.as_ref().and_then(|http| http.address.as_ref());
        let all = all
            .into_iter()
            .chain(server)
            .chain(&config.consul.address)
            .chain([&config.clusters[0].endpoints[0].address]);
        let all = all.map(ToString::to_string);
        assert_eq!(
            all.collect::<Vec<_>>(),
            [
                "unix:/etc/tollgate/admin.sock",
                "unix:/etc/tollgate/a.sock",
                "unix:/run/b.sock",
                "127.0.0.1:1",
                "unix:/etc/tollgate/s.sock",
                "unix:/etc/tollgate/consul.sock",
                "unix:/etc/tollgate/../app/c.sock"
            ]
        );
        let here = parse("x.yaml", text, Format::Yaml).unwrap().config;
        assert_eq!(here.admin.address.to_string(), "unix:admin.sock");
    }

    #[test]
    fn one_socket_under_two_names_is_a_duplicate() {
        let text = "listeners: [{name: a, address: 'unix:a.sock'}, {name: b, address: 'unix:/etc/./a.sock'}]";
        let wrong = parse("/etc/x.yaml", text, Format::Yaml).unwrap_err().to_string();
        assert!(wrong.contains("is already the address of another listener"), "{wrong}");
    }

    #[test]
    fn a_path_that_the_folder_makes_too_long_is_refused_at_its_place() {
        let name = format!("/{}/x.yaml", "d".repeat(100));
        let text = "listeners: [{name: a, address: 'unix:abcdefgh.sock'}]";
        let wrong = parse(&name, text, Format::Yaml).unwrap_err().to_string();
        assert!(wrong.contains(":1:32: error: the path of a unix socket has at most 107 bytes"), "{wrong}");
    }
}
