//! Paths of properties as passed by guests: the segments, separated by NULs.

/// Maximum number of segments; no existing path has more.
pub const MAX_SEGMENTS: usize = 8;

/// Maximum bytes of a path.
pub const MAX_BYTES: usize = 64 << 10;

/// A path's segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path<'a> {
    bytes: &'a [u8],
    segments: [&'a str; MAX_SEGMENTS],
    count: usize,
}

impl<'a> Path<'a> {
    /// Decodes a path. A trailing NUL, which some SDKs write, is ignored. `None`: not UTF-8, too long, or too many
    /// segments.
    pub fn decode(bytes: &'a [u8]) -> Option<Path<'a>> {
        if bytes.len() > MAX_BYTES {
            return None;
        }
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        let (mut segments, mut count) = ([""; MAX_SEGMENTS], 0);
        for segment in core::str::from_utf8(bytes).ok()?.split('\0') {
            *segments.get_mut(count)? = segment;
            count += 1;
        }
        Some(Path { bytes, segments, count })
    }

    /// Its segments, at least one.
    pub fn segments(&self) -> &[&'a str] {
        &self.segments[..self.count]
    }

    /// The path as passed, without a trailing NUL.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_separated_by_nul() {
        let segments = |bytes: &'static [u8]| Path::decode(bytes).map(|path| path.segments().to_vec());
        assert_eq!(segments(b"request\0path"), Some(["request", "path"].to_vec()));
        assert_eq!(segments(b"plugin_name\0"), Some(["plugin_name"].to_vec()));
        assert_eq!(segments(b""), Some([""].to_vec()));
        assert_eq!(segments(b"a\0\0"), Some(["a", ""].to_vec()));
        assert_eq!(segments(b"\xff"), None);
        assert_eq!(segments(b"1\x002\x003\x004\x005\x006\x007\x008").map(|s| s.len()), Some(MAX_SEGMENTS));
        assert_eq!(segments(b"1\x002\x003\x004\x005\x006\x007\x008\x009"), None);
        let long = [b'a'; MAX_BYTES + 1];
        assert_eq!((Path::decode(&long[1..]).map(|path| path.count), Path::decode(&long)), (Some(1), None));
    }
}
