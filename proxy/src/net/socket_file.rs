//! A unix socket's file, which is removed when nobody listens on it any more.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::observe::target;

/// The file of a listening unix socket; dropping this removes it, unless another one has taken its place.
///
/// It must be dropped before the socket is closed. As long as that is open, nobody takes the path for one that was left over, so
/// nobody comes between looking and removing; and no other file can get its number.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    /// The file of a socket that is bound to a path. Fails if there is none.
    pub fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), id: id(path)? })
    }

    /// Gives it another name. What has had that goes, but who has a socket open by it keeps it.
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
