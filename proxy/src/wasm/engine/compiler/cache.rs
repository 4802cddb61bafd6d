//! The on-disk cache of compiled machine code. Cached code is executed without further checks, so anyone who can write
//! to the folder can run code in this process: a folder or file that belongs to another user, or that others can write
//! to, is not used. Each file begins with a digest of its key and its code, so a damaged file, or one that was moved to
//! another key's name, is not used either.

use std::{
    ffi::OsStr,
    fmt,
    fs::{DirBuilder, File},
    hash::{Hash, Hasher},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::DirBuilderExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{Context, SHA256};
use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, mkdirat, openat, renameat, statat, unlinkat},
    io::Errno,
    process::geteuid,
};

use crate::{digest::hex, observe::target};

/// The subfolder of the configured folder that holds the entries.
const FOLDER: &str = "modules";

/// The first bytes of an entry, which also identify the layout: these bytes, a digest, machine code.
const MAGIC: [u8; 8] = *b"tollgate";

/// Bytes of a SHA-256 digest.
const DIGEST: usize = 32;

/// Maximum bytes of all entries; beyond it, the least recently used entries are removed.
const MAX_BYTES: u64 = 512 << 20;

/// The granularity of the recorded last use.
const GRAIN: Duration = Duration::from_secs(60 * 60);

/// Write permission for users other than the owner.
const OTHERS_WRITE: u32 = 0o022;

/// A folder of machine code.
#[derive(Debug)]
pub struct Cache {
    /// The folder of the entries. All access goes through this descriptor, so the folder cannot be swapped for another.
    folder: OwnedFd,
    path: PathBuf,
    /// Maximum bytes of all entries together.
    max_bytes: u64,
}

/// Why a folder is not used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The folder belongs to another user.
    #[error("{0} belongs to user {1}, who could run code in this process (which runs as user {2})")]
    Owner(PathBuf, u32, u32),
    /// Others can write to the folder.
    #[error("others than its owner can write to {0} (mode {1:03o}), and so could run code in this process")]
    Writable(PathBuf, u32),
    /// The folder cannot be created or opened.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
}

impl CacheError {
    /// Whether the folder exists but another user could have written to it.
    pub fn is_unsafe(&self) -> bool {
        !matches!(self, CacheError::Io(..))
    }

    /// Suggests a fix.
    pub fn help(&self) -> Option<String> {
        match self {
            CacheError::Owner(..) => {
                Some("set `cache_dir` to a folder that does not exist yet; it is created".to_owned())
            }
            CacheError::Writable(path, _) => {
                Some(format!("if no other user has put anything there, run `chmod -R go-w {}`", path.display()))
            }
            CacheError::Io(..) => None,
        }
    }
}

/// Identifies machine code: a module, and an engine's version and settings.
pub(super) struct Key([u8; DIGEST]);

impl Key {
    pub(super) fn of(engine: &wasmtime::Engine, module: &[u8]) -> Key {
        let mut digest = Sha256(Context::new(&SHA256));
        // The hash covers wasmtime's version, all settings, and the processor's features.
        engine.precompile_compatibility_hash().hash(&mut digest);
        digest.0.update(module);
        Key(digest.end())
    }

    /// The digest of machine code stored under this key.
    fn digest(&self, code: &[u8]) -> [u8; DIGEST] {
        let mut digest = Sha256(Context::new(&SHA256));
        digest.0.update(&self.0);
        digest.0.update(code);
        digest.end()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Adapts SHA-256 to [`Hasher`], for types that implement `Hash`.
struct Sha256(Context);

impl Sha256 {
    fn end(self) -> [u8; DIGEST] {
        let mut out = [0; DIGEST];
        // A SHA-256 digest has exactly this many bytes.
        out.copy_from_slice(self.0.finish().as_ref());
        out
    }
}

impl Hasher for Sha256 {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        unreachable!("only the whole digest is used")
    }
}

impl Cache {
    /// Opens the cache in a folder, which is created if missing.
    ///
    /// # Errors
    /// The folder cannot be used, or another user could have written to it.
    pub fn open(dir: &Path) -> Result<Cache, CacheError> {
        let failed = |e: io::Error| CacheError::Io(dir.to_owned(), e);
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let parent = folder(CWD, dir, dir)?;
        let path = dir.join(FOLDER);
        match mkdirat(&parent, FOLDER, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(CacheError::Io(path, e.into())),
        }
        Ok(Cache { folder: folder(&parent, Path::new(FOLDER), &path)?, path, max_bytes: MAX_BYTES })
    }

    /// Returns the code cached under a key.
    pub(super) fn get(&self, key: &Key) -> Option<Vec<u8>> {
        match self.read(key) {
            Ok(code) => Some(code),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                let path = self.path.join(key.to_string());
                tracing::warn!(
                    target: target::WASM,
                    "{} is not used, and the filter is compiled again: {e}", path.display()
                );
                None
            }
        }
    }

    fn read(&self, key: &Key) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mut file = File::from(openat(&self.folder, key.to_string(), flags, Mode::empty())?);
        owned(&file, FileType::RegularFile).map_err(|wrong| io::Error::other(wrong.to_string()))?;
        let mut entry = Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(0));
        file.read_to_end(&mut entry)?;
        let head = MAGIC.len() + DIGEST;
        let is_whole =
            entry.len() > head && entry.starts_with(&MAGIC) && entry[MAGIC.len()..head] == key.digest(&entry[head..]);
        if !is_whole {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its content does not match its digest"));
        }
        // The file's modification time records its last use. If the folder is not writable, nothing can be evicted
        // either.
        let now = SystemTime::now();
        let used = file.metadata()?.modified()?;
        if now.duration_since(used).is_ok_and(|since| since > GRAIN) {
            let _ = file.set_modified(now);
        }
        entry.drain(..head);
        Ok(entry)
    }

    /// Stores code. If that fails, the module is compiled again next time.
    pub(super) fn put(&self, key: &Key, code: &[u8]) {
        let put = self.write(key, code).and_then(|()| self.clear());
        if let Err(e) = put {
            tracing::warn!(target: target::WASM, "cannot cache a compiled filter in {}: {e}", self.path.display());
        }
    }

    fn write(&self, key: &Key, code: &[u8]) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // Another process may be writing the same entry.
        let temporary = format!("{key}.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.folder, &*temporary, flags, Mode::RUSR | Mode::WUSR)?);
        let written = [&MAGIC[..], &key.digest(code), code].into_iter().try_for_each(|part| file.write_all(part));
        let put = written.and_then(|()| Ok(renameat(&self.folder, &*temporary, &self.folder, key.to_string())?));
        if put.is_err() {
            let _ = unlinkat(&self.folder, &*temporary, AtFlags::empty());
        }
        put
    }

    /// Removes the least recently used entries if the cache is over its limit.
    fn clear(&self) -> io::Result<()> {
        let mut all = Vec::new();
        for entry in Dir::read_from(&self.folder)? {
            let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
            // Another process may have removed it.
            let Ok(stat) = statat(&self.folder, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                all.push((stat.st_mtime, u64::try_from(stat.st_size).unwrap_or(0), name));
            }
        }
        let mut sum: u64 = all.iter().map(|(_, size, _)| size).sum();
        if sum <= self.max_bytes {
            return Ok(());
        }
        all.sort_unstable();
        // Removes more than necessary, so that the next entry does not trigger it again.
        for (_, size, name) in all {
            if sum <= self.max_bytes / 10 * 7 {
                break;
            }
            match unlinkat(&self.folder, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => sum -= size,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Opens a folder that only its owner can write to, and whose owner is this process's user or root.
fn folder(parent: impl AsFd, name: &Path, path: &Path) -> Result<OwnedFd, CacheError> {
    // The configured folder may be a symbolic link; the subfolder that we created may not.
    let link = if name == path { OFlags::empty() } else { OFlags::NOFOLLOW };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | link;
    let folder = openat(parent, name, flags, Mode::empty()).map_err(|e| CacheError::Io(path.to_owned(), e.into()))?;
    match owned(&folder, FileType::Directory) {
        Ok(()) => Ok(folder),
        Err(Untrusted::Owner(user)) => Err(CacheError::Owner(path.to_owned(), user, geteuid().as_raw())),
        Err(Untrusted::Writable(mode)) => Err(CacheError::Writable(path.to_owned(), mode)),
        Err(Untrusted::Kind) => Err(CacheError::Io(path.to_owned(), io::ErrorKind::NotADirectory.into())),
        Err(Untrusted::Unknown(e)) => Err(CacheError::Io(path.to_owned(), e.into())),
    }
}

/// Why another user could have written a file.
#[derive(Debug, thiserror::Error)]
enum Untrusted {
    #[error("it belongs to user {0}")]
    Owner(u32),
    #[error("others than its owner can write to it (mode {0:03o})")]
    Writable(u32),
    #[error("it is not a file")]
    Kind,
    #[error(transparent)]
    Unknown(Errno),
}

/// Checks that only this process's user, or root, could have written a file.
fn owned(file: impl AsFd, kind: FileType) -> Result<(), Untrusted> {
    let stat = fstat(file).map_err(Untrusted::Unknown)?;
    if FileType::from_raw_mode(stat.st_mode) != kind {
        return Err(Untrusted::Kind);
    }
    if stat.st_uid != 0 && stat.st_uid != geteuid().as_raw() {
        return Err(Untrusted::Owner(stat.st_uid));
    }
    match stat.st_mode & OTHERS_WRITE {
        0 => Ok(()),
        _ => Err(Untrusted::Writable(stat.st_mode & 0o7777)),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    };

    use tempfile::TempDir;

    use super::*;

    fn key(n: u8) -> Key {
        Key([n; DIGEST])
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// A cache with one entry, and that entry's file.
    fn with_entry() -> (TempDir, Cache, PathBuf) {
        let dir = TempDir::new().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        cache.put(&key(1), b"code");
        let file = dir.path().join(FOLDER).join(key(1).to_string());
        assert!(file.is_file());
        (dir, cache, file)
    }

    #[test]
    fn entry_is_found_by_its_key_only_and_readable_by_its_owner_only() {
        let (dir, cache, file) = with_entry();
        assert_eq!(cache.get(&key(1)).as_deref(), Some(&b"code"[..]));
        assert_eq!(cache.get(&key(2)), None);
        assert_eq!(fs::metadata(file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(dir.path().join(FOLDER)).unwrap().mode() & 0o777, 0o700);
        let new = dir.path().join("a/b");
        Cache::open(&new).unwrap();
        assert_eq!(fs::metadata(new).unwrap().mode() & 0o777, 0o700);
        assert_eq!(Cache::open(dir.path()).unwrap().get(&key(1)).as_deref(), Some(&b"code"[..]));
    }

    #[test]
    fn key_depends_on_the_module_and_the_engine() {
        let engine = |opt| wasmtime::Engine::new(super::super::settings().cranelift_opt_level(opt)).unwrap();
        let [fast, again, slow] =
            [wasmtime::OptLevel::Speed, wasmtime::OptLevel::Speed, wasmtime::OptLevel::None].map(engine);
        let key = |engine, module| Key::of(engine, module).to_string();
        assert_eq!(key(&fast, b"a"), key(&again, b"a"));
        assert_ne!(key(&fast, b"a"), key(&fast, b"b"));
        assert_ne!(key(&fast, b"a"), key(&slow, b"a"));
    }

    #[test]
    fn entry_with_any_flipped_bit_is_not_used() {
        let (_dir, cache, file) = with_entry();
        let whole = fs::read(&file).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut changed = whole.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, changed).unwrap();
            assert_eq!(cache.get(&key(1)), None, "bit {bit}");
        }
        for length in 0..whole.len() {
            fs::write(&file, &whole[..length]).unwrap();
            assert_eq!(cache.get(&key(1)), None, "{length} bytes");
        }
        cache.put(&key(1), b"code");
        assert_eq!(cache.get(&key(1)).as_deref(), Some(&b"code"[..]));
    }

    #[test]
    fn entry_under_another_key_is_not_used() {
        let (_dir, cache, file) = with_entry();
        fs::rename(&file, file.with_file_name(key(2).to_string())).unwrap();
        assert_eq!(cache.get(&key(2)), None);
    }

    #[test]
    fn writable_or_irregular_entry_is_not_used() {
        let (dir, cache, file) = with_entry();
        for others in [0o620, 0o602, 0o666] {
            mode(&file, others);
            assert_eq!(cache.get(&key(1)), None, "{others:o}");
        }
        mode(&file, 0o644);
        assert!(cache.get(&key(1)).is_some(), "files that others can only read are used");
        let elsewhere = dir.path().join("elsewhere");
        fs::rename(&file, &elsewhere).unwrap();
        symlink(&elsewhere, &file).unwrap();
        assert_eq!(cache.get(&key(1)), None, "a link");
    }

    #[test]
    fn folder_writable_by_others_is_rejected() {
        for name in ["", FOLDER] {
            let (dir, _, _) = with_entry();
            let path = dir.path().join(name);
            for others in [0o720, 0o702, 0o777, 0o1777] {
                mode(&path, others);
                let refused = Cache::open(dir.path()).unwrap_err();
                assert!(refused.is_unsafe() && refused.help().is_some(), "{refused}");
                assert!(refused.to_string().contains(&format!("(mode {others:03o})")), "{refused}");
            }
            mode(&path, 0o755);
            assert!(Cache::open(dir.path()).is_ok());
        }
    }

    #[test]
    fn folder_or_entry_of_another_user_is_rejected() {
        const NOBODY: u32 = 65534;
        let (dir, cache, file) = with_entry();
        // Only root can change a file's owner.
        if chown(&file, Some(NOBODY), None).is_err() {
            return;
        }
        assert_eq!(cache.get(&key(1)), None);
        for name in [FOLDER, ""] {
            chown(dir.path().join(name), Some(NOBODY), None).unwrap();
            let refused = Cache::open(dir.path()).unwrap_err();
            assert!(refused.is_unsafe(), "{refused}");
            assert!(refused.to_string().contains("belongs to user 65534"), "{refused}");
            chown(dir.path().join(name), Some(0), None).unwrap();
        }
    }

    #[test]
    fn symlinked_subfolder_is_rejected() {
        let (dir, _, _) = with_entry();
        fs::rename(dir.path().join(FOLDER), dir.path().join("elsewhere")).unwrap();
        symlink("elsewhere", dir.path().join(FOLDER)).unwrap();
        assert!(Cache::open(dir.path()).is_err());
    }

    #[test]
    fn least_recently_used_entries_are_evicted() {
        let dir = TempDir::new().unwrap();
        let cache = Cache { max_bytes: 1000, ..Cache::open(dir.path()).unwrap() };
        let long_ago = SystemTime::now() - 2 * GRAIN;
        for n in 0..9 {
            cache.put(&key(n), &[n; 60]);
            let file = File::options().write(true).open(dir.path().join(FOLDER).join(key(n).to_string())).unwrap();
            file.set_modified(long_ago + Duration::from_secs(n.into())).unwrap();
        }
        // Reading an entry counts as using it.
        assert!(cache.get(&key(0)).is_some());
        cache.put(&key(9), &[9; 60]);
        cache.put(&key(10), &[10; 60]);
        let kept: Vec<u8> = (0..=10).filter(|n| cache.get(&key(*n)).is_some()).collect();
        assert_eq!(kept, [0, 5, 6, 7, 8, 9, 10]);
    }
}
