//! How one root follows another without a gap: first everybody trusts both, then the new one signs, and when nothing that the old one
//! has signed is of use any more, it goes.
//!
//! Each step ends with one file that is renamed into its place, so the folder is never between two states, and what it holds says how
//! far a rotation is: `next.key` is there between the first two steps, and `ca.pem` has two certificates until the last one. A proxy
//! that signs reads the folder each time, so it follows by itself.

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

/// The key of the root that will sign next.
pub const NEXT: &str = "next.key";

/// How long everybody has to learn of the next root before it signs. Workloads ask once a minute, and put what they get in force.
pub const SPREAD: Duration = Duration::from_secs(300);

/// An authority's folder, of which the root is to be replaced.
pub struct Rotation {
    dir: PathBuf,
    authority: Authority,
}

/// How far a rotation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// One root, which signs.
    Settled,
    /// The next root is trusted since then, and does not sign yet.
    Prepared(SystemTime),
    /// It signs since then, and the old one is still trusted.
    Switched(SystemTime),
}

impl Rotation {
    /// Reads the folder.
    ///
    /// # Errors
    /// As for [`Authority::open`].
    pub fn open(dir: &Path) -> Result<Rotation, Error> {
        Ok(Rotation { dir: dir.to_owned(), authority: Authority::open(dir)? })
    }

    /// How far it is.
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

    /// Makes the next root, and lets it be trusted beside the one that signs.
    ///
    /// # Errors
    /// A rotation is under way, or a file cannot be written.
    pub fn prepare(self, life: Duration) -> Result<Authority, Error> {
        if self.stage()? != Stage::Settled {
            return Err(Error::Step("a rotation is under way already: `tollgate ca rotate` shows it".to_owned()));
        }
        let next = Root::make(self.authority.trust_domain(), life)?;
        // The key first: it is nothing before its certificate is there.
        files::put(&self.dir.join(NEXT), &next.key, PRIVATE)?;
        files::put(&self.dir.join(ROOT), &format!("{}{}", self.authority.roots(), next.certificate), PUBLIC)?;
        Authority::open(&self.dir)
    }

    /// Lets the next root sign.
    ///
    /// # Errors
    /// It is not prepared, or was just now (unless `now`), or a file cannot be written.
    pub fn switch(self, now: bool) -> Result<Authority, Error> {
        let Stage::Prepared(since) = self.stage()? else {
            return Err(Error::Step("there is no next root: `tollgate ca rotate prepare` makes one".to_owned()));
        };
        if !now {
            wait(
                since,
                SPREAD,
                "workloads that do not know the next root yet would not trust those that it signs for",
            )?;
        }
        let (next, path) = (self.dir.join(NEXT), self.dir.join(KEY));
        let key = KeyPair::from_pem(&files::read(&next)?);
        let key = key.map_err(|e| Error::content(&next, format!("holds no private key: {e}")))?;
        if !self.roots()?.iter().any(|root| root.public_key == key.subject_public_key_info()) {
            return Err(Error::content(&next, format!("is the key of no root in `{}`", self.dir.join(ROOT).display())));
        }
        // When a file was changed says when the step was taken.
        let stamped = File::options().append(true).open(&next).and_then(|file| file.set_modified(SystemTime::now()));
        stamped.and_then(|()| fs::rename(&next, &path)).map_err(|error| Error::write(&path, error))?;
        Authority::open(&self.dir)
    }

    /// Ends the trust in all roots but the one that signs. `life` is the longest life of a certificate.
    ///
    /// # Errors
    /// The next root does not sign yet, or what the old one has signed may still be in use (unless `now`), or a file cannot be
    /// written.
    pub fn retire(self, life: Duration, now: bool) -> Result<Authority, Error> {
        match self.stage()? {
            Stage::Settled => return Err(Error::Step("there is one root only".to_owned())),
            Stage::Prepared(_) => {
                return Err(Error::Step("the next root does not sign yet: `tollgate ca rotate switch`".to_owned()));
            }
            Stage::Switched(since) if !now => {
                wait(since, life, "certificates that the old root has signed would not be trusted any more")?;
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

    /// The roots that are trusted.
    fn roots(&self) -> Result<Vec<CertificateInfo>, Error> {
        certificate::all_in(self.authority.roots()).map_err(|what| Error::content(&self.dir.join(ROOT), what))
    }
}

/// One of the certificates in a text (PEM), as it stands there.
fn nth(pem: &str, place: usize) -> Option<&str> {
    let begin = pem.match_indices("-----BEGIN CERTIFICATE-----").nth(place)?.0;
    let end = pem[begin..].find("-----END CERTIFICATE-----")? + "-----END CERTIFICATE-----".len();
    let text = pem[begin..].get(..=end)?;
    CertificateDer::from_pem_slice(text.as_bytes()).ok().map(|_| text)
}

/// Refuses what comes sooner than so long after a time.
fn wait(since: SystemTime, least: Duration, why: &str) -> Result<(), Error> {
    let left = (since + least).duration_since(SystemTime::now()).unwrap_or_default();
    match left.is_zero() {
        true => Ok(()),
        false => Err(Error::Step(format!(
            "it is too early, by {} s: {why} (`--now` does it all the same)",
            left.as_secs() + 1
        ))),
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
    fn both_roots_are_trusted_before_the_new_one_signs_and_after() {
        let dir = TempDir::new().unwrap();
        let first = Authority::create(dir.path(), &"mesh.local".parse().unwrap(), 10 * DAY, false).unwrap();
        let open = || Rotation::open(dir.path()).unwrap();
        assert_eq!(open().stage().unwrap(), Stage::Settled);
        let (old, roots) = (signed(&first), first.roots().to_owned());

        let prepared = open().prepare(10 * DAY).unwrap();
        assert!(prepared.roots().starts_with(&roots) && prepared.roots().len() > roots.len());
        assert_eq!(prepared.signing(), first.signing(), "the old one signs on");
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
    fn no_step_is_left_out_or_comes_too_early() {
        let dir = TempDir::new().unwrap();
        Authority::create(dir.path(), &"mesh.local".parse().unwrap(), 10 * DAY, false).unwrap();
        let open = || Rotation::open(dir.path()).unwrap();
        let error = |result: Result<Authority, Error>| result.err().expect("it is refused").to_string();
        assert!(error(open().switch(true)).contains("rotate prepare"));
        assert!(error(open().retire(DAY, true)).contains("one root only"));
        open().prepare(10 * DAY).unwrap();
        assert!(error(open().prepare(10 * DAY)).contains("under way"));
        assert!(error(open().retire(DAY, true)).contains("rotate switch"));
        assert!(error(open().switch(false)).contains("too early, by 300 s"));
        open().switch(true).unwrap();
        assert!(error(open().switch(true)).contains("rotate prepare"));
        assert!(error(open().retire(DAY, false)).contains("too early, by 86400 s"));
        assert!(open().retire(Duration::ZERO, false).is_ok());
    }

    #[test]
    fn a_step_that_was_broken_off_can_be_taken_again() {
        let dir = TempDir::new().unwrap();
        let first = Authority::create(dir.path(), &"mesh.local".parse().unwrap(), 10 * DAY, false).unwrap();
        // The key is there, its certificate is not.
        fs::write(dir.path().join(NEXT), new_key().unwrap().serialize_pem()).unwrap();
        assert_eq!(Authority::open(dir.path()).unwrap().signing(), first.signing());
        let open = || Rotation::open(dir.path()).unwrap();
        assert_eq!(open().stage().unwrap(), Stage::Settled);
        open().prepare(10 * DAY).unwrap();
        open().switch(true).unwrap();
    }
}
