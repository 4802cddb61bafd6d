//! Checks of a single file that a JSON Schema cannot express: values that depend on each other, names, files. `outline`
//! has the checks across files.
//!
//! The checks read the tree, not the model, and accept a tree of any shape. So they also work on a file that has other
//! errors, and all errors are reported together.

use std::collections::HashMap;

use tollgate_abi::doc;

use super::{
    adaptive_concurrency, admin, balancer,
    diagnostic::Diagnostic,
    explain::{clip, did_you_mean, list},
    load::{Check, ExternalChecks},
    model::Config,
    node::{Key, Node, Span, Value},
    outlier, overload, retry,
    source::Source,
    sources, subset, tls,
    units::{Address, ByteSize, Duration, ServerName},
    workload,
};
use crate::builtins;

/// Checks a tree. Errors are appended to `problems`.
pub(super) fn check(source: &Source, foreign: &ExternalChecks, problems: &mut Vec<Diagnostic>) {
    let root = source.root();
    let mut ask = |node: Option<&Node>, check: Check| {
        if let Some((node, Err((message, help)))) = node.and_then(|node| Some((node, check(node.as_str()?)))) {
            problems.push(Diagnostic::error(source.first_line(node.span), message).help(help));
        }
    };
    ask(root.get("log").and_then(|log| log.get("level")), foreign.log_level);
    for log in root.get("listeners").map_or(&[][..], Node::items).iter().filter_map(|l| l.get("access_log")) {
        ask(log.get("format"), foreign.access_log);
        ask(log.get("to"), log_file);
    }
    let section = |name: &str| root.get(name).map_or(&[][..], Node::items);
    let (listeners, filters, clusters) = (section("listeners"), section("filters"), section("clusters"));
    for name in listeners.iter().chain(filters).chain(clusters).filter_map(|entry| entry.get("name")) {
        one_line("a name", name, problems);
    }
    admin::check(root, problems);
    workload::check(root, problems);
    compile(root, problems);
    for listener in listeners {
        tcp(listener, problems);
        server_names(listener, problems);
        upgrades(listener, problems);
        header_bytes(listener, problems);
        deadline_header(listener, problems);
        overload::check(listener, problems);
        if let Some(via) = listener.get("via") {
            one_line("`via`", via, problems);
        }
    }
    tls::check(listeners, clusters, problems);
    sources::check(source, problems);
    for filter in filters {
        if let Some(wasm) = filter.get("wasm") {
            module(source, wasm, problems);
        }
        variant_names(filter, problems);
    }
    for (key, endpoints) in clusters.iter().filter_map(|cluster| cluster.entry("endpoints")) {
        weights(key, endpoints, problems);
        ports(endpoints, problems);
    }
    for section in clusters.iter().filter_map(|cluster| cluster.get("balancer")) {
        balancer::check(section, problems);
    }
    for check in clusters.iter().filter_map(|cluster| cluster.get("health_check")) {
        health_check(check, problems);
    }
    for section in clusters.iter().filter_map(|cluster| cluster.get("retry")) {
        retry::check(section, problems);
    }
    for section in clusters.iter().filter_map(|cluster| cluster.get("adaptive_concurrency")) {
        adaptive_concurrency::check(section, problems);
    }
    for section in clusters.iter().filter_map(|cluster| cluster.get("hedging")) {
        retry::check_hedging(section, problems);
    }
    for section in clusters.iter().filter_map(|cluster| cluster.get("outlier_detection")) {
        outlier::check(section, problems);
    }
    for section in clusters.iter().filter_map(|cluster| cluster.get("subsets")) {
        subset::check(section, problems);
    }
}

/// Adds the warnings that need the model's defaults, for a file without errors.
pub(super) fn warn(source: &Source, config: &Config, warnings: &mut Vec<Diagnostic>) {
    admin::warn(source, config, warnings);
    tls::warn(source, config, warnings);
    sources::warn(source, config, warnings);
    workload::warn(source, config, warnings);
    let listeners = config.listeners.iter().enumerate().map(|(i, listener)| ("listeners", i, &listener.http2));
    let clusters = config.clusters.iter().enumerate().map(|(i, cluster)| ("clusters", i, &cluster.http2));
    for (section, i, http2) in listeners.chain(clusters) {
        let all = http2.all_stream_windows();
        if u64::from(http2.connection_window.window()) < all.0 {
            let message = format!(
                "`connection_window` ({}) is smaller than `max_concurrent_streams` times `stream_window` ({all}): streams that \
                 are not being read can block the others",
                http2.connection_window
            );
            let pointer = format!("/{section}/{i}/http2/connection_window");
            warnings.push(Diagnostic::warning(source.locate(&pointer, "").span, message));
        }
    }
    for (i, cluster) in config.clusters.iter().enumerate() {
        if cluster.endpoints.is_empty() && cluster.discovery.is_none() {
            let message = format!("cluster `{}` has no endpoints: all requests get 503", cluster.name);
            warnings.push(Diagnostic::warning(source.locate(&format!("/clusters/{i}/endpoints"), "").span, message));
        }
        if let Some(check) = cluster.health_check.as_ref().filter(|check| check.timeout.0 > check.interval.0) {
            let message = format!(
                "`timeout` ({}) is longer than `interval` ({}): a check that hangs delays the following ones",
                check.timeout, check.interval
            );
            let pointer = format!("/clusters/{i}/health_check/timeout");
            warnings.push(Diagnostic::warning(source.locate(&pointer, "").span, message));
        }
    }
    retry::warn(source, config, warnings);
}

/// Rejects file names that look like a format or a misspelled `stdout`.
fn log_file(to: &str) -> Result<(), (String, Option<String>)> {
    const STREAMS: [&str; 2] = ["stdout", "stderr"];
    if to == "json" || to.contains('%') {
        return Err((format!("`{}` is a format, not a file", clip(to)), Some("set it as `format`".to_owned())));
    }
    if !STREAMS.contains(&to)
        && !to.contains(['/', '.'])
        && let Some(help) = did_you_mean(to, &STREAMS)
    {
        let help = format!("{help} For a file of this name, write `./{to}`");
        return Err((format!("`{}` is neither `stdout` nor `stderr`", clip(to)), Some(help)));
    }
    Ok(())
}

/// Reports control characters in texts that end up in log lines, metrics or headers, where a line break could inject
/// content.
fn one_line(what: &str, node: &Node, problems: &mut Vec<Diagnostic>) {
    if let Some(wrong) = node.as_str().and_then(|text| text.chars().find(|c| c.is_control())) {
        let message =
            format!("{what} must not contain control characters; this one contains U+{:04X}", u32::from(wrong));
        problems.push(Diagnostic::error(node.span, message));
    }
}

/// Reports names of a filter's variants that a route cannot select.
fn variant_names(filter: &Node, problems: &mut Vec<Diagnostic>) {
    let Some(Value::Map(variants)) = filter.get("variants").map(|node| &node.value) else { return };
    for (key, _) in variants {
        let message = match &*key.name {
            doc::OFF => "a variant cannot be named `off`: in a route, `off` skips the filter",
            "" => "a variant needs a name",
            name if name.contains(char::is_control) => "a variant's name must not contain control characters",
            _ => continue,
        };
        problems.push(Diagnostic::error(key.span, message));
    }
}

/// Reports a limit of 0 bytes for request heads.
fn header_bytes(listener: &Node, problems: &mut Vec<Diagnostic>) {
    let Some(node) = listener.get("limits").and_then(|limits| limits.get("header_bytes")) else { return };
    if serde_json::from_value::<ByteSize>(node.to_json()).is_ok_and(|size| size.0 == 0) {
        let help = "it must be 1B or greater; the default is 64KiB".to_owned();
        problems.push(Diagnostic::error(node.span, "the limit for request heads must not be 0").help(help));
    }
}

/// Reports a header for deadlines that cannot hold one, or that is never read.
fn deadline_header(listener: &Node, problems: &mut Vec<Diagnostic>) {
    /// Fields with a meaning of their own.
    const TAKEN: [&str; 9] = [
        "connection",
        "content-length",
        "expect",
        "grpc-timeout",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let Some(node) = listener.get("deadline_header") else { return };
    let Some(name) = node.as_str() else { return };
    let mut wrong = |message: String| problems.push(Diagnostic::error(node.span, message));
    if listener.get("protocol").and_then(Node::as_str) == Some("tcp") {
        return wrong(
            "`deadline_header` has no effect with `protocol: tcp`: TCP connections have no headers".to_owned(),
        );
    }
    match http::HeaderName::from_bytes(name.as_bytes()) {
        Err(_) => wrong(format!("`{}` is not the name of a header", clip(name))),
        Ok(parsed) if TAKEN.contains(&parsed.as_str()) => {
            wrong(format!("`{name}` has another meaning: use a header of your own, such as x-request-timeout-ms"));
        }
        Ok(_) => {}
    }
}

/// Reports upgrade protocols that are not tokens (RFC 9110 section 7.8), or that name HTTP/2, which can no longer be
/// upgraded to.
fn upgrades(listener: &Node, problems: &mut Vec<Diagnostic>) {
    for node in listener.get("upgrades").map_or(&[][..], Node::items) {
        let Some(name) = node.as_str() else { continue };
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            let message = format!("`{}` is not the name of a protocol", clip(name));
            problems.push(Diagnostic::error(node.span, message).help("write one such as `websocket`".to_owned()));
        } else if ["h2c", "h2", "http/2", "http/2.0"].iter().any(|http2| name.eq_ignore_ascii_case(http2)) {
            let message = format!("`{name}` cannot be upgraded to: RFC 9113 deprecates this upgrade");
            let help = "use `protocol: http`, which accepts HTTP/2 without TLS with prior knowledge";
            problems.push(Diagnostic::error(node.span, message).help(help.to_owned()));
        }
    }
}

/// Checks the routing of TCP connections.
fn tcp(listener: &Node, problems: &mut Vec<Diagnostic>) {
    let tcp = listener.get("tcp");
    let section = |name: &str| tcp.and_then(|tcp| tcp.get(name)).map_or(&[][..], Node::items);
    let none = |cluster: &Node| cluster.get("weight").is_some_and(|weight| weight.to_json() == 0);
    if let Some((key, shares)) = tcp.and_then(|tcp| tcp.entry("clusters"))
        && !shares.items().is_empty()
        && shares.items().iter().all(none)
    {
        let help = "set a weight for at least one of them, or remove `weight` (default 1)".to_owned();
        problems.push(Diagnostic::error(key.span, "the weights of all clusters are 0").help(help));
    }
    // A filter may choose the cluster; without any filter, the listener must.
    let no_filter = listener.get("chain").is_none_or(|chain| chain.items().is_empty());
    let no_way = listener.get("cluster").is_none() && section("clusters").is_empty() && section("sni").is_empty();
    if let Some(protocol) = listener.get("protocol").filter(|p| p.as_str() == Some("tcp"))
        && no_filter
        && no_way
    {
        let help = "give the listener a `cluster`, or clusters under `tcp`".to_owned();
        problems.push(Diagnostic::error(protocol.span, "TCP connections have no destination").help(help));
    }
}

/// Reports server names that occur more than once in a listener.
fn server_names(listener: &Node, problems: &mut Vec<Diagnostic>) {
    let routes = listener.get("tcp").and_then(|tcp| tcp.get("sni")).map_or(&[][..], Node::items);
    let mut taken: HashMap<ServerName, Span> = HashMap::new();
    for node in routes.iter().filter_map(|route| route.get("names")).flat_map(Node::items) {
        let Some(Ok(name)) = node.as_str().map(str::parse::<ServerName>) else { continue };
        match taken.get(&name) {
            None => _ = taken.insert(name, node.span),
            Some(first) => {
                let twice = Diagnostic::error(node.span, format!("the server name `{name}` is listed twice"));
                problems.push(twice.note(*first, "here"));
            }
        }
    }
}

/// Checks that a filter's module is a built-in filter or a file.
fn module(source: &Source, node: &Node, problems: &mut Vec<Diagnostic>) {
    let Some(wasm) = node.as_str() else { return };
    if let Some(name) = builtins::name(wasm) {
        if !builtins::NAMES.contains(&name) {
            let all = || format!("the built-in filters are {}", list(builtins::NAMES));
            let help = did_you_mean(name, builtins::NAMES).unwrap_or_else(all);
            let message = format!("there is no built-in filter `{}`", clip(name));
            problems.push(Diagnostic::error(node.span, message).help(help));
        }
        return;
    }
    let path = source.resolve(wasm);
    if let Some((scheme, _)) = wasm.split_once("://") {
        let message = format!("URLs are not fetched: `{}`", clip(wasm));
        let help = match scheme {
            "file" => "write the path alone",
            _ => "download the module and write its path, which is relative to this file",
        };
        problems.push(Diagnostic::error(source.first_line(node.span), message).help(help.to_owned()));
        return;
    }
    let message = match std::fs::metadata(&path) {
        _ if wasm.is_empty() => "this must not be empty".to_owned(),
        Ok(meta) if meta.is_file() => return,
        Ok(_) => format!("`{}` is not a file", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => format!("there is no file `{}`", path.display()),
        Err(error) => format!("cannot read `{}`: {error}", path.display()),
    };
    let help = builtins::NAMES.contains(&wasm).then(|| format!("for the built-in filter, write `builtin:{wasm}`"));
    problems.push(Diagnostic::error(source.first_line(node.span), message).help(help));
}

/// Checks the lower limits: a compiler needs some memory to start, and time is limited in whole seconds.
fn compile(root: &Node, problems: &mut Vec<Diagnostic>) {
    let Some(section) = root.get("compile") else { return };
    let mut least = |field: &str, is_enough: &dyn Fn(&Node) -> bool, least: &str| {
        if let Some(node) = section.get(field).filter(|node| !is_enough(node)) {
            let message = format!("this `{field}` is too small to compile anything");
            problems.push(Diagnostic::error(node.span, message).help(format!("it must be at least `{least}`")));
        }
    };
    // Values that are not a size or a time are reported elsewhere.
    let text = |node: &Node| node.as_str().map(str::to_owned).or_else(|| Some(node.to_json().to_string()));
    let size = |node: &Node| text(node).and_then(|text| text.parse::<ByteSize>().ok());
    let time = |node: &Node| text(node).and_then(|text| text.parse::<Duration>().ok());
    least("memory", &|node| size(node).is_none_or(|size| size >= ByteSize(256 << 20)), "256MiB");
    least("time", &|node| time(node).is_none_or(|time| time >= Duration::secs(1)), "1s");
}

/// Reports endpoints whose weights are all 0. A cluster without endpoints is allowed: it is out of service.
fn weights(key: &Key, endpoints: &Node, problems: &mut Vec<Diagnostic>) {
    let none = |endpoint: &Node| endpoint.get("weight").is_some_and(|weight| weight.to_json() == 0);
    if !endpoints.items().is_empty() && endpoints.items().iter().all(none) {
        problems.push(
            Diagnostic::error(key.span, "the weights of all endpoints are 0")
                .help("set a weight for at least one of them, or remove `weight` (default 1)".to_owned()),
        );
    }
}

/// Reports endpoints with port 0, which cannot be connected to.
fn ports(endpoints: &Node, problems: &mut Vec<Diagnostic>) {
    for node in endpoints.items().iter().filter_map(|endpoint| endpoint.get("address")) {
        let port = match node.as_str().and_then(|text| Address::of_endpoint(text).ok()) {
            Some(Address::Inet(address)) => Some(address.port()),
            Some(Address::Host(_, port)) => Some(port),
            _ => None,
        };
        if port == Some(0) {
            let help = "write the port that the endpoint listens on".to_owned();
            problems.push(Diagnostic::error(node.span, "an endpoint cannot have port 0").help(help));
        }
    }
}

/// Reports health checks that cannot work, or that would run without pause.
fn health_check(check: &Node, problems: &mut Vec<Diagnostic>) {
    for name in ["interval", "unhealthy_interval", "timeout"] {
        let Some(node) = check.get(name) else { continue };
        if node.as_str().and_then(|text| text.parse::<Duration>().ok()).is_some_and(|time| time.0.is_zero()) {
            problems.push(
                Diagnostic::error(node.span, format!("a health check's `{name}` must be more than 0"))
                    .help("write a time such as 5s, or leave it out for the default".to_owned()),
            );
        }
    }
    let kinds = check.get("check").map_or(&[][..], Node::items);
    kinds.iter().filter_map(|kind| kind.get("http")).for_each(|http| http_check(http, problems));
}

fn http_check(http: &Node, problems: &mut Vec<Diagnostic>) {
    let text = |name: &str| http.get(name).and_then(|node| Some((node, node.as_str()?)));
    // A path without a leading slash is reported elsewhere.
    if let Some((node, path)) = text("path").filter(|(_, path)| path.starts_with('/'))
        && http::uri::PathAndQuery::try_from(path).is_err()
    {
        let message = format!("`{}` is not a path: it has characters that must be percent-encoded", clip(path));
        problems.push(Diagnostic::error(node.span, message));
    }
    if let Some((node, host)) = text("host")
        && http::uri::Authority::try_from(host).is_err()
    {
        problems.push(
            Diagnostic::error(node.span, format!("`{}` is not a host", clip(host)))
                .help("write a name or an address, with or without a port, such as app.internal:8080".to_owned()),
        );
    }
}
