//! Certificates and keys of sources' clusters. Another thread reads them, so that a slow disk holds up nothing else.

use std::{path::Path, sync::Arc, time::Instant};

use super::{Keeper, documents::Payload, endpoints};
use crate::{
    config::model,
    control::{
        certificates,
        store::{FieldError, Resource, TransactionId},
    },
    tls::{self, ClientTls},
};

/// The TLS settings of a source's cluster, with the files that they name.
pub(super) struct LoadedTls {
    transaction: TransactionId,
    cluster: Arc<Resource<Payload>>,
    tls: Result<Option<Arc<ClientTls>>, Vec<FieldError>>,
    /// When the change has arrived.
    since: Instant,
}

impl Keeper {
    /// Reads the certificates of a source's cluster on another thread.
    pub(super) fn load_tls(&mut self, transaction: TransactionId, cluster: Arc<Resource<Payload>>) {
        let (dir, since) = (self.dir.clone(), self.since);
        self.certificates.spawn_blocking(move || {
            let tls = match &*cluster.payload {
                Payload::Cluster(config) => client_tls(config, &dir),
                _ => Ok(None),
            };
            LoadedTls { transaction, cluster, tls, since }
        });
    }

    /// Accepts or refuses a cluster whose certificates were read, unless its source has replaced it meanwhile.
    pub(super) fn loaded(&mut self, loaded: LoadedTls) {
        let LoadedTls { transaction, cluster, tls, since } = loaded;
        self.since = since;
        let (tls, result) = match tls {
            Ok(tls) => (tls, Ok(())),
            Err(wrong) => (None, Err(vec![(cluster.key.clone(), wrong)])),
        };
        let now = self.now();
        let committed = self.store.commit(transaction, result, now);
        if let Payload::Cluster(config) = &*cluster.payload
            && committed.accepted.contains(&cluster.key)
        {
            self.lane.set_cluster(config, tls, endpoints(&self.store, config), self.since);
        }
        self.settle();
        self.decided_later();
    }
}

/// Loads the TLS settings of a source's cluster.
fn client_tls(config: &model::Cluster, dir: &Path) -> Result<Option<Arc<ClientTls>>, Vec<FieldError>> {
    let Some(section) = &config.tls else { return Ok(None) };
    let resolve = |path: &Path| dir.join(path);
    let mut loader = tls::Loader::new(&resolve);
    let protocols = certificates::wanted(config.protocol);
    let loaded = ClientTls::load(section, &config.name, protocols, &mut loader, None);
    let errors = |problems: Vec<tls::FieldError>| {
        problems
            .into_iter()
            .map(|problem| FieldError { field: format!("tls.{}", problem.field), message: problem.error.to_string() })
    };
    loaded.map(Some).map_err(|problems| errors(problems).collect())
}
