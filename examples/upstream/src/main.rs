//! `demo-upstream`: a small HTTP server to put behind a proxy. It identifies itself, echoes requests, and delays or
//! fails on request.

mod answer;

use std::{net::SocketAddr, rc::Rc, time::Duration};

use anyhow::Context;
use clap::Parser;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::answer::Upstream;

/// A small HTTP/1.1 server to put behind a proxy.
///
/// Every response carries `x-upstream: NAME`, which shows which upstream has answered.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
What it serves:
  /headers     the request's headers, as JSON
  /echo        the request's body, as it comes
  /status/N    a response of status N (200 to 599)
  /delay/MS    a response after MS milliseconds (at most 60000)
  /bytes/N     N bytes (at most 1 GiB)
  /auth        204 if `authorization` is `Bearer demo`, else 401: a stand-in for an authorization service
  /stats       how many requests there have been (this one is not counted), as JSON
  other paths  its name and the request line"
)]
struct Args {
    /// Set the name that the server reports
    #[arg(long, default_value = "demo")]
    name: String,

    /// Set the address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9001")]
    listen: SocketAddr,

    /// Delay each response by this time (us, ms, s)
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = parse_time)]
    delay: Duration,

    /// Answer this percentage of the requests with 503
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = parse_percent)]
    fail_percent: f64,
}

// One thread is enough to keep a proxy on the same machine busy, and leaves the other cores to it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let upstream = Upstream::new(&args.name, args.delay, args.fail_percent)
        .with_context(|| format!("--name {}: a header cannot carry it", args.name))?;
    let upstream = Rc::new(upstream);
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    println!("{} listens on http://{}", args.name, listener.local_addr()?);
    tokio::task::LocalSet::new().run_until(serve(listener, upstream)).await;
    Ok(())
}

async fn serve(listener: TcpListener, upstream: Rc<Upstream>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Usually the process is out of file descriptors. Retrying immediately would only burn CPU.
                eprintln!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Small responses must not wait for the client's acknowledgement of the previous one (Nagle).
        let _ = stream.set_nodelay(true);
        let upstream = upstream.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| {
                let upstream = upstream.clone();
                async move { Ok::<_, std::convert::Infallible>(upstream.answer(request).await) }
            });
            // A client that disconnects during a response is not an error here.
            let _ =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || "not a time; write a number with a unit (us, ms, s), such as 250ms".to_owned();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        _ => return Err(wrong()),
    };
    if seconds > 3600.0 {
        return Err("longer than an hour".into());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

fn parse_percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("not a number from 0 to 100".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        use clap::CommandFactory;
        Args::command().debug_assert();
        assert_eq!(parse_time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_time("250us"), Ok(Duration::from_micros(250)));
        for wrong in ["", "5", "ms", "1h", "9999s"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_percent("0.5"), Ok(0.5));
        for wrong in ["-1", "101", "NaN", "x"] {
            assert!(parse_percent(wrong).is_err(), "{wrong}");
        }
    }
}
