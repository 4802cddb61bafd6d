//! The file of a unix socket, removed when the last listener on it is closed.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::observe::target;

/// The file of a listening unix socket. Dropping this removes the file unless another file has replaced it.
///
/// It must be dropped before the socket is closed. While the socket is open, no process treats the path as stale, so
/// the file cannot change between the check and the removal, and its inode number cannot be reused.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    /// Takes ownership of the file of a socket bound to `path`. Fails if it does not exist.
    pub fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), id: id(path)? })
    }

    /// Renames the file, replacing any file at `path`. Processes that have the replaced socket open keep it.
    pub fn rename(mut self, path: &Path) -> io::Result<SocketFile> {
        fs::rename(&self.path, path)?;
        self.path = path.to_owned();
        Ok(self)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if id(&self.path).is_ok_and(|there| there == self.id)
            && let Err(e) = fs::remove_file(&self.path)
        {
            tracing::warn!(target: target::LISTENER, "cannot remove {}: {e}", self.path.display());
        }
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}
