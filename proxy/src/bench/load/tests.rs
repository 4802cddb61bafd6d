//! Runs of the whole generator against a small server in the same process, which misbehaves as each test specifies.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use clap::Parser;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    args::{LoadArgs, Plan},
    html, measure,
    report::Report,
    stats::Failure,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-version: 1\r\n\r\nhello";

/// The server's reaction to a request.
#[derive(Clone)]
enum Reply {
    Send(String),
    /// Send this and close.
    Last(String),
    SendAfter(Duration, &'static str),
    Close,
    Never,
}

/// A server that answers request number n (from 0, over all connections) with `reply(n)`.
fn serve(reply: impl Fn(u64) -> Reply + Send + Sync + 'static) -> SocketAddr {
    let (tell, address) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let (count, reply) = (Arc::new(AtomicU64::new(0)), Arc::new(reply));
            while let Ok((stream, _)) = listener.accept().await {
                let (count, reply) = (count.clone(), reply.clone());
                tokio::spawn(async move { answer(stream, || reply(count.fetch_add(1, Ordering::Relaxed))).await });
            }
        });
    });
    address.recv().unwrap()
}

/// Serves a connection; each request of the tests is one head, or a head with a body in the same packet.
async fn answer(mut stream: TcpStream, reply: impl Fn() -> Reply) {
    let mut buf = vec![0; 4096];
    while let Ok(1..) = stream.read(&mut buf).await {
        let written = match reply() {
            Reply::Send(text) => stream.write_all(text.as_bytes()).await,
            Reply::Last(text) => {
                let _ = stream.write_all(text.as_bytes()).await;
                return;
            }
            Reply::SendAfter(wait, text) => {
                tokio::time::sleep(wait).await;
                stream.write_all(text.as_bytes()).await
            }
            Reply::Close => return,
            Reply::Never => std::future::pending().await,
        };
        if written.is_err() {
            return;
        }
    }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: LoadArgs,
}

fn parse(line: &str) -> Result<LoadArgs, clap::Error> {
    Cli::try_parse_from(["load"].into_iter().chain(line.split_whitespace())).map(|cli| cli.args)
}

fn load(server: SocketAddr, options: &str) -> Report {
    let warmup = if options.contains("--warmup") { "" } else { "--warmup 0s" };
    let args = parse(&format!("http://{server}/path {warmup} {options}")).unwrap();
    measure(&Arc::new(Plan::new(&args).unwrap())).unwrap()
}

fn count(report: &Report, failure: Failure) -> u64 {
    report.stats.failures[failure as usize].count
}

#[test]
fn every_request_of_the_schedule_is_sent_and_counted() {
    let server = serve(|_| Reply::Send(OK.into()));
    let report = load(server, "--rate 500 --duration 400ms --connections 5 --threads 2 --tally-header X-Version");
    let s = &report.stats;
    assert_eq!((report.due, s.requests, report.failed(), report.unsent), (200, 200, 0, 0));
    assert_eq!((s.latency.len(), s.service.len(), s.bytes, s.connections), (200, 200, 1000, 5));
    assert_eq!(report.tally(), [("1".to_owned(), 200)]);
    assert_eq!(report.series.iter().map(|x| x.requests).sum::<u64>(), 200);
    // On a busy machine the last response can be late, which makes the rate lower.
    assert!(report.elapsed >= Duration::from_millis(400));
    assert_eq!(report.achieved(), 200.0 / report.elapsed.as_secs_f64());
}

#[test]
fn the_warm_up_is_not_counted() {
    let server = serve(|n| if n < 50 { Reply::Close } else { Reply::Send(OK.into()) });
    let report = load(server, "--rate 200 --warmup 300ms --duration 200ms -c 4");
    assert_eq!((report.due, report.stats.requests, report.failed()), (40, 40, 0));
}

#[test]
fn a_stall_is_charged_to_every_request_that_it_delayed() {
    // One response of 400 takes 400 ms. With a single connection, the requests that come due meanwhile have to wait.
    let server = serve(|n| match n {
        100 => Reply::SendAfter(Duration::from_millis(400), OK),
        _ => Reply::Send(OK.into()),
    });
    let report = load(server, "--rate 400 --duration 1s --connections 1");
    let s = &report.stats;
    assert_eq!((s.requests, report.failed()), (400, 0), "no request is skipped");
    let corrected = s.latency.value_at_quantile(0.99);
    assert!(corrected > 350_000, "corrected p99 {corrected}");
    // A quarter of the requests waited for more than 150 ms. On a busy machine all times are longer, and their sum most of all.
    let [corrected, service, lag] = [&s.latency, &s.service, &s.lag].map(|times| times.value_at_quantile(0.75));
    assert!(service * 2 < corrected, "service time p75 {service}, corrected {corrected}");
    assert!(lag * 2 < corrected, "the server's stall does not count as the generator's lag: p75 {lag} of {corrected}");
    assert!(s.queued > 100, "{} waited for the connection", s.queued);
    assert!(report.warnings().iter().any(|w| w.contains("waited for a free connection")));
}

#[test]
fn overdue_requests_that_are_never_sent_are_reported() {
    let server = serve(|_| Reply::SendAfter(Duration::from_millis(50), OK));
    let report = load(server, "--rate 500 --duration 300ms --connections 1 --timeout 200ms");
    assert!(report.unsent > 100, "{} unsent", report.unsent);
    assert_eq!(report.due, report.stats.requests + report.unsent);
    // On a busy machine a sent request can time out.
    assert_eq!(report.failed(), report.unsent + count(&report, Failure::Timeout));
}

#[test]
fn a_connection_that_ends_between_requests_is_not_an_error() {
    let close = OK.replace("x-version: 1", "connection: close");
    let report = load(serve(move |_| Reply::Last(close.clone())), "--rate 200 --duration 300ms -c 3");
    assert_eq!((report.stats.requests, report.failed()), (60, 0));
    assert!(report.stats.connections >= 60);
    // Nor is a connection that the server closes without notice while it is idle. (On a busy machine the next request can be first.)
    let closed_in_time = || {
        let report = load(serve(|_| Reply::Last(OK.into())), "--rate 20 --duration 500ms -c 1");
        assert_eq!((report.stats.requests, report.failed()), (10, count(&report, Failure::Reset)));
        report.failed() == 0
    };
    assert!((0..10).any(|_| closed_in_time()));
}

#[test]
fn failures_are_counted_by_kind() {
    let server = serve(|n| match n % 8 {
        0 => Reply::Close,
        1 => Reply::Send("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".into()),
        2 => Reply::Last("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort".into()),
        3 => Reply::Never,
        4 => Reply::Last("nonsense\r\n\r\n".into()),
        5 => Reply::Send("HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n".into()),
        _ => Reply::Send(OK.into()),
    });
    let report = load(server, "--rate 200 --duration 400ms -c 20 --timeout 3s");
    let counts = Failure::ALL.map(|f| count(&report, f));
    assert_eq!(counts, [0, 10, 10, 10, 10, 10], "{:?}", report.stats.failures);
    assert_eq!((report.stats.requests, report.failed()), (80, 50));
    assert_eq!(
        report.stats.statuses.iter().map(|(s, n)| (*s, *n)).collect::<Vec<_>>(),
        [(200, 30), (404, 10), (503, 10)]
    );
    assert_eq!(report.stats.latency.len(), 50, "complete responses and timeouts");
}

#[test]
fn a_close_on_a_reused_connection_is_an_error_without_a_retry() {
    let report = load(
        serve(|n| if n % 2 == 1 { Reply::Close } else { Reply::Send(OK.into()) }),
        "--rate 100 --duration 400ms -c 1",
    );
    assert_eq!((report.stats.requests, count(&report, Failure::Reset), report.stats.resets_reused), (40, 20, 20));
}

#[test]
fn expected_statuses_decide_what_is_an_error() {
    let not_found = || serve(|_| Reply::Send("HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n".into()));
    for (options, failed) in [("", 0), ("--expect-status 2xx", 10), ("--expect-status 200 --expect-status 404", 0)] {
        let report = load(not_found(), &format!("--rate 100 --duration 100ms {options}"));
        assert_eq!((report.stats.requests, count(&report, Failure::Status)), (10, failed), "{options}");
    }
}

#[test]
fn saturation_keeps_every_connection_busy() {
    let server = serve(|_| Reply::Send(OK.into()));
    // On a busy machine, sending this many takes longer.
    let is_busy = |ms: u32| {
        let report = load(server, &format!("--saturate --duration {ms}ms -c 4 --threads 2"));
        assert_eq!((report.failed(), report.unsent, report.json()["latency_us"].is_null()), (0, 0, true));
        assert_eq!(report.stats.connections, 4);
        report.stats.requests > 100
    };
    assert!([300, 3_000, 30_000].into_iter().any(is_busy));
}

/// A TLS server that answers every request, and a file with its authority's certificate.
fn serve_tls() -> (SocketAddr, tempfile::TempPath) {
    let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, pair.cert.pem().as_bytes()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![pair.cert.der().clone()], key.into()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (tell, address) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut buf = vec![0; 4096];
                    while let Ok(1..) = stream.read(&mut buf).await {
                        if stream.write_all(OK.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
    (address.recv().unwrap(), file.into_temp_path())
}

#[test]
fn https_is_measured_and_certificates_are_verified() {
    let (server, ca) = serve_tls();
    let run = |options: &str| {
        let line = format!("https://{server}/ --rate 100 --warmup 0s --duration 200ms -c 2 {options}");
        measure(&Arc::new(Plan::new(&parse(&line).unwrap()).unwrap()))
    };
    for trusting in [format!("--cacert {}", ca.display()), "--insecure".to_owned()] {
        let report = run(&trusting).unwrap();
        assert_eq!((report.stats.requests, report.failed()), (20, 0), "{trusting}");
    }
    let refused = format!("{:#}", run("").err().unwrap());
    assert!(refused.contains("invalid peer certificate") && refused.contains("--cacert"), "{refused}");
}

#[test]
fn a_server_that_goes_away_causes_connect_errors() {
    // A listener whose backlog accepted the first connection, and which is closed before the first request.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    let gone = thread::spawn(move || {
        let accepted = listener.accept();
        drop(listener);
        drop(accepted);
    });
    let report = load(server, "--rate 100 --duration 300ms -c 1");
    gone.join().unwrap();
    assert!(count(&report, Failure::Connect) >= 28, "{:?}", report.stats.failures);
    assert_eq!((report.failed(), report.stats.latency.len()), (30, 0));
}

#[test]
fn wrong_arguments_are_named() {
    for (line, part) in [
        ("ftp://x/ --rate 1", "is not a URL of the form"),
        ("http://x/", "<--rate <N>|--saturate>"),
        ("http://x/ --rate 1 --saturate", "--saturate"),
        ("http://x/ --rate 0", "'--rate <N>'"),
        ("http://x/ --rate 1 --header nonsense", "no colon"),
        ("http://x/ --rate 1 --expect-status 7xx", "'--expect-status <STATUS>'"),
        ("http://x/ --rate 1 --duration 10", "such as 250ms"),
    ] {
        let message = parse(line).unwrap_err().to_string();
        assert!(message.contains(part), "{line}: {message}");
    }
    for (line, part) in [
        ("http://127.0.0.1/ --rate 1 --threads 9 -c 8", "--threads 9"),
        ("http://127.0.0.1/ --rate 1 --duration 0s", "--duration"),
        ("http://127.0.0.1/ --rate 1 --body @/nowhere", "--body @/nowhere"),
        ("http://127.0.0.1/ --rate 1 --header Content-Length:5", "Content-Length"),
        ("http://127.0.0.1/ --rate 1 --insecure", "--insecure are for https:// URLs"),
        ("https://127.0.0.1/ --rate 1 --cacert /nowhere", "there is no file `/nowhere`"),
        ("http://127.0.0.1:1/ --rate 1", "cannot connect to http://127.0.0.1:1/"),
        ("http://127.0.0.1/ --rate 0.1 --duration 1s", "no request is due"),
    ] {
        let plan = Plan::new(&parse(line).unwrap());
        let message = format!("{:#}", plan.and_then(|plan| measure(&Arc::new(plan)).map(drop)).unwrap_err());
        assert!(message.contains(part), "{line}: {message}");
    }
}

#[test]
fn the_reports_are_complete() {
    let server =
        serve(|n| Reply::Send(if n % 2 == 0 { OK.into() } else { OK.replace("x-version: 1", "x-version: <2>") }));
    let report = load(server, "--rate 200 --duration 300ms -c 2 --tally-header x-version");

    let json = report.json();
    for key in [
        "achieved_rate",
        "offered_rate",
        "requests",
        "responses",
        "errors",
        "statuses",
        "status_classes",
        "latency_us",
        "service_time_us",
        "body_bytes_per_second",
        "generator",
        "tally",
        "series",
        "warnings",
    ] {
        assert!(!json[key].is_null(), "{key}: {json}");
    }
    for quantile in ["p50", "p75", "p90", "p99", "p99.9", "max"] {
        assert!(json["latency_us"][quantile].as_u64() > Some(0), "{quantile}: {json}");
    }
    assert_eq!(
        (&json["requests"], &json["errors"]["by_kind"]["reset"], &json["statuses"]["200"]),
        (&60.into(), &0.into(), &60.into())
    );
    assert_eq!(json["tally"]["values"][1]["count"], 30);

    let page = html::page(&report);
    assert_eq!(page.matches("<polyline").count(), 6, "two lines in each of three plots");
    let titles = ["Latency by percentile", "Throughput and errors", "Latency over time", "&lt;2&gt;"];
    let rows = ["Date", "Command", "Headers", "Throughput", "Status", "corrected", "service time"];
    for title in titles.iter().chain(&rows) {
        assert!(page.contains(title), "{title}");
    }
    assert!(page.contains("<td>2xx: 60</td>") && page.contains("<code>host: 127.0.0.1:"), "{page}");
    assert!(page.contains("td.n, th.n { text-align: right; white-space: nowrap;"), "numbers stay with their units");
    let rest = page.replace(&report.plan.url, "");
    for foreign in ["http://", "https://", "src=", "href=", "@import", "url(", "<script", "NaN", "inf,", "<2>"] {
        assert!(!rest.contains(foreign), "{foreign}");
    }

    let plain = report.text(false);
    assert!(!plain.contains('\x1b') && report.text(true).contains('\x1b'));
    for part in ["p99.9", "corrected", "service time", "2xx 60", "Errors", "x-version"] {
        assert!(plain.contains(part), "{part}: {plain}");
    }
}
