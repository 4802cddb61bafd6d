//! The listeners of a snapshot, and their metrics.

use std::{collections::HashMap, sync::Arc};

use super::{BuildMode, SnapshotBuilder, keep};
use crate::{
    config::{Diagnostic, Loaded, model::Protocol},
    control::certificates::Certificates,
    exchange::{ConnectionMetrics, GrpcMethodMetrics, ListenerMetrics, RejectReason, Resource, Shedding},
    listener::{chains::ChainMatch, socket::ListenerShared},
    observe::{AccessLog, Buckets, Counter, MetricError, Registry},
    snapshot::{FilterChain, ListenerParts, Snapshot},
    tcp,
    tls::HandshakeError,
    wasm::Plugin,
};

impl SnapshotBuilder {
    /// Makes the listeners. Those from `kept_from` on keep their certificates if they cannot be loaded again.
    #[expect(clippy::too_many_arguments, reason = "one step of a build, which has all of these")]
    pub(super) fn listeners(
        &self,
        loaded: &Loaded,
        kept_from: usize,
        previous: Option<&Snapshot>,
        plugins: &[Arc<Plugin>],
        extent: BuildMode,
        certificates: &mut Certificates<'_>,
        wrong: &mut Vec<Diagnostic>,
    ) -> Vec<Arc<ListenerParts>> {
        let config = &loaded.config;
        let by_name: HashMap<&str, &Arc<Plugin>> = plugins.iter().map(|p| (p.info.name.as_str(), p)).collect();
        let running: HashMap<&str, &Arc<ListenerParts>> =
            previous.into_iter().flat_map(|p| &p.listeners).map(|l| (l.config.name.as_str(), l)).collect();
        let mut all = Vec::new();
        for (index, (listener, sha256)) in config.listeners.iter().zip(loaded.source.listener_hashes()).enumerate() {
            let pointer = format!("/listeners/{index}");
            let before = running.get(listener.name.as_str()).copied();
            let filters: Vec<_> =
                listener.chain.iter().filter_map(|name| by_name.get(name.as_str())).map(|p| Arc::clone(p)).collect();
            // The contents of TLS files are not part of the hash.
            if let Some(same) = before.filter(|before| before.sha256 == sha256 && before.tls().next().is_none())
                && let [chain] = &same.chains[..]
                && chain.filters.len() == filters.len()
                && chain.filters.iter().zip(&filters).all(|(one, other)| Arc::ptr_eq(one, other))
            {
                all.push(same.clone());
                continue;
            }
            // A trial creates no files.
            let wanted = listener.access_log.clone().filter(|_| extent != BuildMode::Trial);
            let located = wanted.map(|mut log| {
                if !matches!(&*log.to, "stdout" | "stderr") {
                    log.to = loaded.source.resolve(&log.to).display().to_string();
                }
                log
            });
            let access_log = match located.map(|log| AccessLog::open(&log, &self.log_writer)) {
                None => None,
                Some(Ok(log)) => Some(log),
                Some(Err(e)) => {
                    wrong.push(loaded.source.diagnostic(&format!("{pointer}/access_log"), e.to_string(), None));
                    continue;
                }
            };
            let shedding = before.and_then(|before| before.metrics.shedding.clone());
            let shedding = match (&listener.overload, shedding) {
                (None, _) => Ok(None),
                // An overload may be under way.
                (Some(_), Some(running)) => Ok(Some(running)),
                (Some(_), None) => SnapshotBuilder::shedding(&self.registry, &listener.name).map(Some),
            };
            let shedding = match shedding {
                Ok(shedding) => shedding,
                Err(e) => {
                    wrong.push(loaded.source.diagnostic(&pointer, e.to_string(), None));
                    continue;
                }
            };
            let figures =
                match SnapshotBuilder::listener_metrics(&self.registry, &listener.name, listener.tls.is_some()) {
                    // Methods that were seen before are kept.
                    Ok(figures) => ListenerMetrics {
                        shedding,
                        methods: before.map_or(figures.methods, |l| l.metrics.methods.clone()),
                        ..figures
                    },
                    Err(e) => {
                        wrong.push(loaded.source.diagnostic(&pointer, e.to_string(), None));
                        continue;
                    }
                };
            let takes_tcp = matches!(listener.protocol, Protocol::Tcp | Protocol::Auto);
            let tcp = match takes_tcp.then(|| self.tcp_figures(&listener.name, &figures)).transpose() {
                Ok(tcp) => tcp,
                Err(e) => {
                    wrong.push(loaded.source.diagnostic(&pointer, e.to_string(), None));
                    continue;
                }
            };
            let shared = before.map_or_else(|| Arc::new(ListenerShared::default()), |l| l.shared.clone());
            let running = before.and_then(|before| before.tls().next());
            let mut errors = Vec::new();
            let mut tls = certificates.of_listener(index, listener, running.map(|tls| &**tls), &mut errors);
            if let Some(error) = errors.first() {
                let same =
                    running.filter(|_| index >= kept_from && before.is_some_and(|before| before.sha256 == sha256));
                tls = keep(&error.message, "listener", &listener.name, same.cloned());
                wrong.extend(errors.into_iter().filter(|_| tls.is_none()));
            }
            // No configuration offers more than one yet.
            let chains = vec![FilterChain { matches: ChainMatch::default(), tls, filters }];
            let config = listener.clone();
            all.push(Arc::new(ListenerParts { config, sha256, chains, access_log, metrics: figures, tcp, shared }));
        }
        all
    }

    /// Creates the metrics of a listener.
    pub(crate) fn listener_metrics(r: &Registry, listener: &str, tls: bool) -> Result<ListenerMetrics, MetricError> {
        let labels: &[(&str, &str)] = &[("listener", listener)];
        let bytes = |direction| {
            let labels = [("listener", listener), ("direction", direction)];
            r.counter("tollgate_body_bytes_total", "Bytes of requests' and responses' bodies.", &labels)
        };
        let refused = |index: usize| {
            let labels = [("listener", listener), ("reason", RejectReason::ALL[index].1)];
            r.counter(
                "tollgate_connections_refused_total",
                "Connections refused or closed because of the client's behavior, by reason.",
                &labels,
            )
        };
        let flags = tollgate_abi::fast::flag::NAMES.iter().map(|(bit, name)| {
            let labels = [("listener", listener), ("flag", name)];
            Ok((*bit, r.counter("tollgate_response_flags_total", "Requests by response flag.", &labels)?))
        });
        Ok(ListenerMetrics {
            requests: by_class(
                r,
                "tollgate_requests_total",
                "Requests by status class; none: no status was sent.",
                labels,
            )?,
            duration: r.histogram(
                "tollgate_request_duration_seconds",
                "From a request's head to the end of its response.",
                labels,
                Buckets::Latency,
            )?,
            active: r.gauge("tollgate_requests_active", "In-flight requests.", labels)?,
            bytes: [bytes("request")?, bytes("response")?],
            flags: flags.collect::<Result<_, MetricError>>()?,
            methods: Arc::new(GrpcMethodMetrics::new(r.clone(), listener)),
            tunnels: r.gauge("tollgate_tunnels_active", "Active upgraded and CONNECT requests.", labels)?,
            shedding: None,
            connections: ConnectionMetrics {
                accepted: r.counter("tollgate_connections_total", "Connections accepted.", labels)?,
                active: r.gauge("tollgate_connections_active", "Connections open.", labels)?,
                refused: [
                    refused(0)?,
                    refused(1)?,
                    refused(2)?,
                    refused(3)?,
                    refused(4)?,
                    refused(5)?,
                    refused(6)?,
                    refused(7)?,
                    refused(8)?,
                    refused(9)?,
                ],
                handshakes: tls.then(|| SnapshotBuilder::handshakes(r, listener)).transpose()?,
                reject_log: Arc::default(),
            },
        })
    }

    /// Creates the metrics of a listener that sheds load.
    fn shedding(r: &Registry, listener: &str) -> Result<Arc<Shedding>, MetricError> {
        let shed = |(_, resource): (Resource, &str)| {
            let labels = [("listener", listener), ("resource", resource)];
            let help = "Requests and TCP connections refused because the proxy is overloaded, by resource.";
            r.counter("tollgate_overload_shed_total", help, &labels)
        };
        let [lag, memory] = Resource::ALL;
        let late = "How late workers run, while requests arrive at listeners with `overload`.";
        let late = r.histogram("tollgate_worker_lag_seconds", late, &[], Buckets::Latency)?;
        Ok(Arc::new(Shedding::new([shed(lag)?, shed(memory)?], late)))
    }

    /// Creates the counters of a listener's failed handshakes, by cause.
    fn handshakes(r: &Registry, listener: &str) -> Result<Arc<[Counter]>, MetricError> {
        let counter = |(_, reason): (HandshakeError, &str)| {
            let labels = [("listener", listener), ("reason", reason)];
            r.counter("tollgate_tls_handshake_failures_total", "TLS handshakes with clients that failed.", &labels)
        };
        HandshakeError::ALL.into_iter().map(counter).collect()
    }

    fn tcp_figures(&self, listener: &str, figures: &ListenerMetrics) -> Result<tcp::TcpMetrics, MetricError> {
        let (r, labels) = (&self.registry, [("listener", listener)]);
        let bytes = |direction| {
            let labels = [("listener", listener), ("direction", direction)];
            r.counter("tollgate_tcp_bytes_total", "Bytes received from TCP clients, and sent to them.", &labels)
        };
        Ok(tcp::TcpMetrics {
            connections: r.counter("tollgate_tcp_connections_total", "TCP connections.", &labels)?,
            active: r.gauge("tollgate_tcp_connections_active", "Active TCP connections.", &labels)?,
            bytes: [bytes("received")?, bytes("sent")?],
            flags: figures.flags.clone(),
        })
    }
}

fn by_class(registry: &Registry, name: &str, help: &str, labels: &[(&str, &str)]) -> Result<[Counter; 6], MetricError> {
    let class = |class| registry.counter(name, help, &[labels, &[("class", class)]].concat());
    Ok([class("none")?, class("1xx")?, class("2xx")?, class("3xx")?, class("4xx")?, class("5xx")?])
}
