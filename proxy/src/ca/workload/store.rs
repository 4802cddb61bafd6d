//! The folder with the workload's certificate, laid out as Kubernetes lays out a mounted Secret:
//!
//! ```text
//! workload.pem -> ..data/workload.pem
//! workload.key -> ..data/workload.key
//! ca.pem       -> ..data/ca.pem
//! ..data       -> ..SERIALROOTS
//! ..SERIALROOTS/  the files
//! ```
//!
//! The second half of the folder's name is a digest of the roots. A new certificate or changed roots are written to a
//! new folder, and `..data` is switched atomically, so the three files change together. The previous folder is kept
//! for processes that have just resolved it.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{KeyPair, PublicKeyData};

use crate::{
    ca::{
        Error,
        authority::ROOT,
        certificate::{self, CertificateInfo},
        files::{self, PRIVATE, PUBLIC},
    },
    config::spiffe::SpiffeId,
    digest::{hex, sha256},
};

/// The certificate and its intermediates.
const CHAIN: &str = "workload.pem";
/// The certificate's private key.
const KEY: &str = "workload.key";
/// The link to the active folder.
const DATA: &str = "..data";

/// The age after which a folder that is neither active nor the previous one is considered left over; a younger one
/// may belong to a process that is about to switch.
const LEFT_OVER: Duration = Duration::from_secs(60);

/// The folder with the workload's certificate.
pub struct Store {
    dir: PathBuf,
}

/// A certificate with its key (PEM) and its fields.
#[derive(Debug)]
pub struct StoredCertificate {
    pub chain: String,
    pub key: String,
    /// The trusted roots.
    pub root: String,
    pub facts: CertificateInfo,
}

impl StoredCertificate {
    /// Parses the certificate. The error describes what is invalid.
    pub fn new(chain: String, key: String, root: String) -> Result<StoredCertificate, String> {
        let facts = certificate::all_in(&chain).map_err(|what| format!("the certificate {what}"))?.swap_remove(0);
        Ok(StoredCertificate { chain, key, root, facts })
    }
}

impl Store {
    /// Creates a store; the folder need not exist yet.
    pub fn new(dir: PathBuf) -> Store {
        Store { dir }
    }

    /// Returns the folder's path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads the stored certificate. The error says why it cannot be used.
    pub fn read(&self, id: &SpiffeId) -> Result<StoredCertificate, String> {
        let read = |name| files::read(&self.dir.join(name)).map_err(|e| e.to_string());
        let held = StoredCertificate::new(read(CHAIN)?, read(KEY)?, read(ROOT)?)?;
        let key = KeyPair::from_pem(&held.key).map_err(|e| format!("cannot parse the stored key: {e}"))?;
        if held.facts.uri() != Some(id.as_str()) {
            return Err("the stored certificate is for another identity".to_owned());
        }
        if key.subject_public_key_info() != held.facts.public_key {
            return Err("the stored key does not match the certificate".to_owned());
        }
        if !certificate::is_signed_by(&held.chain, &held.root) {
            return Err("the stored certificate was signed by another root".to_owned());
        }
        match held.facts.is_valid_at(SystemTime::now()) {
            true => Ok(held),
            false => Err("the stored certificate has expired".to_owned()),
        }
    }

    /// Replaces the stored certificate and returns the previous roots.
    pub fn put(&self, held: &StoredCertificate) -> Result<Option<String>, Error> {
        let root_before = fs::read_to_string(self.dir.join(ROOT)).ok();
        let name = format!("..{}{}", held.facts.serial, hex(&sha256(held.root.as_bytes())[..4]));
        let version = self.dir.join(&name);
        files::make_dir(&version)?;
        files::put(&version.join(KEY), &held.key, PRIVATE)?;
        files::put(&version.join(CHAIN), &held.chain, PUBLIC)?;
        files::put(&version.join(ROOT), &held.root, PUBLIC)?;
        let before = fs::read_link(self.dir.join(DATA)).ok();
        self.link(DATA, Path::new(&name))?;
        for file in [CHAIN, KEY, ROOT] {
            let target = Path::new(DATA).join(file);
            if fs::read_link(self.dir.join(file)).ok().as_ref() != Some(&target) {
                self.link(file, &target)?;
            }
        }
        self.clean(&[Some(OsStr::new(&name)), before.as_deref().map(Path::as_os_str)]);
        Ok(root_before)
    }

    /// Creates or redirects a symbolic link atomically. Fails if the path exists and is not a symbolic link.
    fn link(&self, name: &str, target: &Path) -> Result<(), Error> {
        let place = self.dir.join(name);
        let make = || {
            if fs::symlink_metadata(&place).is_ok_and(|existing| !existing.is_symlink()) {
                return Err(io::Error::other("it already exists and is not a symbolic link"));
            }
            let beside = self.dir.join(format!(".{name}.{}", std::process::id()));
            crate::files::remove(&beside)?;
            symlink(target, &beside)?;
            fs::rename(&beside, &place)
        };
        make().map_err(|error| Error::write(&place, error))
    }

    /// Removes the folders of old certificates that no process can still be reading.
    fn clean(&self, keep: &[Option<&OsStr>]) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let serial = name.to_str().and_then(|name| name.strip_prefix(".."));
            let ours = serial.is_some_and(|serial| serial.bytes().all(|b| b.is_ascii_hexdigit()));
            let age =
                entry.metadata().ok().filter(fs::Metadata::is_dir).and_then(|m| m.modified().ok()?.elapsed().ok());
            if ours && !keep.contains(&Some(&name)) && age.is_some_and(|age| age > LEFT_OVER) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::FileTimes,
        os::unix::fs::PermissionsExt,
        sync::atomic::{AtomicBool, Ordering},
    };

    use tempfile::TempDir;

    use super::*;
    use crate::ca::authority::{Authority, Names, new_key};

    const HOUR: Duration = Duration::from_secs(3600);

    fn id() -> SpiffeId {
        "spiffe://mesh.local/web".parse().unwrap()
    }

    fn held(authority: &Authority, life: Duration) -> StoredCertificate {
        let (key, names) = (new_key().unwrap(), Names { spiffe: id(), dns: Vec::new(), ip: Vec::new() });
        let issued = authority.sign(&key, &names, life).unwrap();
        StoredCertificate::new(issued.chain, key.serialize_pem(), authority.roots().to_owned()).unwrap()
    }

    fn authority(dir: &Path) -> Authority {
        Authority::create(&dir.join("ca"), &"mesh.local".parse().unwrap(), 24 * HOUR, false).unwrap()
    }

    #[test]
    fn a_stored_certificate_is_read_back_and_its_key_is_private() {
        let dir = TempDir::new().unwrap();
        let (authority, store) = (authority(dir.path()), Store::new(dir.path().join("a/b/run")));
        assert!(store.read(&id()).unwrap_err().contains("cannot read"));
        let first = held(&authority, HOUR);
        assert_eq!(store.put(&first).unwrap(), None);
        assert_eq!(store.read(&id()).unwrap().facts, first.facts);
        let key = store.dir().join(KEY);
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let second = held(&authority, HOUR);
        assert_eq!(store.put(&second).unwrap().as_deref(), Some(authority.roots()));
        assert_eq!(fs::read_to_string(key).unwrap(), second.key);
    }

    #[test]
    fn unusable_certificates_are_distinguished() {
        let dir = TempDir::new().unwrap();
        let (authority, store) = (authority(dir.path()), Store::new(dir.path().join("run")));
        let first = held(&authority, HOUR);
        store.put(&first).unwrap();
        let other = store.read(&"spiffe://mesh.local/db".parse().unwrap());
        assert!(other.unwrap_err().contains("another identity"));
        fs::write(store.dir().join(KEY), held(&authority, HOUR).key).unwrap();
        assert!(store.read(&id()).unwrap_err().contains("does not match the certificate"));
        fs::write(store.dir().join(KEY), "nonsense").unwrap();
        assert!(store.read(&id()).unwrap_err().contains("cannot parse the stored key"));
        fs::write(store.dir().join(CHAIN), "nonsense").unwrap();
        assert!(store.read(&id()).unwrap_err().contains("holds no certificate"));
        store.put(&held(&authority, Duration::from_millis(1))).unwrap();
        assert!(store.read(&id()).unwrap_err().contains("has expired"));
    }

    #[test]
    fn readers_always_find_a_matching_pair() {
        let dir = TempDir::new().unwrap();
        let (authority, store) = (authority(dir.path()), Store::new(dir.path().join("run")));
        store.put(&held(&authority, HOUR)).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..50 {
                    store.put(&held(&authority, HOUR)).unwrap();
                }
                over.store(true, Ordering::SeqCst);
            });
            while !over.load(Ordering::SeqCst) {
                let found = fs::canonicalize(store.dir().join(DATA)).unwrap();
                let read = |name: &str| fs::read_to_string(found.join(name)).unwrap();
                let facts = certificate::all_in(&read(CHAIN)).unwrap().swap_remove(0);
                let key = KeyPair::from_pem(&read(KEY)).unwrap();
                assert_eq!(key.subject_public_key_info(), facts.public_key);
            }
        });
    }

    #[test]
    fn foreign_files_stay_and_left_over_folders_are_removed() {
        let dir = TempDir::new().unwrap();
        let (authority, store) = (authority(dir.path()), Store::new(dir.path().join("run")));
        for _ in 0..3 {
            store.put(&held(&authority, HOUR)).unwrap();
        }
        let folders = || {
            let entries = fs::read_dir(store.dir()).unwrap().map(|entry| entry.unwrap());
            entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|e| e.path()).collect::<Vec<_>>()
        };
        assert_eq!(folders().len(), 3, "the other folders are recent");
        let long_ago = FileTimes::new().set_modified(SystemTime::now() - 2 * LEFT_OVER);
        for folder in folders() {
            fs::File::open(folder).unwrap().set_times(long_ago).unwrap();
        }
        store.put(&held(&authority, HOUR)).unwrap();
        assert_eq!(folders().len(), 2, "the active and the previous folder");
        fs::remove_file(store.dir().join(ROOT)).unwrap();
        fs::write(store.dir().join(ROOT), "mine").unwrap();
        let error = store.put(&held(&authority, HOUR)).unwrap_err().to_string();
        assert!(error.contains("not a symbolic link"), "{error}");
        assert_eq!(fs::read_to_string(store.dir().join(ROOT)).unwrap(), "mine");
    }
}
