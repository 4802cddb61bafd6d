//! The command line of `tollgate bench chain`.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    str::FromStr,
};

use http::{HeaderName, HeaderValue};

use super::sample::Asked;

/// Bytes of a body, at most.
const MAX_BODY: u64 = 64 << 20;

/// Run a configuration's filter chain in this process and show what each filter costs.
///
/// The filters are compiled, configured and called as in production, on requests that exist in memory only: no socket is
/// opened, no log is written, upstreams answer 200 at once. Each request is run twice, once with nothing but the whole
/// timed, and once with each call into a filter timed; reading the clock takes some 20 ns, which are measured and
/// subtracted.
///
/// Rate limits count as they always do, so a limit for a client answers 429 soon; the report says how requests ended. A
/// request that a filter holds (for a delay, or an answer from elsewhere) is given up there and counted as held.
#[derive(Debug, Clone, clap::Args)]
pub struct ChainArgs {
    /// The configuration
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// The listener whose chain is run; else the first
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,

    /// Run another listener's chain too, by turns with the first, and show both: what disturbs the machine disturbs both
    #[arg(long, value_name = "NAME")]
    pub beside: Option<String>,

    /// A request, such as 'GET /path'; may be repeated, they are run in turn. [default: four of the usual kind]
    #[arg(long, value_name = "METHOD PATH", value_parser = Asked::from_str, conflicts_with = "requests")]
    pub(super) request: Vec<Asked>,

    /// Requests from a file of JSON lines: {"method", "path", "headers", "body", "client"}, of which only the path is
    /// needed, or lines of Tollgate's own access log
    #[arg(long, value_name = "FILE")]
    pub requests: Option<PathBuf>,

    /// A header of all requests, such as 'host: example.com'; may be repeated
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,

    /// The client of requests that name none
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub client: IpAddr,

    /// Bytes of the body of requests that have none
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = size)]
    pub body: usize,

    /// Bytes of the responses' body
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = size)]
    pub response_body: usize,

    /// Bodies end with trailers
    #[arg(long)]
    pub trailers: bool,

    /// How many requests are run, twice each. [default: as many as take about 2 seconds]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub iterations: Option<u64>,

    /// Write the result as JSON to stdout, in place of the text
    #[arg(long)]
    pub json: bool,

    /// Compare with an earlier result, as --json has written it
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("`{text}` is not `NAME: VALUE`"))?;
    let name = HeaderName::from_str(name.trim()).map_err(|_| format!("`{name}` is not a header's name"))?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| format!("`{value}` cannot be a header's value"))?;
    Ok((name, value))
}

fn size(text: &str) -> Result<usize, String> {
    match text.parse::<u64>() {
        Ok(size) if size <= MAX_BODY => Ok(size as usize),
        _ => Err(format!("a size is a number of bytes up to {MAX_BODY}")),
    }
}
