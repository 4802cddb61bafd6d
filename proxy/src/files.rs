//! Reads files that a configuration names, without blocking: opening a FIFO that has no writer would block until there
//! is one. Replaces files atomically.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

/// Opens a file for reading, unless reading could block.
///
/// # Errors The file cannot be opened, or is a FIFO, a socket or a device.
pub fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    let kind = file.metadata()?.file_type();
    let other = match () {
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() || kind.is_block_device() => "a device",
        () => return Ok(file),
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {other}, not a regular file")))
}

/// Reads at most this many bytes of a file.
///
/// # Errors As for [`open`], or reading fails.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a file's text.
///
/// # Errors As for [`read`], or the text is not UTF-8.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Replaces a file atomically, or creates it: writes a temporary file that is then renamed. Waits for the disk.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    fs::rename(write_beside(path, content, mode)?, path)
}

/// Writes a temporary file in the same folder and returns its path.
pub fn write_beside(path: &Path, content: &[u8], mode: u32) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let beside = path.with_file_name(format!(".{}.{}", name.display(), std::process::id()));
    remove(&beside)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(beside)
}

/// Creates a folder that only its owner can read, and its parents, unless they exist.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes a file if it exists.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether every user on the machine can read a file.
pub fn is_exposed(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    #[test]
    fn opening_a_fifo_without_a_writer_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, file) = (dir.path().join("fifo"), dir.path().join("file"));
        mkfifoat(CWD, &fifo, Mode::RWXU).unwrap();
        fs::write(&file, "text").unwrap();
        assert_eq!(open(&fifo).unwrap_err().to_string(), "it is a FIFO, not a regular file");
        assert_eq!(open(Path::new("/dev/zero")).unwrap_err().to_string(), "it is a device, not a regular file");
        assert_eq!(read(&file, 3).unwrap(), b"tex");
        assert_eq!(read_to_string(&file).unwrap(), "text");
    }
}
