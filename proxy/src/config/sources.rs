//! Checks of the `sources` section, and of clusters that take their endpoints from a source. Names are checked with all
//! others, in `outline`.

use super::{
    diagnostic::Diagnostic,
    model::{Cluster, ClusterTls, Config, Consul, Discovery, DnsDiscovery, HttpSource, Kubernetes},
    node::{Node, Span, Value},
    source::Source,
    units::{Address, Duration},
    url::HttpUrl,
};

/// The ways in which a source can be reached.
const WAYS: [&str; 2] = ["http", "directory"];

/// Checks a tree of any shape.
pub(super) fn check(source: &Source, problems: &mut Vec<Diagnostic>) {
    let root = source.root();
    for entry in items(root, "sources") {
        let Value::Map(_) = entry.value else { continue };
        let given: Vec<_> = WAYS.iter().filter_map(|way| entry.entry(way)).collect();
        match given[..] {
            [_] => {}
            [] => problems.push(
                Diagnostic::error(source.first_line(entry.span), "the source says nothing of where its resources are")
                    .help("add `http: {url: ...}` or `directory: {path: ...}`".to_owned()),
            ),
            [_, (second, _), ..] => problems.push(
                Diagnostic::error(second.span, "a source has either `http` or `directory`")
                    .help("make two sources of it".to_owned()),
            ),
        }
    }
    let of_sources = items(root, "sources").iter().filter_map(|entry| entry.get("http"));
    let servers = of_sources.chain(["consul", "kubernetes"].into_iter().filter_map(|section| root.get(section)));
    let urls = servers.filter_map(|server| server.get("url"));
    for (node, url) in urls.filter_map(|node| Some((node, node.as_str()?))) {
        // What has another scheme does not match the schema.
        if url.starts_with("http")
            && let Err(wrong) = url.parse::<HttpUrl>()
        {
            problems.push(Diagnostic::error(node.span, wrong));
        }
    }
    consul(root, problems);
    for cluster in items(root, "clusters") {
        let Some((key, _)) = cluster.entry("discovery") else { continue };
        if !cluster.get("endpoints").map_or(&[][..], Node::items).is_empty() {
            let both = "a cluster has either `endpoints` or `discovery`";
            problems.push(Diagnostic::error(key.span, both).help("remove one of them".to_owned()));
        }
        discovery(key.span, cluster.get("discovery"), problems);
    }
}

/// Checks how long queries to Consul are held.
fn consul(root: &Node, problems: &mut Vec<Diagnostic>) {
    let wait = root.get("consul").and_then(|consul| consul.get("wait"));
    let wait = wait.and_then(|node| Some((node, node.as_str()?.parse::<Duration>().ok()?)));
    if let Some((node, wait)) = wait.filter(|(_, wait)| !(1..=600).contains(&wait.0.as_secs())) {
        let message = format!("Consul holds queries for 1s to 10m, not for {wait}");
        problems.push(Diagnostic::error(node.span, message).help("leave it out for the default, 5m".to_owned()));
    }
}

/// Checks where a cluster's endpoints come from.
fn discovery(span: Span, node: Option<&Node>, problems: &mut Vec<Diagnostic>) {
    let Some(node) = node.filter(|node| matches!(node.value, Value::Map(_))) else { return };
    let mut report = |span, message: &str, help: &str| {
        problems.push(Diagnostic::error(span, message).help(help.to_owned()));
    };
    let given: Vec<_> = Discovery::KINDS.iter().filter_map(|kind| node.entry(kind)).collect();
    let (kind, found) = match given[..] {
        [(kind, found)] => (&*kind.name, found),
        [] => {
            let kinds = Discovery::KINDS.map(|kind| format!("`{kind}`"));
            let help = format!("add one of {}", kinds.join(", "));
            return report(span, "`discovery` does not say where the endpoints come from", &help);
        }
        [(first, _), (second, _), ..] => {
            let message = format!("a cluster has either `{}` or `{}`", first.name, second.name);
            return report(second.span, &message, "remove one of them");
        }
    };
    match kind {
        "source" => return,
        "dns" => dns(found, problems),
        "consul" if !cfg!(feature = "consul") => {
            let message = "this build of Tollgate does not support Consul: it was built without the feature `consul`";
            problems.push(Diagnostic::error(found.span, message));
        }
        "kubernetes" if !cfg!(feature = "kubernetes") => {
            let message =
                "this build of Tollgate does not support Kubernetes: it was built without the feature `kubernetes`";
            problems.push(Diagnostic::error(found.span, message));
        }
        _ => {}
    }
    if let Some((key, _)) = node.entry("service") {
        let help = match kind {
            "dns" => "the name in DNS is `dns.name`".to_owned(),
            "consul" => "the name in Consul is `consul.service`".to_owned(),
            "kubernetes" => "the name in Kubernetes is `kubernetes.service`".to_owned(),
            _ => "remove it, or name the `source`".to_owned(),
        };
        problems.push(Diagnostic::error(key.span, "`service` is a name in a source").help(help));
    }
}

/// Checks what is looked up in DNS.
fn dns(dns: &Node, problems: &mut Vec<Diagnostic>) {
    let mut report = |span, message: &str, help: &str| {
        problems.push(Diagnostic::error(span, message).help(help.to_owned()));
    };
    if let Some((key, _)) = dns.entry("name") {
        match (dns.get("mode").and_then(Node::as_str), dns.entry("port")) {
            (Some("srv"), Some((key, _))) => report(key.span, "SRV records contain the ports", "remove `port`"),
            (Some("srv"), None) | (_, Some(_)) => {}
            (_, None) => report(key.span, "the port is missing", "add `port`, or use SRV records with `mode: srv`"),
        }
    }
    let times = ["min_ttl", "max_ttl"].map(|name| dns.get(name)?.as_str()?.parse::<Duration>().ok());
    let defaults = DnsDiscovery::new("", 0);
    let [least, most] = [times[0].unwrap_or(defaults.min_ttl), times[1].unwrap_or(defaults.max_ttl)];
    let place = dns.entry("min_ttl").or_else(|| dns.entry("max_ttl"));
    if let Some((key, _)) = place {
        if least.0.is_zero() {
            report(
                key.span,
                "`min_ttl` must be more than 0",
                "write a time such as 1s, or leave it out for the default",
            );
        } else if least > most {
            report(key.span, &format!("`min_ttl` ({least}) is longer than `max_ttl` ({most})"), "make it shorter");
        }
    }
}

/// Adds the warnings that need the model, for a file without errors.
pub(super) fn warn(source: &Source, config: &Config, warnings: &mut Vec<Diagnostic>) {
    let mut add = |place: &str, found: Vec<(&str, String, Option<&str>)>| {
        for (field, message, help) in found {
            let span = source.locate(&format!("{place}/{field}"), "").span;
            warnings.push(Diagnostic::warning(span, message).help(help.map(str::to_owned)));
        }
    };
    for (i, http) in config.sources.iter().enumerate().filter_map(|(i, entry)| Some((i, entry.http.as_ref()?))) {
        let HttpSource { url, address, token_file, tls, .. } = http;
        let found = of_server(url, address.as_ref(), token_file.is_some(), tls.as_ref());
        add(&format!("/sources/{i}/http"), found);
    }
    let Consul { url, address, token_file, tls, .. } = &config.consul;
    add("/consul", of_server(url, address.as_ref(), token_file.is_some(), tls.as_ref()));
    let Kubernetes { url, token_file, tls, .. } = &config.kubernetes;
    if let Some(url) = url {
        add("/kubernetes", of_server(url, None, token_file.is_some(), tls.as_ref()));
    }
    if config.node.as_ref().is_none_or(|node| node.zone.is_empty()) {
        let hints = |cluster: &Cluster| cluster.discovery.as_ref()?.kubernetes.as_ref().map(|service| service.hints);
        for (i, _) in config.clusters.iter().enumerate().filter(|(_, cluster)| hints(cluster) == Some(true)) {
            let message = "`hints` has no effect: the proxy's zone is not known".to_owned();
            add(&format!("/clusters/{i}/discovery/kubernetes"), vec![("hints", message, Some("set `node.zone`"))]);
        }
    }
}

/// Returns warnings about a server: the field, the message and help.
fn of_server(
    url: &str,
    address: Option<&Address>,
    has_token: bool,
    tls: Option<&ClusterTls>,
) -> Vec<(&'static str, String, Option<&'static str>)> {
    let mut all = Vec::new();
    let Ok(url) = url.parse::<HttpUrl>() else { return all };
    let stays_here = match address {
        None => url.is_loopback(),
        Some(address) => address.inet().is_none_or(|address| address.ip().to_canonical().is_loopback()),
    };
    if has_token && !url.is_tls && !stays_here {
        let message = format!("the token is sent to `{}` without encryption", url.host);
        let help = "write https://, or connect to a unix socket of this machine (`address`)";
        all.push(("url", message, Some(help)));
    }
    match tls {
        Some(_) if !url.is_tls => {
            all.push(("tls", "`tls` has no effect: the URL begins with http://".to_owned(), Some("write https://")));
        }
        Some(tls) if tls.insecure => {
            let message = "certificates are not verified; `ca`, `sans` and `crl` are ignored";
            all.push(("tls/insecure", message.to_owned(), None));
        }
        _ => {}
    }
    if address.and_then(Address::inet).is_some_and(|address| address.port() == 0) {
        all.push(("address", "port 0 cannot be connected to".to_owned(), None));
    }
    all
}

/// Whether any source may supply resources of a section.
pub(super) fn supply(root: &Node, section: &str) -> bool {
    let may = |entry: &Node| match entry.get("supplies") {
        None => matches!(section, "clusters" | "endpoints"),
        Some(kinds) => kinds.items().iter().any(|kind| kind.as_str() == Some(section)),
    };
    items(root, "sources").iter().any(may)
}

fn items<'n>(root: &'n Node, section: &str) -> &'n [Node] {
    root.get(section).map_or(&[], Node::items)
}

#[cfg(test)]
mod tests {
    use super::super::{Format, parse};

    #[test]
    fn secrets_without_encryption_and_settings_without_effect_are_warned_about() {
        for (http, expected) in [
            ("{url: 'http://control.test', token_file: t}", "the token is sent to `control.test` without encryption"),
            ("{url: 'http://localhost', address: '10.0.0.1:80', token_file: t}", "the token is sent to `localhost`"),
            ("{url: 'http://control.test'}", ""),
            ("{url: 'https://control.test', token_file: t}", ""),
            ("{url: 'http://localhost:80', token_file: t}", ""),
            ("{url: 'http://[::1]', token_file: t}", ""),
            ("{url: 'http://control.test', address: 'unix:a.sock', token_file: t}", ""),
            ("{url: 'http://control.test', address: '127.0.0.1:80', token_file: t}", ""),
            ("{url: 'http://control.test', tls: {}}", "`tls` has no effect: the URL begins with http://"),
            ("{url: 'https://control.test', tls: {insecure: true}}", "certificates are not verified"),
            ("{url: 'https://control.test', address: '10.0.0.1:0'}", "port 0 cannot be connected to"),
        ] {
            let consul = format!("consul: {http}\nlisteners: [{{name: l, address: '127.0.0.1:1'}}]");
            let text =
                format!("sources: [{{name: s, http: {http}}}]\nlisteners: [{{name: l, address: '127.0.0.1:1'}}]");
            let kubernetes = (!http.contains("address")).then(|| consul.replacen("consul", "kubernetes", 1));
            for text in [text, consul].into_iter().chain(kubernetes) {
                let loaded = parse("c.yaml", &text, Format::Yaml).unwrap_or_else(|wrong| panic!("{wrong}"));
                let warnings = loaded.warnings.render(false);
                match expected {
                    "" => assert!(!warnings.contains("c.yaml:1:"), "{text}: {warnings}"),
                    expected => assert!(warnings.contains(expected), "{text}: {warnings}"),
                }
            }
        }
    }

    #[test]
    fn hints_need_the_zone_of_the_proxy() {
        let clusters = "clusters: [{name: c, discovery: {kubernetes: {service: web, namespace: shop, hints: true}}}]";
        for (node, is_warned) in [("", true), ("node: {region: eu-1}", true), ("node: {zone: eu-1a}", false)] {
            let text = format!("{clusters}\nlisteners: [{{name: l, address: '127.0.0.1:1'}}]\n{node}");
            let warnings = parse("c.yaml", &text, Format::Yaml).unwrap().warnings.to_string();
            let is_there = warnings.contains("warning: `hints` has no effect: the proxy's zone is not known");
            assert_eq!(is_there, is_warned, "{node}: {warnings}");
        }
    }
}
