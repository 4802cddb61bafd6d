//! Header maps as filters pass them.

use tollgate_abi::pairs::{MAX_BYTES, MAX_PAIRS, decode, encode, encoded_len};

use crate::{Outcome, Target, cuts};

/// What is decoded is what was encoded, byte for byte; nothing is left out.
fn check(input: &[u8]) -> Outcome {
    let decoded = decode(input);
    let empty = |bytes: &[u8]| bytes.len() <= 4 && bytes.iter().all(|b| *b == 0);
    if let Ok(pairs) = &decoded {
        assert!(input.len() <= MAX_BYTES && pairs.len() <= MAX_PAIRS);
        let mut again = Vec::new();
        encode(pairs.iter().copied(), &mut again);
        assert_eq!(again.len(), encoded_len(pairs.iter().copied()));
        assert!(again == input || (empty(input) && pairs.is_empty()));
        for end in cuts(input) {
            assert!(decode(&input[..end]).is_err() || empty(&input[..end]), "cut at {end}");
        }
    }
    // The input as names and values.
    let pieces: Vec<&[u8]> = input.split(|b| *b == b'\n').take(2 * MAX_PAIRS).collect();
    let pairs: Vec<_> = pieces.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    let mut encoded = Vec::new();
    encode(pairs.iter().copied(), &mut encoded);
    assert_eq!(decode(&encoded), Ok(pairs));
    Outcome::of((decoded.map(|pairs| pairs.len()).map_err(|e| format!("{e:?}")), input.len().min(200)))
}

pub(super) const TARGET: Target = Target {
    words: &[b"\0", b"\0\0\0\0", b"\x01\0\0\0", b"\x05\0\0\0", b":path\0", b"a\0", b"\n", b"\xff\xff\xff\xff"],
    max_len: 4096,
    check,
};
