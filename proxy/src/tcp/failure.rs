//! Why a connection has ended before both of its ends had, or could not go on: for each reason one flag, one word for the
//! access log.

use tollgate_abi::fast::flag;

use crate::observe::{Detail, detail};

/// A reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpFailure {
    /// Nothing says where it goes.
    NoRoute,
    /// The cluster has no endpoint.
    NoEndpoint,
    /// The cluster has as many requests or connections as it may.
    Overflow,
    /// No connection to an endpoint could be made.
    ConnectFailure,
    /// No connection to an endpoint could be made in time.
    ConnectTimeout,
    /// The client has reset it.
    ClientReset,
    /// The upstream has reset it.
    UpstreamReset,
    /// No byte has moved for too long.
    Idle,
    /// The same, while a filter held it.
    Stalled,
    /// It is as old as it may become.
    Age,
    /// A filter has failed.
    FilterFailed,
    /// It was ended through its stream, where the reason is written down.
    Closed,
}

impl TcpFailure {
    /// Flag and details; none if they are written down already.
    pub(super) fn table(self) -> Option<(u32, Detail)> {
        Some(match self {
            TcpFailure::NoRoute => (flag::NO_ROUTE, detail::ROUTE_NOT_FOUND),
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
