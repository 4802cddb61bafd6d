//! Sources of resources other than the configuration's files. A source knows neither the others nor what the proxy runs:
//! it passes documents on, and learns whether they could be used.

pub mod directory;
pub mod http;
pub mod kept;
pub mod status;

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Everything except the unreserved characters of RFC 3986, section 2.3.
const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Percent-encodes a name, for use in a header or as the name of a file.
pub(in crate::control) fn encoded(name: &str) -> Cow<'_, str> {
    utf8_percent_encode(name, &RESERVED).into()
}
