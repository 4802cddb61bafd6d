//! Draws for one request: by weight, without the endpoints that the request has tried, and with less of those that have
//! just joined. The policy `random` is the first draw.
//!
//! State: none. The shares are exact for any number of workers, with the deviations of chance.

use std::sync::Arc;

use super::{candidates::Candidates, slow_start::Warming};
use crate::upstream::endpoint::Endpoint;

/// Maximum number of draws repeated for one request because an endpoint must not be used, or is still starting slowly.
pub(super) const MOST_REDRAWS: usize = 16;

/// Draws candidates for one request.
#[derive(Debug)]
pub(super) struct Draw<'a> {
    pub(super) candidates: &'a Candidates,
    pub(super) tried: &'a [Arc<Endpoint>],
    /// Set while some endpoint has just joined.
    pub(super) warming: Option<Warming<'a>>,
}

impl Draw<'_> {
    /// Draws a candidate by weight; `None` if all have been tried.
    pub(super) fn first(&self) -> Option<usize> {
        match self.is_plain() {
            true => Some(self.candidates.draw()),
            false => self.draw(None),
        }
    }

    /// Draws a candidate other than this one by weight.
    pub(super) fn other(&self, than: usize) -> Option<usize> {
        match self.is_plain() {
            true => self.candidates.draw_other(than),
            false => self.draw(Some(than)),
        }
    }

    /// Whether all candidates can be drawn as they are.
    pub(super) fn is_plain(&self) -> bool {
        self.tried.is_empty() && self.warming.is_none()
    }

    fn draw(&self, but: Option<usize>) -> Option<usize> {
        let is_allowed = |i: usize| Some(i) != but && !self.was_tried(i);
        let mut cold = None;
        // Usually most candidates are allowed.
        for drawn in (0..MOST_REDRAWS).map(|_| self.candidates.draw()) {
            if is_allowed(drawn) {
                if self.is_warm(drawn) {
                    return Some(drawn);
                }
                cold = Some(drawn);
            }
        }
        cold.or_else(|| self.candidates.draw_among(is_allowed))
    }

    /// Whether the request has tried this candidate.
    pub(super) fn was_tried(&self, index: usize) -> bool {
        self.candidates.is_among(self.tried, index)
    }

    /// Whether a turn of this candidate counts: always, unless it is starting slowly.
    pub(super) fn is_warm(&self, index: usize) -> bool {
        self.warming.as_ref().is_none_or(|warming| warming.accepts(self.candidates.endpoint(index)))
    }

    /// The weight of a candidate at this moment.
    pub(super) fn weight(&self, index: usize) -> f64 {
        let weight = self.candidates.weight(index) as f64;
        match &self.warming {
            None => weight,
            Some(warming) => weight * warming.factor(self.candidates.endpoint(index)),
        }
    }
}
