//! The command line of `tollgate bench chain`.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    str::FromStr,
};

use http::{HeaderName, HeaderValue};

use super::sample::Asked;

/// The maximum size of a body, in bytes.
const MAX_BODY: u64 = 64 << 20;

/// Run a configuration's filter chain in this process and show the cost of each filter.
///
/// The filters are compiled, configured and called as in production, on requests that exist only in memory: no socket is
/// opened, no log is written, upstreams respond with 200 immediately. Each request runs twice, once timed only as a
/// whole, and once with each call into a filter timed; reading the clock takes some 20 ns, which are measured and
/// subtracted.
///
/// Rate limits count as usual, so a limit per client soon responds with 429; the report shows how requests ended. A
/// request that a filter holds (for a delay or a callout) is abandoned there and counted as held.
#[derive(Debug, Clone, clap::Args)]
pub struct ChainArgs {
    /// Use this configuration
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Run this listener's chain [default: the first listener's]
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,

    /// Also run another listener's chain, alternately with the first, so that disturbances of the machine affect both
    #[arg(long, value_name = "NAME")]
    pub beside: Option<String>,

    /// Run this request, such as 'GET /path'; repeatable, requests run in turn [default: four typical requests]
    #[arg(long, value_name = "METHOD PATH", value_parser = Asked::from_str, conflicts_with = "requests")]
    pub(super) request: Vec<Asked>,

    /// Read requests from a file of JSON lines: {"method", "path", "headers", "body", "client"}, of which only the path is
    /// required, or lines of Tollgate's own access log
    #[arg(long, value_name = "FILE")]
    pub requests: Option<PathBuf>,

    /// Add this header to all requests, such as 'host: example.com'; repeatable
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,

    /// Use this client for requests that name none
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub client: IpAddr,

    /// Add a body of this many bytes to requests that have none
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = size)]
    pub body: usize,

    /// Give responses a body of this many bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = size)]
    pub response_body: usize,

    /// End bodies with trailers
    #[arg(long)]
    pub trailers: bool,

    /// Run this many requests, twice each [default: as many as take about 2 seconds]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub iterations: Option<u64>,

    /// Write the result as JSON to stdout, instead of text
    #[arg(long)]
    pub json: bool,

    /// Compare with an earlier result of --json
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("`{text}` is not `NAME: VALUE`"))?;
    let name = HeaderName::from_str(name.trim()).map_err(|_| format!("`{name}` is not a valid header name"))?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| format!("`{value}` is not a valid header value"))?;
    Ok((name, value))
}

fn size(text: &str) -> Result<usize, String> {
    match text.parse::<u64>() {
        Ok(size) if size <= MAX_BODY => Ok(size as usize),
        _ => Err(format!("not a number of bytes up to {MAX_BODY}")),
    }
}
