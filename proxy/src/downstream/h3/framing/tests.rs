use super::*;

/// Encodes a frame.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap() | 0x4000;
    [&[kind], &length.to_be_bytes()[..], payload].concat()
}

/// Returns what is passed on of a stream received in pieces of this size, and how many of the bytes are data.
fn passed(mut framing: Framing, sent: &[u8], size: usize) -> Result<(Vec<Bytes>, u64), FrameViolation> {
    let flood = FrameLimiter::default();
    let (mut all, mut data) = (Vec::new(), 0);
    for piece in sent.chunks(size) {
        data += framing.push(&Bytes::copy_from_slice(piece), &flood)?;
        all.extend(std::iter::from_fn(|| framing.pop()));
    }
    assert!(all.iter().all(|piece| !piece.is_empty()));
    framing.end().map(|()| (all, data))
}

const UNKNOWN: u8 = 0x21;

/// `GET`, `https`, `/`.
const HEAD: &[u8] = b"\0\0\xd1\xd7\xc1";
/// `accept: */*`.
const TRAILERS: &[u8] = b"\0\0\xdd";

#[test]
fn variable_length_integers_are_parsed() {
    // RFC 9000 appendix A.1.
    for (bytes, number) in [
        (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
        (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
        (&[0x7b, 0xbd], 15_293),
        (&[0x25], 37),
    ] {
        assert_eq!(varint(&[bytes, b"x"].concat()), Some((number, &b"x"[..])));
        assert_eq!(varint(&bytes[..bytes.len() - 1]), None);
    }
}

#[test]
fn heads_are_complete_and_unknown_frames_dropped_in_any_pieces() {
    let sent = [
        frame(UNKNOWN, b"grease"),
        frame(1, HEAD),
        frame(0, b"hello "),
        frame(UNKNOWN, b""),
        frame(0, b""),
        frame(0, b"world"),
        frame(1, TRAILERS),
        frame(UNKNOWN, &[7; 3000]),
    ]
    .concat();
    let wanted = [frame(1, HEAD), frame(0, b"hello "), frame(0, b"world"), frame(1, TRAILERS)];
    for size in 1..sent.len() {
        let (pieces, data) = passed(Framing::request(8), &sent, size).unwrap();
        assert_eq!((pieces.concat(), data), (wanted.concat(), 11), "in pieces of {size}");
        assert_eq!(pieces[0], wanted[0]);
        assert_eq!(pieces.last(), wanted.last().map(|last| Bytes::copy_from_slice(last)).as_ref());
    }
}

#[test]
fn oversized_head_is_rejected_immediately() {
    let start = &frame(1, &[0; 9])[..3];
    assert_eq!(passed(Framing::request(8), start, 9), Err(FrameViolation::HeadTooLarge));
    let head = frame(1, &[HEAD, &[0xdd; 4]].concat());
    assert_eq!(passed(Framing::request(9), &head, 4).unwrap().0.concat(), head);
    // The greatest length that can be encoded.
    let longest = [&[1][..], &[0xff; 8]].concat();
    assert_eq!(passed(Framing::request(u64::MAX >> 3), &longest, 9), Err(FrameViolation::HeadTooLarge));
}

#[test]
fn malformed_field_sections_are_not_passed_on() {
    for size in 1..9 {
        let passed = |sent: &[Vec<u8>]| passed(Framing::request(8), &sent.concat(), size);
        let (head, trailers) = (frame(1, HEAD), frame(1, TRAILERS));
        assert!(passed(&[head.clone(), trailers.clone()]).is_ok());
        assert_eq!(passed(&[trailers]), Err(FrameViolation::Malformed));
        assert_eq!(passed(&[head.clone(), head.clone()]), Err(FrameViolation::Malformed));
        assert_eq!(passed(&[head, frame(1, b"none")]), Err(FrameViolation::Undecodable));
    }
}

#[test]
fn stream_must_end_between_frames() {
    let whole = [frame(1, HEAD), frame(0, b"body")].concat();
    for end in 0..=whole.len() {
        let may_end = [0, 8, whole.len()].contains(&end);
        assert_eq!(passed(Framing::request(8), &whole[..end], 3).is_ok(), may_end, "after {end}");
    }
}

#[test]
fn unidirectional_streams_are_treated_by_type() {
    let control = [&[0][..], &frame(4, &[1, 0]), &frame(UNKNOWN, b"grease"), &frame(7, &[0])].concat();
    let wanted = [&[0][..], &frame(4, &[1, 0]), &frame(7, &[0])].concat();
    for size in 1..control.len() {
        assert_eq!(passed(Framing::one_way(), &control, size).unwrap().0.concat(), wanted);
    }
    let settings = |length| [&[0][..], &frame(4, &vec![0; length])].concat();
    assert_eq!(passed(Framing::one_way(), &settings(4097), 100), Err(FrameViolation::FrameTooLarge));
    // Not a head here: h3 rejects it.
    for control in [settings(4096), [&[0][..], &frame(1, b"none")].concat()] {
        assert_eq!(passed(Framing::one_way(), &control, 100).unwrap().0.concat(), control);
    }
    // QPACK and unknown streams have no frames.
    for kind in [&[2][..], &[0x40, 0x54]] {
        let sent = [kind, &frame(UNKNOWN, b"not a frame")[..5]].concat();
        for size in 1..sent.len() {
            assert_eq!(passed(Framing::one_way(), &sent, size).unwrap().0.concat(), sent);
        }
    }
}

#[test]
fn unproductive_frames_are_limited() {
    for (useful, idle) in [(frame(0, b"x"), frame(0, b"")), (frame(1, HEAD), frame(UNKNOWN, b""))] {
        let flood = FrameLimiter::default();
        let push = |frame: &Vec<u8>| Framing::request(8).push(&frame.clone().into(), &flood);
        // Productive frames allow for others.
        for _ in 0..100_000 {
            push(&useful).unwrap();
            push(&idle).unwrap();
        }
        assert_eq!((0..1_000_000).map(|_| push(&idle)).find(Result::is_err), Some(Err(FrameViolation::Flood)));
    }
}
