//! Paths of properties, as a guest hands them over: the segments one after the other, a NUL between two of them.

/// Segments of a path; more are no path that exists.
pub const MAX_SEGMENTS: usize = 8;

/// Bytes of a path.
pub const MAX_BYTES: usize = 64 << 10;

/// A path's segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path<'a> {
    bytes: &'a [u8],
    segments: [&'a str; MAX_SEGMENTS],
    count: usize,
}

impl<'a> Path<'a> {
    /// Reads a path. A NUL at its end is not counted: some SDKs write one. `None`: not UTF-8, too long, or too many segments.
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

    /// As it was written, without a NUL at its end.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_parted_by_nul() {
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
