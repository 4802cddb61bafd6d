//! Rewrites encoded field blocks (HPACK, RFC 7541) before the crate h2 decodes them.
//!
//! An invalid name or value makes a message malformed, which should only end its stream (RFC 9113 section 8.1.1). h2
//! detects it while decoding and closes the connection with all its streams. So such a field is replaced by one that
//! h2 accepts and [`measure`](super::measure) rejects. Its name and value have the same lengths, so the dynamic table
//! stays in step with the peer's; a later reference to the invalid field is malformed as well, a reference to just
//! its valid name is not.
//!
//! The dynamic table itself is not tracked. A value whose name is in it is treated as the value of an ordinary field.

pub mod huffman;
pub mod text;

use self::text::{Name, Text, number, put_number};

/// The pseudo-headers in the static table (RFC 7541 appendix A).
const PSEUDO: std::ops::RangeInclusive<usize> = 1..=14;

/// The lengths of their names.
const PSEUDO_LENGTHS: [u8; 14] = [10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7];

/// The character that replacement names consist of.
const MARK: u8 = b'"';

fn put_text(out: &mut Vec<u8>, length: usize, byte: u8) {
    put_number(out, 7, 0, length);
    out.resize(out.len() + length, byte);
}

/// One instruction of a field block.
enum FieldLine<'a> {
    /// A field in a table.
    Indexed(usize),
    /// A literal field.
    Literal {
        /// Whether decoders add it to their dynamic tables.
        is_added: bool,
        name: NameOf<'a>,
        value: Text<'a>,
        /// The encoded bytes before its value.
        start: &'a [u8],
    },
    /// An update of the dynamic table's size.
    Resize,
}

enum NameOf<'a> {
    Indexed(usize),
    Literal(Text<'a>),
}

impl<'a> FieldLine<'a> {
    /// Reads the next instruction.
    fn read(input: &mut &'a [u8]) -> Option<FieldLine<'a>> {
        let whole = *input;
        let prefix = match whole.first()? {
            0x80.. => return number(input, 7).map(FieldLine::Indexed),
            0x40.. => 6,
            0x20.. => return number(input, 5).map(|_| FieldLine::Resize),
            _ => 4,
        };
        let name = match number(input, prefix)? {
            0 => NameOf::Literal(Text::read(input, 7)?),
            index => NameOf::Indexed(index),
        };
        let start = &whole[..whole.len() - input.len()];
        let value = Text::read(input, 7)?;
        Some(FieldLine::Literal { is_added: prefix == 6, name, value, start })
    }

    /// Returns whether h2 accepts the field. Trailers must not have pseudo-headers, which h2 would drop silently.
    fn is_fine(&self, in_trailers: bool) -> Option<bool> {
        match self {
            FieldLine::Resize => Some(true),
            FieldLine::Indexed(index) => Some(!(in_trailers && PSEUDO.contains(index))),
            FieldLine::Literal { name, value, .. } => match name.read()? {
                Some(Name::Field) => Name::Field.allows(*value),
                Some(name) => Some(name.allows(*value)? && !in_trailers),
                None => Some(false),
            },
        }
    }

    /// Returns the replacement for an invalid field. `None` if there is none.
    fn mark(&self) -> Option<Vec<u8>> {
        let FieldLine::Literal { is_added, name, value, start } = self else { return Some(vec![0, 1, MARK, 0]) };
        let mut mark = Vec::new();
        match name.read()? {
            // Later fields may refer to the name.
            Some(Name::Field) => mark.extend_from_slice(start),
            _ => {
                // h2 rejects an empty name, and another one could be referred to.
                let length = match name.length()? {
                    0 if *is_added => return None,
                    length => length.max(1),
                };
                mark.push(if *is_added { 0x40 } else { 0 });
                put_text(&mut mark, length, MARK);
            }
        }
        put_text(&mut mark, value.with(<[u8]>::len)?, b' ');
        Some(mark)
    }
}

impl NameOf<'_> {
    /// Returns the kind of name. `Some(None)` if it is invalid.
    fn read(&self) -> Option<Option<Name>> {
        match self {
            NameOf::Literal(name) => name.with(Name::of),
            NameOf::Indexed(index) => Some(Some(match index {
                1 => Name::Authority,
                2 | 3 => Name::Method,
                4 | 5 => Name::Path,
                6 | 7 => Name::Scheme,
                8..=14 => Name::Status,
                _ => Name::Field,
            })),
        }
    }

    /// Returns the length of a name that is not an ordinary field's.
    fn length(&self) -> Option<usize> {
        match self {
            NameOf::Literal(name) => name.with(<[u8]>::len),
            NameOf::Indexed(index) => PSEUDO_LENGTHS.get(index - 1).map(|length| usize::from(*length)),
        }
    }
}

/// Returns whether h2 accepts all fields of a block. `None` if the block cannot be decoded, which closes the
/// connection.
pub fn is_fine(mut block: &[u8], in_trailers: bool) -> Option<bool> {
    let mut all = true;
    while !block.is_empty() {
        all &= FieldLine::read(&mut block)?.is_fine(in_trailers)?;
    }
    Some(all)
}

/// Returns whether a block has a pseudo-header field, as far as is visible without the dynamic table.
pub fn has_pseudo(mut block: &[u8]) -> bool {
    while let Some(line) = FieldLine::read(&mut block) {
        let is_pseudo = match line {
            FieldLine::Resize => false,
            FieldLine::Indexed(index) => PSEUDO.contains(&index),
            FieldLine::Literal { name, .. } => name.read().flatten().is_some_and(|name| name != Name::Field),
        };
        if is_pseudo {
            return true;
        }
    }
    false
}

/// Calls `each` with the instructions of a block, with replacements for invalid fields. `None` as for [`is_fine`].
pub fn replaced(mut block: &[u8], in_trailers: bool, mut each: impl FnMut(&[u8])) -> Option<()> {
    while !block.is_empty() {
        let whole = block;
        let line = FieldLine::read(&mut block)?;
        match line.is_fine(in_trailers)? {
            true => each(&whole[..whole.len() - block.len()]),
            false => each(&line.mark()?),
        }
    }
    Some(())
}

#[cfg(test)]
mod tests;
