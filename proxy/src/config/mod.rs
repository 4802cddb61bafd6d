//! The configuration: what it may say (`model`, `units`), and how a file becomes one.
//!
//! YAML, JSON and TOML are read into one value tree that knows where in the file everything is (`node`). Environment
//! variables are put in (`env`), what is written short is written out (`fit`), the tree is checked against the JSON Schema that is derived from the model (`schema`),
//! and what a schema cannot say is checked as well (`semantics`). All that is wrong is reported at once, each at its
//! place (`diagnostic`); only a file without errors becomes a [`Config`].

pub mod model;
pub mod units;

pub(crate) mod admin;
mod diagnostic;
mod env;
mod explain;
mod filter_errors;
mod json;
mod load;
mod node;
mod normalize;
mod redact;
mod schema;
mod semantics;
mod sockets;
mod source;
pub mod spiffe;
mod suggest;
mod tls;
mod toml;
mod tree;
mod workload;
mod yaml;

#[cfg(test)]
mod tests;

pub use self::{
    diagnostic::{Diagnostic, Diagnostics, Severity},
    filter_errors::{Answer, Reported, all_mistakes},
    load::{ExternalChecks, Format, Loaded, Loader, load, parse, read_tree},
    model::Config,
    node::{Key, Node, Span, Text, Value},
    schema::schema,
    source::{Location, Position, Source},
};
