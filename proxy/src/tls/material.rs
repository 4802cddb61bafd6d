//! Certificates, keys, authorities and revocation lists, read from PEM files (RFC 7468), and everything that can be wrong
//! with them. What cannot be used is refused when it is read, not when the first client comes.

use std::{
    collections::BTreeMap,
    fmt,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use aws_lc_rs::digest::{SHA256, digest};
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
use crate::config::model::CertificateFiles;

/// Seconds since 1970.
pub(super) fn unix(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// What files held, by SHA-256.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Digests {
    files: BTreeMap<PathBuf, [u8; 32]>,
    /// The authorities that the system trusts, if they were asked for.
    system: Option<[u8; 32]>,
}

impl Digests {
    /// Whether the files hold the same now, and the system trusts the same. A file that cannot be read does not.
    pub fn are_current(&self) -> bool {
        self.files.iter().all(|(path, digest)| read(path).is_ok_and(|bytes| sha256(&bytes) == *digest))
            && self.system.is_none_or(|digest| system_digest(&rustls_native_certs::load_native_certs().certs) == digest)
    }

    /// The files that have held something else before.
    pub fn changed_since<'d>(&'d self, before: &'d Digests) -> impl Iterator<Item = &'d Path> {
        let other = |(path, digest): &(&PathBuf, &[u8; 32])| before.files.get(*path).is_some_and(|old| old != *digest);
        self.files.iter().filter(other).map(|(path, _)| path.as_path())
    }

    /// All of them, in hex, to be a part of a larger hash.
    pub fn text(&self) -> String {
        self.files.values().chain(&self.system).flatten().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A digest of the authorities that the system trusts, in whatever order it names them.
fn system_digest(certificates: &[CertificateDer<'_>]) -> [u8; 32] {
    let mut all: Vec<[u8; 32]> = certificates.iter().map(|certificate| sha256(certificate)).collect();
    all.sort_unstable();
    all.dedup();
    sha256(all.as_flattened())
}

/// The SHA-256 of some bytes.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    // The digest has as many bytes, by its definition.
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
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

/// Reads what one snapshot needs, each file once, so that all who use a file see the same of it.
pub struct Loader<'r> {
    resolve: &'r dyn Fn(&Path) -> PathBuf,
    files: BTreeMap<PathBuf, Arc<[u8]>>,
    digests: Digests,
    system_roots: Option<Arc<RootCertStore>>,
}

impl<'r> Loader<'r> {
    /// With the way from a path in the configuration to a file.
    pub fn new(resolve: &'r dyn Fn(&Path) -> PathBuf) -> Loader<'r> {
        Loader { resolve, files: BTreeMap::new(), digests: Digests::default(), system_roots: None }
    }

    /// What the files that were read have held.
    pub fn digests(&self) -> &Digests {
        &self.digests
    }

    /// The digest of a file that was read.
    pub(super) fn digest(&self, path: &Path) -> Option<[u8; 32]> {
        self.digests.files.get(&(self.resolve)(path)).copied()
    }

    /// The bytes of a file, and where it is.
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

    /// All parts of a file that are of one kind; one at least.
    fn all<T: PemObject>(&mut self, path: &Path, wanted: &'static str) -> Result<(PathBuf, Vec<T>), MaterialError> {
        let (path, bytes) = self.bytes(path)?;
        match T::pem_slice_iter(&bytes).collect::<Result<Vec<T>, _>>() {
            Err(e) => Err(broken(path, &e)),
            Ok(none) if none.is_empty() => Err(MaterialError::Nothing { path, wanted, found: Found::of(&bytes) }),
            Ok(all) => Ok((path, all)),
        }
    }

    /// A certificate of ours with its key, which must belong together and be valid now. `place` is that of the pair.
    pub(super) fn pair(&mut self, files: &CertificateFiles, place: &str) -> Result<OwnCertificate, FieldError> {
        let of_certificate = |error| FieldError { place: format!("{place}/certificate"), error };
        let of_key = |error| FieldError { place: format!("{place}/key"), error };
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
            // A key that does not tell its public half is seen to be wrong by the first handshake only.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(of_key(MaterialError::KeyMismatch { key: key_path, certificate: path }));
            }
            Err(e) => return Err(of_certificate(MaterialError::Certificate(path, 1, plain(&e)))),
        }
        // After the key: a pair that is half written is to be called that.
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

    /// Authorities: all certificates of some files. Errors are at `PLACE/INDEX`.
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
            wrong.extend(add().err().map(|error| FieldError { place: format!("{place}/{index}"), error }));
        }
        if wrong.is_empty() { Ok(Arc::new(roots)) } else { Err(wrong) }
    }

    /// The authorities that the system trusts.
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

    /// Revocation lists: all of some files. Errors are at `crl/INDEX`.
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
                Err(error) => wrong.push(FieldError { place, error }),
            }
        }
        if wrong.is_empty() { Ok(lists) } else { Err(wrong) }
    }
}

impl fmt::Debug for Loader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Among the files are private keys.
        f.debug_struct("Loader").field("files", &self.files.keys()).finish_non_exhaustive()
    }
}

fn broken(path: PathBuf, error: &pem::Error) -> MaterialError {
    MaterialError::Pem(path, error.to_string())
}

/// A certificate that we show, with its key.
#[derive(Debug)]
pub(super) struct OwnCertificate {
    /// Where in the `tls` section it is.
    pub(super) place: String,
    /// Its file.
    pub(super) path: PathBuf,
    /// The key's file.
    pub(super) key_path: PathBuf,
    /// The key's file can be read by everybody.
    pub(super) exposed: bool,
    /// The chain and the key.
    pub(super) key: Arc<CertifiedKey>,
    /// What the certificate says.
    pub(super) identity: Arc<Identity>,
}

impl OwnCertificate {
    /// How long it is good for.
    pub(super) fn dated(&self) -> Dated {
        Dated {
            place: format!("{}/certificate", self.place),
            path: self.path.clone(),
            until: self.identity.not_after,
            soon: (14 * DAY).min((self.identity.not_after - self.identity.not_before) / 3),
            kind: DatedKind::Certificate,
        }
    }

    /// What is probably not meant, with its place.
    pub(super) fn warning(&self) -> Option<(String, String)> {
        let text = || format!("everybody on this machine can read the private key in `{}`", self.key_path.display());
        self.exposed.then(|| (format!("{}/key", self.place), text()))
    }
}

/// A list of certificates that were revoked.
#[derive(Debug)]
pub(super) struct RevocationList {
    /// As it was read.
    pub(super) der: CertificateRevocationListDer<'static>,
    /// How long it is good for; none says for ever, which RFC 5280 does not allow.
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

/// What a file is that is good until some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatedKind {
    /// A certificate that we show.
    Certificate,
    /// A revocation list.
    RevocationList,
}

/// A file that is good until some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dated {
    /// Where in the `tls` section it is.
    pub place: String,
    /// The file.
    pub path: PathBuf,
    /// Until when, in seconds since 1970.
    pub until: i64,
    /// So many seconds before that are soon.
    soon: i64,
    /// What it is.
    pub kind: DatedKind,
}

/// In seconds.
const DAY: i64 = 24 * 60 * 60;

impl Dated {
    /// A warning, if that is soon or past. Soon is 14 days for certificates, and a third of their life for those that live for
    /// less than six weeks; for lists, which live for days, one day.
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

    /// An authority that the system has stopped to trust must not be trusted on.
    #[test]
    fn what_the_system_trusts_is_a_part_of_the_digests() {
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
