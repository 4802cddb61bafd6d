//! Session resumption, so that a second handshake costs no signature. Sessions outlive reloads as long as the
//! requirements for clients are unchanged: a resumed session is not verified again.
//!
//! Without client certificates a session is a ticket (RFC 8446 section 4.6.1, RFC 5077), encrypted with keys that
//! rotate every six hours, and the server stores nothing. With client certificates, sessions are stored here, for TLS
//! 1.3 only, and each can be resumed once: a session rejected because the client's certificate has since expired
//! cannot be retried forever.

use std::sync::Arc;

use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, ProducesTickets, ServerSessionMemoryCache, StoresServerSessions},
};

use super::error::{MaterialError, plain};

/// The limit on stored sessions, some 2 KiB each with their client certificates. The oldest are evicted.
const KEPT: usize = 4096;

/// A listener's sessions.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    /// The requirements for clients when the sessions began.
    rules: [u8; 32],
    storage: Arc<dyn StoresServerSessions>,
    /// For TCP and for QUIC: a session of one cannot be resumed on the other.
    ticketers: Option<[Arc<dyn ProducesTickets>; 2]>,
}

/// The transport of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum TransportKind {
    Tcp,
    Quic,
}

impl Sessions {
    /// Returns the `previous` sessions if their rules are the same, else new ones.
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

    /// Enables resumption in a configuration.
    pub(super) fn put_into(&self, config: &mut ServerConfig, transport: TransportKind) {
        config.session_storage = match transport {
            TransportKind::Tcp => self.storage.clone(),
            // For QUIC, the client's certificate is not checked again after the handshake.
            TransportKind::Quic => Arc::new(NoServerSessionStorage {}),
        };
        if let Some(ticketers) = &self.ticketers {
            config.ticketer = ticketers[transport as usize].clone();
        }
    }
}

/// Returns each session once. TLS 1.3 takes sessions out; TLS 1.2 would read them in place, and finds none.
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

    // Called for TLS 1.2 only: whether the client gets a session ID.
    fn can_cache(&self) -> bool {
        false
    }
}
