//! The messages of the table, and what is right for each.
//!
//! Unless it says something else, a row expects that the request arrives as it was sent and the answer as it was given, and that
//! the log has no flags.

mod cuts;
mod framing;
mod heads;
mod replies;

use super::model::{Row, Version};

const H1: &[Version] = &[Version::H1];

/// All of them.
pub fn all() -> Vec<Row> {
    [framing::rows(), heads::rows(), replies::rows(), cuts::rows()].into_iter().flatten().collect()
}
