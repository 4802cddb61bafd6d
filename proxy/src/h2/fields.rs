//! Checks on fields in HTTP/2 and HTTP/3 that neither h2 nor h3 performs (RFC 9113 section 8.2.1, RFC 9114 section
//! 4.2).

use http::{
    HeaderMap, HeaderName,
    header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING, UPGRADE},
};

use crate::h1::violation::{Violation, length};

/// Connection-specific fields, which HTTP/2 and HTTP/3 do not allow (RFC 9113 section 8.2.2, RFC 9114 section 4.2).
static OF_CONNECTION: [HeaderName; 5] = [
    CONNECTION,
    UPGRADE,
    TRANSFER_ENCODING,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The overhead of a field in the size of a list (RFC 9113 section 6.5.2).
const PER_FIELD: usize = 32;

/// Returns whether there are connection-specific fields, which make a message malformed. h2 checks this itself, h3
/// does not.
pub fn has_of_connection(fields: &HeaderMap) -> bool {
    fields.keys().any(|name| OF_CONNECTION.contains(name)) || fields.get_all(TE).iter().any(|te| te != "trailers")
}

/// Removes connection-specific fields, which h2 would reject.
pub fn remove_of_connection(fields: &mut HeaderMap) {
    if fields.keys().any(|name| OF_CONNECTION.contains(name)) {
        OF_CONNECTION.iter().for_each(|name| _ = fields.remove(name));
    }
    if fields.get(TE).is_some_and(|te| te != "trailers") {
        fields.remove(TE);
    }
}

/// Returns the length of the body according to the head, if declared. As in HTTP/1.1 it may be declared only once
/// (RFC 9110 section 8.6); h2 accepts the same length twice, and h3 accepts anything.
pub fn content_length(fields: &HeaderMap) -> Result<Option<u64>, Violation> {
    let mut values = fields.get_all(CONTENT_LENGTH).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => length(value.as_bytes()).map(Some),
        (Some(_), Some(_)) => Err(Violation::ContentLength),
    }
}

/// Returns the size of a list of fields as HTTP/2 and HTTP/3 define it (RFC 9113 section 6.5.2). `None` if the list
/// is malformed: a name is not a token, or a value begins or ends with whitespace. HTTP/1.1 strips such whitespace,
/// so two spellings would be one value to an upstream but two to a filter.
pub fn measure(fields: &HeaderMap) -> Option<usize> {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    fields.iter().try_fold(0, |size, (name, value)| {
        let (name, value) = (name.as_str(), value.as_bytes());
        // The `http` crate accepts the names that HTTP/2 allows, and of the invalid ones only those with this
        // character.
        let malformed = is_blank(value.first()) || is_blank(value.last()) || name.contains('"');
        (!malformed).then(|| size + name.len() + value.len() + PER_FIELD)
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn malformed(name: &[u8], value: &[u8]) -> Option<bool> {
        // Names are parsed as the crates do.
        let name = HeaderName::from_lowercase(name).ok()?;
        Some(measure(&HeaderMap::from_iter([(name, HeaderValue::from_bytes(value).ok()?)])).is_none())
    }

    #[test]
    fn connection_specific_fields_are_detected_and_removed() {
        for (name, value, about) in [
            ("connection", "x", true),
            ("upgrade", "x", true),
            ("transfer-encoding", "chunked", true),
            ("keep-alive", "5", true),
            ("proxy-connection", "x", true),
            ("te", "gzip", true),
            ("te", "trailers", false),
            ("x", "1", false),
        ] {
            let value = HeaderValue::from_static(value);
            let mut fields = HeaderMap::from_iter([(HeaderName::from_static(name), value)]);
            assert_eq!(has_of_connection(&fields), about, "{name} {fields:?}");
            remove_of_connection(&mut fields);
            assert_eq!(fields.is_empty(), about, "{name} {fields:?}");
        }
    }

    #[test]
    fn a_name_is_a_lower_case_token() {
        for byte in 0..=u8::MAX {
            let token = byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(malformed(&[b'x', byte, b'y'], b"v") == Some(false), token, "{byte}");
        }
    }

    #[test]
    fn a_value_has_no_surrounding_whitespace() {
        for (value, expected) in [
            ("", false),
            ("a", false),
            ("a b\tc", false),
            (" a", true),
            ("a ", true),
            ("\ta", true),
            ("a\t", true),
            (" ", true),
        ] {
            assert_eq!(malformed(b"x", value.as_bytes()), Some(expected), "{value:?}");
        }
    }

    #[test]
    fn a_head_declares_at_most_one_length() {
        for (values, expected) in [
            (&[][..], Some(None)),
            (&["0"], Some(Some(0))),
            (&["5"], Some(Some(5))),
            (&["5", "5"], None),
            (&["5", "6"], None),
            (&["5, 5"], None),
            (&["+5"], None),
            (&[""], None),
            (&["18446744073709551616"], None),
        ] {
            let values = values.iter().map(|value| (CONTENT_LENGTH, HeaderValue::from_static(value)));
            let mut fields = HeaderMap::new();
            values.for_each(|(name, value)| _ = fields.append(name, value));
            assert_eq!(content_length(&fields).ok(), expected, "{fields:?}");
        }
    }

    #[test]
    fn the_size_of_a_list_includes_the_overhead_of_each_field() {
        let mut fields = HeaderMap::from_iter([(HeaderName::from_static("a"), HeaderValue::from_static("bc"))]);
        fields.append("a", HeaderValue::from_static(""));
        assert_eq!(measure(&fields), Some(3 + 32 + 1 + 32));
        assert_eq!(measure(&HeaderMap::new()), Some(0));
    }
}
