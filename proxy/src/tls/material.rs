//! Reads certificates, keys, authorities and revocation lists from PEM files (RFC 7468). Unusable files are rejected
//! when they are read, not when the first client connects.

use std::{
    collections::BTreeMap,
    fmt,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::{
    error::{FieldError, Found, MAX_BYTES, MaterialError, date, plain},
    identity::{Identity, IdentityError},
    provider,
};
use crate::{
    config::model::CertificateFiles,
    digest::{hex, sha256},
};

/// Converts a time to seconds since 1970.
pub(super) fn unix(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// SHA-256 digests of the files that were read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Digests {
    files: BTreeMap<PathBuf, [u8; 32]>,
    /// The system's trusted authorities, if they were read.
    system: Option<[u8; 32]>,
}

impl Digests {
    /// Returns whether the files and the system's trusted authorities are unchanged. An unreadable file counts as
    /// changed.
    pub fn are_current(&self) -> bool {
        self.files.iter().all(|(path, digest)| read(path).is_ok_and(|bytes| sha256(&bytes) == *digest))
            && self.system.is_none_or(|digest| system_digest(&rustls_native_certs::load_native_certs().certs) == digest)
    }

    /// The digests of the files.
    pub fn files(&self) -> &BTreeMap<PathBuf, [u8; 32]> {
        &self.files
    }

    /// Returns all digests in hex, as an input for a larger hash.
    pub fn text(&self) -> String {
        self.files.values().chain(&self.system).map(|digest| hex(digest)).collect()
    }
}

/// Returns a digest of the system's trusted authorities, independent of their order.
fn system_digest(certificates: &[CertificateDer<'_>]) -> [u8; 32] {
    let mut all: Vec<[u8; 32]> = certificates.iter().map(|certificate| sha256(certificate)).collect();
    all.sort_unstable();
    all.dedup();
    sha256(all.as_flattened())
}

fn read(path: &Path) -> Result<Vec<u8>, MaterialError> {
    let file = crate::files::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => MaterialError::Missing(path.to_owned()),
        _ => MaterialError::Unreadable(path.to_owned(), e),
    })?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| MaterialError::Unreadable(path.to_owned(), e))?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(MaterialError::TooLarge(path.to_owned())),
        false => Ok(bytes),
    }
}

/// Reads the files of one snapshot, each once, so that all users of a file see the same content.
pub struct Loader<'r> {
    resolve: &'r dyn Fn(&Path) -> PathBuf,
    files: BTreeMap<PathBuf, Arc<[u8]>>,
    digests: Digests,
    system_roots: Option<Arc<RootCertStore>>,
}

impl<'r> Loader<'r> {
    /// Creates a loader; `resolve` maps a path in the configuration to a file.
    pub fn new(resolve: &'r dyn Fn(&Path) -> PathBuf) -> Loader<'r> {
        Loader { resolve, files: BTreeMap::new(), digests: Digests::default(), system_roots: None }
    }

    /// Returns the digests of the files read so far.
    pub fn digests(&self) -> &Digests {
        &self.digests
    }

    /// Returns the digest of a file that was read.
    pub(super) fn digest(&self, path: &Path) -> Option<[u8; 32]> {
        self.digests.files.get(&(self.resolve)(path)).copied()
    }

    /// Returns a file's content and its resolved path.
    pub(super) fn bytes(&mut self, path: &Path) -> Result<(PathBuf, Arc<[u8]>), MaterialError> {
        let path = (self.resolve)(path);
        if let Some(bytes) = self.files.get(&path) {
            return Ok((path, bytes.clone()));
        }
        let bytes: Arc<[u8]> = read(&path)?.into();
        self.digests.files.insert(path.clone(), sha256(&bytes));
        self.files.insert(path.clone(), bytes.clone());
        Ok((path, bytes))
    }

    /// Returns all PEM sections of one type in a file, at least one.
    fn all<T: PemObject>(&mut self, path: &Path, wanted: &'static str) -> Result<(PathBuf, Vec<T>), MaterialError> {
        let (path, bytes) = self.bytes(path)?;
        match T::pem_slice_iter(&bytes).collect::<Result<Vec<T>, _>>() {
            Err(e) => Err(broken(path, &e)),
            Ok(none) if none.is_empty() => Err(MaterialError::Nothing { path, wanted, found: Found::of(&bytes) }),
            Ok(all) => Ok((path, all)),
        }
    }

    /// Loads our certificate and its key, which must match and be valid now. `place` is the place of the pair.
    pub(super) fn pair(&mut self, files: &CertificateFiles, place: &str) -> Result<OwnCertificate, FieldError> {
        let of_certificate = |error| FieldError { field: format!("{place}/certificate"), error };
        let of_key = |error| FieldError { field: format!("{place}/key"), error };
        let (path, chain) =
            self.all::<CertificateDer<'static>>(&files.certificate, "certificate").map_err(of_certificate)?;
        let unusable = |e: IdentityError| MaterialError::Certificate(path.clone(), 1, e.to_string());
        let identity = Identity::parse(&chain[0]).map_err(unusable).map_err(of_certificate)?;
        let (key_path, bytes) = self.bytes(&files.key).map_err(of_key)?;
        let key = match PrivateKeyDer::from_pem_slice(&bytes) {
            Ok(key) => key,
            Err(pem::Error::NoItemsFound) => {
                let found = Found::of(&bytes);
                return Err(of_key(MaterialError::Nothing { path: key_path, wanted: "private key", found }));
            }
            Err(e) => return Err(of_key(broken(key_path, &e))),
        };
        let key = provider().key_provider.load_private_key(key);
        let key = key.map_err(|e| of_key(MaterialError::Key(key_path.clone(), plain(&e))))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            // Some keys do not reveal their public half; a mismatch then shows only in the first handshake.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(of_key(MaterialError::KeyMismatch { key: key_path, certificate: path }));
            }
            Err(e) => return Err(of_certificate(MaterialError::Certificate(path, 1, plain(&e)))),
        }
        // Checked after the key, so that a half-written pair is reported as a mismatch.
        let now = unix(SystemTime::now());
        if identity.not_after < now {
            return Err(of_certificate(MaterialError::Expired(path, identity.not_after)));
        }
        if identity.not_before > now {
            return Err(of_certificate(MaterialError::NotYetValid(path, identity.not_before)));
        }
        Ok(OwnCertificate {
            place: place.to_owned(),
            exposed: crate::files::is_exposed(&key_path),
            path,
            key_path,
            key: Arc::new(certified),
            identity: Arc::new(identity),
        })
    }

    /// Loads authorities: all certificates in some files. Errors are at `PLACE/INDEX`.
    pub(super) fn roots(&mut self, paths: &[PathBuf], place: &str) -> Result<Arc<RootCertStore>, Vec<FieldError>> {
        let mut roots = RootCertStore::empty();
        let mut wrong = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            let mut add = || {
                let (path, all) = self.all::<CertificateDer<'static>>(path, "certificate")?;
                for (nth, certificate) in all.into_iter().enumerate() {
                    let added = roots.add(certificate);
                    added.map_err(|e| MaterialError::Certificate(path.clone(), nth + 1, plain(&e)))?;
                }
                Ok(())
            };
            wrong.extend(add().err().map(|error| FieldError { field: format!("{place}/{index}"), error }));
        }
        if wrong.is_empty() { Ok(Arc::new(roots)) } else { Err(wrong) }
    }

    /// Returns the system's trusted authorities.
    pub(super) fn system_roots(&mut self) -> Result<Arc<RootCertStore>, MaterialError> {
        if let Some(roots) = &self.system_roots {
            return Ok(roots.clone());
        }
        let found = rustls_native_certs::load_native_certs();
        self.digests.system = Some(system_digest(&found.certs));
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let why = found.errors.first().map_or_else(String::new, |e| format!(": {e}"));
            return Err(MaterialError::NoSystemRoots(why));
        }
        Ok(self.system_roots.insert(Arc::new(roots)).clone())
    }

    /// Loads all revocation lists in some files. Errors are at `crl/INDEX`.
    pub(super) fn revocation_lists(&mut self, paths: &[PathBuf]) -> Result<Vec<RevocationList>, Vec<FieldError>> {
        let (mut lists, mut wrong) = (Vec::new(), Vec::new());
        for (index, path) in paths.iter().enumerate() {
            let place = format!("crl/{index}");
            let read = self.all::<CertificateRevocationListDer<'static>>(path, "revocation list");
            let checked = read.and_then(|(path, all)| {
                let all = all.into_iter().zip(1..).map(|(der, nth)| RevocationList::new(&path, nth, &place, der));
                all.collect::<Result<Vec<_>, _>>()
            });
            match checked {
                Ok(checked) => lists.extend(checked),
                Err(error) => wrong.push(FieldError { field: place, error }),
            }
        }
        if wrong.is_empty() { Ok(lists) } else { Err(wrong) }
    }
}

impl fmt::Debug for Loader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The files include private keys.
        f.debug_struct("Loader").field("files", &self.files.keys()).finish_non_exhaustive()
    }
}

fn broken(path: PathBuf, error: &pem::Error) -> MaterialError {
    MaterialError::Pem(path, error.to_string())
}

/// A certificate that we present, with its key.
#[derive(Debug)]
pub(super) struct OwnCertificate {
    /// Its place in the `tls` section.
    pub(super) place: String,
    /// The certificate's file.
    pub(super) path: PathBuf,
    /// The key's file.
    pub(super) key_path: PathBuf,
    /// Whether every user can read the key's file.
    pub(super) exposed: bool,
    /// The chain and the private key.
    pub(super) key: Arc<CertifiedKey>,
    /// The certificate's identity.
    pub(super) identity: Arc<Identity>,
}

impl OwnCertificate {
    /// Returns the certificate's expiry.
    pub(super) fn dated(&self) -> Dated {
        Dated {
            place: format!("{}/certificate", self.place),
            path: self.path.clone(),
            until: self.identity.not_after,
            soon: (14 * DAY).min((self.identity.not_after - self.identity.not_before) / 3),
            kind: DatedKind::Certificate,
        }
    }

    /// Returns a warning with its place, if any.
    pub(super) fn warning(&self) -> Option<(String, String)> {
        let text = || format!("every user on this machine can read the private key in `{}`", self.key_path.display());
        self.exposed.then(|| (format!("{}/key", self.place), text()))
    }
}

/// A certificate revocation list.
#[derive(Debug)]
pub(super) struct RevocationList {
    /// The list, as it was read.
    pub(super) der: CertificateRevocationListDer<'static>,
    /// The list's expiry. `None` if it states none, which RFC 5280 does not allow.
    pub(super) dated: Option<Dated>,
}

impl RevocationList {
    fn new(
        path: &Path,
        nth: usize,
        place: &str,
        der: CertificateRevocationListDer<'static>,
    ) -> Result<RevocationList, MaterialError> {
        let wrong = |why: String| MaterialError::RevocationList(path.to_owned(), nth, why);
        webpki::OwnedCertRevocationList::from_der(&der).map_err(|e| wrong(e.to_string()))?;
        let (_, parsed) = CertificateRevocationList::from_der(&der).map_err(|e| wrong(e.to_string()))?;
        let until = parsed.next_update().map(|time| time.timestamp());
        if let Some(until) = until.filter(|until| *until < unix(SystemTime::now())) {
            return Err(MaterialError::RevocationListExpired(path.to_owned(), until));
        }
        let dated = until.map(|until| Dated {
            place: place.to_owned(),
            path: path.to_owned(),
            until,
            soon: DAY,
            kind: DatedKind::RevocationList,
        });
        Ok(RevocationList { der, dated })
    }
}

/// The type of a file that expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatedKind {
    /// A certificate that we present.
    Certificate,
    /// A revocation list.
    RevocationList,
}

/// A file that expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dated {
    /// Its place in the `tls` section.
    pub place: String,
    /// The file.
    pub path: PathBuf,
    /// The expiry, in seconds since 1970.
    pub until: i64,
    /// How long before the expiry to warn, in seconds.
    soon: i64,
    /// The file's type.
    pub kind: DatedKind,
}

/// One day, in seconds.
const DAY: i64 = 24 * 60 * 60;

impl Dated {
    /// Returns a warning if the expiry is near or past. Near is 14 days for certificates, or a third of the lifetime
    /// of those that live less than six weeks; for lists, which live for days, one day.
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let what = match self.kind {
            DatedKind::Certificate => "the certificate",
            DatedKind::RevocationList => "a revocation list",
        };
        let left = self.until.saturating_sub(unix(now));
        let path = self.path.display();
        match left {
            ..0 => Some(format!("{what} in `{path}` expired on {}", date(self.until))),
            left if left < self.soon => Some(format!("{what} in `{path}` expires on {}", date(self.until))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An authority that the system no longer trusts must not stay trusted.
    #[test]
    fn digests_include_the_systems_trusted_authorities() {
        let certificates: Vec<_> = [b"one", b"two"].map(|der| CertificateDer::from(der.to_vec())).into();
        let [one, two] = &certificates[..] else { unreachable!() };
        assert_eq!(system_digest(&certificates), system_digest(&[two.clone(), one.clone(), two.clone()]));
        assert_ne!(system_digest(&certificates), system_digest(&certificates[..1]));
        let of = |system| Digests { system, ..Digests::default() };
        assert_ne!(of(Some([1; 32])).text(), of(Some([2; 32])).text());
        assert!(of(None).are_current() && !of(Some([1; 32])).are_current());
        let resolve = |path: &Path| path.to_owned();
        let mut loader = Loader::new(&resolve);
        if loader.system_roots().is_ok() {
            assert!(loader.digests().system.is_some() && loader.digests().are_current());
        }
    }
}
