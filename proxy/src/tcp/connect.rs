//! Connecting to an upstream endpoint once the filters have let the client's connection through.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use rustc_hash::FxHasher;
use tollgate_abi::fast::flag;

use super::{TcpFailure, TcpListenerContext};
use crate::{
    chain::{
        SelectedRoute,
        network::{NetworkStream, Side},
        retry::{Attempts, NoAttempt},
        stored::CLUSTER_STATE,
    },
    net::{Stream, proxy_protocol::Addresses},
    observe::target,
    upstream::{ActiveGuard, AttemptOutcome, Cluster, DirectConnection, PickKey, RequestGuard},
};

/// A connection to an endpoint, with the guards that count it as active.
pub(super) struct UpstreamConnection {
    pub(super) stream: Stream,
    /// Time taken to connect, failed attempts included.
    pub(super) after: Duration,
    pub(super) cluster: Arc<Cluster>,
    pub(super) endpoint: ActiveGuard,
    _request: RequestGuard,
    _place: DirectConnection,
}

/// Connects to an endpoint of the connection's cluster, and retries with other endpoints if that fails.
pub(super) async fn run(
    listener: &TcpListenerContext,
    stream: &NetworkStream,
) -> Result<UpstreamConnection, TcpFailure> {
    let selected = stream.state.borrow().route.clone();
    let handle = match (&selected, stream.state.borrow().stored.state(CLUSTER_STATE)) {
        (Some(selected), _) => Some(selected.cluster().clone()),
        (None, Some(name)) => listener.routes.named(name),
        (None, None) => listener.routes.choose(stream.server_name.as_deref()).cloned(),
    };
    let handle = handle.ok_or(TcpFailure::NoRoute)?;
    stream.state.borrow_mut().cluster = Some(handle.name().clone());
    let first = listener.clusters.get(&handle, stream.start).ok_or(TcpFailure::NoCluster)?;
    let mut cluster = Arc::clone(&first);
    let request = cluster.try_request().ok_or(TcpFailure::Overflow)?;
    let retry = selected.as_ref().and_then(|s| s.route.retry.as_ref()).or(first.retry.as_deref());
    let (mut attempts, start) = (Attempts::new(retry), tokio::time::Instant::now());
    let subset = selected.as_ref().and_then(|selected| selected.key().subset);
    let key = PickKey { hash: Some(balance_key(stream, selected.as_ref())), subset };
    let mut endpoint = cluster.pick(key, &[]).ok_or(TcpFailure::NoEndpoint)?;
    loop {
        let place = cluster.try_connection(&endpoint).ok_or(TcpFailure::Overflow)?;
        let active = endpoint.start();
        let target = active.endpoint();
        {
            let mut state = stream.state.borrow_mut();
            state.endpoint = Some(target.address.clone());
            state.attempts += 1;
        }
        let client = Addresses { source: stream.connection.peer, destination: stream.connection.local };
        let timer = cluster.time_connection(target, tokio::time::Instant::now());
        let result = place.open(client).await;
        match &result {
            Ok(_) => timer.answered(tokio::time::Instant::now()),
            Err(_) => timer.failed(tokio::time::Instant::now()),
        }
        cluster.report(target, || {
            Some(if result.is_ok() { AttemptOutcome::Connected } else { AttemptOutcome::NoResponse })
        });
        let error = match result {
            Ok(opened) => {
                let after = start.elapsed();
                stream.state.borrow_mut().upstream_local = opened.local_addr();
                return Ok(UpstreamConnection {
                    stream: opened,
                    after,
                    cluster,
                    endpoint: active,
                    _request: request,
                    _place: place,
                });
            }
            Err(error) => error,
        };
        tracing::debug!(
            target: target::UPSTREAM,
            cluster = &*cluster.name, endpoint = %target.address, %error, "no connection"
        );
        target.note_failure(&cluster.name, error.trouble, &error.to_string());
        stream.failed(Side::Upstream, error.to_string());
        attempts.failed_at(target);
        // Another attempt sees the cluster's endpoints as they are now.
        cluster = listener.clusters.get(&handle, stream.start).unwrap_or(cluster);
        let next = match attempts.reconnect(&cluster, key) {
            Ok(next) => next,
            Err(NoAttempt::NoEndpoint) => return Err(TcpFailure::NoEndpoint),
            Err(reason) => {
                if reason == NoAttempt::Exhausted {
                    stream.state.borrow_mut().flags |= flag::RETRY_LIMIT;
                }
                return Err(if error.timeout { TcpFailure::ConnectTimeout } else { TcpFailure::ConnectFailure });
            }
        };
        drop((active, place));
        if !next.wait.is_zero() {
            tokio::time::sleep(next.wait).await;
        }
        endpoint = next.endpoint;
    }
}

/// Returns the key of the `hash` balancer: the filter's, or else a hash of the client's address, so that a client stays
/// with its endpoint.
fn balance_key(stream: &NetworkStream, selected: Option<&SelectedRoute>) -> u64 {
    selected.and_then(|s| s.balance).unwrap_or_else(|| {
        // Use a hasher that gives the same result in every process, as the endpoints' hash does.
        let mut hasher = FxHasher::default();
        stream.connection.peer.ip().to_canonical().hash(&mut hasher);
        hasher.finish()
    })
}
