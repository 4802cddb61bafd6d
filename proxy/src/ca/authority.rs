//! The certificate authority: a folder with a root certificate, its key and the secret for join tokens, and the
//! certificates signed with that root. [`rotation`](super::rotation) replaces one root with the next.
//!
//! The certificates are X.509-SVIDs (SPIFFE standard). The root has no name constraints: URI constraints would be
//! right, but rustls rejects every certificate below a root that has one.

use std::{
    fs::{File, TryLockError},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, DnsName, pem::PemObject};

use super::{
    Error,
    certificate::{self, CertificateInfo},
    files::{self, PRIVATE, PUBLIC},
    token::Secret,
};
use crate::config::{
    admin::{KEY, SECRET},
    spiffe::{SpiffeId, TrustDomain},
};
use crate::digest::hex;

/// The file with the trusted root certificates, in the authority's folder and in a workload's. It holds more than one
/// certificate during a rotation.
pub const ROOT: &str = "ca.pem";
/// Certificates are backdated because clocks differ: by at most this much, and at most this part of their lifetime.
const BACKDATED: Duration = Duration::from_secs(60);
const BACKDATED_PART: u32 = 10;

/// A certificate authority that can sign.
pub struct Authority {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    roots: String,
    signing: CertificateInfo,
    secret: PathBuf,
}

/// A newly generated root.
pub struct Root {
    /// Its certificate (PEM).
    pub certificate: String,
    /// Its key (PEM).
    pub key: String,
}

impl Root {
    /// Generates a root certificate and its key.
    ///
    /// # Errors
    /// The system's random number generator failed.
    pub fn make(trust_domain: &TrustDomain, life: Duration) -> Result<Root, Error> {
        let key = new_key()?;
        let mut params = params(life)?;
        let mut serial = [0; 4];
        getrandom::fill(&mut serial)?;
        // Consecutive roots get different names, so that they are not mistaken for each other.
        params.distinguished_name.push(DnType::CommonName, format!("Tollgate CA {}", hex(&serial)));
        params.subject_alt_names = vec![SanType::URI(trust_domain.id().as_str().try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Root { certificate, key: key.serialize_pem() })
    }
}

/// The names that a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The SPIFFE ID.
    pub spiffe: SpiffeId,
    /// DNS names; the first label may be `*`.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ip: Vec<IpAddr>,
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate and its intermediates, without the root (PEM).
    pub chain: String,
    /// The certificate's fields.
    pub facts: CertificateInfo,
}

impl Authority {
    /// Creates a root in a folder. The folder is created if it does not exist.
    ///
    /// # Errors
    /// A root exists (unless `replace`), a proxy signs with it, or the files cannot be written.
    pub fn create(dir: &Path, trust_domain: &TrustDomain, life: Duration, replace: bool) -> Result<Authority, Error> {
        files::make_dir(dir)?;
        let existing = [ROOT, KEY, SECRET].into_iter().map(|name| dir.join(name)).find(|path| path.exists());
        if let Some(path) = existing.filter(|_| !replace) {
            return Err(Error::Exists(path));
        }
        // This lock fails while a proxy signs with the folder, and keeps proxies from starting to.
        let folder = File::open(dir).map_err(|error| Error::read(dir, error))?;
        if let Err(TryLockError::WouldBlock) = folder.try_lock() {
            return Err(Error::Used(dir.to_owned()));
        }
        let root = Root::make(trust_domain, life)?;
        // The key is written first: a root without its key would look complete.
        files::put(&dir.join(KEY), &root.key, PRIVATE)?;
        files::put(&dir.join(SECRET), &Secret::generate()?, PRIVATE)?;
        files::put(&dir.join(ROOT), &root.certificate, PUBLIC)?;
        Authority::open(dir)
    }

    /// Reads an authority from its folder.
    ///
    /// # Errors
    /// A file is missing or invalid.
    pub fn open(dir: &Path) -> Result<Authority, Error> {
        let [root_file, key_file, secret_file] = [ROOT, KEY, SECRET].map(|name| dir.join(name));
        let wrong = |what: &str| Error::content(&root_file, what);
        // The roots are read before the key: during a rotation the file holds both certificates, whichever key is
        // read.
        let roots = files::read(&root_file)?;
        let all = certificate::all_in(&roots).map_err(|what| wrong(&what))?;
        if all.iter().any(|facts| !facts.is_ca) {
            return Err(wrong("is a certificate that must not sign others"));
        }
        let key = KeyPair::from_pem(&files::read(&key_file)?);
        let key = key.map_err(|e| Error::content(&key_file, format!("holds no private key: {e}")))?;
        let place = all.iter().position(|facts| facts.public_key == key.subject_public_key_info());
        let not_its_key = || Error::content(&key_file, format!("is not the key of `{}`", root_file.display()));
        let place = place.ok_or_else(not_its_key)?;
        let signing = all[place].clone();
        let identity = signing.uri().and_then(|uri| uri.parse::<SpiffeId>().ok()).filter(|id| id.path().is_empty());
        let identity = identity.ok_or_else(|| wrong("does not name a trust domain (a URI `spiffe://NAME`)"))?;
        let trust_domain =
            identity.trust_domain().parse().map_err(|e| wrong(&format!("does not name a valid trust domain: {e}")))?;
        let der = CertificateDer::pem_slice_iter(roots.as_bytes()).nth(place);
        let der = der.and_then(Result::ok).ok_or_else(|| wrong("is not PEM"))?;
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        let authority = Authority { trust_domain, issuer, roots, signing, secret: secret_file };
        authority.secret()?;
        Ok(authority)
    }

    /// Returns the trusted root certificates (PEM).
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// Returns the root that signs.
    pub fn signing(&self) -> &CertificateInfo {
        &self.signing
    }

    /// Returns when the signing root's certificate expires.
    pub fn not_after(&self) -> SystemTime {
        self.signing.not_after
    }

    /// Returns the trust domain whose identities this authority signs.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Reads the secret that seals join tokens. It is read on every call: replacing the file invalidates all tokens.
    ///
    /// # Errors
    /// The file is missing or invalid.
    pub fn secret(&self) -> Result<Secret, Error> {
        secret_in(&self.secret)
    }

    /// Replaces the secret, which invalidates all join tokens.
    pub fn renew_secret(&self) -> Result<(), Error> {
        files::put(&self.secret, &Secret::generate()?, PRIVATE)
    }

    /// Signs a certificate for a key. It expires after `life`, or with the root if that is sooner.
    ///
    /// # Errors
    /// The identity is of another trust domain or has no path, a name is invalid, or the root has expired.
    pub fn sign(&self, key: &impl PublicKeyData, names: &Names, life: Duration) -> Result<Issued, Error> {
        let id = &names.spiffe;
        if id.trust_domain() != self.trust_domain.as_str() {
            return Err(Error::TrustDomain { ours: self.trust_domain.clone(), asked: id.to_string() });
        }
        // X509-SVID, section 3: only signing certificates have an identity without a path.
        if id.path().is_empty() {
            return Err(Error::Name(format!("`{id}` is the trust domain; a workload's identity has a path")));
        }
        let left = self.not_after().duration_since(SystemTime::now()).map_err(|_| Error::Ended)?;
        let mut params = params(life.min(left))?;
        params.subject_alt_names = alternative_names(names)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        issued(&params.signed_by(key, &self.issuer)?)
    }
}

/// Reads the secret that seals join tokens from an authority's folder.
///
/// # Errors
/// See [`Authority::secret`].
pub fn secret_of(dir: &Path) -> Result<Secret, Error> {
    secret_in(&dir.join(SECRET))
}

/// Reads the trusted root certificates from an authority's folder (PEM).
///
/// # Errors
/// The file is missing.
pub fn roots_of(dir: &Path) -> Result<String, Error> {
    files::read(&dir.join(ROOT))
}

fn secret_in(file: &Path) -> Result<Secret, Error> {
    let secret = Secret::read(&files::read(file)?);
    secret.ok_or_else(|| Error::content(file, "holds no secret for join tokens"))
}

/// Generates a key for a certificate.
pub fn new_key() -> Result<KeyPair, Error> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

/// Returns the parameters common to all certificates.
fn params(life: Duration) -> Result<CertificateParams, Error> {
    let now = SystemTime::now();
    let mut serial = [0; 16];
    getrandom::fill(&mut serial)?;
    // Positive, and always the same length.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATED.min(life / BACKDATED_PART)).into();
    params.not_after = (now + life).into();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    Ok(params)
}

fn alternative_names(names: &Names) -> Result<Vec<SanType>, Error> {
    let mut all = vec![SanType::URI(names.spiffe.as_str().try_into()?)];
    for dns in &names.dns {
        if DnsName::try_from(dns.strip_prefix("*.").unwrap_or(dns)).is_err() {
            return Err(Error::Name(format!("`{dns}` is not a valid DNS name")));
        }
        all.push(SanType::DnsName(dns.as_str().try_into()?));
    }
    all.extend(names.ip.iter().copied().map(SanType::IpAddress));
    Ok(all)
}

fn issued(certificate: &Certificate) -> Result<Issued, Error> {
    let facts = CertificateInfo::of(certificate.der()).map_err(Error::Name)?;
    Ok(Issued { chain: certificate.pem(), facts })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use tempfile::TempDir;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn authority(dir: &Path) -> Authority {
        Authority::create(dir, &"mesh.local".parse().unwrap(), 10 * DAY, false).unwrap()
    }

    fn names(id: &str) -> Names {
        Names { spiffe: id.parse().unwrap(), dns: Vec::new(), ip: Vec::new() }
    }

    #[test]
    fn a_leaf_is_an_x509_svid() {
        let dir = TempDir::new().unwrap();
        let (authority, key) = (authority(dir.path()), new_key().unwrap());
        let mut names = names("spiffe://mesh.local/ns/a/sa/web");
        names.dns = vec!["web.local".to_owned(), "*.web.local".to_owned()];
        names.ip = vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        let facts = authority.sign(&key, &names, DAY).unwrap().facts;
        assert_eq!(facts.uri(), Some("spiffe://mesh.local/ns/a/sa/web"));
        let others = ["DNS:web.local", "DNS:*.web.local", "IP:127.0.0.1", "IP:::1"];
        assert_eq!(facts.names[1..], others);
        assert_eq!((facts.subject.as_str(), facts.is_ca, facts.serial.len()), ("", false, 32));
        assert_eq!(facts.public_key, key.subject_public_key_info());
        let (life, now) = (facts.not_after.duration_since(facts.not_before).unwrap(), SystemTime::now());
        assert!(facts.is_valid_at(now) && !facts.is_valid_at(now + DAY) && life <= DAY + 2 * BACKDATED, "{life:?}");
        let again = authority.sign(&key, &names, DAY).unwrap().facts;
        assert_ne!(again.serial, facts.serial, "serial numbers are unique");
    }

    #[test]
    fn no_certificate_outlives_the_root() {
        let dir = TempDir::new().unwrap();
        let authority = authority(dir.path());
        let issued = authority.sign(&new_key().unwrap(), &names("spiffe://mesh.local/web"), 100 * DAY).unwrap();
        assert!(issued.facts.not_after <= authority.not_after());
        assert!(certificate::is_signed_by(&issued.chain, authority.roots()));
        let other = TempDir::new().unwrap();
        let other = Authority::create(other.path(), authority.trust_domain(), DAY, false).unwrap();
        assert!(!certificate::is_signed_by(&issued.chain, other.roots()));
    }

    #[test]
    fn invalid_names_are_rejected() {
        let dir = TempDir::new().unwrap();
        let (authority, key) = (authority(dir.path()), new_key().unwrap());
        let error = |names: &Names| authority.sign(&key, names, DAY).unwrap_err().to_string();
        assert!(error(&names("spiffe://other/web")).contains("authority, `mesh.local`"));
        assert!(error(&names("spiffe://mesh.local")).contains("has a path"));
        for dns in ["", "a b", "*", "a.*.b", "*.*.a", "-", "web.local\n"] {
            let mut names = names("spiffe://mesh.local/web");
            names.dns.push(dns.to_owned());
            assert!(error(&names).contains("not a valid DNS name"), "{dns:?}");
        }
    }

    #[test]
    fn a_root_is_replaced_only_if_asked() {
        let dir = TempDir::new().unwrap();
        let first = authority(dir.path());
        for name in [KEY, SECRET] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let again = Authority::create(dir.path(), first.trust_domain(), DAY, false);
        assert!(matches!(again, Err(Error::Exists(_))));
        assert_eq!(Authority::open(dir.path()).unwrap().roots(), first.roots(), "the root is unchanged");
        let replaced = Authority::create(dir.path(), first.trust_domain(), DAY, true).unwrap();
        assert_ne!(replaced.roots(), first.roots());
    }

    #[test]
    fn an_incomplete_folder_is_rejected() {
        let dir = TempDir::new().unwrap();
        let error = || Authority::open(dir.path()).err().unwrap().to_string();
        assert!(error().contains("cannot read"), "{}", error());
        let authority = authority(dir.path());
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put(KEY, &new_key().unwrap().serialize_pem());
        assert!(error().contains("is not the key of"), "{}", error());
        put(KEY, "nonsense");
        assert!(error().contains("holds no private key"), "{}", error());
        let leaf = authority.sign(&new_key().unwrap(), &names("spiffe://mesh.local/web"), DAY).unwrap();
        put(ROOT, &leaf.chain);
        assert!(error().contains("must not sign others"), "{}", error());
        put(ROOT, "nonsense");
        assert!(error().contains("holds no certificate"), "{}", error());
    }
}
