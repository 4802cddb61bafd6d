//! The HTTP/1.1 client: one connection per message.

use std::{
    io,
    net::{SocketAddr, TcpStream},
};

use super::super::{Message, Wire, frames::Fields};
use super::{End, Outcome, Point, Request, Response, Speaker, Version};

pub struct SpeakerH1(SocketAddr);

impl SpeakerH1 {
    pub fn new(address: SocketAddr) -> SpeakerH1 {
        SpeakerH1(address)
    }
}

impl Speaker for SpeakerH1 {
    fn version(&self) -> Version {
        Version::H1
    }

    fn exchange_until(&mut self, request: &Request, leave: &mut dyn FnMut()) -> Outcome {
        let mut wire = Wire::new(TcpStream::connect(self.0).expect("the proxy accepts connections"));
        let mut interim = Vec::new();
        // If the proxy has stopped reading, it closes the connection, which is noticed when reading.
        let sent = send(&mut wire, request, &mut interim);
        if sent.is_ok() && request.half {
            wire.finish();
        } else if sent.is_ok() && request.cut.is_some() {
            leave();
            wire.reset();
            return Outcome::Left;
        }
        match receive(&mut wire, &request.method, &mut interim) {
            Ok(head) => Outcome::Whole(Response {
                interim,
                status: head.status(),
                fields: lower(head.fields),
                body: head.body,
                trailers: lower(head.trailers),
            }),
            Err((status, _)) => Outcome::Broken { status, end: End::Closed },
        }
    }
}

fn send(wire: &mut Wire, request: &Request, interim: &mut Vec<(u16, Fields)>) -> io::Result<()> {
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
    if let Some(host) = &request.host {
        head += &format!("Host: {host}\r\n");
    }
    if let Some(rest) = &request.raw {
        return wire.send(head + rest);
    }
    for (name, value) in &request.fields {
        head += &format!("{name}: {value}\r\n");
    }
    let has = |name: &str| request.fields.iter().any(|(n, _)| n == name);
    if has("te") {
        head += "Connection: TE\r\n";
    }
    let chunked = request.body.is_some() && !has("content-length");
    if chunked {
        head += "Transfer-Encoding: chunked\r\n";
    }
    if request.cut == Some(Point::Head) {
        return wire.send(head);
    }
    wire.send(head + "\r\n")?;
    if request.waits {
        let head = wire.read_head()?;
        interim.push((head.status(), lower(head.fields)));
    }
    for piece in request.body.iter().flatten() {
        match chunked {
            true => wire.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())?,
            false => wire.send(piece)?,
        }
        if request.cut == Some(Point::Piece) {
            return Ok(());
        }
    }
    if !chunked || request.cut == Some(Point::End) {
        return Ok(());
    }
    let trailers: String = request.trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    match request.cut {
        Some(Point::Trailers) => wire.send(format!("0\r\n{}", &trailers[..trailers.len() / 2])),
        _ => wire.send(format!("0\r\n{trailers}\r\n")),
    }
}

/// Reads the response; the status, if it was truncated after its head.
fn receive(
    wire: &mut Wire,
    method: &str,
    interim: &mut Vec<(u16, Fields)>,
) -> Result<Message, (Option<u16>, io::Error)> {
    loop {
        let mut head = wire.read_head().map_err(|error| (None, error))?;
        match head.status() {
            status @ 100..=199 => interim.push((status, lower(head.fields))),
            204 | 304 => return Ok(head),
            _ if method == "HEAD" => return Ok(head),
            status => return wire.read_body(&mut head, true).map(|()| head).map_err(|error| (Some(status), error)),
        }
    }
}

/// Field names in lower case, as in other versions. The wire reads Latin-1, and the table is in UTF-8.
pub fn lower(fields: Fields) -> Fields {
    let utf8 =
        |value: String| String::from_utf8_lossy(&value.chars().map(|c| c as u8).collect::<Vec<_>>()).into_owned();
    fields.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), utf8(value))).collect()
}
