use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::h2::measure;

/// A reader that returns pieces of this size.
struct Pieces<'a>(std::slice::Chunks<'a, u8>);

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        buffer.put_slice(self.0.next().unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0x80, 0, 0, stream], payload].concat()
}

/// Returns what passes of a client's bytes, and the number of rewritten heads.
async fn through(sent: &[u8], step: usize) -> (Vec<u8>, u32) {
    let sent = [&[b'x'; PREFACE][..], sent].concat();
    let malformed = Malformed::default();
    let mut screened = ScreenedIo::of_client(Pieces(sent.chunks(step)), 100_000, malformed.clone());
    let (mut all, mut buffer) = (Vec::new(), vec![0; sent.len().clamp(64, 8192)]);
    loop {
        match screened.read(&mut buffer).await.unwrap() {
            0 => break,
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
    (all.split_off(PREFACE), malformed.0.get())
}

fn literal(name: &str, value: &[u8]) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value].concat()
}

#[tokio::test]
async fn frames_pass_in_pieces_of_any_size() {
    let all = [(6, 1, 8), (HEADERS, 4, 30), (HEADERS, 5, 0), (0, 0, 5), (0, 1, 0), (0, 1, 700)];
    let bytes: Vec<u8> =
        all.iter().flat_map(|(kind, flags, size)| frame(*kind, *flags, 3, &vec![0x88; *size])).collect();
    for step in 1..bytes.len() {
        let (through, malformed) = through(&bytes, step).await;
        assert!(through == bytes && malformed == 0, "in steps of {step}");
    }
}

#[tokio::test]
async fn a_rewritten_head_is_one_frame() {
    let (good, bad) = (literal("x-a", b"1"), literal("x-b", b"\x1f"));
    let head = [&[0x82, 0x87, 0x84][..], &good, &bad, &good].concat();
    let mark = literal("x-b", b" ");
    let wanted = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&head[..3], &good, &mark, &good].concat());
    let after = frame(0, 0, 1, b"data");
    for cut in 0..head.len() {
        let (first, rest) = head.split_at(cut);
        let padded = [&[2], &[0; 5][..], first, &[0; 2]].concat();
        for begin in [frame(HEADERS, END_STREAM, 1, first), frame(HEADERS, END_STREAM | PADDED | PRIORITY, 1, &padded)]
        {
            let rest = [frame(CONTINUATION, 0, 1, b""), frame(CONTINUATION, END_HEADERS, 1, rest)].concat();
            let sent = [begin, rest, after.clone()].concat();
            for step in [1, 2, 7, 10, sent.len()] {
                let (all, malformed) = through(&sent, step).await;
                // The reserved bit before a stream's number is ignored.
                let (ours, data) = all.split_at(all.len() - after.len());
                assert_eq!((&ours[9..], malformed), (&wanted[9..], 1), "cut at {cut}");
                assert_eq!((ours[..5].to_vec(), data), (wanted[..5].to_vec(), &after[..]));
            }
        }
    }
}

#[tokio::test]
async fn invalid_and_too_long_heads_are_left_to_h2() {
    let bad = literal("x-b", b"\x1f");
    let filled = |size: usize| [&vec![0x88; size - bad.len()][..], &bad].concat();
    for (kind, stream) in [(CONTINUATION, 3), (0, 1)] {
        let sent = [frame(HEADERS, 0, 1, &bad), frame(kind, END_HEADERS, stream, b"")].concat();
        for step in [1, 7, sent.len()] {
            assert_eq!(through(&sent, step).await, (sent.clone(), 0), "{kind} {stream} in steps of {step}");
        }
    }
    let frames = |more: usize| {
        let between = frame(CONTINUATION, 0, 1, b"").repeat(FRAMES - 2 + more);
        [frame(HEADERS, 0, 1, &bad), between, frame(CONTINUATION, END_HEADERS, 1, b"")].concat()
    };
    let long_frame = |more: usize| frame(HEADERS, END_HEADERS, 1, &filled(FRAME + more));
    let long_head = |more: usize| {
        let (whole, most) = (HEADER + FRAME, 100_000 + FRAME);
        let first = [frame(HEADERS, 0, 1, &filled(FRAME)), frame(CONTINUATION, 0, 1, &[0x88; FRAME]).repeat(6)];
        let last = frame(CONTINUATION, END_HEADERS, 1, &vec![0x88; most - 7 * whole - HEADER + more]);
        [first.concat(), last].concat()
    };
    let cases: [&dyn Fn(usize) -> Vec<u8>; 3] = [&frames, &long_frame, &long_head];
    for sent in cases {
        assert_eq!(through(&sent(0), 1000).await.1, 1);
        assert!(through(&sent(1), 1000).await == (sent(1), 0));
    }
}

#[test]
fn a_malformed_head_is_reported_once() {
    let malformed = Malformed(Rc::new(Cell::new(2)));
    assert_eq!([(); 4].map(|()| malformed.take()), [true, true, false, false]);
}

#[tokio::test]
async fn a_long_head_is_split_between_fields() {
    let field = literal("x-a", &[b'v'; 100]);
    let long = [literal("x-b", b""), vec![]].concat();
    let long = [&long[..long.len() - 1], &[0x7f, 0xa1, 0x9b, 0x01], &[b'w'; 20_000]].concat();
    let head = [field.repeat(200), long, field.repeat(3)].concat();
    let mut sent = Vec::new();
    for (nth, part) in head.chunks(10_000).enumerate() {
        sent.extend(frame(if nth == 0 { HEADERS } else { CONTINUATION }, 0, 1, part));
    }
    sent.extend(frame(CONTINUATION, END_HEADERS, 1, b""));
    let (all, _) = through(&sent, 4000).await;
    let (mut rest, mut lengths, mut block) = (&all[..], Vec::new(), Vec::new());
    while let Some(frame) = Frame::read(rest) {
        let end = HEADER + frame.length as usize;
        block.extend_from_slice(&rest[HEADER..end]);
        lengths.push(frame.length as usize);
        rest = &rest[end..];
    }
    assert!(block == head);
    // A frame holds at most 154 fields of 106 bytes; the long field begins a new frame.
    assert_eq!(field.len(), 106);
    assert_eq!(lengths, [154 * 106, 46 * 106, 16_384, head.len() - 200 * 106 - 16_384]);
}

#[tokio::test]
async fn connection_errors_are_left_to_h2() {
    let bad = literal("x-b", b"\x1f");
    let cases = [
        // A head within another one, excessive padding, oversized frames, stream 0, an invalid block, no end.
        [frame(HEADERS, 0, 1, &bad), frame(HEADERS, END_HEADERS, 3, &[0x82])].concat(),
        frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0x82]),
        frame(HEADERS, END_HEADERS, 1, &vec![0x82; FRAME + 1]),
        frame(HEADERS, END_HEADERS, 0, &bad),
        frame(HEADERS, END_HEADERS, 1, &[&bad[..], &[0xff]].concat()),
        frame(CONTINUATION, END_HEADERS, 1, &bad),
        [frame(HEADERS, 0, 1, &bad), frame(CONTINUATION, 0, 1, b"").repeat(100)].concat(),
        frame(HEADERS, END_HEADERS, 1, &bad)[..12].to_vec(),
        frame(HEADERS, END_HEADERS, 1, &bad)[..5].to_vec(),
    ];
    for (nth, sent) in cases.iter().enumerate() {
        for step in [1, 5, 1000] {
            let (all, malformed) = through(sent, step).await;
            assert!(all == *sent && malformed == 0, "case {nth} in steps of {step}");
        }
    }
}

/// Heads of one connection, encoded by Python's hpack 4.2: `GET /`, one with `x-bad: a\x1fb` that is added to the
/// table, one that refers to it, and one without.
const PYTHON: [&str; 4] = [
    "82864189495095cbe474d7417f847a8fafd2673d4c32a7f5e7ed4f5fda9ffd",
    "8286bf84be4084f2b46393851ffffffdc7",
    "8286c084bebf",
    "8286c084bf4085f2b4c73c9f8127",
];

/// Decodes consecutive heads with h2. Returns each request's stream and whether its fields are malformed.
async fn by_h2(heads: &[Vec<u8>]) -> Vec<(u32, bool)> {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let settings = frame(4, 0, 0, b"");
    near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    near.write_all(&settings).await.unwrap();
    for (nth, head) in heads.iter().enumerate() {
        near.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * nth as u8, head)).await.unwrap();
    }
    let screened = ScreenedIo::of_client(far, 100_000, Malformed::default());
    let mut http = h2::server::handshake(screened).await.unwrap();
    let mut requests = Vec::new();
    while requests.last().is_none_or(|(stream, _)| *stream < 2 * heads.len() as u32 - 1) {
        let (request, mut respond) = http.accept().await.expect("a request").expect("the connection stays open");
        requests.push((respond.stream_id().as_u32(), measure(request.headers()).is_none()));
        respond.send_response(Response::new(()), true).unwrap();
    }
    requests
}

#[tokio::test]
async fn h2_accepts_the_other_heads_and_its_table_stays_in_step() {
    let hex =
        |hex: &&str| (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    let heads: Vec<Vec<u8>> = PYTHON.iter().map(hex).collect();
    assert_eq!(by_h2(&heads).await, [(1, false), (3, true), (5, true), (7, false)]);
}

#[tokio::test]
async fn a_malformed_head_does_not_affect_other_streams() {
    let right = [&[0x82, 0x87, 0x84][..], &literal(":authority", b"h")].concat();
    for bad in [
        literal("x", b"a\x1f"),
        literal("x", b"\x7f"),
        literal("X-Upper", b"1"),
        literal("x y", b"1"),
        literal("", b"1"),
        literal(":what", b"1"),
        literal(":method", b"G T"),
        literal(":path", b"\xe9"),
        literal(":status", b"x"),
        literal("x\"", b"1"),
    ] {
        let requests = by_h2(&[right.clone(), [&right[..], &bad].concat(), right.clone()]).await;
        assert!(
            matches!(&requests[..], [(1, false), (3, true), (5, false)] | [(1, false), (5, false)]),
            "{requests:?}"
        );
    }
}
