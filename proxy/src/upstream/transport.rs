//! How connections to an endpoint are opened: the protocol spoken on them, TLS, and the PROXY protocol.

use std::sync::Arc;

use crate::{config::model, tls::ClientTls};

/// How connections to an endpoint are opened. Connections opened by one transport are never used for another.
#[derive(Debug)]
pub struct Transport {
    /// The protocol.
    pub protocol: model::ClusterProtocol,
    /// The version of the PROXY protocol header at the start of each connection, if any.
    pub proxy_protocol: Option<model::ProxyProtocolVersion>,
    /// HTTP/2 settings.
    pub http2: model::Http2,
    /// TLS; `None`: plain text. It stays the same `Arc` as long as its settings are unchanged, so that transports can be
    /// compared.
    pub tls: Option<Arc<ClientTls>>,
}

impl Transport {
    /// The transport that a cluster's configuration asks for, with the TLS settings built from its `tls` section.
    pub fn new(config: &model::Cluster, tls: Option<Arc<ClientTls>>) -> Transport {
        Transport { protocol: config.protocol, proxy_protocol: config.proxy_protocol, http2: config.http2.clone(), tls }
    }

    /// Whether both open connections in the same way.
    pub fn is_like(&self, other: &Transport) -> bool {
        let same_tls = match (&self.tls, &other.tls) {
            (None, None) => true,
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            _ => false,
        };
        same_tls
            && self.protocol == other.protocol
            && self.http2 == other.http2
            && self.proxy_protocol == other.proxy_protocol
    }

    /// Whether requests may use HTTP/2: with `auto`, an endpoint may choose it by ALPN.
    pub fn may_speak_h2(&self) -> bool {
        match self.protocol {
            model::ClusterProtocol::H1 => false,
            model::ClusterProtocol::H2 => true,
            model::ClusterProtocol::Auto => self.tls.is_some(),
        }
    }
}
