//! One table of messages, each sent in every version of HTTP to upstreams of every version, through a filter that holds
//! bodies and without one: the outcome is the same everywhere, except where the table states why not.

mod model;
mod rows;
mod upstream;
mod verdict;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    sync::Arc,
    thread,
};

use rustls::pki_types::CertificateDer;

use self::{
    model::{Exception, Kind, Row, Version, Way},
    upstream::{Arrival, Seen, serving},
    verdict::{Logged, judge},
};
use crate::{
    guest,
    harness::{
        Config, Proxy, Upstream,
        exchange::{Outcome, Speaker, SpeakerH1, SpeakerH2, SpeakerH3},
        wait_until,
    },
};

/// A listener, a cluster and a log per combination.
fn config(upstreams: &[(Way, Upstream)]) -> Config {
    const LOG: &str = "format: '%req(x-row)% %status% %flags% %details%'";
    let mut config = Config::new().unchained("holder", "holder.wasm", "");
    for (way, upstream) in upstreams {
        let name = way.name();
        let chain = if way.held { "[holder]" } else { "[]" };
        let tls = match way.client {
            Version::H3 => "http3: true\ntls: {certificates: [{certificate: server.pem, key: server.key}]}\n",
            _ => "",
        };
        let log = format!("access_log: {{to: {name}.log, {LOG}}}");
        let options = format!("cluster: {name}\nchain: {chain}\nlimits: {{headers: 50}}\n{tls}{log}");
        let protocol = if way.upstream == Version::H2 { "protocol: h2" } else { "protocol: h1" };
        config = config.beside(&name, &options).cluster(&name, &[upstream], protocol);
    }
    config
}

/// Sends all rows that this combination can express.
fn run(
    way: Way,
    address: SocketAddr,
    certificate: CertificateDer<'static>,
    rows: &[Row],
    seen: &Seen,
) -> BTreeMap<usize, Outcome> {
    let mut speaker: Box<dyn Speaker> = match way.client {
        Version::H1 => Box::new(SpeakerH1::new(address)),
        Version::H2 => Box::new(SpeakerH2::new(address)),
        Version::H3 => Box::new(SpeakerH3::new(address, certificate)),
    };
    let mut all = BTreeMap::new();
    for (nth, row) in rows.iter().enumerate() {
        if matches!(row.exception(way), Some(Exception { kind: Kind::Inexpressible, .. })) {
            continue;
        }
        let mut request = row.request.clone();
        request.fields.insert(0, ("x-row".to_owned(), nth.to_string()));
        request.raw = request.raw.map(|rest| format!("x-row: {nth}\r\n{rest}"));
        all.insert(nth, speaker.exchange_until(&request, &mut || seen.wait_before_leaving(nth, &row.request)));
    }
    all
}

/// The log of a combination, by row; lines of unreadable requests name no row.
fn logged(proxy: &Proxy, way: Way) -> BTreeMap<usize, Logged> {
    let text = fs::read_to_string(proxy.dir().join(format!("{}.log", way.name()))).unwrap_or_default();
    let line = |line: &str| {
        let [row, status, flags, details] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        let [status, flags, details] = [status, flags, details].map(str::to_owned);
        Some((row.parse().ok()?, Logged { status, flags, details }))
    };
    text.lines().filter_map(line).collect()
}

/// Rows and combinations, and their outcomes.
#[derive(Default)]
struct Count {
    compared: usize,
    inexpressible: usize,
    otherwise: usize,
    wrong: Vec<String>,
}

impl Count {
    fn take(&mut self, row: &Row, way: Way, got: &Outcome, arrivals: &[Arrival], log: Option<&Logged>) {
        self.compared += 1;
        let want = match row.exception(way).map(|exception| &exception.kind) {
            Some(Kind::Otherwise(want)) => {
                self.otherwise += 1;
                want
            }
            _ => &row.want,
        };
        if let Err(what) = judge(row, want, got, arrivals, log) {
            self.wrong.push(format!("{} ({way}): {what}", row.name));
        }
    }
}

#[test]
fn a_message_means_the_same_in_every_version() {
    let rows = Arc::new(rows::all());
    let pair = rcgen::generate_simple_self_signed(["web.test".to_owned()]).expect("a certificate");
    let (ways, seen): (Vec<_>, Vec<_>) = Way::all()
        .into_iter()
        .map(|way| {
            let (upstream, seen) = serving(way.upstream, &rows);
            ((way, upstream), seen)
        })
        .unzip();
    let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
    let files = [
        ("server.pem", certificate.as_bytes()),
        ("server.key", key.as_bytes()),
        ("holder.wasm", &guest::holding(&["request", "response"])),
    ];
    let proxy = Proxy::start_with(config(&ways), &files);
    let results: Vec<BTreeMap<usize, Outcome>> = thread::scope(|scope| {
        let threads: Vec<_> = ways
            .iter()
            .zip(&seen)
            .map(|((way, _), seen)| {
                let (address, certificate, rows) = (proxy.address(&way.name()), pair.cert.der().clone(), &rows);
                scope.spawn(move || run(*way, address, certificate, rows, seen))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a finished combination")).collect()
    });
    let mut count = Count::default();
    for (((way, _), seen), results) in ways.iter().zip(&seen).zip(&results) {
        let arrivals = seen.all();
        // Every request that an upstream received gets a line eventually.
        wait_until("the log", || arrivals.keys().all(|row| logged(&proxy, *way).contains_key(row)));
        let log = logged(&proxy, *way);
        count.inexpressible += rows.len() - results.len();
        for (nth, got) in results {
            let arrived = arrivals.get(nth).map_or(&[][..], Vec::as_slice);
            count.take(&rows[*nth], *way, got, arrived, log.get(nth));
        }
    }
    tell(&rows, &count, ways.len());
    assert!(count.wrong.is_empty(), "{} wrong:\n{}", count.wrong.len(), count.wrong.join("\n"));
}

/// Prints the size of the table and the differences, bypassing the output capture of passing tests.
fn tell(rows: &[Row], count: &Count, ways: usize) {
    let Count { compared, inexpressible, otherwise, .. } = count;
    let mut text = String::new();
    let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for row in rows {
        for Exception { ways, kind, why } in &row.exceptions {
            let kind = match kind {
                Kind::Inexpressible => "cannot be expressed",
                Kind::Otherwise(_) => "another outcome is right",
            };
            reasons.entry(format!("{kind} {ways}: {why}")).or_default().push(row.name);
        }
    }
    for (reason, names) in reasons {
        let _ = writeln!(text, "  {reason}\n    {}", names.join("; "));
    }
    let _ = writeln!(
        text,
        "differential table: {} rows x {ways} ways: {compared} compared, {otherwise} of them right with another outcome; \
         {inexpressible} cannot be expressed",
        rows.len()
    );
    let _ = io::stderr().write_all(text.as_bytes());
}
