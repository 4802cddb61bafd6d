//! Logging, time, ticks, contexts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tollgate_abi::proxy_wasm::{MODULE, Status, log_level};
use tracing::{Level, level_filters::LevelFilter};
use wasmtime::{Caller, Linker};

use super::guest::{slice, split, status, write_u32, write_u64};
use crate::wasm::{
    host::{
        FIRST_ROOT, Host, Phase,
        filter_log::{LONGEST, LossyText},
    },
    scope::call_scope,
};

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "proxy_log", |mut caller: Caller<'_, Host>, level: i32, ptr: i32, len: i32| {
        status(log(&mut caller, level, ptr, len))
    })?;
    linker.func_wrap(MODULE, "proxy_get_log_level", |mut caller: Caller<'_, Host>, out: i32| {
        let level = match LevelFilter::current().into_level() {
            Some(tracing::Level::TRACE) => log_level::TRACE,
            Some(tracing::Level::DEBUG) => log_level::DEBUG,
            Some(tracing::Level::INFO) => log_level::INFO,
            Some(tracing::Level::WARN) => log_level::WARN,
            _ => log_level::ERROR,
        };
        status(split(&mut caller).and_then(|(memory, _)| write_u32(memory, out, level as u32)))
    })?;
    linker.func_wrap(MODULE, "proxy_get_current_time_nanoseconds", |mut caller: Caller<'_, Host>, out: i32| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        status(split(&mut caller).and_then(|(memory, _)| write_u64(memory, out, now)))
    })?;
    linker.func_wrap(MODULE, "proxy_set_tick_period_milliseconds", |mut caller: Caller<'_, Host>, period: i32| {
        let period = u64::from(period as u32);
        let host = caller.data_mut();
        host.note_named_effect();
        host.roots[host.root].tick = (period > 0).then(|| Duration::from_millis(period));
        host.ticks_changed = true;
        Status::Ok as i32
    })?;
    linker.func_wrap(MODULE, "proxy_set_effective_context", |mut caller: Caller<'_, Host>, context: i32| {
        let host = caller.data_mut();
        let context = context as u32;
        let root = context.wrapping_sub(FIRST_ROOT) as usize;
        if root < host.roots.len() {
            call_scope::leave();
            host.act_for_root(root, context);
        } else if let Some(root) = call_scope::switch(context) {
            host.act_for(&root, context);
        } else {
            return Status::BadArgument as i32;
        }
        Status::Ok as i32
    })?;
    // The host does not wait for a root context to finish: it calls `proxy_on_done` and deletes it.
    linker.func_wrap(MODULE, "proxy_done", |_: Caller<'_, Host>| Status::NotFound as i32)?;
    Ok(())
}

fn log(caller: &mut Caller<'_, Host>, level: i32, ptr: i32, len: i32) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    write_log(host, level, slice(memory, ptr, len)?)
}

/// Logs a message of the filter.
pub(super) fn write_log(host: &mut Host, level: i32, bytes: &[u8]) -> Result<(), Status> {
    let message = LossyText(&bytes[..bytes.len().min(LONGEST)]);
    let severity = match level {
        log_level::TRACE => Level::TRACE,
        log_level::DEBUG => Level::DEBUG,
        log_level::INFO => Level::INFO,
        log_level::WARN => Level::WARN,
        log_level::ERROR | log_level::CRITICAL => Level::ERROR,
        _ => return Err(Status::BadArgument),
    };
    host.identity.log.say(&host.identity.name, severity, format_args!("{message}"));
    if level >= log_level::WARN && host.phase != Phase::Running {
        // A standard filter has no other way to explain why it rejects its configuration.
        host.last_logged = message.to_string();
    }
    Ok(())
}
