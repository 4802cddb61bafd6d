//! Redirects, which lead to the same server only. Otherwise a server could have the proxy send requests, with its token,
//! to any other.

use http::{
    HeaderValue, StatusCode, Uri,
    uri::{PathAndQuery, Scheme},
};

use super::error::Error;
use crate::config::url::HttpUrl;

/// Whether an answer with this status and a `Location` is a redirect (RFC 9110, section 15.4).
pub(super) fn is_one(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Returns the target of a redirected request. `at` is the target of the answered one.
pub(super) fn target(server: &HttpUrl, at: &Uri, location: &HeaderValue) -> Result<Uri, Error> {
    let refused = |why| refused(location, why);
    let text = location.to_str().map_err(|_| refused("which is not a URL"))?;
    let text = text.split('#').next().unwrap_or_default();
    let scheme = if server.is_tls { Scheme::HTTPS } else { Scheme::HTTP };
    // RFC 3986, section 4.2: what precedes a colon in the first segment is a scheme.
    let has_scheme = text.find([':', '/', '?']).is_some_and(|at| text[at..].starts_with(':'));
    let absolute = match text {
        _ if has_scheme => text.to_owned(),
        _ if text.starts_with("//") => format!("{scheme}:{text}"),
        _ if text.starts_with('/') => return path(text).map_err(refused),
        _ if text.starts_with('?') => return path(&format!("{}{text}", at.path())).map_err(refused),
        _ => {
            let folder = at.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            return path(&format!("{folder}/{text}")).map_err(refused);
        }
    };
    let url: HttpUrl = absolute.parse().map_err(|_| refused("which is not the URL of an HTTP server"))?;
    if (url.is_tls, url.port) != (server.is_tls, server.port) || !url.host.eq_ignore_ascii_case(&server.host) {
        return Err(refused("which is another server: only redirects within a server are followed"));
    }
    Ok(url.path.into())
}

/// A redirect that is not followed.
pub(super) fn refused(location: &HeaderValue, why: &'static str) -> Error {
    Error::Redirect { to: String::from_utf8_lossy(location.as_bytes()).into_owned(), why }
}

fn path(text: &str) -> Result<Uri, &'static str> {
    let path: PathAndQuery = text.parse().map_err(|_| "which is not a URL")?;
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_the_server() {
        let server: HttpUrl = "https://keys.test/a/b?c".parse().unwrap();
        let at: Uri = "/a/b?c".parse().unwrap();
        let target = |location: &str| target(&server, &at, &HeaderValue::from_str(location).unwrap());
        for (location, expected) in [
            ("/x?y#z", "/x?y"),
            ("x", "/a/x"),
            ("x:y/z", ""),
            ("./x:y", "/a/./x:y"),
            ("?d", "/a/b?d"),
            ("//keys.test/x", "/x"),
            ("https://KEYS.test:443/x", "/x"),
            ("https://keys.test", "/"),
            ("https://keys.test:8443/x", ""),
            ("http://keys.test/x", ""),
            ("https://other.test/x", ""),
            ("//other.test/x", ""),
            ("https://keys.test@other.test/x", ""),
            ("https://user@keys.test/x", ""),
            ("file:///etc/passwd", ""),
            ("https:/x", ""),
            ("/a b", ""),
        ] {
            match target(location) {
                Ok(uri) => assert_eq!(uri.to_string(), expected, "{location}"),
                Err(error) => {
                    assert_eq!(expected, "", "{location}: {error}");
                    assert!(error.to_string().starts_with(&format!("the server redirects to `{location}`, ")));
                }
            }
        }
    }
}
