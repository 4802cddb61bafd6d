//! Checks of files and directories that otherwise only a start would make. They change nothing: a trial leaves no files
//! behind.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

use crate::{
    admin, ca,
    config::{Diagnostic, Loaded, units::Address},
};

/// Returns all errors.
pub fn look(loaded: &Loaded, cache: Option<PathBuf>) -> Vec<Diagnostic> {
    let (source, config) = (&loaded.source, &loaded.config);
    let mut wrong = Vec::new();
    for (i, listener) in config.listeners.iter().enumerate() {
        let log = listener.access_log.as_ref().filter(|log| !matches!(&*log.to, "stdout" | "stderr"));
        if let Some(log) = log
            && let Err(error) = can_append(&source.resolve(&log.to))
        {
            let message = format!("cannot open the access log `{}`: {error}", source.resolve(&log.to).display());
            wrong.push(source.diagnostic(&format!("/listeners/{i}/access_log/to"), message, None));
        }
        for (nth, address) in listener.all_addresses().enumerate() {
            let Address::Unix(path) = address else { continue };
            if let Err(error) = can_bind(path) {
                let pointer = match nth.checked_sub(1) {
                    None => format!("/listeners/{i}/address"),
                    Some(nth) => format!("/listeners/{i}/addresses/{nth}"),
                };
                wrong.push(source.diagnostic(&pointer, format!("cannot listen on {address}: {error}"), None));
            }
        }
    }
    if config.admin.enabled {
        if let Address::Unix(path) = &config.admin.address
            && let Err(error) = can_bind(path)
        {
            let message = format!("cannot listen on {} (admin): {error}", config.admin.address);
            wrong.push(source.diagnostic("/admin/address", message, None));
        }
        wrong.extend(admin::Token::look(loaded));
        wrong.extend(ca::service::authority(loaded).and_then(Result::err));
    }
    wrong.extend(ca::workload::look(loaded, cache));
    wrong
}

/// Checks that a file can be appended to, or created if it does not exist.
fn can_append(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) => Ok(access(path, Access::WRITE_OK)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => can_make(path),
        Err(error) => Err(error),
    }
}

/// Checks that a socket's file can be created. A stale socket is replaced; whether a process listens on it is checked
/// at the start.
fn can_bind(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => Err(io::Error::other("another file has this name")),
        _ => can_make(path),
    }
}

/// Checks that a file can be created in its directory.
fn can_make(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
}
