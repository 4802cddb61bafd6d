//! The configuration: its model (`model`, `units`), and how a file is loaded and validated.
//!
//! YAML, JSON and TOML are parsed into one value tree that records the location of every value (`node`, `parse`). Then
//! environment variables are expanded (`env`), short forms are normalized (`normalize`), and the tree is validated
//! against the JSON Schema derived from the model (`schema`) and by checks that a schema cannot express (`semantics`).
//! A file may include others
//! (`include`); each is checked by itself (`check`), and checks across files need only their names and addresses
//! (`outline`). All errors are reported together, each
//! with its location (`diagnostic`); only files without errors become a [`Config`]. Of each file, its resources are kept
//! (`resources`), not the tree.

pub mod model;
pub mod units;
pub mod url;

mod adaptive_concurrency;
pub(crate) mod admin;
mod balancer;
mod check;
mod diagnostic;
mod effective;
mod env;
mod excerpt;
mod explain;
mod filter_errors;
mod fragment;
mod header_match;
mod include;
mod json;
mod load;
mod node;
mod normalize;
mod outlier;
mod outline;
mod overload;
mod parse;
mod paths;
mod redact;
mod resources;
mod retry;
mod schema;
mod semantics;
mod sockets;
mod source;
mod sources;
pub mod spiffe;
mod subset;
mod suggest;
mod tls;
mod toml;
mod tree;
mod workload;
mod yaml;

#[cfg(test)]
mod tests;

pub use self::{
    diagnostic::{Diagnostic, Diagnostics, Note, Severity, Texts},
    effective::Supplied,
    filter_errors::{Answer, Reported, all_mistakes},
    fragment::{Fragment, RefusedResource, ServiceEndpoints},
    header_match::{BadHeaderMatch, HeaderMatcher},
    include::{Dependencies, SearchedFolder},
    load::{ExternalChecks, Loaded, Loader, load, parse, read_tree},
    model::Config,
    node::{Key, Node, Span, Text, Value},
    parse::Format,
    resources::{ConfigSource, FileResources, Resource},
    schema::schema,
    source::{Location, Position, Source},
};
