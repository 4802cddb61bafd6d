//! The upstreams: they answer each request as its row specifies, in HTTP/1.1 or HTTP/2, and record what arrived.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use super::model::{How, Point, Reply, Request, Row, Version};
use crate::harness::{
    DEADLINE, H2, Upstream, Wire,
    exchange::{borrowed, lower},
    frames::{Fields, Message, code, encode, kind, setting},
};

/// A request as received.
#[derive(Debug, Clone, Default)]
pub struct Arrival {
    pub method: String,
    pub target: String,
    pub host: Option<String>,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
    /// Whether it ended, once known.
    pub whole: Option<bool>,
    /// Whether the upstream is still waiting for its answer to be cancelled.
    pub waits: bool,
}

/// Received requests, by row.
#[derive(Default)]
pub struct Seen {
    arrivals: Mutex<BTreeMap<usize, Vec<Arrival>>>,
    changed: Condvar,
}

impl Seen {
    /// Records the start of a request.
    fn begin(&self, row: usize, arrival: Arrival) {
        self.arrivals.lock().unwrap().entry(row).or_default().push(arrival);
        self.changed.notify_all();
    }

    /// Records the end of a row's last request: it is complete, or will never be.
    fn end(&self, row: usize, body: Vec<u8>, trailers: Fields, whole: bool) {
        let mut arrivals = self.arrivals.lock().unwrap();
        let last = arrivals.get_mut(&row).and_then(|all| all.last_mut()).expect("it has begun");
        (last.body, last.trailers, last.whole) = (body, trailers, Some(whole));
        self.changed.notify_all();
    }

    /// Records whether an upstream is waiting for its answer to a row to be cancelled.
    fn waits(&self, row: usize, waits: bool) {
        let mut arrivals = self.arrivals.lock().unwrap();
        arrivals.get_mut(&row).and_then(|all| all.last_mut()).expect("it has begun").waits = waits;
        self.changed.notify_all();
    }

    fn wait(&self, patience: Duration, wanted: impl Fn(&BTreeMap<usize, Vec<Arrival>>) -> bool) -> bool {
        let arrivals = self.arrivals.lock().unwrap();
        let waited = self.changed.wait_timeout_while(arrivals, patience, |all| !wanted(all)).unwrap();
        !waited.1.timed_out()
    }

    /// What a client waits for before it leaves: after a complete request it leaves an exchange in progress; before
    /// that the proxy may not have contacted the upstream yet.
    pub fn wait_before_leaving(&self, row: usize, request: &Request) {
        let last = |all: &BTreeMap<usize, Vec<Arrival>>| all.get(&row).and_then(|all| all.last().cloned());
        match request.cut {
            Some(Point::After) => {
                let whole = self.wait(DEADLINE, |all| last(all).is_some_and(|arrival| arrival.whole.is_some()));
                assert!(whole, "row {row} has not arrived");
            }
            Some(Point::Head) | None => {}
            Some(_) => _ = self.wait(Duration::from_millis(50), |all| last(all).is_some()),
        }
    }

    /// All received requests, once they have ended.
    pub fn all(&self) -> BTreeMap<usize, Vec<Arrival>> {
        self.wait(DEADLINE, |all| all.values().flatten().all(|arrival| arrival.whole.is_some() && !arrival.waits));
        self.arrivals.lock().unwrap().clone()
    }
}

/// An upstream of a version for these rows.
pub fn serving(version: Version, rows: &Arc<Vec<Row>>) -> (Upstream, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let (rows, theirs) = (rows.clone(), seen.clone());
    let upstream = Upstream::scripted(move |connection| match version {
        Version::H1 => _ = serve_h1(connection.wire, &rows, &theirs),
        _ => _ = serve_h2(connection.wire, &rows, &theirs),
    });
    (upstream, seen)
}

fn has_length(fields: &Fields) -> bool {
    fields.iter().any(|(name, _)| name == "content-length")
}

/// The row that a request belongs to.
fn row_of(fields: &Fields) -> usize {
    let value = fields.iter().find(|(name, _)| name == "x-row").map(|(_, value)| value.parse());
    value.expect("each request names its row").expect("a number")
}

fn serve_h1(mut wire: Wire, rows: &[Row], seen: &Seen) -> Option<()> {
    loop {
        let mut request = wire.read_head().ok()?;
        let fields = lower(request.fields.clone());
        let (row, host) = (row_of(&fields), fields.iter().find(|(name, _)| name == "host"));
        seen.begin(
            row,
            Arrival {
                method: request.method().to_owned(),
                target: lower(vec![(String::new(), request.target().to_owned())]).remove(0).1,
                host: host.map(|(_, host)| host.clone()),
                fields: fields.clone(),
                ..Arrival::default()
            },
        );
        let (reply, method) = (&rows[row].reply, request.method().to_owned());
        let mut said = None;
        if reply.early {
            said = Some(say_h1(&mut wire, reply, &method));
        }
        let whole = wire.read_body(&mut request, false).is_ok();
        seen.end(row, request.body, lower(request.trailers), whole);
        if !whole {
            return None;
        }
        match said.unwrap_or_else(|| say_h1(&mut wire, reply, &method)) {
            None => {}
            Some(How::Reset(_)) => {
                wire.reset();
                return None;
            }
            Some(How::Silence) => {
                seen.waits(row, true);
                wire.read_to_end();
                seen.waits(row, false);
                return None;
            }
            Some(How::Close | How::Goaway) => return None,
        }
    }
}

/// Sends an answer and returns how the connection ends, if it does.
fn say_h1(wire: &mut Wire, reply: &Reply, method: &str) -> Option<How> {
    let lines = |fields: &Fields| fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>();
    if let Some((raw, _)) = &reply.raw {
        let _ = wire.send(raw);
        return Some(How::Close);
    }
    let mut head = String::new();
    for (status, fields) in &reply.interim {
        head += &format!("HTTP/1.1 {status} Interim\r\n{}\r\n", lines(fields));
    }
    let _ = wire.send(&head);
    let stop = |point: Point| reply.cut.filter(|(at, _)| *at == point).map(|(_, how)| how);
    if let Some(how) = stop(Point::Start) {
        return Some(how);
    }
    head = format!("HTTP/1.1 {} Said\r\n{}", reply.status, lines(&reply.fields));
    let bodiless = method == "HEAD" || matches!(reply.status, 204 | 304);
    let framed = reply.until_close || bodiless || has_length(&reply.fields);
    let chunked = reply.body.is_some() && !framed;
    head += match (framed, chunked) {
        (true, _) => "",
        (_, true) => "transfer-encoding: chunked\r\n",
        _ => "content-length: 0\r\n",
    };
    if let Some(how) = stop(Point::Head) {
        let _ = wire.send(head);
        return Some(how);
    }
    let _ = wire.send(head + "\r\n");
    if let Some(how) = stop(Point::Body) {
        return Some(how);
    }
    for piece in reply.body.iter().flatten() {
        let _ = match chunked {
            true => wire.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()),
            false => wire.send(piece),
        };
        if let Some(how) = stop(Point::Piece) {
            return Some(how);
        }
    }
    if let Some(how) = stop(Point::End) {
        return Some(how);
    }
    let trailers = lines(&reply.trailers);
    if let Some(how) = stop(Point::Trailers) {
        let _ = wire.send(format!("0\r\n{}", &trailers[..trailers.len() / 2]));
        return Some(how);
    }
    if chunked {
        let _ = wire.send(format!("0\r\n{trailers}\r\n"));
    }
    reply.until_close.then_some(How::Close).or(stop(Point::After))
}

fn serve_h2(wire: Wire, rows: &[Row], seen: &Seen) -> Option<()> {
    let mut h2 = H2::accept(wire, &[(setting::INITIAL_WINDOW_SIZE, 1 << 30)]).ok()?;
    h2.window(0, 1 << 30);
    loop {
        let (stream, request) = h2.next_head().ok()?;
        let fields = request.blocks[0].clone();
        let named = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        let row = row_of(&fields);
        seen.begin(
            row,
            Arrival {
                method: named(":method").unwrap_or_default(),
                target: named(":path").unwrap_or_default(),
                host: named(":authority"),
                fields: fields.clone(),
                ..Arrival::default()
            },
        );
        let reply = &rows[row].reply;
        let mut said = None;
        if reply.early {
            said = Some(say_h2(&mut h2, stream, reply));
        }
        let message = until_over(&mut h2, stream);
        let trailers = message.blocks.get(1).cloned();
        // Not every peer can read an empty header block.
        let whole = message.ended && trailers.as_ref().is_none_or(|trailers| !trailers.is_empty());
        seen.end(row, message.body, trailers.unwrap_or_default(), whole);
        if !message.ended {
            continue;
        }
        match said.unwrap_or_else(|| say_h2(&mut h2, stream, reply)) {
            None => {}
            Some(How::Reset(code)) => h2.reset(stream, code),
            Some(How::Goaway) => {
                h2.goaway(stream - 1, code::NO_ERROR);
                return None;
            }
            Some(How::Silence) => {
                seen.waits(row, true);
                until_reset(&mut h2, stream)?;
                seen.waits(row, false);
            }
            Some(How::Close) => return None,
        }
    }
}

/// Reads a stream until no more will arrive.
fn until_over(h2: &mut H2, stream: u32) -> Message {
    loop {
        let message = h2.so_far(stream);
        if message.ended || message.reset.is_some() || h2.read().is_err() {
            return h2.so_far(stream);
        }
    }
}

fn until_reset(h2: &mut H2, stream: u32) -> Option<()> {
    while h2.so_far(stream).reset.is_none() {
        h2.read().ok()?;
    }
    Some(())
}

/// The same as [`say_h1`].
fn say_h2(h2: &mut H2, stream: u32, reply: &Reply) -> Option<How> {
    let status = |status: u16, fields: &Fields| {
        let mut all = vec![(":status".to_owned(), status.to_string())];
        all.extend(fields.iter().cloned());
        all
    };
    for (interim, fields) in &reply.interim {
        h2.headers(stream, &borrowed(&status(*interim, fields)), false);
    }
    let stop = |point: Point| reply.cut.filter(|(at, _)| *at == point).map(|(_, how)| how);
    if let Some(how) = stop(Point::Start) {
        return Some(how);
    }
    let head = reply.raw.as_ref().map_or_else(|| status(reply.status, &reply.fields), |(_, fields)| fields.clone());
    if let Some(how) = stop(Point::Head) {
        h2.send(kind::HEADERS, 0, stream, &encode(&borrowed(&head)));
        return Some(how);
    }
    let ends = reply.body.is_none() && reply.trailers.is_empty() && reply.cut.is_none_or(|(at, _)| at == Point::After);
    h2.headers(stream, &borrowed(&head), ends);
    if ends {
        return stop(Point::After);
    }
    if let Some(how) = stop(Point::Body) {
        return Some(how);
    }
    // A client that knows the length leaves when it has the whole body, so the end must come with the last piece.
    let ends = reply.trailers.is_empty() && reply.cut.is_none_or(|(at, _)| at == Point::After);
    let last = reply.body.as_ref().and_then(|pieces| pieces.last()).filter(|_| ends && has_length(&reply.fields));
    for piece in reply.body.iter().flatten() {
        if last.is_some_and(|last| std::ptr::eq(last, piece)) && piece.len() <= h2.window_of(stream).min(16 << 10) {
            h2.data(stream, piece, true);
            return stop(Point::After);
        }
        let mut rest = &piece[..];
        while !rest.is_empty() && h2.so_far(stream).reset.is_none() {
            match h2.data_within(stream, rest) {
                0 if h2.read().is_err() => return Some(How::Close),
                sent => rest = &rest[sent..],
            }
        }
        if let Some(how) = stop(Point::Piece) {
            return Some(how);
        }
    }
    if let Some(how) = stop(Point::End) {
        return Some(how);
    }
    let trailers = borrowed(&reply.trailers);
    if let Some(how) = stop(Point::Trailers) {
        h2.send(kind::HEADERS, 1, stream, &encode(&trailers));
        return Some(how);
    }
    match trailers.is_empty() {
        true => h2.data(stream, b"", true),
        false => h2.headers(stream, &trailers, true),
    }
    stop(Point::After)
}
