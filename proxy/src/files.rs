//! Reading files that a configuration names, without ever waiting for anybody: a FIFO without a writer would hold whoever
//! opens it for as long as there is none.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use rustix::fs::OFlags;

/// Opens a file to read it, unless reading could wait for somebody.
///
/// # Errors
/// It cannot be opened, or is a FIFO, a socket or a device.
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

/// A file's bytes, but no more than this many.
///
/// # Errors
/// As for [`open`], or it cannot be read.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file's text.
///
/// # Errors
/// As for [`read`], or it is not UTF-8.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Whether everybody on the machine may read a file.
pub fn is_exposed(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    #[test]
    fn nobody_waits_for_a_writer_that_never_comes() {
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
