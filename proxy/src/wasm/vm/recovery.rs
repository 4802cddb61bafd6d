//! Recovery of a VM whose instance has failed. The instance is dropped and its streams are handled as their filter's
//! `on_failure` specifies. A spare replaces it within the failing call itself, so the next request finds a ready
//! instance. The control thread creates further spares, within the budget of the worker's [`InstanceSupply`].
//!
//! A request that makes a filter fail can be repeated at will, so failures cause no pause, with two exceptions: an
//! instance that fails in the first call it receives, outside any stream (such as a tick), has served no request, and
//! its successor would not either; and when calls that exceed their time limit take too much of a worker's time, its
//! other work goes first.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{InstanceSupply, RootContext, Vm};
use crate::{
    chain::OnFailure,
    observe::{self, target},
    wasm::{
        Sharing,
        engine::clock,
        instance::{
            Instance,
            failures::FailureSource,
            trap::{TrapKind, describe},
        },
        scope::{contexts::StreamContext, stream_ref::StreamRef},
    },
};

/// Number of spares that a worker holds once it has needed one. Before that, all workers share one.
const SPARES: usize = 2;

/// If no spare is left, an instance that takes less processor time than this to create is created on the worker.
pub(super) const CHEAP: Duration = Duration::from_millis(1);

/// The worker gives up creating one if it takes longer than this nevertheless.
const CREATION_LIMIT: Duration = Duration::from_millis(5);

/// The pause before the next instance, after this many in a row have failed in their first call outside any stream.
fn pause(still_born: u32) -> Duration {
    match still_born {
        0 | 1 => Duration::ZERO,
        n => Duration::from_millis(100 << (n - 2).min(10)).min(Duration::from_secs(60)),
    }
}

impl Vm {
    /// Handles the failure of the instance in a call for a filter. The instance is already gone, for all filters that
    /// share it. `denied`: it was refused memory; `effective`: the context it worked on; `handled`: the caller for the
    /// stream handles the failure itself.
    pub(super) fn fail(
        &self,
        root_context: &RootContext,
        error: &wasmtime::Error,
        (denied, effective): (bool, u32),
        stream: Option<(&StreamRef, usize)>,
        handled: bool,
    ) {
        let (mut kind, text) = describe(error);
        if denied && kind == TrapKind::Trap {
            kind = TrapKind::Memory;
        }
        // A callout's response, or another stream's end, may have let the guest continue a stream other than the one it
        // was called for.
        let worked_on = self.find(effective).map(|(stream, ..)| stream);
        let cause = worked_on.as_ref().or(stream.map(|(stream, _)| stream));
        self.report(root_context, kind, &text, cause);
        if let Some(cause) = cause.filter(|_| !self.closing.get()) {
            self.suspect(cause);
        }
        let shard = observe::shard();
        self.gauge().sub(shard, 1);
        self.template.gauges.memory.sub(shard, self.memory.replace(0));
        self.grpc.borrow_mut().clear();
        // Their responses have no recipient any more but would still be charged.
        self.http.take().into_values().for_each(|call| call.abort());
        self.end_streams(stream.filter(|_| handled));
        if !self.closing.get() {
            let overrun = match kind {
                TrapKind::Timeout => self.binding.supply.overran(clock::since_mark()),
                _ => Duration::ZERO,
            };
            self.recover(root_context, stream.is_none(), overrun);
        }
    }

    /// Counts and logs a failure.
    fn report(&self, root_context: &RootContext, kind: TrapKind, text: &str, stream: Option<&StreamRef>) {
        let plugin = &root_context.plugin;
        let name = &plugin.info.name;
        plugin.metrics.traps[kind as usize].inc(observe::shard());
        let message = format!("{}: {text}", kind.name());
        let cause = stream.map(FailureSource::of);
        if let Some(left_out) = plugin.failures.note(cause.as_ref()) {
            let (client, method, path) = match &cause {
                Some(cause) => (Some(cause.client.as_str()), cause.method.as_deref(), cause.path.as_deref()),
                None => (None, None, None),
            };
            let left_out = (left_out > 0).then_some(left_out);
            tracing::error!(
                target: target::FILTER,
                filter = name,
                kind = kind.name(),
                client,
                method,
                path,
                not_logged = left_out,
                "the filter failed: {message}"
            );
        }
        // There may be thousands of equal filters, and a failure must not cost more with them.
        if self.template.sharing() == Sharing::Vm {
            for other in self.template.plugins().iter().filter(|other| !Arc::ptr_eq(other, plugin)) {
                let message = format!("filter `{name}`, which shares the VM, failed: {message}");
                other.last_error.store(Some(Arc::new(message)));
            }
        }
        plugin.last_error.store(Some(Arc::new(message)));
    }

    /// Handles the streams inside the instance as their filters' `on_failure` specifies, except the one whose caller
    /// does that.
    fn end_streams(&self, cause: Option<(&StreamRef, usize)>) {
        let inside = self.contexts.borrow_mut().take();
        for StreamContext { stream, position, root } in inside {
            let Some(stream) = stream.upgrade() else { continue };
            let Some(root_context) = self.roots.get(root.number) else { continue };
            let RootContext { plugin, settings, .. } = &*root_context;
            // The caller for this stream learns of the failure directly.
            let is_cause = cause.is_some_and(|(cause, at)| at == position && cause.is(&stream));
            let denied = settings.get().on_failure == OnFailure::Deny && !is_cause;
            let held = stream.is_held_by(position);
            stream.with_position(position, |p| {
                p.gone = true;
                p.denies = denied && !held;
            });
            if !is_cause {
                plugin.metrics.failed_streams.inc(observe::shard());
            }
            if held && denied {
                stream.deny();
            }
            stream.wake();
        }
    }

    /// Adopts another instance, if one is available, and orders more. `alone`: the failure was not in a stream's call.
    /// `overrun`: how long the VM should stay without an instance because of timeouts.
    fn recover(&self, root_context: &RootContext, alone: bool, overrun: Duration) {
        let still_born = alone && self.calls.get() - self.calls_before.get() <= 1;
        self.failed_at_start.set(if still_born { self.failed_at_start.get().saturating_add(1) } else { 0 });
        let pause = pause(self.failed_at_start.get()).max(overrun);
        self.paused_until.set((!pause.is_zero()).then(|| Instant::now() + pause));
        match pause.is_zero().then(|| self.ready_instance()).flatten() {
            Some(instance) => self.replace(instance),
            None => {
                if !self.is_apart() {
                    self.template.availability.lost();
                }
                // Meanwhile other readers may receive its queues' messages.
                self.stop_listening(|_| true);
                if !overrun.is_zero() {
                    self.report_over_budget(
                        root_context,
                        "its calls exceed `limits.call_time` so often that they would take more than 60 % of a worker's time; until the budget \
                         has recovered, `on_failure` applies (a lower `limits.call_time` helps)",
                    );
                } else if pause.is_zero() && !self.binding.supply.wait().is_zero() {
                    self.report_over_budget(
                        root_context,
                        "it fails so often that a worker would spend more than a tenth of its time on creating instances; until \
                         a new one is ready, `on_failure` applies",
                    );
                }
            }
        }
        self.restock();
    }

    #[cold]
    fn report_over_budget(&self, root_context: &RootContext, what: &str) {
        let plugin = &root_context.plugin;
        plugin.metrics.over_budget.inc(observe::shard());
        if let Some(left_out) = plugin.over_budget_limiter.may_warn() {
            tracing::warn!(
                target: target::FILTER,
                filter = plugin.info.name,
                concerns = self.is_apart().then_some("clients in quarantine"),
                left_out,
                "{what}"
            );
        }
    }

    /// Returns an instance that is available immediately.
    fn ready_instance(&self) -> Option<Instance> {
        if self.is_apart() {
            return self.main()?.instance_to_spare();
        }
        let own = self.spares.borrow_mut().pop();
        if own.is_some() {
            self.template.kept.fetch_sub(1, Ordering::Relaxed);
        }
        own.or_else(|| self.template.take_spare()).or_else(|| self.create_now())
    }

    /// Returns an instance for quarantined clients that is available immediately. The last spare is reserved for the
    /// regular VM.
    pub(super) fn instance_to_spare(&self) -> Option<Instance> {
        let ready = self.spares.borrow().len() + usize::from(self.template.has_spare());
        if ready > 1 { self.ready_instance() } else { self.create_now() }
    }

    fn create_now(&self) -> Option<Instance> {
        let supply: &InstanceSupply = &self.binding.supply;
        if self.template.making() >= CHEAP || !supply.wait().is_zero() {
            return None;
        }
        let before = clock::processor_time();
        let made = self.template.instantiate_within(CREATION_LIMIT);
        supply.charge(clock::processor_time().saturating_sub(before));
        // If it cannot be created, the next attempt on the control thread logs the reason.
        made.ok()
    }

    /// Receives an instance that was ordered.
    pub fn deliver(&self, instance: Instance) {
        self.ordered.set(false);
        if self.instance.borrow().is_none() && self.rest().is_zero() {
            self.template.availability.found();
            self.replace(instance);
        } else if self.spares.borrow().is_empty() {
            self.keep(instance);
        } else if let Some(instance) = self.deliver_apart(instance) {
            if self.spares.borrow().len() < SPARES {
                self.keep(instance);
            } else {
                // Another worker may have stored one already.
                drop(self.template.put_by(instance));
            }
        }
        self.restock();
    }

    fn keep(&self, spare: Instance) {
        self.template.kept.fetch_add(1, Ordering::Relaxed);
        self.spares.borrow_mut().push(spare);
    }

    /// How long it still has to stay without an instance.
    pub(super) fn rest(&self) -> Duration {
        self.paused_until.get().map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Orders another instance if one is missing. One at a time, so that a filter that takes long to instantiate does
    /// not delay others.
    pub(super) fn restock(&self) {
        if self.is_apart() {
            return self.main().into_iter().for_each(|main| main.restock());
        }
        let enough =
            || self.instance.borrow().is_some() && self.spares.borrow().len() >= SPARES && self.template.has_spare();
        if self.ordered.get() {
            return;
        }
        let Some(wait) = (if enough() { self.lacks_apart() } else { Some(self.rest()) }) else { return };
        self.ordered.set(true);
        self.binding.supply.order(&self.template, wait);
    }

    /// Adopts an instance, and counts it as a rebuild if it replaces a failed one.
    pub(super) fn replace(&self, instance: Instance) {
        if self.incarnation.get() > 0 {
            let plugins = self.template.plugins();
            let counted = self.template.configured(&plugins);
            counted.iter().for_each(|plugin| plugin.metrics.rebuilds.inc(observe::shard()));
        }
        self.adopt(instance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_that_fail_in_their_first_call_wait_longer_each_time() {
        let waits: Vec<_> = (0..6).map(|n| pause(n).as_millis()).collect();
        assert_eq!(waits, [0, 0, 100, 200, 400, 800]);
        assert_eq!(pause(u32::MAX), Duration::from_secs(60));
    }
}
