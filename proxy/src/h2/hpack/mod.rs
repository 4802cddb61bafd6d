//! Heads and trailers as they are encoded (HPACK, RFC 7541), before the crate h2 sees them.
//!
//! A name or a value that is none makes a message malformed, which is the end of its stream (RFC 9113 section 8.1.1). h2 finds
//! it while it decodes, and ends the connection with all its streams. So such a field is replaced by another one, which h2 takes
//! and [`measure`](super::measure) does not. Its name and its value are as long, so the dynamic table is as the peer
//! thinks; and who refers there to what was wrong is malformed as well, but not who refers to a name that was right.
//!
//! Nothing is known here of the dynamic table itself. A value whose name is in that is taken for the value of an ordinary field.

pub mod huffman;
pub mod text;

use self::text::{Name, Text, number, put_number};

/// The pseudo-headers in the static table (RFC 7541 appendix A).
const PSEUDO: std::ops::RangeInclusive<usize> = 1..=14;

/// The lengths of their names.
const PSEUDO_LENGTHS: [u8; 14] = [10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7];

/// What the names of fields consist of that stand for those whose names are none.
const MARK: u8 = b'"';

fn put_text(out: &mut Vec<u8>, length: usize, byte: u8) {
    put_number(out, 7, 0, length);
    out.resize(out.len() + length, byte);
}

/// One instruction of a field block.
enum FieldLine<'a> {
    /// A field of a table.
    Indexed(usize),
    /// A field that is spelled out.
    Literal {
        /// Decoders keep it in their tables.
        is_kept: bool,
        name: NameOf<'a>,
        value: Text<'a>,
        /// What stands before its value.
        start: &'a [u8],
    },
    /// How large the dynamic table is.
    Resize,
}

enum NameOf<'a> {
    Indexed(usize),
    Literal(Text<'a>),
}

impl<'a> FieldLine<'a> {
    /// Takes the next one.
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
        Some(FieldLine::Literal { is_kept: prefix == 6, name, value, start })
    }

    /// Whether it is a field that h2 takes. Trailers have no pseudo-headers, which h2 would drop without a word.
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

    /// What stands for it if it is not. None: nothing can.
    fn mark(&self) -> Option<Vec<u8>> {
        let FieldLine::Literal { is_kept, name, value, start } = self else { return Some(vec![0, 1, MARK, 0]) };
        let mut mark = Vec::new();
        match name.read()? {
            // Others may refer to the name.
            Some(Name::Field) => mark.extend_from_slice(start),
            _ => {
                // h2 has no name of no bytes, and another one may be referred to.
                let length = match name.length()? {
                    0 if *is_kept => return None,
                    length => length.max(1),
                };
                mark.push(if *is_kept { 0x40 } else { 0 });
                put_text(&mut mark, length, MARK);
            }
        }
        put_text(&mut mark, value.with(<[u8]>::len)?, b' ');
        Some(mark)
    }
}

impl NameOf<'_> {
    /// Which one it is. `Some(None)`: it is no name.
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

    /// The bytes of one that is no name of an ordinary field.
    fn length(&self) -> Option<usize> {
        match self {
            NameOf::Literal(name) => name.with(<[u8]>::len),
            NameOf::Indexed(index) => PSEUDO_LENGTHS.get(index - 1).map(|length| usize::from(*length)),
        }
    }
}

/// Whether h2 takes all fields of a block. None: it is no block, which ends the connection.
pub fn is_fine(mut block: &[u8], in_trailers: bool) -> Option<bool> {
    let mut all = true;
    while !block.is_empty() {
        all &= FieldLine::read(&mut block)?.is_fine(in_trailers)?;
    }
    Some(all)
}

/// Whether a block has a pseudo-header field, as far as can be seen without the dynamic table.
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

/// Gives `each` the instructions of a block, with fields that h2 takes for those that it does not. None: as [`is_fine`].
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
