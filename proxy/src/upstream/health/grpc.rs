//! The two messages of `grpc.health.v1.Health/Check`, in gRPC framing. They have one field each, which does not justify
//! a library for Protocol Buffers.

/// The method's path.
pub(super) const PATH: &str = "/grpc.health.v1.Health/Check";

/// `HealthCheckResponse.ServingStatus.SERVING`.
pub(super) const SERVING: u64 = 1;

/// An error: a message with an invalid format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not a valid HealthCheckResponse")]
pub(crate) struct Malformed;

/// Encodes a framed `HealthCheckRequest` (field 1: the service's name).
pub(crate) fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    // Empty fields are omitted.
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    // Not compressed, then the length. Names in a configuration file are shorter than 4 GiB.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], &length[..], &message].concat()
}

/// Returns the status in a framed `HealthCheckResponse` (field 1). Unknown fields are skipped.
pub(crate) fn status(body: &[u8]) -> Result<u64, Malformed> {
    let (frame, rest) = body.split_first_chunk::<5>().ok_or(Malformed)?;
    let [compressed, length @ ..] = *frame;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| Malformed)?;
    // Compression was not offered.
    if compressed != 0 || rest.len() != length {
        return Err(Malformed);
    }
    let (mut left, mut status) = (rest, 0);
    while !left.is_empty() {
        let key = take_varint(&mut left)?;
        let skipped = match (key >> 3, key & 7) {
            (1, 0) => {
                status = take_varint(&mut left)?;
                0
            }
            (_, 0) => {
                take_varint(&mut left)?;
                0
            }
            (_, 1) => 8,
            (_, 2) => usize::try_from(take_varint(&mut left)?).map_err(|_| Malformed)?,
            (_, 5) => 4,
            _ => return Err(Malformed),
        };
        left = left.get(skipped..).ok_or(Malformed)?;
    }
    Ok(status)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(from: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first().ok_or(Malformed)?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_match_protobuf_encoding() {
        assert_eq!(request(""), b"\0\0\0\0\0");
        assert_eq!(request("a.B"), b"\0\0\0\0\x05\x0a\x03a.B");
        let long = "x".repeat(300);
        assert_eq!(request(&long)[..8], *b"\0\0\0\x01\x2f\x0a\xac\x02");
    }

    #[test]
    fn statuses_are_parsed() {
        for (body, expected) in [
            (&b"\0\0\0\0\0"[..], Ok(0)),
            (b"\0\0\0\0\x02\x08\x01", Ok(1)),
            (b"\0\0\0\0\x02\x08\x02", Ok(2)),
            (b"\0\0\0\0\x03\x08\x81\0", Ok(1)),
            // The last value counts.
            (b"\0\0\0\0\x04\x08\x02\x08\x01", Ok(1)),
            // Unknown fields of all wire types: varint, 64 bits, bytes, 32 bits.
            (b"\0\0\0\0\x16\x10\x05\x19\0\0\0\0\0\0\0\0\x22\x02ab\x2d\0\0\0\0\x08\x01", Ok(1)),
            (b"", Err(Malformed)),
            (b"\0\0\0\0\x01", Err(Malformed)),
            (b"\x01\0\0\0\x02\x08\x01", Err(Malformed)),
            (b"\0\0\0\0\x02\x08\x01\0", Err(Malformed)),
            (b"\0\0\0\0\x01\x08", Err(Malformed)),
            (b"\0\0\0\0\x02\x12\x05", Err(Malformed)),
            (b"\0\0\0\0\x01\x0b", Err(Malformed)),
            (b"\0\0\0\0\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Err(Malformed)),
            (b"\0\xff\xff\xff\xff", Err(Malformed)),
        ] {
            assert_eq!(status(body), expected, "{}", body.escape_ascii());
        }
    }
}
