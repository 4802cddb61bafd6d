//! The pieces of a request's path that the benchmarks watch, each ready to be run repeatedly. `criterion.rs` times them,
//! `instructions.rs` counts their instructions.

mod filters;
mod small;
mod traffic;

/// A piece of code that a benchmark runs repeatedly.
pub struct Piece {
    /// The name in reports, and in the baseline.
    pub name: &'static str,
    /// Runs the piece once.
    pub run: Box<dyn FnMut()>,
}

impl Piece {
    fn new(name: &'static str, run: impl FnMut() + 'static) -> Piece {
        Piece { name, run: Box::new(run) }
    }
}

/// All pieces, in the order of their folders. They can only be used on this thread.
pub fn all() -> Vec<Piece> {
    // Balancers choose at random; the seed makes them deterministic.
    fastrand::seed(1);
    [small::pieces(), traffic::pieces(), filters::pieces()].into_iter().flatten().collect()
}
