//! The command line of `tollgate bench load`: the options, and their conversion into a validated `Plan`, so that the
//! generator does not fail halfway.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, uri::PathAndQuery};
use http_body_util::Full;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::{
    config::model::ClusterTls,
    tls::{ClientTls, Loader},
};

/// Send HTTP/1.1 requests at a constant rate and report the latency.
///
/// With --rate the load is an open loop: request number i is due at i/rate, whatever happened to earlier requests, and
/// its latency counts from the scheduled time. A server that stalls is therefore charged for every request
/// that had to wait, not only for the one that it was working on (no coordinated omission). With --saturate each
/// connection sends the next request as soon as it has the response to the last one: this finds the highest
/// throughput, but says little about latency.
#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("load").required(true).args(["rate", "saturate"])))]
pub struct LoadArgs {
    /// Request this URL: http://host:port/path, or https://
    #[arg(value_name = "URL", value_parser = parse_target)]
    pub url: Target,

    /// Send this many requests per second over all connections, evenly spaced (open loop); fractions are allowed
    #[arg(long, short = 'r', value_name = "N", value_parser = parse_rate)]
    pub rate: Option<f64>,

    /// Let each connection send as soon as it can, instead of at a rate (closed loop)
    #[arg(long)]
    pub saturate: bool,

    /// Keep this many connections open, distributed over the threads
    #[arg(long, short = 'c', value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub connections: u32,

    /// Generate load with this many threads; the report warns if they were too few
    #[arg(long, short = 't', value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,

    /// Measure for this long, after the warm-up (us, ms, s, m, h)
    #[arg(long, short = 'd', value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    pub duration: Duration,

    /// Send requests for this long before measuring; these requests are not counted
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_time)]
    pub warmup: Duration,

    /// Use this method
    #[arg(long, short = 'X', value_name = "METHOD", default_value = "GET", value_parser = parse_method)]
    pub method: Method,

    /// Send this header, such as 'Accept: text/plain'; repeatable. `Host` replaces the one from the URL
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE", value_parser = parse_header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,

    /// With https: trust the authorities in this file (PEM) instead of the system's
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub cacert: Option<PathBuf>,

    /// With https: accept any certificate
    #[arg(long)]
    pub insecure: bool,

    /// Send this body: the text itself, or @FILE for the contents of a file
    #[arg(long, short = 'b', value_name = "TEXT|@FILE")]
    pub body: Option<String>,

    /// Wait at most this long for a connection, and for a complete response once the request is sent. Requests that are
    /// overdue at the end of the run are also sent for at most this long
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_time)]
    pub timeout: Duration,

    /// Count only this status as success: 200, or a class such as 2xx; repeatable.
    /// [default: every status below 500, because rejecting a request (403, 429) is often the job of a proxy]
    #[arg(long, value_name = "STATUS", value_parser = parse_expected)]
    pub expect_status: Vec<Expected>,

    /// Count the distinct values of this response header (the first 32 of them), for example to see which versions
    /// of a filter responded while it was being replaced
    #[arg(long, value_name = "NAME", value_parser = parse_header_name)]
    pub tally_header: Option<HeaderName>,

    /// Write the result as JSON to stdout, instead of text
    #[arg(long)]
    pub json: bool,

    /// Also write a report with plots to this file: one self-contained HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Exit with status 1 if any request failed or could not be sent
    #[arg(long)]
    pub fail_on_error: bool,
}

/// The destination of the requests, parsed from the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub(super) url: String,
    secure: bool,
    host: String,
    port: u16,
    authority: HeaderValue,
    path: PathAndQuery,
}

/// A status, or a class of them, that counts as success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Exactly this status.
    Exactly(u16),
    /// Every status with this first digit.
    Class(u16),
}

/// How the requests are distributed over time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mode {
    /// This many requests a second.
    Rate(f64),
    /// As many requests as the connections carry.
    Saturate,
}

/// The validated arguments.
pub(super) struct Plan {
    pub(super) mode: Mode,
    pub(super) url: String,
    pub(super) addresses: Vec<SocketAddr>,
    /// With https: the handshake, and the name that the certificate must be for.
    pub(super) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(super) request: Request<Full<Bytes>>,
    pub(super) connections: usize,
    pub(super) threads: usize,
    pub(super) warmup: Duration,
    pub(super) duration: Duration,
    pub(super) timeout: Duration,
    pub(super) expected: Vec<Expected>,
    pub(super) tally: Option<HeaderName>,
}

impl Plan {
    pub(super) fn new(args: &LoadArgs) -> anyhow::Result<Plan> {
        let target = &args.url;
        ensure!(
            u32::from(args.threads) <= args.connections,
            "--threads {} exceeds --connections {}: each thread needs at least one connection",
            args.threads,
            args.connections
        );
        ensure!(!args.duration.is_zero(), "--duration is 0: use a longer time");
        ensure!(!args.timeout.is_zero(), "--timeout is 0: use a longer time");
        let mode = match args.rate {
            Some(rate) => Mode::Rate(rate),
            None if args.saturate => Mode::Saturate,
            None => bail!("use one of --rate and --saturate"),
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, target.authority.clone());
        for (i, (name, value)) in args.headers.iter().enumerate() {
            ensure!(name != header::CONTENT_LENGTH, "--header Content-Length is not allowed: --body determines it");
            if name == header::HOST && !args.headers[..i].iter().any(|(n, _)| n == name) {
                headers.insert(name, value.clone());
            } else {
                headers.append(name, value.clone());
            }
        }
        let body = match args.body.as_deref() {
            None => Bytes::new(),
            Some(body) => match body.strip_prefix('@') {
                Some(file) => {
                    std::fs::read(file).with_context(|| format!("--body @{file}: cannot read the file"))?.into()
                }
                None => Bytes::copy_from_slice(body.as_bytes()),
            },
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = args.method.clone();
        *request.uri_mut() = Uri::from(target.path.clone());
        *request.headers_mut() = headers;

        let addresses: Vec<_> = (target.host.as_str(), target.port)
            .to_socket_addrs()
            .with_context(|| format!("{}: cannot resolve `{}`", target.url, target.host))?
            .collect();
        ensure!(!addresses.is_empty(), "{}: `{}` has no address", target.url, target.host);
        Ok(Plan {
            mode,
            url: target.url.clone(),
            tls: tls(args, &addresses)?,
            addresses,
            request,
            connections: args.connections as usize,
            threads: args.threads.into(),
            warmup: args.warmup,
            duration: args.duration,
            timeout: args.timeout,
            expected: args.expect_status.clone(),
            tally: args.tally_header.clone(),
        })
    }

    /// The headers of the requests, without the values of credentials.
    pub(super) fn shown_headers(&self) -> impl Iterator<Item = (&HeaderName, String)> {
        self.request.headers().iter().map(|(name, value)| {
            let shown = if is_secret(name.as_str()) { "…".into() } else { String::from_utf8_lossy(value.as_bytes()) };
            (name, shown.into_owned())
        })
    }

    /// The duration of warm-up and measurement together.
    pub(super) fn total(&self) -> Duration {
        self.warmup + self.duration
    }

    pub(super) fn is_success(&self, status: u16) -> bool {
        if self.expected.is_empty() {
            return status < 500;
        }
        self.expected.iter().any(|e| match *e {
            Expected::Exactly(s) => s == status,
            Expected::Class(c) => c == status / 100,
        })
    }
}

/// Whether a header's value is probably a credential and must not be in a report.
pub(super) fn is_secret(name: &str) -> bool {
    const WORDS: [&str; 6] = ["authorization", "cookie", "key", "token", "secret", "password"];
    let name = name.to_ascii_lowercase();
    WORDS.iter().any(|word| name.contains(word))
}

/// The TLS client, if the URL is https.
fn tls(args: &LoadArgs, addresses: &[SocketAddr]) -> anyhow::Result<Option<(TlsConnector, ServerName<'static>)>> {
    let target = &args.url;
    ensure!(
        target.secure || (args.cacert.is_none() && !args.insecure),
        "--cacert and --insecure are for https:// URLs, but the URL is {}",
        target.url
    );
    if !target.secure {
        return Ok(None);
    }
    let section =
        ClusterTls { ca: args.cacert.iter().cloned().collect(), insecure: args.insecure, ..ClusterTls::default() };
    let unchanged = Path::to_path_buf;
    let tls = ClientTls::load(&section, &target.host, &[b"http/1.1"], &mut Loader::new(&unchanged), None);
    let tls = tls.map_err(|problems| {
        let reasons: Vec<_> = problems.iter().map(|problem| problem.error.to_string()).collect();
        anyhow!("{}", reasons.join("; "))
    })?;
    let name = tls.server_name(None, addresses.first().map(SocketAddr::ip));
    Ok(Some((tls.connector(), name)))
}

fn parse_target(s: &str) -> Result<Target, String> {
    let wrong = || format!("`{s}` is not a URL of the form http://host:port/path");
    let secure = match s.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).as_deref() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong()),
    };
    let uri: Uri = s.parse().map_err(|e| format!("{} ({e})", wrong()))?;
    let authority = uri.authority().ok_or_else(wrong)?;
    if authority.as_str().contains('@') {
        return Err("a URL with a user name is not supported; send it with --header 'Authorization: …'".into());
    }
    // `port_u16` is also `None` for `host:` and `host:99999`, which must not become the default port.
    let port = match (uri.port_u16(), authority.as_str().len() == authority.host().len()) {
        (Some(0), _) | (None, false) => return Err(format!("{}: the port is not from 1 to 65535", wrong())),
        (Some(port), _) => port,
        (None, true) => [80, 443][usize::from(secure)],
    };
    Ok(Target {
        url: s.to_owned(),
        secure,
        host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
        port,
        authority: HeaderValue::from_str(authority.as_str()).map_err(|_| wrong())?,
        path: uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
    })
}

fn parse_rate(s: &str) -> Result<f64, String> {
    match s.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 10_000_000.0 => Ok(rate),
        Ok(_) => Err("not above 0 and at most 10000000 requests per second".into()),
        Err(_) => Err("not a number of requests per second".into()),
    }
}

fn parse_time(s: &str) -> Result<Duration, String> {
    let wrong = || "not a time; write a number with a unit (us, ms, s, m, h), such as 250ms".to_owned();
    let at = s.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = s.split_at(at);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = number
        * match unit {
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
    // This limit keeps later sums of times far from overflow.
    if seconds > 7.0 * 86_400.0 {
        return Err("longer than a week".into());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

fn parse_method(s: &str) -> Result<Method, String> {
    match Method::from_bytes(s.as_bytes()) {
        // Its response is a tunnel, which never ends.
        Ok(Method::CONNECT) => Err("CONNECT opens a tunnel and has no response to time".into()),
        Ok(method) => Ok(method),
        Err(_) => Err("not a method name".into()),
    }
}

fn parse_header_name(s: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(s.as_bytes()).map_err(|_| format!("`{s}` is not a header name"))
}

fn parse_header(s: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = s.split_once(':').ok_or("no colon; write 'Name: value'")?;
    let value = HeaderValue::from_str(value.trim())
        .map_err(|_| format!("the value of `{name}` has characters that are not allowed in a header"))?;
    Ok((parse_header_name(name.trim())?, value))
}

fn parse_expected(s: &str) -> Result<Expected, String> {
    let wrong = || "write a status (200) or a class (2xx)".to_owned();
    if let Some(class) = s.strip_suffix("xx").or_else(|| s.strip_suffix("XX")) {
        return match class.parse() {
            Ok(class @ 1..=5) => Ok(Expected::Class(class)),
            _ => Err(wrong()),
        };
    }
    match s.parse() {
        Ok(status @ 100..=999) => Ok(Expected::Exactly(status)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let t = parse_target("http://[::1]:8080/a?b=c").unwrap();
        assert_eq!((t.host.as_str(), t.port, t.path.as_str()), ("::1", 8080, "/a?b=c"));
        assert_eq!(t.authority, "[::1]:8080");
        let t = parse_target("http://localhost").unwrap();
        assert_eq!((t.host.as_str(), t.port, t.path.as_str()), ("localhost", 80, "/"));
        let t = parse_target("https://localhost/").unwrap();
        assert_eq!((t.secure, t.port), (true, 443));
        for wrong in
            ["localhost:8080/", "http://", "http:///x", "http://a:99999/", "http://a:/", "http://u:p@a/", "http://a:0/"]
        {
            assert!(parse_target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn scalars() {
        assert_eq!(parse_time("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(parse_time("250us").unwrap(), Duration::from_micros(250));
        for wrong in ["", "10", "s", "-1s", "1.2.3s", "9999h", "5 parsecs"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
        for wrong in ["0", "-1", "NaN", "inf", "x"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_expected("2xx"), Ok(Expected::Class(2)));
        assert_eq!(parse_expected("404"), Ok(Expected::Exactly(404)));
        for wrong in ["9xx", "xx", "20", "ok"] {
            assert!(parse_expected(wrong).is_err(), "{wrong}");
        }
        assert!(parse_header("no colon").is_err());
        assert!(parse_header("a b: c").is_err());
        assert!(parse_header("a: c\u{7}").is_err());
        assert!(parse_method("CONNECT").is_err());
    }
}
