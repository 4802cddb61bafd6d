//! Sessions that clients resume, so that a second handshake costs no signature. They outlive reloads, as long as what is
//! asked of clients is the same: a resumed session is not verified again.
//!
//! Without client certificates a session is a ticket (RFC 8446 section 4.6.1, RFC 5077), encrypted with keys that change
//! every six hours, and nothing is kept here. With them, sessions are kept here, TLS 1.3 only, and each can be resumed once:
//! so one that is refused after all, because the client's certificate has expired meanwhile, cannot be tried for ever.

use std::sync::Arc;

use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, ProducesTickets, ServerSessionMemoryCache, StoresServerSessions},
};

use super::error::{MaterialError, plain};

/// Sessions that are kept with the certificates of their clients, some 2 KiB each. Older ones give way.
const KEPT: usize = 4096;

/// A listener's sessions.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    /// What was asked of clients when they were made.
    rules: [u8; 32],
    storage: Arc<dyn StoresServerSessions>,
    /// For TCP, and for QUIC: a session of one is none of the other's.
    ticketers: Option<[Arc<dyn ProducesTickets>; 2]>,
}

/// What a connection is carried by.
#[derive(Debug, Clone, Copy)]
pub(super) enum TransportKind {
    Tcp,
    Quic,
}

impl Sessions {
    /// The `previous` ones if they were made by the same rules, else new ones.
    pub(super) fn new(
        rules: [u8; 32],
        with_clients: bool,
        previous: Option<&Sessions>,
    ) -> Result<Sessions, MaterialError> {
        if let Some(previous) = previous.filter(|previous| previous.rules == rules) {
            return Ok(previous.clone());
        }
        if with_clients {
            let storage = Arc::new(UsedOnce(ServerSessionMemoryCache::new(KEPT)));
            return Ok(Sessions { rules, storage, ticketers: None });
        }
        let ticketer = || rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|e| MaterialError::Refused(plain(&e)));
        let ticketers = Some([ticketer()?, ticketer()?]);
        Ok(Sessions { rules, storage: Arc::new(NoServerSessionStorage {}), ticketers })
    }

    /// Lets connections resume them.
    pub(super) fn put_into(&self, config: &mut ServerConfig, carrier: TransportKind) {
        config.session_storage = match carrier {
            TransportKind::Tcp => self.storage.clone(),
            // Nobody looks at the client's certificate once more when the handshake is over.
            TransportKind::Quic => Arc::new(NoServerSessionStorage {}),
        };
        if let Some(ticketers) = &self.ticketers {
            config.ticketer = ticketers[carrier as usize].clone();
        }
    }
}

/// Gives each session out once. TLS 1.3 takes sessions out; TLS 1.2 would look at them, and finds none.
#[derive(Debug)]
struct UsedOnce(Arc<ServerSessionMemoryCache>);

impl StoresServerSessions for UsedOnce {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.0.put(key, value)
    }

    fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.take(key)
    }

    // Asked for TLS 1.2 only: whether the client is given a session's name.
    fn can_cache(&self) -> bool {
        false
    }
}
