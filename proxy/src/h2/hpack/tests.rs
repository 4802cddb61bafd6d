use std::collections::VecDeque;

use super::{huffman::tests::encode, *};

type Field = (Vec<u8>, Vec<u8>);

/// Encodes random fields and tracks the decoder's dynamic table.
struct Peer {
    random: fastrand::Rng,
    table: VecDeque<Field>,
}

impl Peer {
    fn put_text(&mut self, block: &mut Vec<u8>, text: &[u8]) {
        let (text, huffman) = if self.random.bool() { (encode(text), 0x80) } else { (text.to_vec(), 0) };
        put_number(block, 7, huffman, text.len());
        block.extend(text);
    }

    fn text(&mut self, odd: bool) -> Vec<u8> {
        let length = self.random.usize(0..20);
        let chars: &[u8] = if odd { b"\x00\x01\x1f\x7f\n\xff AZ\"x:" } else { b"abcxyz0123-" };
        (0..length).map(|_| chars[self.random.usize(..chars.len())]).collect()
    }

    /// Appends a random field.
    fn put(&mut self, block: &mut Vec<u8>) {
        let kept = self.random.u8(0..3);
        if kept == 2 && !self.table.is_empty() && self.random.bool() {
            return put_number(block, 7, 0x80, 62 + self.random.usize(..self.table.len()));
        }
        let odd = self.random.u8(..8) == 0;
        let (prefix, high_bits) = [(4, 0), (4, 0x10), (6, 0x40)][usize::from(kept)];
        let name = match self.random.u8(..3) {
            0 => {
                let names = [(1, 10), (2, 7), (4, 5), (6, 7), (8, 7), (15, 14), (28, 14), (34, 4), (61, 16)];
                let (index, length) = names[self.random.usize(..names.len())];
                put_number(block, prefix, high_bits, index);
                vec![b's'; length]
            }
            1 if !self.table.is_empty() => {
                let index = self.random.usize(..self.table.len());
                put_number(block, prefix, high_bits, 62 + index);
                self.table[index].0.clone()
            }
            _ => {
                // A name that h2 cannot represent at all is not replaced.
                let name = [self.text(odd), vec![b'n']].concat();
                block.push(high_bits);
                self.put_text(block, &name);
                name
            }
        };
        let value = self.text(odd);
        self.put_text(block, &value);
        if kept == 2 {
            self.table.push_front((name, value));
            while self.table.iter().map(|(name, value)| 32 + name.len() + value.len()).sum::<usize>() > 4096 {
                self.table.pop_back();
            }
        }
    }
}

fn replace(block: &[u8], in_trailers: bool) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    replaced(block, in_trailers, |line| out.extend_from_slice(line))?;
    Some(out)
}

/// Returns whether the crates h2 and http, and then the proxy, accept a field.
fn is_taken((name, value): &Field) -> bool {
    let fine = Name::of(name).is_some_and(|name| name.allows(Text::read(&mut &plain(value)[..], 7).unwrap()).unwrap());
    fine && !name.contains(&MARK) && !value.starts_with(b" ") && !value.ends_with(b" ")
}

fn plain(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, 7, 0, text.len());
    [out, text.to_vec()].concat()
}

/// Over many blocks with references to replaced fields: valid fields are unchanged, invalid ones become fields that
/// h2 accepts and the proxy rejects, and both decoders' tables stay in step.
#[test]
fn invalid_fields_are_replaced_and_tables_stay_in_step() {
    for seed in 0..200 {
        let mut peer = Peer { random: fastrand::Rng::with_seed(seed), table: VecDeque::new() };
        let (mut before, mut after) = (loona_hpack::Decoder::new(), loona_hpack::Decoder::new());
        let mut replaced_ones = 0;
        for _ in 0..30 {
            let mut block = Vec::new();
            for _ in 0..peer.random.usize(1..12) {
                peer.put(&mut block);
            }
            let out = replace(&block, false).unwrap();
            assert_eq!(is_fine(&block, false), Some(out == block), "seed {seed}");
            assert_eq!(is_fine(&out, false), Some(true), "seed {seed}: h2 accepts the result");
            let (fields, given) = (before.decode(&block).unwrap(), after.decode(&out).unwrap());
            assert_eq!(fields.len(), given.len());
            for (field, given) in fields.iter().zip(&given) {
                let size = |(name, value): &Field| name.len() + value.len();
                if field != given {
                    replaced_ones += 1;
                    assert!(!is_taken(given), "seed {seed}: {field:?} became {given:?}");
                }
                // Pseudo-headers whose names are in the dynamic table are not recognized.
                if !field.0.starts_with(b":") {
                    assert_eq!(is_taken(given), is_taken(field), "seed {seed}: {field:?} became {given:?}");
                    assert_eq!(size(given), size(field));
                }
            }
        }
        assert!(replaced_ones > 0);
    }
}

#[test]
fn every_encoding_of_an_invalid_field_is_replaced() {
    let literal = |first: u8, name: &[u8], value: &[u8]| [&[first][..], &plain(name), &plain(value)].concat();
    for first in [0x00, 0x10, 0x40] {
        for (name, value) in [
            (&b"x"[..], &b"a\x1f"[..]),
            (b"x", b"a\x7f"),
            (b"x", b"\0"),
            (b"X-Upper", b""),
            (b"x y", b"1"),
            (b":what", b""),
            (b":path", b"/\xe9"),
            (b":authority", b"\xff"),
            (b":method", b"G T"),
            (b":method", b""),
            (b":status", b"abc"),
            (b":status", b""),
        ] {
            let block = literal(first, name, value);
            assert_eq!(is_fine(&block, false), Some(false), "{name:?} {value:?}");
            let mut decoder = loona_hpack::Decoder::new();
            let fields = decoder.decode(&replace(&block, false).unwrap()).unwrap();
            let [field] = &fields[..] else { panic!("{fields:?}") };
            assert!(!is_taken(field) && (field.0 == name) == (name == b"x"), "{field:?}");
            assert_eq!((field.0.len(), field.1.len()), (name.len(), value.len()));
        }
        // Names in the static table.
        for (index, value) in [(2, &b"G T"[..]), (4, b"/\xe9"), (1, b"\xff"), (6, b"\xff"), (8, b"1"), (15, b"\n")] {
            let mut block = Vec::new();
            put_number(&mut block, if first == 0x40 { 6 } else { 4 }, first, index);
            block.extend(plain(value));
            assert_eq!(is_fine(&block, false), Some(false), "{index}");
        }
    }
    // An empty name is left to h2 if decoders add it to their tables.
    assert_eq!(replace(&literal(0x40, b"", b"1"), false), None);
    assert_eq!(replace(&literal(0, b"", b"1"), false), Some(literal(0, b"\"", b" ")));
    assert_eq!(replace(&[0x82], false).as_deref(), Some(&[0x82][..]));
    assert_eq!(replace(&[0x82], true).as_deref(), Some(&[0, 1, b'"', 0][..]), "no pseudo-header in trailers");
    for broken in [&[0x40][..], &[0, 1, b'x'], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0, 0x81, 0xff, 0]] {
        assert_eq!((is_fine(broken, false), replace(broken, false)), (None, None), "{broken:x?}");
    }
}

#[test]
fn pseudo_headers_are_found_at_any_position() {
    let literal = |name: &[u8], value: &[u8]| [&[0][..], &plain(name), &plain(value)].concat();
    let field = literal(b"x", b"1");
    // `:status: 200`, a status with an indexed name, and a literal name.
    for pseudo in [vec![0x88], [&[0x08][..], &plain(b"299")].concat(), literal(b":path", b"/")] {
        for block in [pseudo.clone(), [&field[..], &pseudo].concat(), [&pseudo[..], &field].concat()] {
            assert!(has_pseudo(&block), "{block:x?}");
        }
    }
    // `accept-charset`, an update of the table's size, and an invalid block.
    for block in [vec![], field.clone(), [&[0x8f, 0x20][..], &field].concat(), vec![0, 0x85]] {
        assert!(!has_pseudo(&block), "{block:x?}");
    }
}
