//! A server that answers blocking queries as Consul documents them, and in ways in which it should not. It is not Consul:
//! what it does beyond the documentation would be a guess.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Message, Upstream, answer, wait_for};

/// A server with a catalog. It can be stopped, and started again with the same address and catalog.
pub struct Consul {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    running: Option<(Upstream, Arc<AtomicBool>)>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Counts the changes of the catalog.
    index: u64,
    /// By name of the service: the index of the last change, and the instances.
    services: BTreeMap<String, (u64, Vec<Value>)>,
    /// Counts restores, which end all queries.
    restored: u64,
    fault: Option<Fault>,
    asked: Vec<Message>,
}

/// What the server does instead of answering.
#[derive(Clone)]
pub enum Fault {
    /// An error: the status, a further header, and the body.
    Status(u16, &'static str, &'static str),
    /// A body that is not JSON, with a valid head.
    Garbage,
    /// It closes the connection in the middle of the body.
    CutOff,
    /// It answers at once, with this index, or without one.
    Index(Option<u64>),
    /// It answers that there are no instances, with this header.
    Nothing(&'static str),
}

/// An instance at an address, whose checks have these states.
pub fn instance(address: &str, checks: &[&str]) -> Value {
    let (ip, port) = address.rsplit_once(':').expect("an address with a port");
    let checks: Vec<_> = checks.iter().map(|status| json!({"CheckID": "c", "Status": status})).collect();
    json!({
        "Node": {"Node": "node-1", "Address": "192.0.2.1", "Datacenter": "dc1"},
        "Service": {
            "ID": format!("web-{address}"), "Service": "web", "Address": ip, "Port": port.parse::<u16>().expect("a port"),
            "Tags": ["v1"], "Meta": {"version": "2"}, "Weights": {"Passing": 10, "Warning": 1},
        },
        "Checks": checks,
    })
}

impl Consul {
    pub fn start() -> Consul {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut consul = Consul { address, shared: Arc::default(), running: None };
        consul.serve(listener);
        consul
    }

    fn serve(&mut self, listener: TcpListener) {
        let (shared, over) = (self.shared.clone(), Arc::<AtomicBool>::default());
        let is_over = over.clone();
        let server = Upstream::scripted_on(listener, move |mut connection| {
            while let Some(request) = connection.request() {
                match shared.answer(&request, &is_over) {
                    Some(bytes) => connection.send(bytes),
                    None => return,
                }
            }
        });
        self.running = Some((server, over));
    }

    /// Ends all connections, and accepts no others.
    pub fn stop(&mut self) {
        if let Some((server, over)) = self.running.take() {
            over.store(true, Ordering::SeqCst);
            self.shared.changed.notify_all();
            drop(server);
        }
    }

    /// Starts it again.
    pub fn start_again(&mut self) {
        let listener = wait_for("the port", || TcpListener::bind(self.address).ok());
        self.serve(listener);
    }

    /// Replaces the instances of a service.
    pub fn set(&self, service: &str, instances: &[Value]) {
        self.change(|state| {
            state.index += 1;
            let entry = (state.index, instances.to_vec());
            state.services.insert(service.to_owned(), entry);
        });
    }

    /// Replaces the instances, all of which are healthy.
    pub fn set_healthy(&self, service: &str, addresses: &[impl AsRef<str>]) {
        let all: Vec<_> = addresses.iter().map(|address| instance(address.as_ref(), &["passing"])).collect();
        self.set(service, &all);
    }

    /// Counts changes from this index on, as after a restore.
    pub fn restore(&self, index: u64) {
        self.change(|state| {
            state.restored += 1;
            state.index = index;
            state.services.values_mut().for_each(|(changed, _)| *changed = index);
        });
    }

    /// Fails from now on; `None`: no longer.
    pub fn fail(&self, fault: Option<Fault>) {
        self.change(|state| state.fault = fault);
    }

    /// The queries so far.
    pub fn asked(&self) -> Vec<Message> {
        self.shared.state.lock().unwrap().asked.clone()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.lock().unwrap());
        self.shared.changed.notify_all();
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// The answer to a query; `None`: the connection ends.
    fn answer(&self, request: &Message, is_over: &AtomicBool) -> Option<Vec<u8>> {
        let (path, query) = request.target().split_once('?').unwrap_or((request.target(), ""));
        let parameter = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(key, value)| (key == name).then_some(value))
        };
        let index = parameter("index").map_or(0, |index| index.parse::<u64>().expect("a number"));
        let wait = parameter("wait").map_or(300_000, |wait| wait.trim_end_matches("ms").parse().expect("milliseconds"));
        let until = Instant::now() + Duration::from_millis(wait);
        let service = path.strip_prefix("/v1/health/service/").expect("a query for a service");
        let mut state = self.state.lock().unwrap();
        state.asked.push(request.clone());
        let restored = state.restored;
        loop {
            if is_over.load(Ordering::SeqCst) {
                return None;
            }
            let (changed, instances) = state.services.get(service).cloned().unwrap_or((state.index.max(1), Vec::new()));
            let with = |index: Option<u64>, header: &str, body: &str| {
                let index = index.map(|index| format!("X-Consul-Index: {index}"));
                let fields: Vec<&str> =
                    index.as_deref().into_iter().chain([header]).filter(|h| !h.is_empty()).collect();
                answer(200, &fields, body)
            };
            let body = Value::from(instances).to_string();
            match &state.fault {
                Some(Fault::Status(status, header, body)) => {
                    let fields: &[&str] = if header.is_empty() { &[] } else { &[header] };
                    return Some(answer(*status, fields, body));
                }
                Some(Fault::Garbage) => return Some(with(Some(changed), "", "<html>")),
                Some(Fault::CutOff) => {
                    // The connection ends with the next query.
                    return Some(
                        b"HTTP/1.1 200 OK\r\nX-Consul-Index: 9\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n!"
                            .to_vec(),
                    );
                }
                Some(Fault::Index(index)) => return Some(with(*index, "", &body)),
                Some(Fault::Nothing(header)) => return Some(with(Some(changed), header, "[]")),
                None => {}
            }
            let now = Instant::now();
            if index == 0 || changed > index || state.restored > restored || now >= until {
                return Some(with(Some(changed), "", &body));
            }
            state = self.changed.wait_timeout(state, until - now).unwrap().0;
        }
    }
}
