//! The controller of adaptive concurrency: how latencies change the limit. It knows neither threads nor clocks.
//!
//! The rules are those of Envoy's gradient controller. From time to time, only `min_concurrency` requests are admitted, until
//! `request_count` responses show how long the endpoints take without load: the minRTT. Then, in each
//! `concurrency_update_interval`, the limit is multiplied by the *gradient*, minRTT (plus `buffer`) / latency, within 0.5 and
//! 2, and the square root of the result is added as headroom: that much may queue, so that the limit can grow when the
//! endpoints can do more.

use crate::config::model;

/// With the limit at its minimum for this number of updates in a row, minRTT is probably wrong and is measured again.
const AT_MINIMUM: u32 = 5;

/// The options, with times in microseconds.
#[derive(Debug, Clone)]
pub(super) struct GradientOptions {
    /// The percentile of the latencies that stands for all of them.
    pub(super) percentile: u32,
    update_interval: u64,
    limits: (u64, u64),
    interval: u64,
    /// The longest random time that is added to `interval`.
    jitter: u64,
    fixed: Option<u64>,
    request_count: u64,
    /// By what the minRTT is multiplied.
    tolerance: f64,
}

impl GradientOptions {
    /// The options that a cluster's configuration, which has been checked, asks for.
    pub(super) fn new(config: &model::AdaptiveConcurrency) -> GradientOptions {
        let (limit, min_rtt) = (&config.concurrency_limit_params, &config.min_rtt_calc_params);
        let micros = |time: crate::config::units::Duration| time.0.as_micros() as u64;
        let least = u64::from(min_rtt.min_concurrency).max(1);
        GradientOptions {
            percentile: config.sample_aggregate_percentile,
            update_interval: micros(limit.concurrency_update_interval),
            limits: (least, u64::from(limit.max_concurrency_limit).max(least)),
            interval: micros(min_rtt.interval),
            jitter: micros(min_rtt.interval) * u64::from(min_rtt.jitter) / 100,
            fixed: min_rtt.fixed_value.map(micros),
            request_count: min_rtt.request_count.into(),
            tolerance: 1.0 + f64::from(min_rtt.buffer) / 100.0,
        }
    }

    fn clamp(&self, limit: u64) -> u64 {
        limit.clamp(self.limits.0, self.limits.1)
    }
}

/// What the controller waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Enough responses to know the minRTT. Then this limit applies again.
    Measuring {
        /// The limit before.
        after: u64,
    },
    /// The next update.
    Limiting {
        /// When it is due.
        due: u64,
    },
}

/// The state of the controller. Times are in microseconds of any clock.
#[derive(Debug, Clone)]
pub(super) struct Gradient {
    /// The limit on concurrent requests.
    pub(super) limit: u64,
    pub(super) phase: Phase,
    /// The latency without load; 0: not known yet.
    pub(super) min_rtt: u64,
    /// The latency at the last update; 0: there was none yet.
    pub(super) sample_rtt: u64,
    /// What the limit was multiplied by at the last update.
    pub(super) gradient: f64,
    /// When the minRTT has to be measured again; `u64::MAX`: never, because it is fixed.
    measure_at: u64,
    /// Updates in a row that left the limit at its minimum.
    at_minimum: u32,
}

impl Gradient {
    /// A controller that knows nothing yet.
    pub(super) fn new(options: &GradientOptions) -> Gradient {
        let limit = options.limits.0;
        let (phase, min_rtt) = match options.fixed {
            Some(fixed) => (Phase::Limiting { due: 0 }, fixed),
            None => (Phase::Measuring { after: limit }, 0),
        };
        Gradient { limit, phase, min_rtt, sample_rtt: 0, gradient: 1.0, measure_at: u64::MAX, at_minimum: 0 }
    }

    /// The time from which [`Gradient::advance`] has something to do.
    pub(super) fn due(&self) -> u64 {
        match self.phase {
            Phase::Measuring { .. } => u64::MAX,
            Phase::Limiting { due } => due.min(self.measure_at),
        }
    }

    /// The number of latencies from which [`Gradient::advance`] has something to do.
    pub(super) fn enough(&self, options: &GradientOptions) -> u64 {
        match self.phase {
            Phase::Measuring { .. } => options.request_count,
            Phase::Limiting { .. } => u64::MAX,
        }
    }

    /// Takes the next step: `count` latencies, of which `latency` is the percentile, are those since the last step.
    /// `random` returns a number below another one.
    pub(super) fn advance(
        &mut self,
        options: &GradientOptions,
        now: u64,
        (count, latency): (u64, Option<u64>),
        random: impl FnOnce(u64) -> u64,
    ) {
        match options.fixed {
            Some(fixed) => (self.min_rtt, self.measure_at) = (fixed, u64::MAX),
            // It no longer is.
            None if self.measure_at == u64::MAX => self.measure_at = now,
            None => {}
        }
        match (self.phase, latency) {
            (Phase::Measuring { after }, Some(latency))
                if options.fixed.is_some() || count >= options.request_count =>
            {
                if options.fixed.is_none() {
                    self.min_rtt = latency.max(1);
                    self.measure_at = now + options.interval + random(options.jitter + 1);
                }
                self.limit = options.clamp(after);
                self.phase = Phase::Limiting { due: now + options.update_interval };
            }
            (Phase::Limiting { .. }, _) if now >= self.measure_at => self.measure(options),
            (Phase::Limiting { due }, Some(latency)) if now >= due => {
                self.update(options, latency.max(1));
                self.phase = Phase::Limiting { due: now + options.update_interval };
                if self.at_minimum >= AT_MINIMUM && options.fixed.is_none() {
                    self.measure(options);
                }
            }
            _ => {}
        }
    }

    fn measure(&mut self, options: &GradientOptions) {
        self.phase = Phase::Measuring { after: self.limit };
        (self.limit, self.at_minimum) = (options.limits.0, 0);
    }

    fn update(&mut self, options: &GradientOptions, latency: u64) {
        self.sample_rtt = latency;
        self.gradient = (self.min_rtt as f64 * options.tolerance / latency as f64).clamp(0.5, 2.0);
        let limit = self.limit as f64 * self.gradient;
        let (before, limit) = (self.limit, options.clamp((limit + limit.sqrt()) as u64));
        self.limit = limit;
        let stays = before == options.limits.0 && limit == options.limits.0;
        self.at_minimum = if stays { self.at_minimum + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn options(config: Value) -> GradientOptions {
        GradientOptions::new(&serde_json::from_value(config).unwrap())
    }

    const MS: u64 = 1_000;

    #[test]
    fn limit_grows_with_headroom_and_falls_by_half_at_most() {
        let options = options(json!({}));
        let mut gradient = Gradient::new(&options);
        let mut now = 0;
        gradient.advance(&options, now, (49, Some(10 * MS)), |_| 0);
        assert_eq!((gradient.limit, gradient.phase), (3, Phase::Measuring { after: 3 }), "that is not enough");
        gradient.advance(&options, now, (50, Some(10 * MS)), |_| 0);
        assert_eq!((gradient.limit, gradient.min_rtt, gradient.due()), (3, 10 * MS, 100 * MS));
        let mut next = |latency: Option<u64>| {
            now += 100 * MS;
            gradient.advance(&options, now, (1, latency), |_| 0);
            (gradient.limit, (gradient.gradient * 1000.0) as u64)
        };
        // 3 × 1.25 + √3.75 = 5.7
        assert_eq!(next(Some(10 * MS)), (5, 1250));
        assert_eq!(next(None), (5, 1250), "without requests, nothing is learned");
        // 5 × 2 + √10 = 13.2
        assert_eq!(next(Some(1)), (13, 2000), "the gradient is at most 2");
        // 13 × 1 + √13 = 16.6
        assert_eq!(next(Some(12_500)), (16, 1000), "the latency may be higher by `buffer`");
        // 16 × 0.5 + √8 = 10.8
        assert_eq!(next(Some(1_000 * MS)), (10, 500), "the gradient is at least 0.5");
        (0..20).for_each(|_| _ = next(Some(10 * MS)));
        assert_eq!(next(Some(10 * MS)).0, 1000, "the limit is at most `max_concurrency_limit`");
    }

    #[test]
    fn an_update_is_due_once_per_interval() {
        let options = options(json!({"concurrency_limit_params": {"concurrency_update_interval": "1s"}}));
        let mut gradient = Gradient::new(&options);
        gradient.advance(&options, 0, (50, Some(MS)), |_| 0);
        gradient.advance(&options, 999 * MS, (50, Some(MS)), |_| 0);
        assert_eq!(gradient.limit, 3);
        gradient.advance(&options, 1_000 * MS, (50, Some(MS)), |_| 0);
        assert_eq!((gradient.limit, gradient.due()), (5, 2_000 * MS));
    }

    #[test]
    fn min_rtt_is_measured_again_at_the_minimum_and_the_limit_returns() {
        let options =
            options(json!({"min_rtt_calc_params": {"min_concurrency": 4, "request_count": 10, "jitter": 10}}));
        let mut gradient = Gradient::new(&options);
        gradient.advance(&options, 0, (10, Some(10 * MS)), |most| {
            assert_eq!(most, 6_000 * MS + 1);
            most - 1
        });
        let measure_at = 66_000 * MS;
        for now in [100, 200, 300] {
            gradient.advance(&options, now * MS, (1, Some(10 * MS)), |_| 0);
        }
        let limit = gradient.limit;
        assert!(limit > 10, "{limit}");
        gradient.advance(&options, measure_at - 1, (0, None), |_| 0);
        assert_eq!((gradient.limit, gradient.due()), (limit, 400 * MS));
        gradient.advance(&options, measure_at, (5, Some(99 * MS)), |_| 0);
        assert_eq!((gradient.limit, gradient.phase), (4, Phase::Measuring { after: limit }));
        assert_eq!((gradient.due(), gradient.enough(&options)), (u64::MAX, 10));
        gradient.advance(&options, measure_at + 60_000 * MS, (10, Some(20 * MS)), |_| 0);
        assert_eq!((gradient.limit, gradient.min_rtt), (limit, 20 * MS));
    }

    #[test]
    fn min_rtt_is_measured_again_if_the_limit_stays_at_the_minimum() {
        let options = options(json!({}));
        let mut gradient = Gradient::new(&options);
        gradient.advance(&options, 0, (50, Some(MS)), |_| 0);
        for n in 1..=5 {
            assert!(matches!(gradient.phase, Phase::Limiting { .. }), "{n}");
            gradient.advance(&options, n * 100 * MS, (1, Some(100 * MS)), |_| 0);
        }
        assert_eq!((gradient.limit, gradient.phase), (3, Phase::Measuring { after: 3 }));
        gradient.advance(&options, 600 * MS, (50, Some(100 * MS)), |_| 0);
        gradient.advance(&options, 700 * MS, (1, Some(100 * MS)), |_| 0);
        assert_eq!(gradient.limit, 5, "the endpoints have become slower");
    }

    #[test]
    fn a_fixed_min_rtt_is_never_measured() {
        let fixed = options(json!({"min_rtt_calc_params": {"fixed_value": "10ms"}}));
        let mut gradient = Gradient::new(&fixed);
        gradient.advance(&fixed, 0, (1, Some(10 * MS)), |_| 0);
        assert_eq!((gradient.limit, gradient.min_rtt), (5, 10 * MS));
        for n in 1..100 {
            gradient.advance(&fixed, n * 100_000 * MS, (1, Some(1_000 * MS)), |_| 0);
            assert!(matches!(gradient.phase, Phase::Limiting { .. }), "{n}");
        }
        assert_eq!(gradient.limit, 3);
        // A reload fixes the value during a measurement.
        let mut measuring = Gradient::new(&options(json!({})));
        measuring.advance(&fixed, 0, (1, Some(MS)), |_| 0);
        assert_eq!((measuring.min_rtt, measuring.due()), (10 * MS, 100 * MS));
        // Another one measures it again.
        measuring.advance(&options(json!({})), 100 * MS, (1, Some(MS)), |_| 0);
        assert!(matches!(measuring.phase, Phase::Measuring { .. }));
    }

    #[test]
    fn limit_stays_within_changed_options() {
        let options_now = options(json!({"min_rtt_calc_params": {"fixed_value": "10ms"}}));
        let mut gradient = Gradient::new(&options_now);
        (0..20).for_each(|n| gradient.advance(&options_now, n * 100 * MS, (1, Some(10 * MS)), |_| 0));
        assert_eq!(gradient.limit, 1000);
        let lower = options(json!({
            "concurrency_limit_params": {"max_concurrency_limit": 50},
            "min_rtt_calc_params": {"fixed_value": "10ms"},
        }));
        gradient.advance(&lower, 2_000 * MS, (1, Some(10 * MS)), |_| 0);
        assert_eq!(gradient.limit, 50);
    }
}
