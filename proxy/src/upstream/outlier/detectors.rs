//! When outlier detection decides: once per interval and cluster, and when a worker reports an endpoint.

use std::{collections::HashMap, future::poll_fn, sync::Arc, time::Duration};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_util::time::{DelayQueue, delay_queue};

use super::{OutlierStats, Suspect, decide};
use crate::upstream::{Cluster, ClusterHandle, ClusterId};

/// The outlier detection of all clusters that have it.
pub struct OutlierDetectors {
    running: HashMap<ClusterId, Detector>,
    /// The ends of intervals.
    due: DelayQueue<ClusterId>,
    /// For the clusters' workers.
    reports: UnboundedSender<Suspect>,
    /// Endpoints that workers have reported. At most one entry per endpoint and rule.
    suspects: UnboundedReceiver<Suspect>,
}

/// The longest interval. A [`DelayQueue`] panics at about two years.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

struct Detector {
    /// Keeps the cluster's number from being reused.
    _handle: ClusterHandle,
    /// The cluster's latest state.
    cluster: Arc<Cluster>,
    interval: Duration,
    end: delay_queue::Key,
}

impl Default for OutlierDetectors {
    fn default() -> Self {
        let (reports, suspects) = mpsc::unbounded_channel();
        OutlierDetectors { running: HashMap::new(), due: DelayQueue::new(), reports, suspects }
    }
}

impl OutlierDetectors {
    /// Adopts another state of a cluster, or a new one. Ejections continue, unless the cluster no longer has outlier
    /// detection.
    pub fn set(&mut self, handle: &ClusterHandle, cluster: &Arc<Cluster>) {
        let Some(config) = &cluster.outlier_detection else {
            if self.stop(handle) {
                decide::end_all(cluster);
            }
            return;
        };
        let id = handle.id();
        cluster.stats().outliers.get_or_init(|| Box::new(OutlierStats::new(id, self.reports.clone())));
        let interval = config.interval.0.min(LONGEST);
        match self.running.get_mut(&id) {
            Some(running) => {
                if running.interval != interval {
                    self.due.reset(&running.end, interval);
                    running.interval = interval;
                }
                running.cluster = Arc::clone(cluster);
            }
            None => {
                let end = self.due.insert(id, interval);
                let (_handle, cluster) = (handle.clone(), Arc::clone(cluster));
                self.running.insert(id, Detector { _handle, cluster, interval, end });
            }
        }
        // Its workers' choice of endpoints may be from before the latest decision.
        cluster.apply_health();
    }

    /// Ends the detection for a cluster that is gone.
    pub fn remove(&mut self, handle: &ClusterHandle) {
        self.stop(handle);
    }

    fn stop(&mut self, handle: &ClusterHandle) -> bool {
        let stopped = self.running.remove(&handle.id());
        if let Some(stopped) = &stopped {
            self.due.remove(&stopped.end);
        }
        stopped.is_some()
    }

    /// Evaluates the next interval that ends, or decides about the next endpoint that a worker reports. Waits for one of
    /// the two. Cancel safe.
    pub async fn advance(&mut self) {
        tokio::select! {
            Some(ended) = poll_fn(|context| self.due.poll_expired(context)), if !self.due.is_empty() => {
                self.end_interval(ended.into_inner());
            }
            // There is always a sender: this one.
            Some(suspect) = self.suspects.recv() => self.suspect(&suspect),
        }
    }

    fn end_interval(&mut self, id: ClusterId) {
        let Some(detector) = self.running.get_mut(&id) else { return };
        detector.end = self.due.insert(id, detector.interval);
        if let Some(config) = &detector.cluster.outlier_detection {
            decide::on_interval(&detector.cluster, config);
        }
    }

    fn suspect(&self, suspect: &Suspect) {
        if let Some(detector) = self.running.get(&suspect.cluster) {
            decide::on_failures_in_row(&detector.cluster, &suspect.endpoint, suspect.rule);
        }
        suspect.endpoint.outlier().handled(suspect.rule);
    }
}

impl OutlierStats {
    fn new(cluster: ClusterId, suspects: UnboundedSender<Suspect>) -> OutlierStats {
        let (detections, ejections, overflows) = Default::default();
        OutlierStats { cluster, suspects, detections, ejections, overflows }
    }
}
