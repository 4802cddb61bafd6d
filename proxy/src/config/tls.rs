//! Checks of the `tls` sections that a schema cannot express. The contents of the files are checked later, when they
//! are read.
//!
//! As in [`super::semantics`], the checks accept a tree of any shape.

use rustls::pki_types::ServerName;

use super::{
    diagnostic::Diagnostic,
    explain::clip,
    model::{ClientCertificates, Config, ForwardedClientCert, ListenerTls, TlsMode},
    node::{Node, Value},
    source::Source,
    units::Address,
};

/// Checks the `tls` sections of listeners and clusters.
pub(super) fn check(listeners: &[Node], clusters: &[Node], problems: &mut Vec<Diagnostic>) {
    for listener in listeners {
        let used = listener.entry("tls").filter(|(_, tls)| is_used(tls));
        if let Some((key, tls)) = used {
            if is_empty(tls.get("certificates")) {
                let message = "a listener's `tls` needs a certificate";
                let help = "write `certificates: [{certificate: FILE, key: FILE}]`, or `mode: disable`";
                problems.push(Diagnostic::error(key.span, message).help(help.to_owned()));
            }
            clients(tls, problems);
        }
        if let Some(http3) = listener.get("http3").filter(|node| node.to_json() == true) {
            problems.extend(quic(listener, http3, used.is_some()));
        }
    }
    for tls in clusters.iter().filter_map(|cluster| cluster.get("tls")) {
        names(tls, problems);
    }
}

/// Returns an error if a listener cannot serve HTTP/3.
fn quic(listener: &Node, http3: &Node, tls: bool) -> Option<Diagnostic> {
    let error = |message: &str| Some(Diagnostic::error(http3.span, message));
    let more = listener.get("addresses").map_or(&[][..], Node::items);
    let addresses = listener.get("address").into_iter().chain(more).filter_map(Node::as_str);
    // `None` for a unix socket.
    let ports = addresses.filter_map(|address| Some(address.parse::<Address>().ok()?.inet().map(|a| a.port())));
    let ports: Vec<Option<u16>> = ports.collect();
    if !cfg!(feature = "http3") {
        return error("this build of Tollgate does not support HTTP/3: it was built without the feature `http3`");
    }
    if !tls {
        return error("`http3` needs `tls`: HTTP/3 is always encrypted");
    }
    if listener.get("protocol").and_then(Node::as_str) == Some("tcp") {
        return error("`http3` cannot be combined with `protocol: tcp`");
    }
    if ports.contains(&Some(0)) {
        return error("`http3` needs a fixed port, not 0: the port is advertised to clients");
    }
    if !ports.is_empty() && ports.iter().all(Option::is_none) {
        return error("`http3` needs an address with a port: there is no HTTP/3 over unix sockets");
    }
    None
}

/// Whether a list is absent or empty.
fn is_empty(list: Option<&Node>) -> bool {
    list.is_none_or(|list| {
        matches!(&list.value, Value::Null) || matches!(&list.value, Value::Seq(all) if all.is_empty())
    })
}

fn is_used(tls: &Node) -> bool {
    matches!(tls.value, Value::Map(_)) && tls.get("mode").and_then(Node::as_str) != Some("disable")
}

/// Checks client certificate settings: asking for certificates requires authorities to verify them.
fn clients(tls: &Node, problems: &mut Vec<Diagnostic>) {
    let domains = tls.entry("trust_domains");
    let entries = match domains.map(|(_, node)| &node.value) {
        Some(Value::Map(entries)) => &entries[..],
        _ => &[],
    };
    for (key, files) in entries {
        // SPIFFE ID, section 2.1.
        let right = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
        if key.name.is_empty() || !key.name.bytes().all(right) {
            let message = format!("`{}` is not a trust domain", clip(&key.name));
            let help = "write the part between `spiffe://` and the next slash, in small letters, such as mesh.local";
            problems.push(Diagnostic::error(key.span, message).help(help.to_owned()));
        } else if is_empty(Some(files)) {
            let message = format!("trust domain `{}` has no authority", clip(&key.name));
            problems.push(Diagnostic::error(key.span, message).help("list a file, or remove the entry".to_owned()));
        }
    }
    let asked = tls.get("client_certificates");
    let Some((node, asked)) = asked.and_then(|node| Some((node, node.as_str()?))) else { return };
    if matches!(asked, "request" | "require") && is_empty(tls.get("client_ca")) && domains.is_none() {
        let message = format!("`client_certificates: {asked}` needs `client_ca`");
        let help = "list the files of the certificate authorities that sign client certificates";
        problems.push(Diagnostic::error(node.span, message).help(help.to_owned()));
    }
}

/// Checks the server name and the accepted certificate names.
fn names(tls: &Node, problems: &mut Vec<Diagnostic>) {
    let wrong = |node: &Node, what: &str| {
        let help = "write a DNS name or an IP address, without a port".to_owned();
        let text = clip(node.as_str().unwrap_or_default());
        Diagnostic::error(node.span, format!("`{text}` is not {what}")).help(help)
    };
    if let Some(sni) = tls.get("sni").filter(|node| node.as_str().is_some_and(|name| !is_host(name))) {
        problems.push(wrong(sni, "a server name"));
    }
    if let Some((key, sans)) = tls.entry("sans")
        && is_empty(Some(sans))
        && !matches!(sans.value, Value::Null)
    {
        let help = "list a name, or remove `sans`: the certificate must then match the server name (`sni`)";
        problems.push(Diagnostic::error(key.span, "`sans` must not be empty").help(help.to_owned()));
    }
    for san in tls.get("sans").map_or(&[][..], Node::items) {
        let Some(name) = san.as_str() else { continue };
        if name.starts_with("*.") {
            let message = "`sans` cannot contain wildcards: a wildcard in the certificate matches the full name";
            problems.push(Diagnostic::error(san.span, message));
        } else if !is_host(name) && !is_uri(name) {
            problems.push(
                wrong(san, "a name that a certificate can have")
                    .help("write a DNS name, an IP address, or a URI such as spiffe://mesh/ns/a/sa/b".to_owned()),
            );
        }
    }
}

fn is_host(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

/// Whether the text looks like a URI (RFC 3986 section 3, simplified): `host:port` must not be taken for one.
fn is_uri(name: &str) -> bool {
    let Some((scheme, rest)) = name.split_once(':') else { return false };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let is_port = rest.bytes().all(|b| b.is_ascii_digit());
    is_scheme && !is_port && rest.bytes().all(|b| b.is_ascii_graphic())
}

/// Adds the warnings that need the model, for a file without errors.
pub(super) fn warn(source: &Source, config: &Config, warnings: &mut Vec<Diagnostic>) {
    let mut warn = |pointer: &str, message: &str| {
        warnings.push(Diagnostic::warning(source.locate(pointer, "").span, message));
    };
    for (i, listener) in config.listeners.iter().enumerate() {
        let used = listener.tls.as_ref().filter(|tls| tls.mode != TlsMode::Disable);
        let asks = used.is_some_and(|tls| tls.client_certificates != ClientCertificates::None);
        if let Some(ListenerTls { client_ca, crl, trust_domains, .. }) = used.filter(|_| !asks) {
            if !trust_domains.is_empty() {
                let message = "`trust_domains` has no effect: clients are not asked for certificates";
                warn(&format!("/listeners/{i}/tls/trust_domains"), message);
            }
            for (name, files) in [("client_ca", client_ca), ("crl", crl)] {
                if !files.is_empty() {
                    let message = format!("`{name}` has no effect: clients are not asked for certificates");
                    warn(&format!("/listeners/{i}/tls/{name}"), &message);
                }
            }
        }
        let forwarded = listener.forwarded_client_cert;
        if matches!(forwarded, ForwardedClientCert::Append | ForwardedClientCert::Set) && !asks {
            let message = "clients are not asked for certificates, so the header is always removed";
            warn(&format!("/listeners/{i}/forwarded_client_cert"), message);
        }
        if listener.http3 && listener.proxy_protocol.is_some() {
            let message = "there is no PROXY protocol over UDP: with HTTP/3, the sender of the datagrams is the client";
            warn(&format!("/listeners/{i}/http3"), message);
        }
    }
    for (i, cluster) in config.clusters.iter().enumerate() {
        let Some(tls) = &cluster.tls else { continue };
        let pointer = format!("/clusters/{i}/tls");
        if tls.insecure {
            warn(&format!("{pointer}/insecure"), "certificates are not verified; `ca`, `sans` and `crl` are ignored");
        } else if tls.sni.is_none() && tls.sans.is_empty() && !is_host(&cluster.name) {
            let message = "the cluster's name is not a valid host name, so endpoints' certificates must be valid for their IP addresses: set `sni` or `sans`";
            warn(&pointer, message);
        }
    }
}
