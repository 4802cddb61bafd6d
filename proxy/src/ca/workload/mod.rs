//! The proxy's own certificate: requested from a certificate authority before the configuration is applied, which may
//! name its files, and renewed after two thirds of its lifetime.
//!
//! [`client`] talks to the authority, [`store`] is the folder that others read. The rest of the proxy does not depend
//! on this: listeners and clusters name the files, and the file watch notices that they change.

mod client;
mod store;

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;

use self::{
    client::RequestError,
    store::{Store, StoredCertificate},
};
use super::{
    certificate::{self, CertificateInfo},
    token,
};
use crate::{
    config::{Diagnostic, Diagnostics, Loaded, model},
    observe::{Counter, PlainGauge, Registry, access_log::timestamp, shard, target},
};

/// The timeout for the first certificate.
const PATIENCE: Duration = Duration::from_secs(30);

/// The waits between attempts: the first and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The longest minimum interval between renewals. It applies if the clocks say that the next renewal is due
/// immediately, as they do when the authority's clock is behind ours by more than a certificate's lifetime.
const APART: Duration = Duration::from_secs(600);

/// The interval at which the wall clock is read, because it may be set and the machine may sleep, and at which the
/// authority is asked for the trusted roots: a new root must be known before it signs.
const LOOK: Duration = Duration::from_secs(60);

/// Requests and renews the certificate.
pub struct Agent {
    config: model::Workload,
    token: PathBuf,
    store: Store,
    not_after: PlainGauge,
    renewed: Counter,
    failed: Counter,
}

impl Agent {
    /// Creates the configured agent, if any. `cache` is the folder's default parent.
    ///
    /// # Errors
    /// No folder can be determined.
    pub fn new(loaded: &Loaded, cache: Option<PathBuf>, registry: &Registry) -> anyhow::Result<Option<Agent>> {
        let Some(config) = loaded.config.workload.clone() else { return Ok(None) };
        let Some(dir) = folder(loaded, &config, cache) else {
            return Err(Diagnostics::new(loaded.source.clone(), vec![homeless(loaded)]).into());
        };
        let renewals = |result| {
            let help = "Certificates requested by this proxy, by result.";
            registry.counter("tollgate_workload_renewals_total", help, &[("result", result)])
        };
        let name = "tollgate_workload_certificate_not_after_timestamp_seconds";
        Ok(Some(Agent {
            token: loaded.source.resolve(&config.token),
            config,
            store: Store::new(dir),
            not_after: registry.plain_gauge(name, "Expiry of this proxy's own certificate.", &[])?,
            renewed: renewals("success")?,
            failed: renewals("failure")?,
        }))
    }

    /// Ensures that a valid certificate exists, and renews it as long as the process runs.
    ///
    /// # Errors
    /// There is none, and the authority rejects the request or is unavailable for 30 s.
    pub async fn start(self) -> anyhow::Result<()> {
        let held = match self.store.read(&self.config.spiffe) {
            Ok(held) => {
                tracing::info!(
                    target: target::CA,
                    dir = %self.store.dir().display(), "workload certificate is still valid"
                );
                held
            }
            Err(why) => {
                tracing::info!(
                    target: target::CA,
                    ca = %self.config.ca, "requesting a workload certificate: {why}"
                );
                let failed = || format!("cannot get a certificate for the workload `{}`", self.config.spiffe);
                self.first().await.with_context(failed)?
            }
        };
        self.note(&held);
        tokio::task::spawn_local(self.keep(held));
        Ok(())
    }

    async fn first(&self) -> anyhow::Result<StoredCertificate> {
        let (end, mut wait) = (Instant::now() + PATIENCE, FIRST_WAIT);
        loop {
            let failure = match self.get().await {
                Ok(held) => return Ok(held),
                Err(failure) => failure,
            };
            // A rejection is final: retrying is useless.
            if failure.is_final() {
                return Err(failure.into());
            }
            tracing::warn!(target: target::CA, ca = %self.config.ca, "{failure}; retrying");
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(anyhow::Error::new(failure).context(format!("gave up after {} s", PATIENCE.as_secs())));
            }
            tokio::time::sleep(wait.min(left)).await;
            wait = (wait * 2).min(LONGEST_WAIT / 10);
        }
    }

    async fn keep(self, mut held: StoredCertificate) {
        let mut earliest = SystemTime::now();
        loop {
            let due = due(&held, fastrand::f64()).max(earliest);
            if let Ok(Some(end)) = self.token().map(|token| token::end_of(&token))
                && end < due
            {
                tracing::warn!(
                    target: target::CA,
                    token = %self.token.display(), ended = timestamp::text(end), renewal = timestamp::text(due),
                    "join token expires before the workload certificate is renewed: replace it"
                );
            }
            let look = LOOK.min(part(&held.facts));
            while let Ok(left) = due.duration_since(SystemTime::now()) {
                self.learn_roots(&mut held).await;
                tokio::time::sleep(left.min(look) + Duration::from_millis(1)).await;
            }
            let mut wait = FIRST_WAIT;
            held = loop {
                match self.get().await {
                    Ok(new) => break new,
                    Err(failure) if held.facts.is_valid_at(SystemTime::now()) => tracing::warn!(
                        target: target::CA,
                        not_after = timestamp::text(held.facts.not_after),
                        "workload certificate not renewed yet: {failure}"
                    ),
                    Err(failure) => tracing::error!(
                        target: target::CA,
                        not_after = timestamp::text(held.facts.not_after),
                        "workload certificate has expired and cannot be renewed: {failure}"
                    ),
                }
                // Jitter: all proxies lose the same authority at the same time.
                tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            };
            self.note(&held);
            earliest = SystemTime::now() + apart(&held.facts);
        }
    }

    /// Requests the trusted roots and stores them if they changed.
    async fn learn_roots(&self, held: &mut StoredCertificate) {
        let learnt = async {
            let roots = self::client::roots(&self.config).await?;
            // Our root must be among them: their readers use our certificate until it is renewed.
            if roots == held.root || !certificate::is_signed_by(&held.chain, &roots) {
                return Ok(());
            }
            let new =
                StoredCertificate::new(held.chain.clone(), held.key.clone(), roots).map_err(RequestError::Answer)?;
            self.store.put(&new).map_err(RequestError::Store)?;
            tracing::info!(
                target: target::CA,
                ca = %self.config.ca, "trusted roots changed"
            );
            *held = new;
            Ok::<_, RequestError>(())
        };
        if let Err(failure) = learnt.await {
            tracing::debug!(target: target::CA, "cannot get the trusted roots: {failure}");
        }
    }

    /// Requests a certificate and stores it.
    async fn get(&self) -> Result<StoredCertificate, RequestError> {
        let got = async {
            let held = self::client::ask(&self.config, &self.token()?).await?;
            let before = self.store.put(&held).map_err(RequestError::Store)?;
            if before.is_some_and(|before| !certificate::have_one_in_common(&before, &held.root)) {
                tracing::warn!(target: target::CA, "the certificate authority's root changed");
            }
            Ok(held)
        };
        let got = got.await;
        let counter = if got.is_ok() { &self.renewed } else { &self.failed };
        counter.inc(shard());
        got
    }

    fn token(&self) -> Result<String, RequestError> {
        let text = super::files::read(&self.token).map_err(RequestError::Token)?;
        Ok(text.trim().to_owned())
    }

    fn note(&self, held: &StoredCertificate) {
        let seconds = held.facts.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.not_after.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        tracing::info!(
            target: target::CA,
            spiffe = %self.config.spiffe, serial = held.facts.serial, not_after = timestamp::text(held.facts.not_after),
            "workload certificate"
        );
    }
}

/// Returns the folder for the certificate, if one can be determined.
fn folder(loaded: &Loaded, config: &model::Workload, cache: Option<PathBuf>) -> Option<PathBuf> {
    if let Some(dir) = &config.dir {
        return Some(loaded.source.resolve(dir));
    }
    let path = config.spiffe.path().trim_matches('/');
    Some(cache?.join("workload").join(config.spiffe.trust_domain()).join(path))
}

fn homeless(loaded: &Loaded) -> Diagnostic {
    loaded.source.diagnostic("/workload", "`workload` needs a `dir`: there is no cache folder", None)
}

/// Returns what startup would reject, without contacting the authority.
pub fn look(loaded: &Loaded, cache: Option<PathBuf>) -> Option<Diagnostic> {
    let config = loaded.config.workload.as_ref()?;
    let Some(dir) = folder(loaded, config, cache) else { return Some(homeless(loaded)) };
    if Store::new(dir).read(&config.spiffe).is_ok() {
        return None;
    }
    let unread = super::files::read(&loaded.source.resolve(&config.token)).err()?;
    let help = "it is required because there is no valid certificate from an earlier run".to_owned();
    Some(loaded.source.diagnostic("/workload/token", format!("there is no join token: {unread}"), Some(help)))
}

/// Returns the minimum interval between renewals, whatever the clocks say: a twelfth of the lifetime, at most
/// [`APART`].
fn apart(facts: &CertificateInfo) -> Duration {
    part(facts).min(APART)
}

/// Returns a twelfth of a certificate's lifetime, at least one second.
fn part(facts: &CertificateInfo) -> Duration {
    let life = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
    (life / 12).max(Duration::from_secs(1))
}

/// Returns when to renew: after two thirds of the lifetime, or up to a twelfth of it earlier, so that proxies that
/// started together do not renew together. `dice` is from 0 to 1.
fn due(held: &StoredCertificate, dice: f64) -> SystemTime {
    let facts = &held.facts;
    let life = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
    facts.not_before + life.mul_f64(2.0 / 3.0 - dice.clamp(0.0, 1.0) / 12.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn facts(from: u64, until: u64) -> CertificateInfo {
        CertificateInfo {
            subject: String::new(),
            issuer: String::new(),
            serial: String::new(),
            names: Vec::new(),
            not_before: at(from),
            not_after: at(until),
            is_ca: false,
            fingerprint: String::new(),
            public_key: Vec::new(),
        }
    }

    /// With an authority whose clock is far behind, each new certificate is due for renewal immediately.
    #[test]
    fn renewals_have_a_minimum_interval_whatever_the_clocks_say() {
        for (life, seconds) in [(0, 1), (6, 1), (1200, 100), (86_400, 600)] {
            assert_eq!(apart(&facts(1000, 1000 + life)), Duration::from_secs(seconds), "{life}");
        }
        assert_eq!(apart(&facts(2000, 1000)), Duration::from_secs(1));
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_lifetime() {
        let facts = facts(1000, 2200);
        let held = StoredCertificate { chain: String::new(), key: String::new(), root: String::new(), facts };
        assert_eq!(due(&held, 0.0), at(1800));
        assert_eq!(due(&held, 1.0), at(1700));
    }
}
