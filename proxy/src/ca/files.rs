//! Files with keys and certificates: nobody sees them half written, and keys are nobody else's.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::Error;
use crate::files;

/// The mode of what only its owner reads.
pub const PRIVATE: u32 = 0o600;

/// The mode of what all may read.
pub const PUBLIC: u32 = 0o644;

/// Writes a file beside its place and puts it there in one step.
pub fn put(path: &Path, content: &str, mode: u32) -> Result<(), Error> {
    let put = || fs::rename(beside(path, content, mode)?, path);
    put().map_err(|error| Error::write(path, error))
}

/// Makes a folder that only its owner reads, and those above it, unless they are there.
pub fn make_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| Error::write(path, error))
}

/// Writes a file that is not there yet, in one step.
pub fn put_new(path: &Path, content: &str, mode: u32) -> Result<(), Error> {
    let put = || {
        let beside = beside(path, content, mode)?;
        // Unlike renaming, this replaces nothing.
        let linked = fs::hard_link(&beside, path);
        remove(&beside)?;
        linked
    };
    put().map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists(path.to_owned()),
        _ => Error::write(path, error),
    })
}

/// Writes a file beside a path, and gives its own.
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

/// Removes a file that may not be there.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
