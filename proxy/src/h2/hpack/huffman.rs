//! The Huffman code of HPACK and QPACK (RFC 7541 section 5.2 and appendix B).
//!
//! The code is canonical: codes of the same length are consecutive in the order of their symbols, and longer codes
//! follow shorter ones. So the lengths define the code, and the compiler builds the tables from them.

/// The end-of-string symbol. It does not occur in strings; its first bits pad the last byte.
const END: usize = 256;

/// The length of each symbol's code in bits.
#[rustfmt::skip]
const LENGTHS: [u8; END + 1] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// Returns the encoded length of a text in bytes.
pub fn length(plain: &[u8]) -> usize {
    let bits: usize = plain.iter().map(|byte| usize::from(LENGTHS[usize::from(*byte)])).sum();
    bits.div_ceil(8)
}

const SHORTEST: usize = 5;
const LONGEST: usize = 30;

struct Code {
    /// The symbols in the order of their codes.
    symbols: [u16; END + 1],
    /// For each length: the first code, the number of codes, and the index of their first symbol.
    lengths: [(u32, u32, u16); LONGEST + 1],
    /// For the next eight bits: the symbol of a code of at most that length, and its length. 0 if the code is longer.
    short: [(u8, u8); 256],
}

static CODE: Code = code();

const fn code() -> Code {
    let mut table = Code { symbols: [0; END + 1], lengths: [(0, 0, 0); LONGEST + 1], short: [(0, 0); 256] };
    let (mut length, mut code, mut filled) = (SHORTEST, 0_u32, 0);
    while length <= LONGEST {
        let first = filled;
        let mut symbol = 0;
        while symbol <= END {
            if LENGTHS[symbol] as usize == length {
                table.symbols[filled] = symbol as u16;
                if length <= 8 {
                    let next = (code as usize + filled - first) << (8 - length);
                    let mut more = 0;
                    while more < 1 << (8 - length) {
                        table.short[next + more] = (symbol as u8, length as u8);
                        more += 1;
                    }
                }
                filled += 1;
            }
            symbol += 1;
        }
        let count = (filled - first) as u32;
        table.lengths[length] = (code, count, first as u16);
        code = (code + count) << 1;
        length += 1;
    }
    table
}

/// Returns the symbol at the beginning of these bits, and the length of its code.
fn symbol(bits: u32) -> (usize, u32) {
    let (symbol, length) = CODE.short[(bits >> 24) as usize];
    if length > 0 {
        return (symbol.into(), length.into());
    }
    let longer = (9..=LONGEST).find_map(|length| {
        let (first, count, symbols) = CODE.lengths[length];
        let nth = (bits >> (32 - length)).wrapping_sub(first);
        (nth < count).then(|| (CODE.symbols[usize::from(symbols) + nth as usize].into(), length as u32))
    });
    // The code is complete: all bits have a symbol.
    longer.unwrap_or((END, LONGEST as u32))
}

/// Decodes a string byte by byte. Returns whether it is valid.
pub fn decode(coded: &[u8], mut each: impl FnMut(u8)) -> bool {
    let mut coded = coded.iter();
    let (mut window, mut bits) = (0_u64, 0);
    loop {
        while bits <= 56
            && let Some(byte) = coded.next()
        {
            window = (window << 8) | u64::from(*byte);
            bits += 8;
        }
        let next = match bits {
            0 => return true,
            1..32 => (window << (32 - bits)) as u32 | (u32::MAX >> bits),
            _ => (window >> (bits - 32)) as u32,
        };
        let (symbol, length) = symbol(next);
        if length > bits {
            // The padding of the last byte: fewer than eight one bits.
            return bits < 8 && next == u32::MAX;
        }
        let Ok(byte) = u8::try_from(symbol) else { return false };
        each(byte);
        bits -= length;
    }
}

/// Returns whether a string may contain a byte that is not allowed in a field value, or not ASCII: the codes of all
/// such bytes begin with at least ten ones, and few others do. This costs much less than decoding.
pub fn may_be_odd(coded: &[u8]) -> bool {
    let mut ones = 0;
    for byte in coded {
        if ones + byte.leading_ones() >= 10 {
            return true;
        }
        ones = if *byte == u8::MAX { ones + 8 } else { byte.trailing_ones() };
    }
    false
}

#[cfg(test)]
pub(in crate::h2) mod tests {
    use loona_hpack::huffman::HuffmanDecoder;

    use super::*;

    /// Encodes a string.
    pub fn encode(plain: &[u8]) -> Vec<u8> {
        let (mut coded, mut window, mut bits) = (Vec::new(), 0_u64, 0);
        for byte in plain {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            let (first, _, symbols) = CODE.lengths[length];
            let same = CODE.symbols[usize::from(symbols)..].iter();
            let nth = same.take_while(|symbol| **symbol != u16::from(*byte)).count() as u32;
            window = (window << length) | u64::from(first + nth);
            bits += length;
            while bits >= 8 {
                bits -= 8;
                coded.push((window >> bits) as u8);
            }
        }
        if bits > 0 {
            coded.push(((window << (8 - bits)) as u8) | (u8::MAX >> bits));
        }
        coded
    }

    fn decoded(coded: &[u8]) -> Option<Vec<u8>> {
        let mut plain = Vec::new();
        decode(coded, |byte| plain.push(byte)).then_some(plain)
    }

    #[test]
    fn the_examples_of_the_rfc_are_decoded() {
        // RFC 7541 appendix C.
        let hex = |hex: &'static str| {
            (0..hex.len()).step_by(2).map(move |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        };
        for (coded, plain) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ] {
            assert_eq!(decoded(&hex(coded).collect::<Vec<_>>()).as_deref(), Some(plain.as_bytes()));
        }
    }

    #[test]
    fn strings_are_decoded_as_by_another_implementation() {
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..20_000 {
            let length = random.usize(0..40);
            let plain: Vec<u8> =
                (0..length).map(|_| if round % 2 == 0 { random.u8(..) } else { random.u8(32..127) }).collect();
            let coded = encode(&plain);
            assert_eq!(decoded(&coded).as_ref(), Some(&plain), "{coded:x?}");
            assert_eq!(super::length(&plain), coded.len());
            assert_eq!(HuffmanDecoder::new().decode(&coded).unwrap(), plain);
            let odd = plain.iter().any(|byte| !matches!(byte, b'\t' | b' '..=b'~'));
            assert!(may_be_odd(&coded) || !odd, "{plain:x?}");
            // Random bytes, too.
            let noise: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
            assert_eq!(decoded(&noise), HuffmanDecoder::new().decode(&noise).ok(), "{noise:x?}");
        }
    }

    #[test]
    fn padding_is_less_than_a_byte_of_ones() {
        assert_eq!(decoded(&[0x1f]), Some(b"a".to_vec()));
        for wrong in [&[0x1f, 0xff][..], &[0x1e], &[0xff], &[0xff, 0xff, 0xff, 0xff]] {
            assert_eq!(decoded(wrong), None, "{wrong:x?}");
        }
    }
}
