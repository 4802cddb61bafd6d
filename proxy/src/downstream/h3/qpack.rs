//! Validation of encoded heads and trailers (QPACK, RFC 9204) before h3 sees them: whether they are malformed (RFC 9114
//! sections 4.1.2 and 4.3).
//!
//! h3 does not keep the order of decoded fields, and uses the last of several equal pseudo-headers. The proxy allows no
//! dynamic table, so each section can be checked by itself.

use crate::h2::hpack::text::{Name, Text, number};

/// Maps an index of the static table (RFC 9204 appendix A) to the kind of field name; `None` beyond the table.
fn of_static(index: usize) -> Option<Name> {
    Some(match index {
        0 => Name::Authority,
        1 => Name::Path,
        15..=21 => Name::Method,
        22..=23 => Name::Scheme,
        24..=28 | 63..=71 => Name::Status,
        _ if index < 99 => Name::Field,
        _ => return None,
    })
}

/// The index of `:method: CONNECT`.
const CONNECT: usize = 15;

/// The pseudo-headers seen in a head.
#[derive(Default)]
struct Head {
    authority: bool,
    method: bool,
    path: bool,
    protocol: bool,
    scheme: bool,
    /// Whether the method is `CONNECT`.
    connects: bool,
    /// Whether an ordinary field was seen.
    has_fields: bool,
}

impl Head {
    /// Adds a field; returns whether it is allowed at this position.
    fn add(&mut self, name: Name) -> bool {
        let pseudo = match name {
            Name::Field => {
                self.has_fields = true;
                return true;
            }
            Name::Status => return false,
            Name::Authority => &mut self.authority,
            Name::Method => &mut self.method,
            Name::Path => &mut self.path,
            Name::Protocol => &mut self.protocol,
            Name::Scheme => &mut self.scheme,
        };
        !std::mem::replace(pseudo, true) && !self.has_fields
    }

    /// Returns whether the head has exactly the required pseudo-headers (RFC 9114 sections 4.3.1 and 4.4, RFC 9220).
    fn is_complete(&self) -> bool {
        match self.connects {
            true if !self.protocol => self.authority && !self.scheme && !self.path,
            connects => self.method && self.scheme && self.path && (connects || !self.protocol),
        }
    }
}

/// Returns whether a field section is well-formed. `None`: it cannot be decoded, which ends the connection (RFC 9204
/// section 2.2).
pub fn is_sound(mut section: &[u8], in_trailers: bool) -> Option<bool> {
    let rest = &mut section;
    // The Required Insert Count and the Base, which refer to the dynamic table.
    let (needed, _) = (number(rest, 8)?, number(rest, 7)?);
    if needed > 0 {
        return None;
    }
    let mut head = Head::default();
    while let Some(first) = rest.first() {
        let name = match first {
            0xc0.. => {
                let index = number(rest, 6)?;
                head.connects |= index == CONNECT;
                of_static(index)?
            }
            0x50..0x60 | 0x70..0x80 => {
                let name = of_static(number(rest, 4)?)?;
                match read_value(rest, name, &mut head)? {
                    true => name,
                    false => return Some(false),
                }
            }
            0x20..0x40 => match Text::read(rest, 3)?.with(Name::of)? {
                Some(name) if read_value(rest, name, &mut head)? => name,
                _ => return Some(false),
            },
            _ => return None,
        };
        if in_trailers && name != Name::Field || !head.add(name) {
            return Some(false);
        }
    }
    Some(in_trailers || head.is_complete())
}

/// Reads a value; returns whether the field allows it.
fn read_value(rest: &mut &[u8], name: Name, head: &mut Head) -> Option<bool> {
    let value = Text::read(rest, 7)?;
    head.connects |= name == Name::Method && value.with(|value| value == b"CONNECT")?;
    let may_be_empty = !matches!(name, Name::Authority | Name::Path);
    Some(name.allows(value)? && (may_be_empty || value.with(|value| !value.is_empty())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes a section entirely with literals.
    fn section(fields: &[(&str, &[u8])]) -> Vec<u8> {
        let mut section = vec![0, 0];
        for (name, value) in fields {
            match name.len().checked_sub(7) {
                Some(more) => section.extend([0x27, more as u8]),
                None => section.push(0x20 | name.len() as u8),
            }
            section.extend(name.bytes());
            section.push(value.len() as u8);
            section.extend(*value);
        }
        section
    }

    const METHOD: (&str, &[u8]) = (":method", b"GET");
    const SCHEME: (&str, &[u8]) = (":scheme", b"https");
    const AUTHORITY: (&str, &[u8]) = (":authority", b"h");
    const PATH: (&str, &[u8]) = (":path", b"/");
    const CONNECT: (&str, &[u8]) = (":method", b"CONNECT");
    const PROTOCOL: (&str, &[u8]) = (":protocol", b"p");

    fn head(fields: &[(&str, &[u8])]) -> bool {
        is_sound(&section(fields), false).unwrap()
    }

    #[test]
    fn pseudo_headers_come_once_and_first() {
        let right = [METHOD, SCHEME, AUTHORITY, PATH];
        assert!(head(&right));
        assert!(head(&[PATH, METHOD, SCHEME, ("host", b"h"), ("x", b""), ("x", b"\xff")]));
        assert!(head(&[CONNECT, AUTHORITY]));
        assert!(head(&[CONNECT, SCHEME, AUTHORITY, PATH, PROTOCOL]));
        for twice in right {
            assert!(!head(&[&right[..], &[twice]].concat()), "{twice:?}");
        }
        for after in right {
            let rest: Vec<_> = right.into_iter().filter(|field| *field != after).collect();
            assert!(!head(&[&rest[..], &[("x", b"1"), after]].concat()), "{after:?}");
            assert!(after == AUTHORITY || !head(&rest), "{after:?}");
        }
        for wrong in [
            (":status", &b"200"[..]),
            (":what", b""),
            (":", b""),
            ("", b"1"),
            ("X-Upper", b"1"),
            ("x y", b"1"),
            ("x", b"a\n"),
            ("x", b"\x7f"),
            PROTOCOL,
        ] {
            assert!(!head(&[&right[..], &[wrong]].concat()), "{wrong:?}");
        }
        for wrong in [(":path", &b""[..]), (":path", b"/\xe9"), (":authority", b""), (":method", b"G T")] {
            let rest = right.into_iter().filter(|(name, _)| *name != wrong.0);
            assert!(!head(&rest.chain([wrong]).collect::<Vec<_>>()), "{wrong:?}");
        }
        assert!(!head(&[CONNECT, AUTHORITY, PATH]));
        assert!(!head(&[CONNECT]));
    }

    #[test]
    fn pseudo_headers_are_recognised_by_index() {
        // GET, https, "/", and `:authority` with a value.
        let right = [0, 0, 0xd1, 0xd7, 0xc1, 0x50, 1, b'h'];
        assert!(is_sound(&right, false).unwrap());
        for more in [&[0xd1][..], &[0xd7], &[0xc1], &[0xcf], &[0xd9], &[0xff, 8], &[0x51, 1, b'/'], &[0x50, 1, b'i']] {
            assert!(!is_sound(&[&right[..], more].concat(), false).unwrap(), "{more:x?}");
            assert!(!is_sound(&[&[0, 0], more].concat(), true).unwrap(), "{more:x?}");
        }
        // `accept: */*`, also between them.
        assert!(is_sound(&[&right[..], &[0xdd]].concat(), false).unwrap());
        assert!(!is_sound(&[&right[..2], &[0xdd], &right[2..]].concat(), false).unwrap());
        assert!(is_sound(&[0, 0, 0xdd], true).unwrap());
        assert!(is_sound(&[0, 0], true).unwrap());
        assert!(!is_sound(&[0, 0], false).unwrap());
    }

    #[test]
    fn undecodable_section_is_distinguished_from_a_malformed_one() {
        for broken in [&[][..], &[0], &[1, 0, 0xd1], &[0, 0, 0x80], &[0, 0, 0xff, 0x40], &[0, 0, 0x27], &[0, 0, 0x10]] {
            assert_eq!(is_sound(broken, false), None, "{broken:x?}");
        }
    }
}
