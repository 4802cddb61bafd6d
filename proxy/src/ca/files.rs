//! Files with keys and certificates: written atomically, and keys readable by their owner only.

use std::{fs, io, path::Path};

use super::Error;
use crate::files;

/// The mode of files that only their owner can read.
pub const PRIVATE: u32 = 0o600;

/// The mode of files that everyone can read.
pub const PUBLIC: u32 = 0o644;

/// Writes a file atomically: to a temporary file that is then renamed.
pub fn put(path: &Path, content: &str, mode: u32) -> Result<(), Error> {
    files::replace(path, content.as_bytes(), mode).map_err(|error| Error::write(path, error))
}

/// Creates a folder that only its owner can read, and its parents, unless they exist.
pub fn make_dir(path: &Path) -> Result<(), Error> {
    files::make_private_dir(path).map_err(|error| Error::write(path, error))
}

/// Creates a file atomically; fails if it exists.
pub fn put_new(path: &Path, content: &str, mode: u32) -> Result<(), Error> {
    let put = || {
        let beside = files::write_beside(path, content.as_bytes(), mode)?;
        // Unlike `rename`, a hard link does not replace an existing file.
        let linked = fs::hard_link(&beside, path);
        files::remove(&beside)?;
        linked
    };
    put().map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists(path.to_owned()),
        _ => Error::write(path, error),
    })
}

/// Reads a file.
pub fn read(path: &Path) -> Result<String, Error> {
    files::read_to_string(path).map_err(|error| Error::read(path, error))
}
