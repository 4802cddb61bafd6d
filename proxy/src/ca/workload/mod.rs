//! The proxy's own certificate: got from a certificate authority before the configuration is put in force, which may name
//! its files, and renewed when two thirds of its life are over.
//!
//! [`ask`] is the conversation with the authority, [`store`] the folder that everybody else reads. Nothing else in the
//! proxy knows of this: listeners and clusters name the files, and the file watch sees that they change.

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

/// How long the first certificate may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits between tries: the first one, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How far apart renewals are at most if the clocks say that the next one is due at once, which they do where the authority's is
/// behind ours by more than a certificate's life.
const APART: Duration = Duration::from_secs(600);

/// The clock on the wall is looked at this often, since it may be set and a machine may sleep; and the authority is asked which roots are
/// trusted: another one must be known before it signs.
const LOOK: Duration = Duration::from_secs(60);

/// Gets and renews the certificate.
pub struct Agent {
    config: model::Workload,
    token: PathBuf,
    store: Store,
    not_after: PlainGauge,
    renewed: Counter,
    failed: Counter,
}

impl Agent {
    /// What the configuration asks for, if it does. `cache` is where the folder is by default.
    ///
    /// # Errors
    /// There is no place for the folder.
    pub fn new(loaded: &Loaded, cache: Option<PathBuf>, registry: &Registry) -> anyhow::Result<Option<Agent>> {
        let Some(config) = loaded.config.workload.clone() else { return Ok(None) };
        let Some(dir) = folder(loaded, &config, cache) else {
            return Err(Diagnostics::new(loaded.source.clone(), vec![homeless(loaded)]).into());
        };
        let renewals = |result| {
            let help = "Certificates that this proxy has asked for, by result.";
            registry.counter("tollgate_workload_renewals_total", help, &[("result", result)])
        };
        let name = "tollgate_workload_certificate_not_after_timestamp_seconds";
        Ok(Some(Agent {
            token: loaded.source.resolve(&config.token),
            config,
            store: Store::new(dir),
            not_after: registry.plain_gauge(name, "When this proxy's own certificate ends.", &[])?,
            renewed: renewals("success")?,
            failed: renewals("failure")?,
        }))
    }

    /// Sees to it that there is a certificate that holds, and renews it as long as the process runs.
    ///
    /// # Errors
    /// There is none, and the authority refuses to give one or does not answer for 30 s.
    pub async fn start(self) -> anyhow::Result<()> {
        let held = match self.store.read(&self.config.spiffe) {
            Ok(held) => {
                tracing::info!(
                    target: target::CA,
                    dir = %self.store.dir().display(), "the workload's certificate still holds"
                );
                held
            }
            Err(why) => {
                tracing::info!(
                    target: target::CA,
                    ca = %self.config.ca, "a certificate for this workload is asked for: {why}"
                );
                let failed = || format!("there is no certificate for the workload `{}`", self.config.spiffe);
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
            // To be refused again takes no time, but asking again is no use.
            if failure.is_final() {
                return Err(failure.into());
            }
            tracing::warn!(target: target::CA, ca = %self.config.ca, "{failure}; trying again");
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(anyhow::Error::new(failure)
                    .context(format!("it was asked again and again for {} s", PATIENCE.as_secs())));
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
                    "the join token ends before the workload's certificate is renewed: put a new one in its place"
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
                        "the workload's certificate is not renewed yet: {failure}"
                    ),
                    Err(failure) => tracing::error!(
                        target: target::CA,
                        not_after = timestamp::text(held.facts.not_after),
                        "the workload's certificate has ended, and there is no new one: {failure}"
                    ),
                }
                // All proxies lose the same authority at the same time.
                tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            };
            self.note(&held);
            earliest = SystemTime::now() + apart(&held.facts);
        }
    }

    /// Asks which roots are trusted, and puts them into the folder if they are others than before.
    async fn learn_roots(&self, held: &mut StoredCertificate) {
        let learnt = async {
            let roots = self::client::roots(&self.config).await?;
            // Our own must be among them: whoever has them goes by this certificate until it is renewed.
            if roots == held.root || !certificate::is_signed_by(&held.chain, &roots) {
                return Ok(());
            }
            let new =
                StoredCertificate::new(held.chain.clone(), held.key.clone(), roots).map_err(RequestError::Answer)?;
            self.store.put(&new).map_err(RequestError::Store)?;
            tracing::info!(
                target: target::CA,
                ca = %self.config.ca, "the certificate authority trusts other roots than before"
            );
            *held = new;
            Ok::<_, RequestError>(())
        };
        if let Err(failure) = learnt.await {
            tracing::debug!(target: target::CA, "which roots are trusted is not known: {failure}");
        }
    }

    /// Asks for a certificate and puts it into the folder.
    async fn get(&self) -> Result<StoredCertificate, RequestError> {
        let got = async {
            let held = self::client::ask(&self.config, &self.token()?).await?;
            let before = self.store.put(&held).map_err(RequestError::Store)?;
            if before.is_some_and(|before| !certificate::have_one_in_common(&before, &held.root)) {
                tracing::warn!(target: target::CA, "the certificate authority has another root than before");
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
            "the workload's certificate"
        );
    }
}

/// Where the certificate is kept, if there is a place for it.
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

/// What starting would find wrong before anybody is asked.
pub fn look(loaded: &Loaded, cache: Option<PathBuf>) -> Option<Diagnostic> {
    let config = loaded.config.workload.as_ref()?;
    let Some(dir) = folder(loaded, config, cache) else { return Some(homeless(loaded)) };
    if Store::new(dir).read(&config.spiffe).is_ok() {
        return None;
    }
    let unread = super::files::read(&loaded.source.resolve(&config.token)).err()?;
    let help = "without a certificate from before, it is needed at once".to_owned();
    Some(loaded.source.diagnostic("/workload/token", format!("there is no join token: {unread}"), Some(help)))
}

/// How long a certificate is kept whatever the clocks say: a twelfth of its life.
fn apart(facts: &CertificateInfo) -> Duration {
    part(facts).min(APART)
}

/// A twelfth of a certificate's life, or a second.
fn part(facts: &CertificateInfo) -> Duration {
    let life = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
    (life / 12).max(Duration::from_secs(1))
}

/// When to renew: when two thirds of its life are over, or up to a twelfth of it sooner, so that proxies that began together
/// do not come together. `dice` is from 0 to 1.
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

    /// With an authority whose clock is far behind, each new certificate is due for renewal at once.
    #[test]
    fn renewals_are_apart_whatever_the_clocks_say() {
        for (life, seconds) in [(0, 1), (6, 1), (1200, 100), (86_400, 600)] {
            assert_eq!(apart(&facts(1000, 1000 + life)), Duration::from_secs(seconds), "{life}");
        }
        assert_eq!(apart(&facts(2000, 1000)), Duration::from_secs(1));
    }

    #[test]
    fn a_certificate_is_renewed_when_two_thirds_of_its_life_are_over() {
        let facts = facts(1000, 2200);
        let held = StoredCertificate { chain: String::new(), key: String::new(), root: String::new(), facts };
        assert_eq!(due(&held, 0.0), at(1800));
        assert_eq!(due(&held, 1.0), at(1700));
    }
}
