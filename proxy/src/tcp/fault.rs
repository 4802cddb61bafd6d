//! Why a connection has ended before both of its ends had, or could not go on: for each reason one flag, one word for the
//! access log.

use tollgate_abi::fast::flag;

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
    pub(super) fn table(self) -> Option<(u32, &'static str)> {
        Some(match self {
            Fault::NoRoute => (flag::NO_ROUTE, "route_not_found"),
            Fault::NoEndpoint => (flag::NO_HEALTHY_UPSTREAM, "no_endpoint"),
            Fault::Overflow => (flag::UPSTREAM_OVERFLOW, "overflow"),
            Fault::ConnectFailure => (flag::UPSTREAM_CONNECT_FAILURE, "connect_failure"),
            Fault::ConnectTimeout => (flag::UPSTREAM_CONNECT_FAILURE, "connect_timeout"),
            Fault::ClientReset => (flag::DOWNSTREAM_TERMINATED, "client_reset"),
            Fault::UpstreamReset => (flag::UPSTREAM_TERMINATED, "upstream_reset"),
            Fault::Idle => (flag::IDLE_TIMEOUT, "idle_timeout"),
            Fault::Stalled => (flag::IDLE_TIMEOUT, "filter_stalled"),
            Fault::Age => (flag::DOWNSTREAM_TIMEOUT, "connection_age"),
            Fault::FilterFailed => (flag::FILTER_FAILED, "filter_failed"),
            Fault::Closed => return None,
        })
    }
}
