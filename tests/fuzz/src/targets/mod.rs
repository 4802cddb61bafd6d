//! The targets: one file per target, or for several similar ones.

use crate::Target;

mod authority;
mod certificates;
mod client_hello;
mod config;
mod csr;
mod documents;
mod endpoint_slices;
mod filter_state;
mod filters;
mod flood;
mod forwarded;
mod fragments;
mod grpc;
mod grpc_web;
mod h1;
mod h1_responses;
mod h2_frames;
mod h2_heads;
mod h3_frames;
mod h3_heads;
mod iovecs;
mod join_token;
mod pairs;
mod path;
mod properties;
mod proxy_protocol;
mod sniff;
mod spiffe;

/// Lists the targets and defines a test for each.
macro_rules! targets {
    ($($name:ident: $target:path,)*) => {
        /// All targets with their names, which are also the names of their folders in `corpus` and `regressions`.
        pub const ALL: &[(&str, Target)] = &[$((stringify!($name), $target)),*];

        #[cfg(test)]
        mod tests {
            use super::*;

            $(
                #[test]
                fn $name() {
                    crate::driver::run(stringify!($name), &$target);
                }
            )*
        }
    };
}

targets! {
    authority: authority::TARGET,
    authz: filters::AUTHZ,
    certificates: certificates::TARGET,
    client_hello: client_hello::TARGET,
    config: config::TARGET,
    csr: csr::TARGET,
    documents: documents::TARGET,
    endpoint_slices: endpoint_slices::TARGET,
    fault: filters::FAULT,
    filter_state: filter_state::TARGET,
    flood: flood::TARGET,
    forwarded: forwarded::TARGET,
    fragments: fragments::TARGET,
    grpc: grpc::TARGET,
    grpc_web: grpc_web::TARGET,
    h1: h1::TARGET,
    h1_responses: h1_responses::TARGET,
    h2_frames: h2_frames::TARGET,
    h2_heads: h2_heads::TARGET,
    h3_frames: h3_frames::TARGET,
    h3_heads: h3_heads::TARGET,
    iovecs: iovecs::TARGET,
    join_token: join_token::TARGET,
    pairs: pairs::TARGET,
    path: path::TARGET,
    properties: properties::TARGET,
    proxy_protocol: proxy_protocol::TARGET,
    ratelimit: filters::RATELIMIT,
    router: filters::ROUTER,
    sniff: sniff::TARGET,
    spiffe: spiffe::TARGET,
}
