//! SHA-256, and bytes as hexadecimal digits.

use std::fmt::Write;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

/// Returns the SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut out = [0; SHA256_OUTPUT_LEN];
    // The lengths are equal by the definition of SHA-256.
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// Returns the SHA-256 of some bytes in the form that `sha256sum` prints.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

/// Formats bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Parses a SHA-256 in the form of [`hex`].
pub fn from_hex(text: &str) -> Option<[u8; SHA256_OUTPUT_LEN]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok();
    pairs.iter().map(byte).collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_are_parsed() {
        let digest = sha256(b"abc");
        assert_eq!(from_hex(&hex(&digest)), Some(digest));
        for wrong in [&hex(&digest)[1..], &hex(&digest)[2..], &hex(&digest).replace('b', "x"), ""] {
            assert_eq!(from_hex(wrong), None, "{wrong}");
        }
    }

    /// The examples of FIPS 180-4.
    #[test]
    fn digest_is_sha_256() {
        assert_eq!(sha256_hex(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
