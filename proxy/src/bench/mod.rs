//! Benchmarks: a filter chain by itself (`chain`), and a load generator (`load`).

pub mod chain;
pub mod load;
