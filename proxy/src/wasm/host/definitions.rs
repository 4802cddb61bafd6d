//! What a guest refers to by ids and what belongs to filters: buckets, limits and metrics.
//!
//! If filters share a root context, the guest has defined these once, but each filter has its own. The host functions
//! only see the table of the filter that the current call is for; a change of the filter exchanges the table.

use std::sync::{Arc, Weak};

use rustc_hash::{FxHashMap, FxHashSet};
use tollgate_abi::{doc, proxy_wasm::Status};

use super::{filter_log::Escaped, plugin_info::PluginInfo};
use crate::{
    chain::limits::ConcurrencyLimit,
    observe::{Kind, MetricError, metrics::Handle},
    wasm::stores::{
        bucket::Bucket,
        env::{FilterEnv, FilterStore},
    },
};

/// A filter's buckets, limits and metrics by id. An error is the status that defining the object for this filter gave.
#[derive(Default)]
pub struct Definitions {
    /// The buckets.
    pub buckets: Vec<Result<Arc<Bucket>, Status>>,
    /// The limits, with their maximum.
    pub limits: Vec<(Result<Arc<ConcurrencyLimit>, Status>, u32)>,
    /// The metrics.
    pub metrics: Vec<Result<Handle, Status>>,
}

impl Definitions {
    /// The bucket of an id.
    pub fn bucket(&self, id: i32) -> Result<&Bucket, Status> {
        match self.buckets.get(id as u32 as usize) {
            Some(Ok(bucket)) => Ok(bucket),
            Some(Err(status)) => Err(*status),
            None => Err(Status::BadArgument),
        }
    }

    /// The limit of an id, with its maximum.
    pub fn limit(&self, id: i32) -> Result<(&Arc<ConcurrencyLimit>, u32), Status> {
        match self.limits.get(id as u32 as usize) {
            Some((Ok(limit), max)) => Ok((limit, *max)),
            Some((Err(status), _)) => Err(*status),
            None => Err(Status::BadArgument),
        }
    }

    /// The metric of an id.
    pub fn metric(&self, id: i32) -> Result<&Handle, Status> {
        match self.metrics.get(id as u32 as usize) {
            Some(Ok(metric)) => Ok(metric),
            Some(Err(status)) => Err(*status),
            None => Err(Status::NotFound),
        }
    }
}

/// Defines a metric for a filter. A failure is logged.
pub fn define_metric(info: &PluginInfo, env: &FilterEnv, kind: Kind, name: &str) -> Result<Handle, Status> {
    let (metric, newly) = env.shared.registry.dynamic(kind, name, &info.store.metrics).map_err(|e| {
        info.complain(format_args!("metric `{}` not defined: {e}", Escaped(name.as_bytes())));
        match e {
            MetricError::TooMany => Status::InternalFailure,
            _ => Status::BadArgument,
        }
    })?;
    if let Some(shown) = newly {
        env.undo_log.note_metric(&info.store, shown);
    }
    Ok(metric)
}

/// What a guest with a shared root context has defined, and the tables of the filters for which it is not running.
#[derive(Default)]
pub struct SharedDefinitions {
    /// The parameters of buckets by id.
    pub buckets: Vec<doc::Bucket>,
    /// The names of limits by id, with their maximum.
    pub limits: Vec<(String, u32)>,
    /// The types and names of metrics by id.
    pub metrics: Vec<(Kind, String)>,
    /// By the address of the filter's store, which the weak reference keeps from being used again.
    others: FxHashMap<usize, (Weak<FilterStore>, Definitions)>,
}

impl SharedDefinitions {
    /// Exchanges the current table for another filter's, and adds to it what has been defined since it was in use.
    pub fn exchange(&mut self, current: &mut Definitions, from: &PluginInfo, to: &PluginInfo, env: &FilterEnv) {
        let mut next = self.others.remove(&to.store_address()).map(|(_, table)| table).unwrap_or_default();
        let unavailable = |what: &str, name: &str, status: Status| {
            to.complain(format_args!("{what} `{}` not available: {status:?}", Escaped(name.as_bytes())));
            status
        };
        for doc in self.buckets.iter().skip(next.buckets.len()) {
            next.buckets.push(to.store.bucket(doc).map_err(|status| unavailable("bucket", &doc.name, status)));
        }
        for (name, max) in self.limits.iter().skip(next.limits.len()) {
            let limit = to.store.limit(name).map_err(|status| unavailable("limit", name, status));
            next.limits.push((limit, *max));
        }
        for (kind, name) in self.metrics.iter().skip(next.metrics.len()) {
            next.metrics.push(define_metric(to, env, *kind, name));
        }
        let before = std::mem::replace(current, next);
        self.others.insert(from.store_address(), (Arc::downgrade(&from.store), before));
    }

    /// Drops the tables of all filters but these, given by the addresses of their stores.
    pub fn retain(&mut self, filters: &FxHashSet<usize>) {
        self.others.retain(|store, _| filters.contains(store));
    }
}
