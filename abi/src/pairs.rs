//! The encoding of header maps: a u32 count, then for each pair two u32 lengths, then for each pair the name, a NUL, the
//! value, a NUL (Proxy-Wasm 0.2.1, "Serialized map"; all integers little-endian).

use alloc::vec::Vec;

/// Maximum number of pairs that are decoded.
pub const MAX_PAIRS: usize = 1024;
/// Maximum bytes that are decoded.
pub const MAX_BYTES: usize = 1 << 20;

/// A name and a value.
pub type Pair<'a> = (&'a [u8], &'a [u8]);

/// Bytes of the encoding of `pairs`.
pub fn encoded_len<'a>(pairs: impl IntoIterator<Item = Pair<'a>>) -> usize {
    4 + pairs.into_iter().map(|(name, value)| 10 + name.len() + value.len()).sum::<usize>()
}

/// Appends the encoding of `pairs` to `out`.
pub fn encode<'a>(pairs: impl IntoIterator<Item = Pair<'a>> + Clone, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let mut count = 0u32;
    for (name, value) in pairs.clone() {
        count += 1;
        out.extend_from_slice(&(name.len() as u32).to_le_bytes());
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    }
    out[start..start + 4].copy_from_slice(&count.to_le_bytes());
    for (name, value) in pairs {
        out.extend_from_slice(name);
        out.push(0);
        out.extend_from_slice(value);
        out.push(0);
    }
}

/// Why bytes are not an encoded map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// More than [`MAX_PAIRS`] or [`MAX_BYTES`].
    TooLarge,
    /// Lengths that do not fit the bytes, or a missing NUL.
    Broken,
}

/// Decodes a map. Empty input is an empty map.
pub fn decode(bytes: &[u8]) -> Result<Vec<Pair<'_>>, Malformed> {
    if bytes.len() > MAX_BYTES {
        return Err(Malformed::TooLarge);
    }
    // SDKs send an empty map as no bytes, as one zero byte, or as a zero count.
    if bytes.iter().all(|b| *b == 0) && bytes.len() <= 4 {
        return Ok(Vec::new());
    }
    let word = |at: usize| -> Result<usize, Malformed> {
        let b = bytes.get(at..at + 4).ok_or(Malformed::Broken)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
    };
    let count = word(0)?;
    if count > MAX_PAIRS {
        return Err(Malformed::TooLarge);
    }
    let mut at = 4 + count * 8;
    let mut field = |len: usize| -> Result<&[u8], Malformed> {
        let end = at.checked_add(len).ok_or(Malformed::Broken)?;
        let field = bytes.get(at..end).ok_or(Malformed::Broken)?;
        if bytes.get(end) != Some(&0) {
            return Err(Malformed::Broken);
        }
        at = end + 1;
        Ok(field)
    };
    let mut pairs = Vec::with_capacity(count);
    for i in 0..count {
        pairs.push((field(word(4 + i * 8)?)?, field(word(8 + i * 8)?)?));
    }
    if at != bytes.len() {
        return Err(Malformed::Broken);
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_survives_encoding_and_decoding() {
        let map: &[(&[u8], &[u8])] = &[(b":path", b"/"), (b"empty", b""), (b"bin", b"\0\xff")];
        let mut bytes = Vec::new();
        encode(map.iter().copied(), &mut bytes);
        assert_eq!(bytes.len(), encoded_len(map.iter().copied()));
        assert_eq!(decode(&bytes).unwrap(), map);
    }

    #[test]
    fn every_form_of_an_empty_map_is_accepted() {
        for bytes in [&b""[..], b"\0", b"\0\0\0\0"] {
            assert_eq!(decode(bytes), Ok(Vec::new()));
        }
    }

    #[test]
    fn maximum_sizes_are_accepted() {
        let with_value = |len: usize| {
            let (value, mut bytes) = (std::vec![b'v'; len], Vec::new());
            encode([(&b"n"[..], &value[..])], &mut bytes);
            decode(&bytes).map(|pairs| pairs.len())
        };
        let most = MAX_BYTES - encoded_len([(&b"n"[..], &b""[..])]);
        assert_eq!((with_value(most), with_value(most + 1)), (Ok(1), Err(Malformed::TooLarge)));
        let of_pairs = |count: usize| {
            let mut bytes = Vec::new();
            encode(core::iter::repeat_n((&b"n"[..], &b""[..]), count), &mut bytes);
            decode(&bytes).map(|pairs| pairs.len())
        };
        assert_eq!((of_pairs(MAX_PAIRS), of_pairs(MAX_PAIRS + 1)), (Ok(MAX_PAIRS), Err(Malformed::TooLarge)));
    }

    #[test]
    fn no_truncation_or_bit_flip_panics() {
        let map: &[(&[u8], &[u8])] = &[(b"a", b"b"), (b"cc", b"dd")];
        let mut bytes = Vec::new();
        encode(map.iter().copied(), &mut bytes);
        for n in 1..bytes.len() {
            assert!(decode(&bytes[..n]).is_err(), "cut at {n}");
        }
        for i in 0..bytes.len() * 8 {
            let mut b = bytes.clone();
            b[i / 8] ^= 1 << (i % 8);
            let _ = decode(&b);
        }
        assert_eq!(decode(&[0xff; 64]), Err(Malformed::TooLarge));
    }
}
