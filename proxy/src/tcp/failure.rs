//! Why a connection has ended before both of its ends had, or could not go on: for each reason one flag, one word for the
//! access log.

use tollgate_abi::fast::flag;

use crate::observe::{Detail, detail};

/// A reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
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

impl Fault {
    /// Flag and details; none if they are written down already.
    pub(super) fn table(self) -> Option<(u32, Detail)> {
        Some(match self {
            Fault::NoRoute => (flag::NO_ROUTE, detail::ROUTE_NOT_FOUND),
            Fault::NoEndpoint => (flag::NO_HEALTHY_UPSTREAM, detail::NO_ENDPOINT),
            Fault::Overflow => (flag::UPSTREAM_OVERFLOW, detail::OVERFLOW),
            Fault::ConnectFailure => (flag::UPSTREAM_CONNECT_FAILURE, detail::CONNECT_FAILURE),
            Fault::ConnectTimeout => (flag::UPSTREAM_CONNECT_FAILURE, detail::CONNECT_TIMEOUT),
            Fault::ClientReset => (flag::DOWNSTREAM_TERMINATED, detail::CLIENT_RESET),
            Fault::UpstreamReset => (flag::UPSTREAM_TERMINATED, detail::UPSTREAM_RESET),
            Fault::Idle => (flag::IDLE_TIMEOUT, detail::IDLE_TIMEOUT),
            Fault::Stalled => (flag::IDLE_TIMEOUT, detail::FILTER_STALLED),
            Fault::Age => (flag::DOWNSTREAM_TIMEOUT, detail::CONNECTION_AGE),
            Fault::FilterFailed => (flag::FILTER_FAILED, detail::FILTER_FAILED),
            Fault::Closed => return None,
        })
    }
}
