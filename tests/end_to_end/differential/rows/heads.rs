//! Heads of requests: fields, hosts, targets, methods.

use super::{
    super::model::{Down, Row, Up, Ways},
    H1,
};

const PSEUDO: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "web.test"), (":path", "/")];

/// The pseudo-fields without this one.
fn without(name: &str) -> Vec<(&'static str, &'static str)> {
    PSEUDO.into_iter().filter(|(n, _)| *n != name).collect()
}

pub fn rows() -> Vec<Row> {
    let same = (Up::Whole(|_| {}), Down::Whole(|_| {}));
    let dropped: fn(&mut crate::differential::model::Request) = |request| request.fields.clear();
    let case = "names are spelt in any case in HTTP/1.1 (RFC 9110 section 5.1), in small letters in the others";
    let hop = "a connection-specific field of HTTP/1.1, which is not forwarded";
    let many: Vec<(String, String)> = (0..60).map(|n| (format!("x-{n}"), "1".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let crumbs: Vec<String> = (0..90).map(|n| format!("name{n}=value")).collect();
    let crumbs: Vec<(&str, &str)> = crumbs.iter().map(|crumb| ("cookie", crumb.as_str())).collect();
    let long = "x".repeat(100_000);
    let long_path = format!("/{}", "x".repeat(5000));
    let fields = vec![
        Row::new("an empty value").with(&[("x-a", "")]),
        Row::new("a value beyond ASCII").with(&[("x-a", "caf\u{e9}")]),
        Row::new("a value with blanks inside").with(&[("x-a", "a \t b")]),
        Row::new("a field twice").with(&[("x-a", "1"), ("x-b", "2"), ("x-a", "3")]),
        Row::new("several cookies")
            .with(&[("cookie", "a=1"), ("cookie", "b=2; c=3")])
            .arrives(|request| request.fields = vec![("cookie".to_owned(), "a=1; b=2; c=3".to_owned())])
            .but(
                Ways::From(H1),
                same.0,
                same.1,
                "HTTP/1.1 does not split cookies (RFC 6265 section 5.4); what comes all the same stays as it is",
            ),
        Row::new("more crumbs of a cookie than there may be fields")
            .with(&crumbs)
            .arrives(|request| {
                let all: Vec<_> = request.fields.drain(..).map(|(_, crumb)| crumb).collect();
                request.fields.push(("cookie".to_owned(), all.join("; ")));
            })
            .but(Ways::From(H1), Up::Nothing, Down::Own(431, "too_many_fields"), "there each is a field of its own"),
        Row::new("a long value").with(&[("x-a", &"v".repeat(4000))]),
        Row::new("blanks around a value").with(&[("x-a", " 1 ")]).refused().but(
            Ways::From(H1),
            Up::Whole(|request| request.fields[0].1 = "1".to_owned()),
            same.1,
            "white space around a value is not part of it in HTTP/1.1 (RFC 9112 section 5)",
        ),
        Row::new("a tab after a value").with(&[("x-a", "1\t")]).refused().but(
            Ways::From(H1),
            Up::Whole(|request| request.fields[0].1 = "1".to_owned()),
            same.1,
            "white space around a value is not part of it in HTTP/1.1 (RFC 9112 section 5)",
        ),
        Row::new("NUL in a value").with(&[("x-a", "1\x002")]).refused(),
        Row::new("CR in a value").with(&[("x-a", "1\r2")]).refused(),
        Row::new("LF in a value").with(&[("x-a", "1\nx-b: 2")]).refused(),
        Row::new("a control byte in a value").with(&[("x-a", "1\x012")]).refused(),
        Row::new("DEL in a value").with(&[("x-a", "\x7f")]).refused(),
        Row::new("a space in a name").with(&[("x a", "1")]).refused(),
        Row::new("a quote in a name").with(&[("x\"a", "1")]).refused(),
        Row::new("an empty name").with(&[("", "1")]).refused(),
        Row::new("a colon in a name").with(&[("x:a", "1")]).refused().but(
            Ways::From(H1),
            Up::Whole(|request| request.fields = vec![("x".to_owned(), "a: 1".to_owned())]),
            same.1,
            "the first colon ends a name in HTTP/1.1",
        ),
        Row::new("a name beyond ASCII").with(&[("x-\u{e9}", "1")]).refused(),
        Row::new("a name with capitals").with(&[("X-A", "1")]).refused().but(Ways::From(H1), same.0, same.1, case),
        Row::new("a name with an underscore").with(&[("x_a", "1")]).arrives(dropped),
        Row::new("connection").with(&[("connection", "x-a"), ("x-a", "1")]).refused().but(
            Ways::From(H1),
            Up::Whole(dropped),
            same.1,
            hop,
        ),
        Row::new("keep-alive").with(&[("keep-alive", "5")]).refused().but(
            Ways::From(H1),
            Up::Whole(dropped),
            same.1,
            hop,
        ),
        Row::new("proxy-connection").with(&[("proxy-connection", "keep-alive")]).refused().but(
            Ways::From(H1),
            Up::Whole(dropped),
            same.1,
            hop,
        ),
        Row::new("upgrade").with(&[("upgrade", "h2c")]).refused().but(Ways::From(H1), Up::Whole(dropped), same.1, hop),
        Row::new("transfer-encoding")
            .with(&[("transfer-encoding", "chunked")])
            .refused()
            .not_from(H1, "there it says how the body ends"),
        Row::new("te: trailers").with(&[("te", "trailers")]),
        Row::new("te: gzip").with(&[("te", "gzip")]).refused().but(Ways::From(H1), same.0, same.1, hop),
        Row::new("more fields than allowed").with(&many).want(Up::Nothing, Down::Own(431, "too_many_fields")),
        Row::new("a head that is too large")
            .with(&[("x-a", &long)])
            .want(Up::Nothing, Down::Own(431, "head_too_large")),
        Row::new("an unknown expectation").with(&[("expect", "the-best")]),
        Row::new("fields of a proxy in front").with(&[
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=192.0.2.1"),
            ("x-other", "1"),
        ]),
        Row::new("max-forwards").with(&[("max-forwards", "3")]),
        Row::new("an authorization").with(&[("authorization", "Basic eDp5"), ("cache-control", "no-store")]),
        Row::new("a range").with(&[("range", "bytes=0-1"), ("if-range", "\"a\""), ("accept-encoding", "gzip")]),
    ];
    let hosts = vec![
        Row::new("a host with a port").host(Some("web.test:8080")),
        Row::new("a host that is an address").host(Some("127.0.0.1")),
        Row::new("a host that is an address of IPv6").host(Some("[::1]:80")),
        Row::new("a host with capitals and a dot at its end")
            .host(Some("WEB.test."))
            .arrives(|request| request.host = Some("web.test".to_owned())),
        Row::new("no host").host(None).refused(),
        Row::new("an empty host").host(Some("")).refused(),
        Row::new("a host with a space").host(Some("a b")).refused(),
        Row::new("a host with a tab").host(Some("a\tb")).refused(),
        Row::new("CR in a host").host(Some("web.test\rx")).refused(),
        Row::new("LF in a host").host(Some("web.test\nx-b: 2")).refused(),
        Row::new("NUL in a host").host(Some("web.test\0")).refused(),
        Row::new("a host with a user").host(Some("user@web.test")).refused(),
        Row::new("a host with a path").host(Some("web.test/a")).refused(),
        Row::new("two hosts in one").host(Some("web.test, other.test")).refused(),
        Row::new("a second host").with(&[("host", "other.test")]).refused(),
        Row::new("the same host in a field")
            .with(&[("host", "web.test")])
            .not_from(H1, "the field is where the host is; a second one is refused"),
    ];
    let targets = vec![
        Row::new("a path with a query").target("/a/b?c=d&e=%2F"),
        Row::new("an empty query").target("/a?"),
        Row::new("a path with escapes").target("/a%20b%2Fc"),
        Row::new("escapes that need not be").target("/%61%7eb").arrives(|request| request.target = "/a~b".to_owned()),
        Row::new("escaped dots in a path")
            .target("/a/%2e%2e/b/%2E/c")
            .arrives(|request| request.target = "/b/c".to_owned()),
        Row::new("dots with parameters")
            .target("/a/..;x/b")
            .want(Up::Nothing, Down::Own(400, "hidden_segment_in_path")),
        Row::new("a target that names the host")
            .target("http://web.test/a?b")
            .spelt(&[(":method", "GET"), (":scheme", "http"), (":authority", "web.test"), (":path", "/a?b")])
            .arrives(|request| request.target = "/a?b".to_owned()),
        Row::new("dots in a path").target("/a/../b/./c").arrives(|request| request.target = "/b/c".to_owned()),
        Row::new("slashes in a path").target("//a//b").arrives(|request| request.target = "/a/b".to_owned()),
        Row::new("odd characters in a path").target("/a!$&'()*+,;=:@b"),
        Row::new("brackets in a query").target("/a?b[]={c}|d^e`"),
        Row::new("a long path").target(&long_path),
        Row::new("a backslash in a path").target("/a\\b").arrives(|request| request.target = "/a%5Cb".to_owned()),
        Row::new("a broken escape").target("/a%zz").refused(),
        Row::new("an escaped NUL").target("/a%00").refused(),
        Row::new("NUL in a path").target("/a\0b").refused(),
        Row::new("a fragment").target("/a#b").arrives(|request| request.target = "/a".to_owned()),
        Row::new("a space in a path").target("/a b").refused(),
        Row::new("a tab in a path").target("/a\tb").refused(),
        Row::new("CR in a path").target("/a\rb").refused(),
        Row::new("LF in a path").target("/a\nb").refused(),
        Row::new("another request in a path")
            .target("/a HTTP/1.1\r\nhost: b\r\n\r\nGET /c")
            .refused()
            .not_from(H1, "there it is another request"),
        Row::new("a space in a query").target("/a?b c").refused(),
        Row::new("LF in a query").target("/a?b\nc").refused(),
        Row::new("a control byte in a path").target("/a\x01b").refused(),
        Row::new("a path without a slash").target("a").refused(),
        Row::new("no path at all").target("").refused(),
        Row::new("an asterisk for OPTIONS").method("OPTIONS").target("*"),
        Row::new("an asterisk for GET").target("*").refused(),
        Row::new("a path beyond ASCII")
            .target("/caf\u{e9}")
            .arrives(|request| request.target = "/caf%C3%A9".to_owned()),
    ];
    let methods = vec![
        Row::new("OPTIONS").method("OPTIONS").target("/a"),
        Row::new("an unknown method").method("PURGE"),
        Row::new("a method with a hyphen").method("M-SEARCH"),
        Row::new("an invalid method").method("G(T").refused(),
        Row::new("a method with a space").method("GE T").refused(),
        Row::new("a method with a tab").method("GE\tT").refused(),
        Row::new("CR in a method").method("GET\rX").refused(),
        Row::new("LF in a method").method("GET\nX").refused(),
        Row::new("NUL in a method").method("GET\0").refused(),
        Row::new("an empty method").method("").refused(),
        Row::new("a method in small letters").method("get").want(Up::Nothing, Down::Own(400, "bad_method")),
        Row::new("CONNECT")
            .method("CONNECT")
            .target("web.test:80")
            .host(Some("web.test:80"))
            .spelt(&[(":method", "CONNECT"), (":authority", "web.test:80")])
            .want(Up::Nothing, Down::Own(405, "connect_not_allowed")),
        Row::new("TRACE").method("TRACE"),
    ];
    let pseudo = vec![
        Row::new("no method").pseudo(&without(":method")).refused(),
        Row::new("no scheme").pseudo(&without(":scheme")).refused(),
        Row::new("no path field").pseudo(&without(":path")).refused(),
        Row::new("a path that names the host")
            .pseudo(&[&without(":path")[..], &[(":path", "http://web.test/a")]].concat())
            .refused(),
        Row::new("two paths").pseudo(&[&PSEUDO[..], &[(":path", "/other")]].concat()).refused(),
        Row::new("the same path twice").pseudo(&[&PSEUDO[..], &[(":path", "/")]].concat()).refused(),
        Row::new("two schemes").pseudo(&[&PSEUDO[..], &[(":scheme", "https")]].concat()).refused(),
        Row::new("two methods").pseudo(&[&PSEUDO[..], &[(":method", "GET")]].concat()).refused(),
        Row::new("two authorities").pseudo(&[&PSEUDO[..], &[(":authority", "other.test")]].concat()).refused(),
        Row::new("an unknown pseudo-field").pseudo(&[&PSEUDO[..], &[(":other", "1")]].concat()).refused(),
        Row::new("a pseudo-field of responses").pseudo(&[&PSEUDO[..], &[(":status", "200")]].concat()).refused(),
        Row::new("a pseudo-field after a field").pseudo(&[&[("x-a", "1")], &PSEUDO[..]].concat()).refused(),
        Row::new("a path after a field")
            .pseudo(&[&without(":path")[..], &[("x-a", "1"), (":path", "/")]].concat())
            .refused(),
        Row::new("no pseudo-field").pseudo(&[]).refused(),
        Row::new("CONNECT with a path")
            .pseudo(&[(":method", "CONNECT"), (":authority", "web.test:80"), (":path", "/")])
            .refused(),
        Row::new("CONNECT with a scheme")
            .pseudo(&[(":method", "CONNECT"), (":authority", "web.test:80"), (":scheme", "https")])
            .refused(),
        Row::new("an unknown scheme").pseudo(&[&without(":scheme")[..], &[(":scheme", "ftp")]].concat()),
        Row::new("a protocol without CONNECT").pseudo(&[&PSEUDO[..], &[(":protocol", "websocket")]].concat()).refused(),
    ];
    [fields, hosts, targets, methods, pseudo].into_iter().flatten().collect()
}
