//! Root rotation without downtime: first both roots are trusted, then the new one signs, and the old one is removed
//! when everything that it signed has expired.
//!
//! Each step ends with one atomic rename, so the folder is always in a consistent state, and its files show the
//! progress: `next.key` exists between the first two steps, and `ca.pem` holds two certificates until the last one. A
//! proxy that signs reads the folder for each certificate, so it follows automatically.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    Error,
    authority::{Authority, ROOT, Root},
    certificate::{self, CertificateInfo},
    files::{self, PRIVATE, PUBLIC},
};
use crate::config::admin::KEY;

/// The file with the key of the next root.
pub const NEXT: &str = "next.key";

/// How long the next root is trusted before it signs. Workloads ask for the roots once a minute and apply them.
pub const SPREAD: Duration = Duration::from_secs(300);

/// An authority's folder whose root is to be replaced.
pub struct Rotation {
    dir: PathBuf,
    authority: Authority,
}

/// The progress of a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// No rotation: the only root signs.
    Settled,
    /// The next root has been trusted since then, and does not sign yet.
    Prepared(SystemTime),
    /// The next root has been signing since then, and the old one is still trusted.
    Switched(SystemTime),
}

impl Rotation {
    /// Reads an authority's folder.
    ///
    /// See [`Authority::open`].
    /// As for [`Authority::open`].
    pub fn open(dir: &Path) -> Result<Rotation, Error> {
        Ok(Rotation { dir: dir.to_owned(), authority: Authority::open(dir)? })
    }

    /// Returns the rotation's progress.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn stage(&self) -> Result<Stage, Error> {
        if self.roots()?.len() == 1 {
            return Ok(Stage::Settled);
        }
        let since = |name: &str| {
            let path = self.dir.join(name);
            fs::metadata(&path).and_then(|meta| meta.modified()).map_err(|error| Error::read(&path, error))
        };
        match self.dir.join(NEXT).exists() {
            true => Ok(Stage::Prepared(since(NEXT)?)),
            false => Ok(Stage::Switched(since(KEY)?)),
        }
    }

    /// Creates the next root, trusted in addition to the one that signs.
    ///
    /// # Errors
    /// A rotation is in progress, or a file cannot be written.
    pub fn prepare(self, life: Duration) -> Result<Authority, Error> {
        if self.stage()? != Stage::Settled {
            return Err(Error::Step("a rotation is already in progress: `tollgate ca rotate` shows it".to_owned()));
        }
        let next = Root::make(self.authority.trust_domain(), life)?;
        // The key is written first: without its certificate it has no effect.
        files::put(&self.dir.join(NEXT), &next.key, PRIVATE)?;
        files::put(&self.dir.join(ROOT), &format!("{}{}", self.authority.roots(), next.certificate), PUBLIC)?;
        Authority::open(&self.dir)
    }

    /// Makes the next root the signing root.
    ///
    /// # Errors
    /// It was not prepared, or too recently (unless `now`), or a file cannot be written.
    pub fn switch(self, now: bool) -> Result<Authority, Error> {
        let Stage::Prepared(since) = self.stage()? else {
            return Err(Error::Step("there is no next root: `tollgate ca rotate prepare` creates one".to_owned()));
        };
        if !now {
            wait(since, SPREAD, "workloads that do not know the next root yet would reject its certificates")?;
        }
        let (next, path) = (self.dir.join(NEXT), self.dir.join(KEY));
        let key = KeyPair::from_pem(&files::read(&next)?);
        let key = key.map_err(|e| Error::content(&next, format!("holds no private key: {e}")))?;
        if !self.roots()?.iter().any(|root| root.public_key == key.subject_public_key_info()) {
            return Err(Error::content(
                &next,
                format!("is not the key of a root in `{}`", self.dir.join(ROOT).display()),
            ));
        }
        // The file's modification time records when the step was taken.
        let stamped = File::options().append(true).open(&next).and_then(|file| file.set_modified(SystemTime::now()));
        stamped.and_then(|()| fs::rename(&next, &path)).map_err(|error| Error::write(&path, error))?;
        Authority::open(&self.dir)
    }

    /// Stops trusting every root but the one that signs. `life` is the longest lifetime of a certificate.
    ///
    /// # Errors
    /// The next root does not sign yet, certificates of the old one may still be in use (unless `now`), or a file
    /// cannot be written.
    pub fn retire(self, life: Duration, now: bool) -> Result<Authority, Error> {
        match self.stage()? {
            Stage::Settled => return Err(Error::Step("there is only one root".to_owned())),
            Stage::Prepared(_) => {
                return Err(Error::Step(
                    "the next root does not sign yet: run `tollgate ca rotate switch` first".to_owned(),
                ));
            }
            Stage::Switched(since) if !now => {
                wait(since, life, "certificates signed by the old root would be rejected")?;
            }
            Stage::Switched(_) => {}
        }
        let (roots, all) = (self.authority.roots(), self.roots()?);
        let is_signing = |facts: &CertificateInfo| facts.fingerprint == self.authority.signing().fingerprint;
        let place = all.iter().position(is_signing).unwrap_or_default();
        let path = self.dir.join(ROOT);
        files::put(&path, nth(roots, place).ok_or_else(|| Error::content(&path, "is not PEM"))?, PUBLIC)?;
        Authority::open(&self.dir)
    }

    /// Returns the trusted roots.
    fn roots(&self) -> Result<Vec<CertificateInfo>, Error> {
        certificate::all_in(self.authority.roots()).map_err(|what| Error::content(&self.dir.join(ROOT), what))
    }
}

/// Returns the `place`-th certificate of a PEM text, verbatim.
fn nth(pem: &str, place: usize) -> Option<&str> {
    let begin = pem.match_indices("-----BEGIN CERTIFICATE-----").nth(place)?.0;
    let end = pem[begin..].find("-----END CERTIFICATE-----")? + "-----END CERTIFICATE-----".len();
    let text = pem[begin..].get(..=end)?;
    CertificateDer::from_pem_slice(text.as_bytes()).ok().map(|_| text)
}

/// Fails until `least` has passed since a time.
fn wait(since: SystemTime, least: Duration, why: &str) -> Result<(), Error> {
    let left = (since + least).duration_since(SystemTime::now()).unwrap_or_default();
    match left.is_zero() {
        true => Ok(()),
        false => {
            Err(Error::Step(format!("too early by {} s: {why} (use `--now` to proceed anyway)", left.as_secs() + 1)))
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::ca::authority::{Names, new_key};

    const DAY: Duration = Duration::from_secs(86_400);

    fn signed(authority: &Authority) -> String {
        let names = Names { spiffe: "spiffe://mesh.local/web".parse().unwrap(), dns: Vec::new(), ip: Vec::new() };
        authority.sign(&new_key().unwrap(), &names, DAY).unwrap().chain
    }

    #[test]
    fn both_roots_are_trusted_before_and_after_the_switch() {
        let dir = TempDir::new().unwrap();
        let first = Authority::create(dir.path(), &"mesh.local".parse().unwrap(), 10 * DAY, false).unwrap();
        let open = || Rotation::open(dir.path()).unwrap();
        assert_eq!(open().stage().unwrap(), Stage::Settled);
        let (old, roots) = (signed(&first), first.roots().to_owned());

        let prepared = open().prepare(10 * DAY).unwrap();
        assert!(prepared.roots().starts_with(&roots) && prepared.roots().len() > roots.len());
        assert_eq!(prepared.signing(), first.signing(), "the old root still signs");
        assert!(matches!(open().stage().unwrap(), Stage::Prepared(_)));

        let switched = open().switch(true).unwrap();
        assert_eq!(switched.roots(), prepared.roots());
        assert_ne!(switched.signing(), first.signing());
        let new = signed(&switched);
        assert!(certificate::is_signed_by(&old, switched.roots()) && certificate::is_signed_by(&new, prepared.roots()));
        assert!(!certificate::is_signed_by(&new, &roots));
        assert!(matches!(open().stage().unwrap(), Stage::Switched(_)));

        let retired = open().retire(DAY, true).unwrap();
        assert_eq!((retired.signing(), open().stage().unwrap()), (switched.signing(), Stage::Settled));
        assert!(certificate::is_signed_by(&new, retired.roots()) && !certificate::is_signed_by(&old, retired.roots()));
        // And once more.
        open().prepare(10 * DAY).unwrap();
        open().switch(true).unwrap();
        open().retire(DAY, true).unwrap();
    }

    #[test]
    fn steps_out_of_order_or_too_early_are_rejected() {
        let dir = TempDir::new().unwrap();
        Authority::create(dir.path(), &"mesh.local".parse().unwrap(), 10 * DAY, false).unwrap();
        let open = || Rotation::open(dir.path()).unwrap();
        let error = |result: Result<Authority, Error>| result.err().expect("the step must be rejected").to_string();
        assert!(error(open().switch(true)).contains("rotate prepare"));
        assert!(error(open().retire(DAY, true)).contains("only one root"));
        open().prepare(10 * DAY).unwrap();
        assert!(error(open().prepare(10 * DAY)).contains("in progress"));
        assert!(error(open().retire(DAY, true)).contains("rotate switch"));
        assert!(error(open().switch(false)).contains("too early by 300 s"));
        open().switch(true).unwrap();
        assert!(error(open().switch(true)).contains("rotate prepare"));
        assert!(error(open().retire(DAY, false)).contains("too early by 86400 s"));
        assert!(open().retire(Duration::ZERO, false).is_ok());
    }

    #[test]
    fn an_interrupted_step_can_be_repeated() {
        let dir = TempDir::new().unwrap();
        let first = Authority::create(dir.path(), &"mesh.local".parse().unwrap(), 10 * DAY, false).unwrap();
        // The key exists, its certificate does not.
        fs::write(dir.path().join(NEXT), new_key().unwrap().serialize_pem()).unwrap();
        assert_eq!(Authority::open(dir.path()).unwrap().signing(), first.signing());
        let open = || Rotation::open(dir.path()).unwrap();
        assert_eq!(open().stage().unwrap(), Stage::Settled);
        open().prepare(10 * DAY).unwrap();
        open().switch(true).unwrap();
    }
}
