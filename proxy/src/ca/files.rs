//! Files with keys and certificates: written atomically, and keys readable by their owner only.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::Error;
use crate::files;

/// The mode of files that only their owner can read.
pub const PRIVATE: u32 = 0o600;

/// The mode of files that everyone can read.
pub const PUBLIC: u32 = 0o644;

/// Writes a file atomically: to a temporary file that is then renamed.
pub fn put(path: &Path, content: &str, mode: u32) -> Result<(), Error> {
    let put = || fs::rename(beside(path, content, mode)?, path);
    put().map_err(|error| Error::write(path, error))
}

/// Creates a folder that only its owner can read, and its parents, unless they exist.
pub fn make_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| Error::write(path, error))
}

/// Creates a file atomically; fails if it exists.
pub fn put_new(path: &Path, content: &str, mode: u32) -> Result<(), Error> {
    let put = || {
        let beside = beside(path, content, mode)?;
        // Unlike `rename`, a hard link does not replace an existing file.
        let linked = fs::hard_link(&beside, path);
        remove(&beside)?;
        linked
    };
    put().map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists(path.to_owned()),
        _ => Error::write(path, error),
    })
}

/// Writes a temporary file in the same folder and returns its path.
fn beside(path: &Path, content: &str, mode: u32) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let beside = path.with_file_name(format!(".{}.{}", name.display(), std::process::id()));
    remove(&beside)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    Ok(beside)
}

/// Reads a file.
pub fn read(path: &Path) -> Result<String, Error> {
    files::read_to_string(path).map_err(|error| Error::read(path, error))
}

/// Removes a file if it exists.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
