//! What a source's `keep: true` stores in the cache directory, so that a restart does not depend on the server.
//!
//! The file is `{"sha256":"DIGEST","content":CONTENT}` and a line feed. The content is stored verbatim, so the file is JSON
//! if the content is. A damaged file is ignored.

use std::{
    io,
    path::{Path, PathBuf},
};

use tracing::warn;

use super::encoded;
use crate::{digest::sha256_hex, files, observe::target};

const BEFORE_DIGEST: &[u8] = b"{\"sha256\":\"";
const BEFORE_CONTENT: &[u8] = b"\",\"content\":";
const END: &[u8] = b"}\n";

/// The limit on a file's size in bytes: more than the largest state of a source.
const MAX_BYTES: u64 = 512 << 20;

/// The file of a source.
#[derive(Debug)]
pub struct KeptFile {
    path: PathBuf,
}

impl KeptFile {
    /// Returns the file of a source, `sources/NAME.json` below the cache directory, with a percent-encoded name.
    pub fn new(cache_dir: &Path, source: &str) -> KeptFile {
        KeptFile { path: cache_dir.join("sources").join(format!("{}.json", encoded(source))) }
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the content atomically. Waits for the disk, so several changes should be stored together.
    ///
    /// # Errors The file cannot be written.
    pub fn store(&self, content: &[u8]) -> io::Result<()> {
        if let Some(dir) = self.path.parent() {
            files::make_private_dir(dir)?;
        }
        let digest = sha256_hex(content);
        let file = [BEFORE_DIGEST, digest.as_bytes(), BEFORE_CONTENT, content, END].concat();
        files::replace(&self.path, &file, 0o600)
    }

    /// Removes the file if it exists.
    ///
    /// # Errors The file cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the content, unless the file does not exist or is damaged, which is logged.
    pub fn load(&self) -> Option<Vec<u8>> {
        let error = match files::read(&self.path, MAX_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error.to_string(),
            Ok(file) => match content(&file) {
                Some(content) => return Some(content.to_vec()),
                None => "it is damaged".to_owned(),
            },
        };
        warn!(
            target: target::CONFIG,
            file = %self.path.display(),
            error,
            "stored resources of a source ignored"
        );
        None
    }
}

/// Returns the content if its digest is correct.
fn content(file: &[u8]) -> Option<&[u8]> {
    let (digest, rest) = file.strip_prefix(BEFORE_DIGEST)?.split_at_checked(64)?;
    let content = rest.strip_prefix(BEFORE_CONTENT)?.strip_suffix(END)?;
    (sha256_hex(content).as_bytes() == digest).then_some(content)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn stored_content_is_read_back_and_only_the_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptFile::new(dir.path(), "a/../b");
        assert_eq!(kept.load(), None);
        for content in [&b"}\n"[..], b"", br#"{"clusters":[]}"#] {
            kept.store(content).unwrap();
            assert_eq!(KeptFile::new(dir.path(), "a/../b").load().as_deref(), Some(content));
        }
        assert_eq!(kept.path(), dir.path().join("sources/a%2F..%2Fb.json"));
        let file: serde_json::Value = serde_json::from_slice(&fs::read(kept.path()).unwrap()).unwrap();
        assert_eq!(file["content"], serde_json::json!({ "clusters": [] }));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let folder = kept.path().parent().unwrap();
        assert_eq!((mode(kept.path()), mode(folder)), (0o600, 0o700));
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn damaged_file_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptFile::new(dir.path(), "central");
        kept.store(b"content").unwrap();
        let file = fs::read(kept.path()).unwrap();
        for length in 0..file.len() {
            fs::write(kept.path(), &file[..length]).unwrap();
            assert_eq!(kept.load(), None, "of {length} bytes");
        }
        for place in 0..file.len() {
            let mut file = file.clone();
            file[place] ^= 1;
            fs::write(kept.path(), &file).unwrap();
            assert_eq!(kept.load(), None, "byte {place}");
        }
        fs::write(kept.path(), &file).unwrap();
        assert!(kept.load().is_some());
        kept.remove().unwrap();
        assert_eq!(kept.load(), None);
        kept.remove().expect("there is nothing to remove");
        fs::create_dir(kept.path()).unwrap();
        assert_eq!(kept.load(), None);
    }
}
