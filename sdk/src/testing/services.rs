//! Simulated HTTP services, whose answers and timing the test determines.

use std::{rc::Rc, time::Duration};

use tollgate_abi::pairs;

use super::host::{Event, Headers, Host, with};
use crate::CallError;

/// A call that the filter has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentCall {
    /// Number of the call, from 1.
    pub id: u32,
    /// Cluster that is called.
    pub cluster: String,
    /// Header fields, including `:method`, `:path` and `:authority`.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Body of the call.
    pub body: Vec<u8>,
    /// Trailer fields of the call.
    pub trailers: Vec<(String, Vec<u8>)>,
    /// Timeout of the call.
    pub timeout: Duration,
}

impl SentCall {
    /// Returns the value of the first header field with this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let value = self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v);
        value.and_then(|v| std::str::from_utf8(v).ok())
    }

    /// Returns the path.
    pub fn path(&self) -> &str {
        self.header(":path").unwrap_or_default()
    }
}

/// A service's reaction to a call: an answer or a failure, immediately or later.
#[derive(Debug, Clone)]
#[must_use]
pub struct Scripted {
    after: Duration,
    pub(super) result: Result<ServiceAnswer, CallError>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct ServiceAnswer {
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Headers,
}

impl Scripted {
    /// Answers with this status.
    pub fn answer(status: u16) -> Scripted {
        let headers = vec![(":status".to_string(), status.to_string().into_bytes())];
        Scripted { after: Duration::ZERO, result: Ok(ServiceAnswer { headers, ..ServiceAnswer::default() }) }
    }

    /// Fails the call with `Timeout`, `Reset` or `TooLarge`.
    pub fn fail(error: CallError) -> Scripted {
        Scripted { after: Duration::ZERO, result: Err(error) }
    }

    /// Adds a header field to the answer.
    pub fn header(mut self, name: &str, value: &str) -> Scripted {
        if let Ok(answer) = &mut self.result {
            answer.headers.push((name.to_ascii_lowercase(), value.into()));
        }
        self
    }

    /// Sets the answer's body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Scripted {
        if let Ok(answer) = &mut self.result {
            answer.body = body.into();
        }
        self
    }

    /// Adds a trailer field to the answer.
    pub fn trailer(mut self, name: &str, value: &str) -> Scripted {
        if let Ok(answer) = &mut self.result {
            answer.trailers.push((name.to_ascii_lowercase(), value.into()));
        }
        self
    }

    /// Delays the reaction. If the delay exceeds the call's timeout, the call times out instead.
    pub fn after(mut self, time: Duration) -> Scripted {
        self.after = time;
        self
    }
}

type Service = Rc<dyn Fn(&SentCall) -> Scripted>;

/// The services and their pending calls.
#[derive(Default)]
pub(crate) struct Services {
    by_cluster: Vec<(String, Service)>,
    sent: u32,
    /// Each with the time of its timeout.
    pub(super) pending: Vec<(SentCall, u64)>,
}

impl Services {
    pub(super) fn set(&mut self, cluster: &str, service: impl Fn(&SentCall) -> Scripted + 'static) {
        self.by_cluster.retain(|(name, _)| name != cluster);
        self.by_cluster.push((cluster.into(), Rc::new(service)));
    }
}

impl Host {
    /// Schedules the answer to a call.
    pub(super) fn answer(&mut self, id: u32, scripted: Scripted) {
        let Some((_, deadline)) = self.services.pending.iter().find(|(call, _)| call.id == id) else { return };
        let (deadline, at) = (*deadline, self.now_ns.saturating_add(scripted.after.as_nanos() as u64));
        if at < deadline {
            self.schedule(at, Event::Answer(id, scripted.result));
        }
    }
}

/// Sends a call and asks the test's service for its cluster, if any, for its reaction.
pub(crate) fn call(cluster: &str, headers: &[u8], body: &[u8], trailers: &[u8], millis: u32) -> Result<u32, CallError> {
    let decode = |bytes| {
        let pairs = pairs::decode(bytes).map_err(|_| CallError::Invalid)?;
        let pair = |(name, value): pairs::Pair<'_>| (String::from_utf8_lossy(name).to_lowercase(), value.to_vec());
        Ok(pairs.into_iter().map(pair).collect::<Headers>())
    };
    let (headers, trailers) = (decode(headers)?, decode(trailers)?);
    let timeout = Duration::from_millis(millis.into());
    let (call, service) = with(|h| {
        if !h.cluster_exists(cluster) {
            return Err(CallError::UnknownCluster);
        }
        h.services.sent += 1;
        let id = h.services.sent;
        let call = SentCall { id, cluster: cluster.into(), headers, body: body.to_vec(), trailers, timeout };
        let deadline = h.now_ns.saturating_add(timeout.as_nanos() as u64);
        h.schedule(deadline, Event::Answer(id, Err(CallError::Timeout)));
        h.services.pending.push((call.clone(), deadline));
        let service = h.services.by_cluster.iter().find(|(name, _)| name == cluster).map(|(_, s)| s.clone());
        Ok((call, service))
    })?;
    // The test's function may access the host.
    if let Some(service) = service {
        let scripted = service(&call);
        with(|h| h.answer(call.id, scripted));
    }
    Ok(call.id)
}
