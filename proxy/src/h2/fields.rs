//! What makes a field malformed in HTTP/2 and HTTP/3, and neither h2 nor h3 looks at (RFC 9113 section 8.2.1, RFC 9114 section
//! 4.2).

use http::{
    HeaderMap, HeaderName,
    header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING, UPGRADE},
};

use crate::h1::violation::{Violation, length};

/// Fields about the connection, which HTTP/2 and HTTP/3 have not (RFC 9113 section 8.2.2, RFC 9114 section 4.2).
static OF_CONNECTION: [HeaderName; 5] = [
    CONNECTION,
    UPGRADE,
    TRANSFER_ENCODING,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What counts for each field beside its name and its value (RFC 9113 section 6.5.2).
const PER_FIELD: usize = 32;

/// Whether there are fields about the connection, which make a message malformed. h2 looks at that itself, and h3 does not.
pub fn has_of_connection(fields: &HeaderMap) -> bool {
    fields.keys().any(|name| OF_CONNECTION.contains(name)) || fields.get_all(TE).iter().any(|te| te != "trailers")
}

/// Removes fields about the connection, which h2 would not send.
pub fn remove_of_connection(fields: &mut HeaderMap) {
    if fields.keys().any(|name| OF_CONNECTION.contains(name)) {
        OF_CONNECTION.iter().for_each(|name| _ = fields.remove(name));
    }
    if fields.get(TE).is_some_and(|te| te != "trailers") {
        fields.remove(TE);
    }
}

/// How long the body is by its head, if that says so. As over HTTP/1.1 it says so once (RFC 9110 section 8.6); h2 takes the same
/// length twice, and h3 takes anything.
pub fn content_length(fields: &HeaderMap) -> Result<Option<u64>, Violation> {
    let mut values = fields.get_all(CONTENT_LENGTH).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => length(value.as_bytes()).map(Some),
        (Some(_), Some(_)) => Err(Violation::ContentLength),
    }
}

/// How long a list of fields is, as HTTP/2 and HTTP/3 count (RFC 9113 section 6.5.2). None: it is malformed. Some field has a name
/// that is no token, or a value with a blank at its beginning or end. HTTP/1.1 strips such blanks, so the two spellings of a value
/// would be one to an upstream, and two to a filter.
pub fn measure(fields: &HeaderMap) -> Option<usize> {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    fields.iter().try_fold(0, |size, (name, value)| {
        let (name, value) = (name.as_str(), value.as_bytes());
        // The crate http takes every name that HTTP/2 allows, and of those that are no token only this one.
        let malformed = is_blank(value.first()) || is_blank(value.last()) || name.contains('"');
        (!malformed).then(|| size + name.len() + value.len() + PER_FIELD)
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn malformed(name: &[u8], value: &[u8]) -> Option<bool> {
        // As the crates read names.
        let name = HeaderName::from_lowercase(name).ok()?;
        Some(measure(&HeaderMap::from_iter([(name, HeaderValue::from_bytes(value).ok()?)])).is_none())
    }

    #[test]
    fn what_is_about_the_connection_is_known_and_removed() {
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
    fn a_name_is_a_token_in_lower_case() {
        for byte in 0..=u8::MAX {
            let token = byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(malformed(&[b'x', byte, b'y'], b"v") == Some(false), token, "{byte}");
        }
    }

    #[test]
    fn a_value_begins_and_ends_with_something() {
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
    fn a_head_says_one_length() {
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
    fn a_list_is_as_long_as_its_names_and_values_and_more() {
        let mut fields = HeaderMap::from_iter([(HeaderName::from_static("a"), HeaderValue::from_static("bc"))]);
        fields.append("a", HeaderValue::from_static(""));
        assert_eq!(measure(&fields), Some(3 + 32 + 1 + 32));
        assert_eq!(measure(&HeaderMap::new()), Some(0));
    }
}
