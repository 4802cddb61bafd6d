//! Formats distinguished names by RFC 2253, spelled as in OpenSSL (`XN_FLAG_RFC2253`) and Envoy: the last part first,
//! known attributes by their short names, and everything beyond printable ASCII as `\XX`.

use std::fmt::Write;

use x509_parser::{
    asn1_rs::{Any, Oid, Tag, ToDer, oid},
    x509::X509Name,
};

/// The short names of attributes.
static ATTRIBUTES: [(Oid<'static>, &str); 24] = [
    (oid!(2.5.4.3), "CN"),
    (oid!(2.5.4.4), "SN"),
    (oid!(2.5.4.5), "serialNumber"),
    (oid!(2.5.4.6), "C"),
    (oid!(2.5.4.7), "L"),
    (oid!(2.5.4.8), "ST"),
    (oid!(2.5.4.9), "street"),
    (oid!(2.5.4.10), "O"),
    (oid!(2.5.4.11), "OU"),
    (oid!(2.5.4.12), "title"),
    (oid!(2.5.4.13), "description"),
    (oid!(2.5.4.15), "businessCategory"),
    (oid!(2.5.4.17), "postalCode"),
    (oid!(2.5.4.41), "name"),
    (oid!(2.5.4.42), "GN"),
    (oid!(2.5.4.43), "initials"),
    (oid!(2.5.4.44), "generationQualifier"),
    (oid!(2.5.4.46), "dnQualifier"),
    (oid!(2.5.4.65), "pseudonym"),
    (oid!(2.5.4.97), "organizationIdentifier"),
    (oid!(0.9.2342.19200300.100.1.1), "UID"),
    (oid!(0.9.2342.19200300.100.1.25), "DC"),
    (oid!(1.2.840.113549.1.9.1), "emailAddress"),
    (oid!(1.2.840.113549.1.9.2), "unstructuredName"),
];

/// Formats a name. The result is always printable ASCII.
pub(super) fn rfc2253(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for part in parts.iter().rev() {
        if !out.is_empty() {
            out.push(',');
        }
        let attributes: Vec<_> = part.iter().collect();
        for (nth, attribute) in attributes.iter().rev().enumerate() {
            if nth > 0 {
                out.push('+');
            }
            let known = ATTRIBUTES.iter().find(|(oid, _)| oid == attribute.attr_type());
            match known {
                Some((_, name)) => out.push_str(name),
                None => out.push_str(&attribute.attr_type().to_id_string()),
            }
            out.push('=');
            match known.and_then(|_| text(attribute.attr_value())) {
                Some(text) => escape(&text, &mut out),
                None => dump(attribute.attr_value(), &mut out),
            }
        }
    }
    out
}

/// Returns a value as UTF-8; `None` if its type is not text.
fn text(value: &Any<'_>) -> Option<Vec<u8>> {
    let utf8 = |chars: &mut dyn Iterator<Item = u32>| {
        chars.map(|c| char::from_u32(c).unwrap_or(char::REPLACEMENT_CHARACTER)).collect::<String>().into_bytes()
    };
    Some(match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            value.data.to_vec()
        }
        // Latin-1, in practice.
        Tag::TeletexString => utf8(&mut value.data.iter().map(|b| u32::from(*b))),
        Tag::BmpString => utf8(&mut value.data.chunks(2).map(big_endian)),
        Tag::UniversalString => utf8(&mut value.data.chunks(4).map(big_endian)),
        _ => return None,
    })
}

fn big_endian(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |n, byte| n << 8 | u32::from(*byte))
}

/// Escapes special characters (RFC 2253 section 2.4).
fn escape(text: &[u8], out: &mut String) {
    for (nth, byte) in text.iter().enumerate() {
        let outermost = nth == 0 || nth + 1 == text.len();
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => out.extend(['\\', char::from(*byte)]),
            b'#' if nth == 0 => out.push_str("\\#"),
            b' ' if outermost => out.push_str("\\ "),
            b' '..=b'~' => out.push(char::from(*byte)),
            _ => _ = write!(out, "\\{byte:02X}"),
        }
    }
}

fn dump(value: &Any<'_>, out: &mut String) {
    out.push('#');
    for byte in value.to_der_vec().unwrap_or_default() {
        let _ = write!(out, "{byte:02X}");
    }
}
