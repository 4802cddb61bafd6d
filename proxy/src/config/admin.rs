//! Checks of the `admin` section: who can reach the listener, and who can read its secrets.

use std::net::{IpAddr, Ipv4Addr};

use super::{diagnostic::Diagnostic, explain::clip, model::Config, node::Node, source::Source};
use crate::files::is_exposed;

/// Checks the accepted host names. They cannot contain patterns or ports; ports are ignored in requests.
pub(super) fn check(root: &Node, problems: &mut Vec<Diagnostic>) {
    let hosts = root.get("admin").and_then(|admin| admin.get("hosts"));
    for node in hosts.map_or(&[][..], Node::items) {
        let Some(name) = node.as_str() else { continue };
        let right = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if !name.is_empty() && right(name) {
            continue;
        }
        let port = |(name, port): &(&str, &str)| !name.is_empty() && right(name) && port.parse::<u16>().is_ok();
        let help = match name.rsplit_once(':').filter(port) {
            Some((name, _)) => format!("write `{name}`: it is valid for every port"),
            None if name.parse::<IpAddr>().is_ok() => "IP addresses are always accepted".to_owned(),
            None if name.contains('*') => {
                "list every name: a web page could use any name that a wildcard matches".to_owned()
            }
            None => "write one such as admin.internal".to_owned(),
        };
        problems.push(Diagnostic::error(node.span, format!("`{}` is not a host name", clip(name))).help(help));
    }
}

/// Warns about listeners that other hosts can reach, and secrets that other users can read.
pub(super) fn warn(source: &Source, config: &Config, warnings: &mut Vec<Diagnostic>) {
    let mut warn = |pointer: &str, message: String, help: Option<&str>| {
        let span = source.locate(pointer, "").span;
        warnings.push(Diagnostic::warning(span, message).help(help.map(str::to_owned)));
    };
    let admin = &config.admin;
    if let Some(address) = admin.address.inet().filter(|address| admin.enabled && !is_loopback(address.ip())) {
        if admin.token_file.is_none() {
            let message = format!("the admin listener requires no token, and other hosts can reach {address}");
            let help =
                "listen on 127.0.0.1 or a unix socket (other hosts can use the `probes` listener), or set `token_file`";
            warn("/admin/address", message, Some(help));
        }
        if admin.ca.is_some() {
            let message = format!("join tokens and certificates are sent to and from {address} without encryption");
            let help = "anyone who intercepts a token can use it: keep tokens short-lived and the network private";
            warn("/admin/ca", message, Some(help));
        }
    }
    let mut look = |pointer: &str, path: &std::path::Path, what: &str| {
        let path = source.resolve(path);
        if is_exposed(&path) {
            warn(
                pointer,
                format!("every user on this machine can read {what} in `{}`", path.display()),
                Some("chmod 600"),
            );
        }
    };
    if let Some(ca) = &admin.ca {
        look("/admin/ca/dir", &ca.dir.join(self::KEY), "the authority's private key");
        look("/admin/ca/dir", &ca.dir.join(self::SECRET), "the secret of join tokens");
    }
    if let Some(file) = &admin.token_file {
        look("/admin/token_file", file, "the token");
    }
    for (i, entry) in config.sources.iter().enumerate() {
        if let Some(file) = entry.http.as_ref().and_then(|http| http.token_file.as_ref()) {
            look(&format!("/sources/{i}/http/token_file"), file, "the token");
        }
    }
    if let Some(file) = &config.consul.token_file {
        look("/consul/token_file", file, "the token");
    }
    if let Some(file) = &config.kubernetes.token_file {
        look("/kubernetes/token_file", file, "the token");
    }
    if let Some(workload) = &config.workload {
        look("/workload/token", &workload.token, "the join token");
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback() && ip != IpAddr::V4(Ipv4Addr::UNSPECIFIED)
}

/// The file name of the signing root's private key.
pub const KEY: &str = "ca.key";

/// The file name of the secret that seals join tokens.
pub const SECRET: &str = "token.key";

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::super::{Format, parse};

    const LISTENERS: &str = "listeners: [{name: a, address: '127.0.0.1:1', cluster: c}]\n\
                             clusters: [{name: c, endpoints: [{address: '127.0.0.1:2'}]}]\n";

    #[test]
    fn an_admin_listener_reachable_from_other_hosts_is_a_warning() {
        for (admin, warned) in [
            ("{address: '127.0.0.1:9'}", ""),
            ("{address: '[::1]:9'}", ""),
            ("{address: 'unix:a.sock'}", ""),
            ("{address: '0.0.0.0:9', enabled: false}", ""),
            ("{address: '0.0.0.0:9', token_file: t}", ""),
            ("{address: '0.0.0.0:9'}", "requires no token, and other hosts can reach 0.0.0.0:9"),
            ("{address: '[::]:9'}", "requires no token"),
            ("{address: '10.0.0.1:9', token_file: t, ca: {dir: ca}}", "without encryption"),
        ] {
            let loaded = parse("x.yaml", &format!("admin: {admin}\n{LISTENERS}"), Format::Yaml).unwrap();
            let said = loaded.warnings.to_string();
            assert_eq!(said.is_empty(), warned.is_empty(), "{admin}: {said}");
            assert!(said.contains(warned), "{admin}: {said}");
        }
    }

    #[test]
    fn world_readable_secrets_are_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "admin: {{token_file: t, ca: {{dir: .}}}}\n\
             workload: {{spiffe: 'spiffe://m/a', ca: 'http://127.0.0.1:1', token: j}}\n{LISTENERS}"
        );
        let warnings = |mode| {
            for name in ["t", "ca.key", "token.key", "j"] {
                let path = dir.path().join(name);
                fs::write(&path, "x").unwrap();
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
            let name = dir.path().join("x.yaml");
            parse(name.to_str().unwrap(), &config, Format::Yaml).unwrap().warnings.to_string()
        };
        assert_eq!(warnings(0o600), "");
        let said = warnings(0o644);
        for what in ["the authority's private key", "the secret of join tokens", "the token", "the join token"] {
            assert!(said.contains(&format!("every user on this machine can read {what} in `")), "{what}: {said}");
        }
    }

    #[test]
    fn hosts_are_names() {
        for (host, help) in [
            ("*", "list every name"),
            ("*.internal", "list every name"),
            ("admin.internal:9901", "write `admin.internal`"),
            ("10.0.0.1", ""),
            ("::1", "IP addresses are always accepted"),
            ("http://admin.internal", "write one such as"),
            ("", "write one such as"),
        ] {
            let parsed = parse("x.yaml", &format!("admin: {{hosts: ['{host}']}}\n{LISTENERS}"), Format::Yaml);
            match help {
                "" => assert!(parsed.is_ok(), "{host}"),
                help => {
                    let said = parsed.unwrap_err().to_string();
                    assert!(said.contains("is not a host name") && said.contains(help), "{host}: {said}");
                }
            }
        }
    }
}
