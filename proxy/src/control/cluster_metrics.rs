//! The metrics of clusters. Each cluster counts by itself ([`ClusterStats`]), from its first request on and for as long as it
//! exists; a scrape asks them all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use super::discovery::{ServiceState, Table};
use crate::{
    observe::{Kind, MetricError, Registry, metrics::Labels},
    upstream::{Cluster, ClusterStats, Clusters, ConcurrencyStatus, OutlierRule, OutlierTotals, STATUS_CLASSES},
};

/// Registers the metrics of all clusters.
pub(crate) fn show(registry: &Registry, clusters: &Arc<Clusters>) -> Result<(), MetricError> {
    show_counts(registry, clusters)?;
    show_traffic(registry, clusters)?;
    show_outliers(registry, clusters)?;
    show_remaining(registry, clusters)?;
    show_subsets(registry, clusters)?;
    show_concurrency(registry, clusters)?;
    let all = clusters.clone();
    registry.collect_fn(
        "tollgate_cluster_endpoints_healthy",
        "Healthy endpoints of clusters with health checks, without ejected ones.",
        Kind::Gauge,
        move || {
            let checked = all.all().into_iter().filter(|cluster| cluster.is_checked());
            checked.map(|cluster| (labels(&cluster, &[]), cluster.health().0 as f64)).collect()
        },
    )?;
    let all = clusters.clone();
    registry.collect_fn(
        "tollgate_cluster_endpoints",
        "Endpoints with a weight, by health. Ejected ones are unhealthy; without health checks, all others are healthy.",
        Kind::Gauge,
        move || {
            let of = |cluster: Arc<Cluster>| {
                let (healthy, all) = cluster.health();
                [("healthy", healthy), ("unhealthy", all.saturating_sub(healthy))]
                    .map(|(state, count)| (labels(&cluster, &[("state", state)]), count as f64))
            };
            all.all().into_iter().flat_map(of).collect()
        },
    )?;
    let all = clusters.clone();
    registry.collect_fn(
        "tollgate_clusters_missing",
        "Clusters that routes or listeners refer to although they do not exist.",
        Kind::Gauge,
        move || vec![(Labels::new(), all.missing().len() as f64)],
    )
}

/// Registers what is known of clusters whose endpoints come and go by themselves.
pub(crate) fn show_discovery(
    registry: &Registry,
    clusters: &Arc<Clusters>,
    table: &Arc<Table>,
) -> Result<(), MetricError> {
    let row = |name: &str, help: &str, read: fn(&ServiceState) -> Option<f64>| {
        let (all, table) = (clusters.clone(), table.clone());
        registry.collect_fn(name, help, Kind::Gauge, move || {
            let of = |cluster: &Arc<Cluster>| {
                let state = table.get(cluster.service.as_ref()?)?;
                Some((labels(cluster, &[("source", state.source)]), read(&state)?))
            };
            all.all().iter().filter_map(of).collect()
        })
    };
    let (all, states) = (clusters.clone(), table.clone());
    registry.collect_fn(
        "tollgate_cluster_discovery_endpoints",
        "Endpoints in the last answer, by the states that the source knows.",
        Kind::Gauge,
        move || {
            let of = |cluster: &Arc<Cluster>| {
                let state = states.get(cluster.service.as_ref()?)?;
                let row = |(name, count): &(&str, usize)| {
                    (labels(cluster, &[("source", state.source), ("state", name)]), *count as f64)
                };
                Some(state.states.iter().map(row).collect::<Vec<_>>())
            };
            all.all().iter().filter_map(of).flatten().collect()
        },
    )?;
    row(
        "tollgate_cluster_discovery_last_answer_timestamp_seconds",
        "The time of the last usable answer about a cluster's endpoints.",
        |state| Some(state.answered?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs_f64()),
    )?;
    row(
        "tollgate_cluster_discovery_attempts",
        "Attempts in a row to find a cluster's endpoints, without a usable answer.",
        |state| Some(state.attempts.into()),
    )
}

fn labels(cluster: &Cluster, more: &[(&str, &str)]) -> Labels {
    let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    std::iter::once(("cluster".to_owned(), cluster.name.to_string())).chain(more).collect()
}

/// Registers what every cluster counts.
fn show_counts(registry: &Registry, clusters: &Arc<Clusters>) -> Result<(), MetricError> {
    type Read = fn(&ClusterStats) -> &AtomicU64;
    let shown: [(&str, &str, Kind, Read); 16] = [
        ("tollgate_cluster_requests_active", "In-flight requests.", Kind::Gauge, |s| &s.active),
        ("tollgate_cluster_connections", "Open connections, including idle ones.", Kind::Gauge, |s| &s.connections),
        ("tollgate_cluster_connections_idle", "Connections without a request.", Kind::Gauge, |s| &s.idle),
        ("tollgate_cluster_requests_pending", "Requests that wait for a connection.", Kind::Gauge, |s| &s.pending),
        ("tollgate_cluster_connects_total", "Connections opened.", Kind::Counter, |s| &s.connects),
        ("tollgate_cluster_connect_failures_total", "Connections that failed.", Kind::Counter, |s| &s.connect_failures),
        ("tollgate_cluster_request_overflows_total", "Requests over the limit.", Kind::Counter, |s| {
            &s.request_overflows
        }),
        ("tollgate_cluster_pending_overflows_total", "Waiting requests over the limit.", Kind::Counter, |s| {
            &s.pending_overflows
        }),
        ("tollgate_cluster_uploads", "Unfinished uploads and tunnels.", Kind::Gauge, |s| &s.uploads),
        ("tollgate_cluster_upload_overflows_total", "Uploads and tunnels over the limits.", Kind::Counter, |s| {
            &s.upload_overflows
        }),
        ("tollgate_cluster_downloads_waiting", "Stalled responses, which wait for their clients.", Kind::Gauge, |s| {
            &s.downloads
        }),
        ("tollgate_cluster_downloads_evicted_total", "Stalled responses evicted to make room.", Kind::Counter, |s| {
            &s.downloads_evicted
        }),
        ("tollgate_cluster_retries_total", "Requests that were retried.", Kind::Counter, |s| &s.retries),
        (
            "tollgate_cluster_retry_overflows_total",
            "Retries and second attempts over the retry budget.",
            Kind::Counter,
            |s| &s.retry_overflows,
        ),
        ("tollgate_cluster_hedges_total", "Second attempts of hedged requests.", Kind::Counter, |s| &s.hedges),
        ("tollgate_cluster_hedges_won_total", "Second attempts whose response was used.", Kind::Counter, |s| {
            &s.hedges_won
        }),
    ];
    for (name, help, kind, read) in shown {
        let all = clusters.clone();
        registry.collect_fn(name, help, kind, move || {
            let of = |cluster: &Arc<Cluster>| (labels(cluster, &[]), read(cluster.stats()).load(Relaxed) as f64);
            all.all().iter().map(of).collect()
        })?;
    }
    Ok(())
}

/// Registers what the limits of clusters still allow.
fn show_remaining(registry: &Registry, clusters: &Arc<Clusters>) -> Result<(), MetricError> {
    let all = clusters.clone();
    registry.collect_fn(
        "tollgate_cluster_limit_remaining",
        "What a limit (circuit breaker) of a cluster still allows.",
        Kind::Gauge,
        move || {
            let of = |cluster: Arc<Cluster>| {
                let remaining = cluster.remaining().by_name();
                remaining.map(|(limit, left)| (labels(&cluster, &[("limit", limit)]), left as f64))
            };
            all.all().into_iter().flat_map(of).collect()
        },
    )
}

/// Registers what clusters with subsets count.
fn show_subsets(registry: &Registry, clusters: &Arc<Clusters>) -> Result<(), MetricError> {
    let all = clusters.clone();
    registry.collect_fn(
        "tollgate_cluster_subset_picks_total",
        "Choices of an endpoint in clusters with subsets, by what they were made from.",
        Kind::Counter,
        move || {
            let of = |cluster: Arc<Cluster>| {
                let picks = cluster.subset_picks().into_iter().flatten();
                picks.map(move |(from, count)| (labels(&cluster, &[("from", from)]), count as f64))
            };
            all.all().into_iter().flat_map(of).collect()
        },
    )
}

/// Registers what clusters with outlier detection count.
fn show_outliers(registry: &Registry, clusters: &Arc<Clusters>) -> Result<(), MetricError> {
    type Read = fn(&OutlierTotals) -> f64;
    let row = |name: &str, help: &str, kind: Kind, read: Read| {
        let all = clusters.clone();
        registry.collect_fn(name, help, kind, move || {
            let of = |cluster: &Arc<Cluster>| Some((labels(cluster, &[]), read(&cluster.outliers()?)));
            all.all().iter().filter_map(of).collect()
        })
    };
    row("tollgate_cluster_outliers_ejected", "Endpoints that are ejected.", Kind::Gauge, |totals| {
        totals.active as f64
    })?;
    row(
        "tollgate_cluster_outlier_overflows_total",
        "Outliers that were not ejected because too many were already.",
        Kind::Counter,
        |totals| totals.overflows as f64,
    )?;
    let by_rule = |name: &str, help: &str, read: fn(&OutlierTotals) -> [u64; 7]| {
        let all = clusters.clone();
        registry.collect_fn(name, help, Kind::Counter, move || {
            let of = |cluster: &Arc<Cluster>| {
                let counts = cluster.outliers().map(|totals| read(&totals)).into_iter().flatten();
                let rows = counts.zip(OutlierRule::NAMES);
                rows.map(|(count, rule)| (labels(cluster, &[("rule", rule)]), count as f64)).collect::<Vec<_>>()
            };
            all.all().iter().flat_map(of).collect()
        })
    };
    by_rule("tollgate_cluster_outlier_ejections_total", "Ejections, by rule.", |totals| totals.ejections)?;
    by_rule("tollgate_cluster_outlier_detections_total", "Outliers that were found, by rule.", |totals| {
        totals.detections
    })
}

/// Registers the state of clusters with adaptive concurrency.
fn show_concurrency(registry: &Registry, clusters: &Arc<Clusters>) -> Result<(), MetricError> {
    type Read = fn(&ConcurrencyStatus) -> Option<f64>;
    let shown: [(&str, &str, Kind, Read); 7] = [
        ("tollgate_cluster_concurrency_limit", "The limit of adaptive concurrency.", Kind::Gauge, |s| {
            Some(s.limit as f64)
        }),
        ("tollgate_cluster_concurrency_active", "Requests that count toward this limit.", Kind::Gauge, |s| {
            Some(s.active as f64)
        }),
        ("tollgate_cluster_concurrency_overflows_total", "Requests over this limit.", Kind::Counter, |s| {
            Some(s.refused as f64)
        }),
        ("tollgate_cluster_concurrency_gradient", "What this limit was last multiplied by.", Kind::Gauge, |s| {
            Some(s.gradient)
        }),
        ("tollgate_cluster_concurrency_min_rtt_seconds", "The latency without load.", Kind::Gauge, |s| {
            Some(s.min_rtt?.as_secs_f64())
        }),
        ("tollgate_cluster_concurrency_sample_rtt_seconds", "The latency at the last change.", Kind::Gauge, |s| {
            Some(s.sample_rtt?.as_secs_f64())
        }),
        ("tollgate_cluster_concurrency_min_rtt_measuring", "1 while minRTT is measured.", Kind::Gauge, |s| {
            Some(f64::from(u8::from(s.is_measuring)))
        }),
    ];
    for (name, help, kind, read) in shown {
        let all = clusters.clone();
        registry.collect_fn(name, help, kind, move || {
            let of = |cluster: &Arc<Cluster>| {
                Some((labels(cluster, &[]), read(&cluster.adaptive_concurrency.as_ref()?.status())?))
            };
            all.all().iter().filter_map(of).collect()
        })?;
    }
    Ok(())
}

/// Registers what clusters count from their first request on.
fn show_traffic(registry: &Registry, clusters: &Arc<Clusters>) -> Result<(), MetricError> {
    let row = |name: &str, help: &str, label: &'static str, values: &'static [&str], read: fn(&Cluster) -> Vec<u64>| {
        let all = clusters.clone();
        registry.collect_fn(name, help, Kind::Counter, move || {
            let of = |cluster: &Arc<Cluster>| {
                let counts = read(cluster).into_iter().zip(values);
                counts.map(|(count, value)| (labels(cluster, &[(label, value)]), count as f64)).collect::<Vec<_>>()
            };
            all.all().iter().flat_map(of).collect()
        })
    };
    row(
        "tollgate_upstream_responses_total",
        "Attempts by status class; none: no response.",
        "class",
        &STATUS_CLASSES,
        |cluster| cluster.stats().responses().map_or_else(Vec::new, Vec::from),
    )?;
    row(
        "tollgate_upstream_tcp_bytes_total",
        "Bytes of TCP connections sent to endpoints, and received from them.",
        "direction",
        &["sent", "received"],
        |cluster| cluster.stats().tcp_totals().map_or_else(Vec::new, Vec::from),
    )?;
    row(
        "tollgate_cluster_health_checks_total",
        "Health checks by result.",
        "result",
        &["failure", "success"],
        |cluster| {
            if cluster.is_checked() { cluster.stats().checks().into() } else { Vec::new() }
        },
    )?;
    let all = clusters.clone();
    registry.collect_distributions(
        "tollgate_upstream_response_seconds",
        "From sending a request to the head of its response.",
        move || {
            let of = |cluster: &Arc<Cluster>| Some((labels(cluster, &[]), cluster.stats().latency()?));
            all.all().iter().filter_map(of).collect()
        },
    )
}
