//! Fault injection: delays and aborts, to test how clients and services cope with them.
//!
//! As in Envoy, a request is delayed first and aborted then, each with its own probability. Both are drawn when the
//! request arrives, which is indistinguishable from drawing the abort after the delay, and lets the timer's token carry
//! the outcome: no per-stream state is kept, and no thread waits.

pub mod config;
mod dice;

use std::time::Duration;

use tollgate_sdk::{
    matching::{Matcher, compared_path},
    prelude::*,
    units::Percent,
};

use crate::{
    config::{Config, Delay, HeaderAbort, HeaderDelay},
    dice::{Length, strikes},
};

/// The maximum delay that can be configured.
const LONGEST: Duration = Duration::from_secs(3600);

/// Envoy's request headers.
const HEADERS: [&str; 4] = [
    "x-envoy-fault-delay-request",
    "x-envoy-fault-delay-request-percentage",
    "x-envoy-fault-abort-request",
    "x-envoy-fault-abort-request-percentage",
];

/// The filter.
pub struct Fault {
    rules: Vec<(Matcher, Faults)>,
    default: Faults,
    headers: config::Headers,
    /// The names in `HEADERS`.
    header_names: [Name; 4],
    /// `:method` and `:path`.
    line: [Name; 2],
    needs_line: bool,
    limit: Option<Limit>,
    delays: Counter,
    aborts: Counter,
    overflow: Counter,
}

/// The faults that may be injected into a request.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    delay: Option<(Length, Percent)>,
    abort: Option<(u16, Percent)>,
}

impl Filter for Fault {
    type Config = Config;
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS;

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let mistakes = Mistakes::default();
        let mut rules = Vec::with_capacity(config.rules.len());
        for (i, rule) in config.rules.into_iter().enumerate() {
            let at = format!("rules[{i}]");
            let matcher = rule.r#match.compile(&format!("{at}.match"), setup, &mistakes);
            rules.push((matcher, faults(rule.delay, rule.abort, &format!("{at}."), &mistakes)));
        }
        let default = faults(config.delay, config.abort, "", &mistakes);
        if let Some(delay) = &config.headers.delay {
            bound(delay.max.get(), "headers.delay.max", &mistakes);
        }
        if config.max_active == Some(0) {
            mistakes.add("max_active", "0 allows no faults: leave the faults out, or set it to at least 1");
        }
        let limit = config.max_active.and_then(|max| mistakes.take(setup.limit("max_active", "active", max)));
        mistakes.finish()?;
        Ok(Fault {
            needs_line: rules.iter().any(|(matcher, _)| matcher.needs_line()),
            rules,
            default,
            headers: config.headers,
            header_names: HEADERS.map(|name| setup.name(name)),
            line: [setup.name(":method"), setup.name(":path")],
            limit,
            delays: setup.counter("fault.delays_total"),
            aborts: setup.counter("fault.aborts_total"),
            overflow: setup.counter("fault.overflow_total"),
        })
    }

    fn on_request(&self, request: &Request, _: &mut ()) -> Flow {
        let faults = self.faults(request);
        let delay = faults.delay.filter(|(_, percent)| strikes(*percent)).map(|(length, _)| length.sample());
        let delay = delay.filter(|time| !time.is_zero());
        let abort = faults.abort.filter(|(_, percent)| strikes(*percent)).map(|(status, _)| status);
        if delay.is_none() && abort.is_none() {
            return Flow::Continue;
        }
        if self.limit.is_some_and(|limit| !limit.acquire()) {
            self.overflow.add(1);
            return Flow::Continue;
        }
        match delay {
            Some(time) => {
                self.delays.add(1);
                request.flag(flag::DELAY_INJECTED);
                Flow::Wait(time, abort.unwrap_or(0).into())
            }
            None => self.end(request, abort),
        }
    }

    /// Called when the delay has ended; `token` is the status of the abort, or 0.
    fn on_timer(&self, token: u32, request: &Request, _: &mut ()) -> Flow {
        self.end(request, u16::try_from(token).ok().filter(|status| *status != 0))
    }
}

impl Fault {
    /// Ends the fault: aborts the request or lets it continue.
    fn end(&self, request: &Request, abort: Option<u16>) -> Flow {
        let Some(status) = abort else {
            // The request continues, perhaps for long, without an active fault. An aborted request ends immediately,
            // which releases its permit.
            if let Some(limit) = self.limit {
                limit.release();
            }
            return Flow::Continue;
        };
        self.aborts.add(1);
        request.flag(flag::FAULT_INJECTED);
        let reply = Reply::new(status).header("content-type", "text/plain").body("fault filter abort");
        reply.details("fault_filter_abort").into()
    }

    /// The faults that apply to this request.
    fn faults(&self, request: &Request) -> Faults {
        let mut faults = self.configured(request);
        if self.headers.delay.is_none() && self.headers.abort.is_none() {
            return faults;
        }
        let mut buffer = Buffer::new();
        let [delay, delay_percent, abort, abort_percent] =
            request.headers(self.header_names, &mut buffer).map(|value| value.and_then(number));
        if let (Some(HeaderDelay { max, percent }), Some(ms)) = (&self.headers.delay, delay) {
            let time = Duration::from_millis(ms.into()).min(max.get());
            faults.delay = Some((Length::Fixed(time), at_most(*percent, delay_percent)));
        }
        if let (Some(HeaderAbort { percent }), Some(status @ 200..=599)) = (&self.headers.abort, abort) {
            faults.abort = Some((status as u16, at_most(*percent, abort_percent)));
        }
        faults
    }

    /// The faults of the first matching rule, or the default.
    fn configured(&self, request: &Request) -> Faults {
        if self.rules.is_empty() {
            return self.default;
        }
        let (mut buffer, mut scratch) = (Buffer::new(), Buffer::new());
        let [method, path] = if self.needs_line { request.headers(self.line, &mut buffer) } else { [None; 2] };
        let (method, path) = (method.unwrap_or_default(), compared_path(path.unwrap_or_default()));
        let rule = self.rules.iter().find(|(matcher, _)| matcher.matches(method, &path, request, &mut scratch));
        rule.map_or(self.default, |(_, faults)| *faults)
    }
}

/// Parses a header's value as a number.
fn number(value: &[u8]) -> Option<u32> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

/// The requested share, limited to the configured one; without a request, the configured one.
fn at_most(configured: Percent, asked: Option<u32>) -> Percent {
    asked.and_then(|percent| Percent::new(percent.into()).ok()).map_or(configured, |percent| percent.min(configured))
}

fn bound(time: Duration, at: &str, mistakes: &Mistakes) {
    if time > LONGEST {
        mistakes.add(at, "a delay is at most an hour: write `1h` or less");
    }
}

/// Compiles faults. `at` is their path in the configuration.
fn faults(delay: Option<Delay>, abort: Option<config::Abort>, at: &str, mistakes: &Mistakes) -> Faults {
    let delay = delay.and_then(|delay| {
        let at = format!("{at}delay");
        let length = match (delay.fixed, delay.uniform, delay.exponential) {
            (Some(time), None, None) => {
                bound(time.get(), &format!("{at}.fixed"), mistakes);
                Length::Fixed(time.get())
            }
            (None, Some(u), None) => {
                bound(u.max.get(), &format!("{at}.uniform.max"), mistakes);
                if u.min > u.max {
                    mistakes.add(format!("{at}.uniform"), "`min` is longer than `max`");
                }
                Length::Uniform { min: u.min.get(), max: u.max.get() }
            }
            (None, None, Some(e)) => {
                bound(e.max.get(), &format!("{at}.exponential.max"), mistakes);
                if e.mean > e.max {
                    mistakes.add(format!("{at}.exponential"), "`mean` is longer than `max`");
                }
                Length::Exponential { mean: e.mean.get(), max: e.max.get() }
            }
            _ => {
                mistakes.add(at, "give one of `fixed`, `uniform` and `exponential`");
                return None;
            }
        };
        Some((length, delay.percent))
    });
    let abort = abort.map(|abort| {
        if !(200..=599).contains(&abort.status) {
            let message = format!("{} is not a response status: write 200 to 599", abort.status);
            mistakes.add(format!("{at}abort.status"), message);
        }
        (abort.status, abort.percent)
    });
    Faults { delay, abort }
}

tollgate_sdk::export!(Fault);
