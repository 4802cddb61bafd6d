//! Metrics defined by filters, exported at `/metrics` with the prefix `wasmcustom_`.

use tollgate_abi::proxy_wasm::{MODULE, Status, metric};
use wasmtime::{Caller, Linker};

use super::guest::{key, slice, split, status, write_u32, write_u64};
use crate::{
    observe::{self, Kind, MetricError, metrics::Handle},
    wasm::{
        host::{Host, definitions::define_metric},
        stores::undo_log::UndoLog,
    },
};

/// Maximum number of metrics that one instance may define.
const MAX: usize = 10_000;

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "proxy_define_metric",
        |mut caller: Caller<'_, Host>, kind: i32, name: i32, name_len: i32, id_out: i32| {
            status(define(&mut caller, kind, name, name_len, id_out))
        },
    )?;
    linker.func_wrap(MODULE, "proxy_increment_metric", |mut caller: Caller<'_, Host>, id: i32, delta: i64| {
        status(on_metric(&mut caller, id, |metric, trial| {
            let held = trial.metrics(|held| held.increment(metric, delta));
            held.unwrap_or_else(|| metric.increment(observe::shard(), delta))
        }))
    })?;
    linker.func_wrap(MODULE, "proxy_record_metric", |mut caller: Caller<'_, Host>, id: i32, value: i64| {
        let value = value as u64;
        status(on_metric(&mut caller, id, |metric, trial| {
            let held = trial.metrics(|held| held.record(metric, value));
            held.unwrap_or_else(|| metric.record(observe::shard(), value));
            Ok(())
        }))
    })?;
    linker.func_wrap(MODULE, "proxy_get_metric", |mut caller: Caller<'_, Host>, id: i32, out: i32| {
        let value = on_metric(&mut caller, id, |metric, trial| {
            trial.metrics(|held| held.get(metric)).unwrap_or_else(|| metric.get())
        });
        status(value.and_then(|value| split(&mut caller).and_then(|(memory, _)| write_u64(memory, out, value))))
    })?;
    Ok(())
}

fn define(caller: &mut Caller<'_, Host>, kind: i32, name: i32, name_len: i32, id_out: i32) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    let kind = match kind {
        metric::COUNTER => Kind::Counter,
        metric::GAUGE => Kind::Gauge,
        metric::HISTOGRAM => Kind::Histogram,
        _ => return Err(Status::BadArgument),
    };
    let name = str::from_utf8(key(memory, name, name_len)?).map_err(|_| Status::BadArgument)?;
    if host.definitions.metrics.len() >= MAX {
        return Err(Status::InternalFailure);
    }
    slice(memory, id_out, 4)?;
    host.define(if host.shared_definitions.is_some() { name.len() } else { 0 })?;
    let metric = define_metric(&host.identity, &host.env, kind, name)?;
    let id = host.definitions.metrics.len() as u32;
    host.definitions.metrics.push(Ok(metric));
    if let Some(shared) = &mut host.shared_definitions {
        shared.metrics.push((kind, name.to_owned()));
    }
    write_u32(memory, id_out, id)
}

fn on_metric<T>(
    caller: &mut Caller<'_, Host>,
    id: i32,
    f: impl FnOnce(&Handle, &UndoLog) -> Result<T, MetricError>,
) -> Result<T, Status> {
    let host = caller.data_mut();
    host.hostcalls += 1;
    host.note_named_effect();
    let metric = host.definitions.metric(id)?;
    // A counter cannot decrease, a histogram cannot be read.
    f(metric, &host.env.undo_log).map_err(|_| Status::BadArgument)
}
