//! URLs of HTTP servers.

use std::{net::IpAddr, str::FromStr};

use http::uri::PathAndQuery;

/// The URL of an HTTP server: `http://` or `https://`, a host name or an address, and a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUrl {
    /// Whether the scheme is `https`.
    pub is_tls: bool,
    /// A host name or an IP address; an IPv6 address without its brackets.
    pub host: String,
    /// The TCP port. Default: 80, or 443 for `https`.
    pub port: u16,
    /// `HOST` or `HOST:PORT` as written.
    pub authority: String,
    /// The path and the query; at least `/`.
    pub path: PathAndQuery,
}

impl HttpUrl {
    /// Whether the host is this machine: a loopback address, or a name for one (RFC 6761, section 6.3).
    pub fn is_loopback(&self) -> bool {
        let name = self.host.trim_end_matches('.').to_ascii_lowercase();
        match name.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => name == "localhost" || name.ends_with(".localhost"),
        }
    }
}

impl FromStr for HttpUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not the URL of an HTTP server; write http://HOST:PORT/PATH");
        let uri: http::Uri = text.parse().map_err(|_| wrong())?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|a| !a.as_str().contains('@') && !a.host().is_empty());
        let authority = authority.ok_or_else(wrong)?;
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 80 + 363 * u16::from(is_tls),
            port => {
                let port = port.and_then(|port| port.strip_prefix(':')).filter(|port| !port.starts_with('+'));
                port.and_then(|port| port.parse().ok()).ok_or_else(wrong)?
            }
        };
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(HttpUrl { is_tls, host, port, authority: authority.to_string(), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_names_scheme_host_port_and_path() {
        for (text, is_tls, host, port, path) in [
            ("http://control", false, "control", 80, "/"),
            ("https://control.test/v1?proxy=a", true, "control.test", 443, "/v1?proxy=a"),
            ("https://[::1]:8443/", true, "::1", 8443, "/"),
            ("http://127.0.0.1:80#x", false, "127.0.0.1", 80, "/"),
        ] {
            let url: HttpUrl = text.parse().unwrap();
            assert_eq!((url.is_tls, &*url.host, url.port, url.path.as_str()), (is_tls, host, port, path), "{text}");
        }
        for (text, expected) in [
            ("http://localhost", true),
            ("http://App.LOCALHOST.:80", true),
            ("http://127.1.2.3", true),
            ("http://[::1]", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://0.0.0.0", false),
            ("http://localhost.example", false),
            ("http://127.0.0.1.example", false),
        ] {
            assert_eq!(text.parse::<HttpUrl>().unwrap().is_loopback(), expected, "{text}");
        }
        for text in
            ["", "control", "/v1", "ftp://a", "http://", "http://a:", "http://a:65536", "http://u@a", "http:///x"]
        {
            assert!(text.parse::<HttpUrl>().unwrap_err().contains(text), "{text}");
        }
    }
}
