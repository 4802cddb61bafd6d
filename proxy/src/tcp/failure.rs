//! Reasons why a connection was refused or ended early, each with its response flag and its detail for the access log.

use tollgate_abi::fast::flag;

use crate::observe::{Detail, detail};

/// A reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpFailure {
    /// No route matches.
    NoRoute,
    /// The cluster does not exist.
    NoCluster,
    /// The cluster has no endpoint.
    NoEndpoint,
    /// The cluster's request or connection limit is reached.
    Overflow,
    /// Connecting to an endpoint failed.
    ConnectFailure,
    /// Connecting to an endpoint timed out.
    ConnectTimeout,
    /// The client reset its connection.
    ClientReset,
    /// The upstream reset its connection.
    UpstreamReset,
    /// The idle timeout expired.
    Idle,
    /// The idle timeout expired while a filter held the connection.
    Stalled,
    /// The connection reached its maximum age.
    Age,
    /// A filter failed.
    FilterFailed,
    /// The connection was closed through its stream, which has recorded the reason.
    Closed,
}

impl TcpFailure {
    /// Returns the response flag and the detail; `None` if they are recorded already.
    pub(super) fn table(self) -> Option<(u32, Detail)> {
        Some(match self {
            TcpFailure::NoRoute => (flag::NO_ROUTE, detail::ROUTE_NOT_FOUND),
            TcpFailure::NoCluster => (flag::NO_CLUSTER, detail::CLUSTER_NOT_FOUND),
            TcpFailure::NoEndpoint => (flag::NO_HEALTHY_UPSTREAM, detail::NO_ENDPOINT),
            TcpFailure::Overflow => (flag::UPSTREAM_OVERFLOW, detail::OVERFLOW),
            TcpFailure::ConnectFailure => (flag::UPSTREAM_CONNECT_FAILURE, detail::CONNECT_FAILURE),
            TcpFailure::ConnectTimeout => (flag::UPSTREAM_CONNECT_FAILURE, detail::CONNECT_TIMEOUT),
            TcpFailure::ClientReset => (flag::DOWNSTREAM_TERMINATED, detail::CLIENT_RESET),
            TcpFailure::UpstreamReset => (flag::UPSTREAM_TERMINATED, detail::UPSTREAM_RESET),
            TcpFailure::Idle => (flag::IDLE_TIMEOUT, detail::IDLE_TIMEOUT),
            TcpFailure::Stalled => (flag::IDLE_TIMEOUT, detail::FILTER_STALLED),
            TcpFailure::Age => (flag::DOWNSTREAM_TIMEOUT, detail::CONNECTION_AGE),
            TcpFailure::FilterFailed => (flag::FILTER_FAILED, detail::FILTER_FAILED),
            TcpFailure::Closed => return None,
        })
    }
}
