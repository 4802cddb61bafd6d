//! A scripted API server of Kubernetes, which can fail and lie.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

use serde_json::{Value, json};

use super::{Upstream, answer, wait_until};

/// An API server with the EndpointSlices of the namespace `shop`.
pub struct Api {
    shared: Arc<Shared>,
    pub server: Upstream,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    version: u64,
    slices: BTreeMap<String, Value>,
    /// All changes, with their versions.
    events: Vec<(u64, &'static str, Value)>,
    /// Watches from older versions have expired.
    oldest: u64,
    /// How watches end now, and how often one has ended so.
    fault: Option<(Fault, usize)>,
    /// The bearer token that requests must have.
    token: Option<String>,
    over: bool,
}

/// What happens instead of an answer.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    /// The connection is closed.
    Close,
    /// Something that is not an event, in watches.
    Garbage,
    /// Status 500.
    Error,
    /// Status 410, or an event with it.
    Gone,
}

impl Api {
    pub fn new() -> Api {
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        let server = Upstream::scripted(move |mut connection| {
            while let Some(request) = connection.request() {
                let target = request.target().to_owned();
                if !theirs.serve(&target, request.field("authorization"), &mut |bytes| connection.send(bytes)) {
                    return;
                }
            }
        });
        Api { shared, server }
    }

    /// Sets the slice of a service: the last parts of its addresses 127.0.0.x, all on this port; an empty list is a slice
    /// without endpoints.
    pub fn set(&self, name: &str, service: &str, port: u16, addresses: &[u8]) {
        let endpoint =
            |n: &u8| json!({"addresses": [Ipv4Addr::new(127, 0, 0, *n).to_string()], "conditions": {"ready": true}});
        let endpoints = addresses.iter().map(endpoint).collect();
        self.put(name, service, port, endpoints);
    }

    pub fn put(&self, name: &str, service: &str, port: u16, endpoints: Vec<Value>) {
        let slice = json!({
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}, {"name": "metrics", "port": 1}],
        });
        self.change(name, Some(slice));
    }

    pub fn change(&self, name: &str, slice: Option<Value>) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let with_version = |mut slice: Value| {
            slice["metadata"]["resourceVersion"] = version.to_string().into();
            slice
        };
        let event = match slice.map(with_version) {
            Some(slice) => {
                let is_new = state.slices.insert(name.to_owned(), slice.clone()).is_none();
                (version, if is_new { "ADDED" } else { "MODIFIED" }, slice)
            }
            None => (version, "DELETED", with_version(state.slices.remove(name).expect("a slice"))),
        };
        state.events.push(event);
        self.shared.changed.notify_all();
    }

    /// Lets everything fail in this way from now on.
    pub fn begin_to_fail(&self, fault: Fault) {
        self.state().fault = Some((fault, 0));
        self.shared.changed.notify_all();
    }

    /// Lets everything fail in this way until the condition is true; then everything works again.
    pub fn fail_until(&self, fault: Fault, what: &str, look: impl FnMut() -> bool) {
        self.begin_to_fail(fault);
        wait_until(what, look);
        self.state().fault = None;
    }

    /// Lets something fail in this way.
    pub fn fail(&self, fault: Fault) {
        self.fail_until(fault, "the fault to be seen", || self.state().fault.is_none_or(|(_, times)| times > 0));
    }

    /// Requests must have this bearer token from now on.
    pub fn require_token(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// Watches from versions before the current one have expired.
    pub fn expire(&self) {
        let mut state = self.state();
        state.oldest = state.version;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.state().over = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// Answers a request. Returns whether the connection stays open.
    fn serve(&self, target: &str, token: Option<&str>, send: &mut dyn FnMut(Vec<u8>)) -> bool {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = |name: &str| query.split('&').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        let mut state = self.state.lock().unwrap();
        let status = |code: u16, message: &str| {
            let body = json!({"kind": "Status", "status": "Failure", "message": message, "code": code}).to_string();
            answer(code, &["Content-Type: application/json"], body)
        };
        if state.token.as_ref().is_some_and(|wanted| token != Some(&format!("Bearer {wanted}"))) {
            send(status(401, "Unauthorized"));
            return true;
        }
        if path != "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices" {
            send(status(403, "endpointslices.discovery.k8s.io is forbidden"));
            return true;
        }
        let Some(mut from) = query("resourceVersion").and_then(|version| version.parse::<u64>().ok()) else {
            return match &mut state.fault {
                Some((Fault::Error, times)) => {
                    *times += 1;
                    send(status(500, "out of order"));
                    true
                }
                Some((Fault::Close, times)) => {
                    *times += 1;
                    false
                }
                _ => {
                    let metadata = json!({"resourceVersion": state.version.to_string()});
                    let items: Vec<_> = state.slices.values().collect();
                    let list = json!({"kind": "EndpointSliceList", "metadata": metadata, "items": items}).to_string();
                    send(answer(200, &["Content-Type: application/json"], list));
                    true
                }
            };
        };
        if from < state.oldest {
            send(status(410, "too old resource version"));
            return true;
        }
        send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec());
        let mut chunk = |text: String| send(format!("{:x}\r\n{text}\r\n", text.len()).into_bytes());
        loop {
            let sent = from;
            for (version, kind, object) in state.events.iter().filter(|(version, ..)| *version > sent) {
                chunk(format!("{}\n", json!({"type": kind, "object": object})));
                from = *version;
            }
            if state.over {
                return false;
            }
            if let Some((fault, times)) = &mut state.fault {
                *times += 1;
                match fault {
                    Fault::Garbage => chunk("{\"type\": \"ADDED\", \"object\": 7}\n".to_owned()),
                    Fault::Gone => {
                        let object = json!({"kind": "Status", "message": "too old resource version", "code": 410});
                        chunk(format!("{}\n", json!({"type": "ERROR", "object": object})));
                    }
                    Fault::Close | Fault::Error => {}
                }
                return false;
            }
            state = self.changed.wait(state).unwrap();
        }
    }
}
