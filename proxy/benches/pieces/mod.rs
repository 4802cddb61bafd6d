//! The pieces of a request's way that are worth guarding, each ready to be run again and again. `criterion.rs` takes their
//! time, `instructions.rs` counts their instructions.

mod filters;
mod small;
mod traffic;

/// Something that is run often.
pub struct Piece {
    /// What it is called in reports, and in the baseline.
    pub name: &'static str,
    /// Runs it once.
    pub run: Box<dyn FnMut()>,
}

impl Piece {
    fn new(name: &'static str, run: impl FnMut() + 'static) -> Piece {
        Piece { name, run: Box::new(run) }
    }
}

/// All of them, in the order of the folders that they are in. They belong to this thread.
pub fn all() -> Vec<Piece> {
    // Balancers draw lots: always the same ones.
    fastrand::seed(1);
    [small::pieces(), traffic::pieces(), filters::pieces()].into_iter().flatten().collect()
}
