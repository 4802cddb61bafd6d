//! Implements the fast lane with nothing but Proxy-Wasm's functions, so that a module runs in any Proxy-Wasm host.
//!
//! | fast lane | implementation here |
//! |---|---|
//! | headers by number | a table of names; a map is read as a whole, once per callback (`headers`) |
//! | fields for any response | kept, and added to the response when it passes (`streams`) |
//! | timers | the tick of the root context (`schedule`) |
//! | buckets and limits | shared data, changed by compare-and-swap (`counts`) |
//! | routes | changes to the request, and headers that select the destination (`routes`) |
//! | state and metadata | properties of the stream (`stored`) |
//! | flags and fields of the access log | properties of the stream |
//! | the client's address | the property `source.address` |
//!
//! Natively, only the parts that need no host are compiled, for their tests.

mod address;
mod counts;
#[cfg(target_arch = "wasm32")]
mod headers;
#[cfg(target_arch = "wasm32")]
mod imports;
#[cfg(target_arch = "wasm32")]
mod lane;
mod rewrite;
#[cfg(target_arch = "wasm32")]
mod routes;
mod schedule;
#[cfg(target_arch = "wasm32")]
mod stored;
#[cfg(target_arch = "wasm32")]
mod streams;

#[cfg(target_arch = "wasm32")]
pub(crate) use {counts::host::*, headers::*, lane::*, routes::*, schedule::host::*, stored::*, streams::*};
