//! Selects a listener's certificate by the requested server name (SNI, RFC 6066 section 3).

use std::{collections::HashMap, sync::Arc};

use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use smallvec::{SmallVec, smallvec};

use super::{identity::Identity, material::OwnCertificate};

/// Indices into the list of certificates, in its order. A name has several if it has keys of several types.
type Places = SmallVec<[usize; 2]>;

/// A listener's certificates, by name.
#[derive(Debug)]
pub(super) struct Resolver {
    certificates: Vec<OwnCertificate>,
    exact: HashMap<Box<str>, Places>,
    /// For `*.a.example`, the part after `*.`; the wildcard matches exactly one label (RFC 9525 section 6.3).
    wildcards: HashMap<Box<str>, Places>,
    first: Places,
}

impl Resolver {
    /// Creates a resolver for at least one certificate.
    pub(super) fn new(certificates: Vec<OwnCertificate>) -> Resolver {
        let (mut exact, mut wildcards) = (HashMap::<_, Places>::new(), HashMap::<_, Places>::new());
        for (place, certificate) in certificates.iter().enumerate() {
            for name in &certificate.identity.dns_sans {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                let places = match name.strip_prefix("*.") {
                    Some(parent) => wildcards.entry(parent.into()).or_default(),
                    None => exact.entry(name.into()).or_default(),
                };
                if places.last() != Some(&place) {
                    places.push(place);
                }
            }
        }
        Resolver { certificates, exact, wildcards, first: smallvec![0] }
    }

    /// Returns all certificates.
    pub(super) fn certificates(&self) -> &[OwnCertificate] {
        &self.certificates
    }

    fn places(&self, name: Option<&str>) -> &Places {
        let by_name = |name: &str| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let wildcard = || self.wildcards.get(name.split_once('.')?.1);
            self.exact.get(&*name).or_else(wildcard)
        };
        name.and_then(by_name).unwrap_or(&self.first)
    }

    /// Returns the identity of the certificate for a name; of the first, if there are keys of several types.
    pub(super) fn identity(&self, name: Option<&str>) -> Option<&Arc<Identity>> {
        Some(&self.certificates.get(*self.places(name).first()?)?.identity)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut fitting = self.places(hello.server_name()).iter().filter_map(|place| self.certificates.get(*place));
        let first = fitting.clone().next()?;
        let can_sign = |c: &&OwnCertificate| c.key.key.choose_scheme(hello.signature_schemes()).is_some();
        Some(fitting.find(can_sign).unwrap_or(first).key.clone())
    }
}
