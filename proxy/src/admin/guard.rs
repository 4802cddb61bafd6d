//! Protects the admin listener against web pages: it has no passwords by default, so a page in an operator's browser
//! must not be able to read anything from it or change anything (DNS rebinding, cross-site requests).

use std::net::IpAddr;

use http::{Method, header, request::Parts};

use tollgate_abi::spelling::split_port;

/// Returns the reason to reject a request, if any. `hosts` are accepted host names in addition to `localhost` and IP
/// addresses.
pub(super) fn refusal(parts: &Parts, hosts: &[String]) -> Option<&'static str> {
    // Join tokens authorize these requests, and a root certificate is not secret.
    if parts.uri.path().starts_with("/ca/") {
        return None;
    }
    let all = parts.headers.get_all(header::HOST);
    let target = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    let mut asked = all.iter().map(|host| host.as_bytes()).chain(target);
    // Browsers always send the host name that they used.
    if asked.any(|host| !is_ours(host, hosts)) {
        return Some("unknown host name; list the names of the admin listener in `admin.hosts`");
    }
    if matches!(parts.method, Method::GET | Method::HEAD) {
        return None;
    }
    let host = all.iter().next().map(|host| host.as_bytes());
    let foreign = parts.headers.get_all(header::ORIGIN).iter().any(|origin| {
        let origin = origin.as_bytes().strip_prefix(b"http://");
        origin.is_none() || origin != host
    });
    let sites = parts.headers.get_all("sec-fetch-site");
    if foreign || sites.iter().any(|site| site != "same-origin" && site != "none") {
        return Some("requests from pages of other sites are rejected");
    }
    None
}

/// Whether a `Host` is an IP address, `localhost`, or one of the names.
fn is_ours(host: &[u8], hosts: &[String]) -> bool {
    let (name, _) = split_port(host);
    let Ok(name) = str::from_utf8(name) else { return false };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn refused(method: &str, fields: &[(&str, &str)]) -> bool {
        let request =
            fields.iter().fold(Request::builder().method(method).uri("/config"), |r, (n, v)| r.header(*n, *v));
        refusal(&request.body(()).unwrap().into_parts().0, &["admin.example".to_owned()]).is_some()
    }

    #[test]
    fn unknown_host_names_are_rejected() {
        for (host, expected) in [
            ("127.0.0.1:9901", false),
            ("127.0.0.1", false),
            ("[::1]:9901", false),
            ("10.1.2.3", false),
            ("localhost:9901", false),
            ("LOCALHOST", false),
            ("Admin.example:80", false),
            ("attacker.example", true),
            ("attacker.example:9901", true),
            ("localhost.attacker.example", true),
            ("127.0.0.1.attacker.example", true),
            ("", true),
        ] {
            assert_eq!(refused("GET", &[("host", host)]), expected, "{host}");
        }
        assert!(refused("GET", &[("host", "localhost"), ("host", "attacker.example")]));
    }

    #[test]
    fn pages_of_other_sites_change_nothing() {
        let host = ("host", "localhost:9901");
        for (fields, expected) in [
            (&[host][..], false),
            (&[host, ("origin", "http://localhost:9901")], false),
            (&[host, ("sec-fetch-site", "same-origin")], false),
            (&[host, ("sec-fetch-site", "none")], false),
            (&[host, ("origin", "http://attacker.example")], true),
            (&[host, ("origin", "http://localhost:8080")], true),
            (&[host, ("origin", "null")], true),
            (&[host, ("sec-fetch-site", "cross-site")], true),
            (&[host, ("sec-fetch-site", "same-site")], true),
        ] {
            assert_eq!(refused("POST", fields), expected, "{fields:?}");
        }
        assert!(!refused("GET", &[host, ("sec-fetch-site", "cross-site")]), "a link to the metrics");
    }
}
