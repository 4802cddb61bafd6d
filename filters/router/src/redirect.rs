//! Redirects.

use tollgate_sdk::{Flow, Reply, Setup};

use crate::{
    config,
    head::{Head, HeaderNames, Slot},
    hosts::split_port,
    place::Place,
    rewrite::{Matched, PrefixRewrite},
};

/// A redirect.
pub(crate) struct Redirect {
    /// The request's scheme.
    request_scheme: Slot,
    scheme: Option<&'static str>,
    host: Option<String>,
    port: Option<u16>,
    path: Path,
    strip_query: bool,
    /// The response without `location`.
    reply: Reply,
}

enum Path {
    Same,
    /// A path with an optional query, and the fragment with its `#`, or an empty string.
    Whole(String, String),
    Prefix(PrefixRewrite),
}

impl Redirect {
    pub(crate) fn compile(
        config: &config::Redirect,
        matched: Matched,
        headers: Vec<(String, String)>,
        place: &Place,
        names: &mut HeaderNames,
        setup: &mut Setup,
    ) -> Option<Self> {
        let scheme = match config.scheme.as_deref() {
            None => None,
            Some("http") => Some("http"),
            Some("https") => Some("https"),
            Some(other) => {
                place.field("scheme").wrong(format!("`{other}` is not `http` or `https`"));
                None
            }
        };
        if let Some(host) = &config.host
            && !is_host(host)
        {
            place.field("host").wrong(format!("`{host}` is not a host name (set the port with `port`)"));
        }
        if config.port == Some(0) {
            place.field("port").wrong("must be 1 to 65535");
        }
        if ![301, 302, 303, 307, 308].contains(&config.status) {
            place.field("status").wrong(format!("must be 301, 302, 303, 307 or 308, not {}", config.status));
        }
        let path = match (&config.path, &config.prefix_rewrite) {
            (None, None) => Path::Same,
            (Some(_), Some(_)) => {
                place.wrong("give only one of `path`, `prefix_rewrite`");
                Path::Same
            }
            (Some(path), None) => {
                if !path.starts_with('/') || path.chars().any(|c| c.is_ascii_control() || c == ' ') {
                    place.field("path").wrong("a path begins with `/`, and has no spaces");
                }
                let (path, fragment) = path.split_at(path.find('#').unwrap_or(path.len()));
                Path::Whole(path.into(), fragment.into())
            }
            (None, Some(with)) => Path::Prefix(PrefixRewrite::compile(with, matched, &place.field("prefix_rewrite"))?),
        };
        let same_place = config.scheme.is_none() && config.host.is_none() && config.port.is_none();
        if same_place && config.path.is_none() && config.prefix_rewrite.is_none() && !config.strip_query {
            place
                .wrong("redirects to the request's own URL; give `scheme`, `host`, `port`, `path` or `prefix_rewrite`");
        }
        let reply = headers.into_iter().fold(Reply::new(config.status), |reply, (n, v)| reply.header(n, v));
        Some(Redirect {
            request_scheme: names.slot(":scheme", setup),
            scheme,
            host: config.host.clone(),
            port: config.port,
            path,
            strip_query: config.strip_query,
            reply: reply.details("redirect"),
        })
    }

    pub(crate) fn run(&self, head: &mut Head) -> Flow {
        if self.host.is_none() && head.authority.is_empty() {
            // An HTTP/1.0 request may lack a host; then there is no redirect target.
            return Reply::new(400).body("Bad Request").details("redirect_without_host").into();
        }
        self.reply.clone().header("location", self.location(head)).into()
    }

    fn location(&self, head: &mut Head) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let scheme: &[u8] = match self.scheme {
            Some(scheme) => scheme.as_bytes(),
            None => head.header(self.request_scheme).unwrap_or(b"http"),
        };
        let usual_port: &[u8] = if scheme == b"https" { b":443" } else { b":80" };
        // The location is always absolute; otherwise a path that begins with two slashes would name another host.
        out.extend_from_slice(scheme);
        out.extend_from_slice(b"://");
        let (name, port) = split_port(head.authority);
        out.extend_from_slice(self.host.as_ref().map_or(name, |host| host.as_bytes()));
        let given = self.port.map(|port| format!(":{port}"));
        let port = match &given {
            Some(port) => port.as_bytes(),
            // The request's port belongs to its host and scheme.
            None if self.host.is_some() || self.scheme.is_some() => b"",
            None => port,
        };
        if port != usual_port {
            out.extend_from_slice(port);
        }
        if !head.path.starts_with(b"/") && matches!(self.path, Path::Same) {
            // `OPTIONS *`: the path must not become a part of the host.
            out.push(b'/');
        }
        let mut query = if self.strip_query { None } else { head.query };
        let mut fragment = "";
        match &self.path {
            Path::Same => out.extend_from_slice(head.written),
            Path::Prefix(rewrite) => rewrite.write(head.path, &mut out),
            Path::Whole(path, rest) => {
                out.extend_from_slice(path.as_bytes());
                fragment = rest;
                if path.contains('?') {
                    query = None;
                }
            }
        }
        if let Some(query) = query {
            out.push(b'?');
            out.extend_from_slice(query);
        }
        // The fragment comes last; a query after it would be a part of it.
        out.extend_from_slice(fragment.as_bytes());
        out
    }
}

/// Whether the text can be a host name or address, without a port.
pub(crate) fn is_host(text: &str) -> bool {
    let (_, port) = split_port(text.as_bytes());
    port.is_empty() && !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@\\".contains(&b))
}
