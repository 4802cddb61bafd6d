//! The messages of the table, and their expected outcomes.
//!
//! By default, a row expects that the request and the answer arrive unchanged, and that the log has no flags.

mod cuts;
mod framing;
mod heads;
mod replies;

use super::model::{Row, Version};

const H1: &[Version] = &[Version::H1];

/// All rows.
pub fn all() -> Vec<Row> {
    [framing::rows(), heads::rows(), replies::rows(), cuts::rows()].into_iter().flatten().collect()
}
