//! Simulated gRPC services, whose answers the test determines.

use std::{rc::Rc, time::Duration};

use tollgate_abi::pairs;

use super::host::{Event, Headers, Host, with};
use crate::{sys::code, sys::types::GrpcError};

/// A gRPC call that the filter has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentGrpc {
    /// Number of the call, from 1.
    pub id: u32,
    /// Cluster that is called.
    pub cluster: String,
    /// Name of the service.
    pub service: String,
    /// Name of the method.
    pub method: String,
    /// Metadata of the call.
    pub metadata: Vec<(String, Vec<u8>)>,
    /// Messages sent so far.
    pub messages: Vec<Vec<u8>>,
    /// Whether the filter has finished sending.
    pub ended: bool,
    /// Timeout of the call; `None` for a stream.
    pub timeout: Option<Duration>,
}

/// An event of a gRPC call.
#[derive(Debug, Clone)]
pub(crate) enum GrpcEvent {
    Metadata { trailing: bool, fields: Headers },
    Message(Vec<u8>),
    Close(GrpcError),
}

type Service = Rc<dyn Fn(&SentGrpc) -> Result<Vec<u8>, GrpcError>>;

/// The services and their pending calls.
#[derive(Default)]
pub(crate) struct GrpcCalls {
    by_cluster: Vec<(String, Service)>,
    begun: u32,
    pub(super) pending: Vec<SentGrpc>,
    /// Event being delivered to the filter.
    pub(super) shown: Option<GrpcEvent>,
}

impl GrpcCalls {
    pub(super) fn set(&mut self, cluster: &str, service: impl Fn(&SentGrpc) -> Result<Vec<u8>, GrpcError> + 'static) {
        self.by_cluster.retain(|(name, _)| name != cluster);
        self.by_cluster.push((cluster.into(), Rc::new(service)));
    }
}

impl Host {
    fn grpc_call(&mut self, id: u32) -> Option<&mut SentGrpc> {
        self.grpc.pending.iter_mut().find(|call| call.id == id)
    }

    pub(crate) fn grpc_send(&mut self, id: u32, message: &[u8], end: bool) -> bool {
        let Some(call) = self.grpc_call(id).filter(|call| !call.ended) else { return false };
        call.messages.push(message.to_vec());
        call.ended = end;
        true
    }

    pub(crate) fn grpc_end(&mut self, id: u32) {
        if let Some(call) = self.grpc_call(id) {
            call.ended = true;
        }
    }

    pub(crate) fn grpc_cancel(&mut self, id: u32) {
        self.grpc.pending.retain(|call| call.id != id);
    }

    pub(crate) fn grpc_status_message(&self) -> String {
        match &self.grpc.shown {
            Some(GrpcEvent::Close(error)) => error.message.clone(),
            _ => String::new(),
        }
    }

    /// Schedules an event of a call for now.
    pub(super) fn schedule_grpc(&mut self, id: u32, event: GrpcEvent) {
        self.schedule(self.now_ns, Event::Grpc(id, event));
    }

    /// Begins delivering an event. Returns whether the call still exists; the event may end it.
    pub(super) fn deliver_grpc(&mut self, id: u32, event: &GrpcEvent) -> bool {
        let Some(call) = self.grpc_call(id) else { return false };
        let last = match event {
            GrpcEvent::Metadata { .. } => false,
            GrpcEvent::Message(_) => call.timeout.is_some(),
            GrpcEvent::Close(_) => true,
        };
        if last {
            self.grpc_cancel(id);
        }
        self.grpc.shown = Some(event.clone());
        true
    }
}

/// Starts a call and asks the test's service for its cluster, if any, for the answer. `call`: the message and the
/// timeout in milliseconds; `None` for a stream.
pub(crate) fn open(
    cluster: &str,
    service: &str,
    method: &str,
    metadata: &[u8],
    call: Option<(&[u8], u32)>,
) -> Result<u32, GrpcError> {
    let pair = |(name, value): pairs::Pair<'_>| (String::from_utf8_lossy(name).into_owned(), value.to_vec());
    let metadata = pairs::decode(metadata).unwrap_or_default().into_iter().map(pair).collect();
    let (sent, answers) = with(|h| {
        if !h.cluster_exists(cluster) {
            return Err(GrpcError::new(code::UNAVAILABLE, "there is no such cluster"));
        }
        h.grpc.begun += 1;
        let id = h.grpc.begun;
        let timeout = call.map(|(_, millis)| Duration::from_millis(millis.into()));
        if let Some(timeout) = timeout {
            let late = GrpcEvent::Close(GrpcError::new(code::DEADLINE_EXCEEDED, "timeout"));
            h.schedule(h.now_ns.saturating_add(timeout.as_nanos() as u64), Event::Grpc(id, late));
        }
        let sent = SentGrpc {
            id,
            cluster: cluster.into(),
            service: service.into(),
            method: method.into(),
            metadata,
            messages: call.iter().map(|(message, _)| message.to_vec()).collect(),
            ended: call.is_some(),
            timeout,
        };
        h.grpc.pending.push(sent.clone());
        let found = h.grpc.by_cluster.iter().find(|(name, _)| name == cluster).map(|(_, s)| s.clone());
        Ok((sent, found.filter(|_| call.is_some())))
    })?;
    // The test's function may access the host.
    if let Some(answers) = answers {
        let event = answers(&sent).map_or_else(GrpcEvent::Close, GrpcEvent::Message);
        with(|h| h.schedule_grpc(sent.id, event));
    }
    Ok(sent.id)
}
