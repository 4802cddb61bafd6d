//! The fast lane: import module `tollgate_v1`, an addition to the standard, never a replacement.
//!
//! Three ideas make it fast. The guest provides the buffers, so the host never calls the guest's allocator. Names are
//! interned once, so a header is an integer. Whatever is known when a filter is configured (routes, buckets) is defined
//! then and referenced by an integer per request.
//!
//! Functions that return an id or a length return a negated [`Status`](crate::proxy_wasm::Status) on failure; the
//! others return the status itself. Addresses and lengths are validated: a range outside the guest's memory results in
//! `InvalidMemoryAccess`.

use crate::Function;

/// The name of the import module.
pub const MODULE: &str = "tollgate_v1";

/// Passes the fast lane's function list to another macro: the table below and the SDK's extern block both come from it.
#[macro_export]
macro_rules! for_each_fast_call {
    ($($emit:tt)+) => {
        $($emit)+! {
            /// At configure time: selects the callbacks that the host makes for streams, as
            /// [`phase`](crate::fast::phase) bits. By default: every callback that the module exports.
            fn subscribe(phases: i32) -> i32;
            /// At configure time: reports an error in the configuration, and its path (such as `rules[2].match`). May
            /// be called several times; the filter then returns 0 from `proxy_on_configure`.
            fn config_error(path_ptr: i32, path_len: i32, message_ptr: i32, message_len: i32) -> i32;
            /// Interns a header's name and returns its id, from 0. The same name has the same id. At most
            /// `limit::NAMES`.
            fn header_intern(name_ptr: i32, name_len: i32) -> i32;
            /// Writes the value of a header to the guest's buffer and returns its length. If that is more than
            /// `buf_cap`, nothing was written. Several fields of one name are joined with `, ` (RFC 9110 section 5.3;
            /// `; ` for `cookie`).
            fn header_get(map: i32, name: i32, buf_ptr: i32, buf_cap: i32) -> i32;
            /// Writes the values of several headers. `names` are u32; for each, `spans` receives a u32 offset into the
            /// buffer and an i32 length, -1 for a missing header (or id). Returns the number of bytes needed; if that
            /// is more than `buf_cap`, the values beyond it were not written.
            fn header_get_many(map: i32, names_ptr: i32, count: i32, buf_ptr: i32, buf_cap: i32, spans_ptr: i32) -> i32;
            /// Sets a header to one value.
            fn header_set(map: i32, name: i32, value_ptr: i32, value_len: i32) -> i32;
            /// Adds a header field.
            fn header_add(map: i32, name: i32, value_ptr: i32, value_len: i32) -> i32;
            /// Removes all fields of a header.
            fn header_remove(map: i32, name: i32) -> i32;
            /// Writes the address of [`source`](crate::fast::source): 16 bytes of IPv6 (IPv4 mapped, RFC 4291 section
            /// 2.5.5.2) and a little-endian u16 port.
            fn source_address(which: i32, buf_ptr: i32) -> i32;
            /// At configure time: defines a route from a [`Route`](crate::doc::Route) in JSON; returns its id, from 0.
            fn route_define(doc_ptr: i32, doc_len: i32) -> i32;
            /// Selects the route of the stream's request. `given` specifies which of the hashes are set: see
            /// [`hash`](crate::fast::hash). The last selection wins. The route's rewrites are applied after the last
            /// filter has seen the request, so all filters see the original request.
            fn route_select(route: i32, given: i32, split_hash: i64, balance_hash: i64) -> i32;
            /// Drops the selected route, so that a later filter may select another one. Filters that have already run
            /// for the stream keep the variants that they ran with.
            fn route_clear() -> i32;
            /// Whether a cluster of this name exists: 1 or 0.
            fn cluster_exists(name_ptr: i32, name_len: i32) -> i32;
            /// Whether the configuration has a filter of this name, and the filter has this variant: a value of
            /// [`variant`](crate::fast::variant).
            fn variant_exists(filter_ptr: i32, filter_len: i32, variant_ptr: i32, variant_len: i32) -> i32;
            /// At configure time: defines a token bucket from a [`Bucket`](crate::doc::Bucket) in JSON; returns its id,
            /// from 0. A bucket of the same filter and name keeps its tokens over a hot reload as long as its
            /// parameters are the same.
            fn bucket_define(doc_ptr: i32, doc_len: i32) -> i32;
            /// Takes tokens (or returns them, if negative) from a bucket for a key. Returns 1 if they were available,
            /// else 0, and writes a [`Take`](crate::fast::Take).
            fn bucket_take(bucket: i32, key_ptr: i32, key_len: i32, tokens: i32, out_ptr: i32) -> i32;
            /// At configure time: defines a concurrency limit: the maximum number of streams that hold a permit, over
            /// all workers.
            fn limit_define(name_ptr: i32, name_len: i32, max: i32) -> i32;
            /// Acquires a permit of a limit for this stream: 1 if one was available, else 0. It is released when the
            /// stream ends.
            fn limit_acquire(limit: i32) -> i32;
            /// Releases this stream's permit before the stream ends.
            fn limit_release(limit: i32) -> i32;
            /// Calls `tollgate_on_timer(context, token)` after this time, unless the stream has ended by then.
            fn timer_set(microseconds: i64, token: i64) -> i32;
            /// Adds [`flag`](crate::fast::flag) bits to the stream's response flags in the access log.
            fn flag_set(flags: i32) -> i32;
            /// Sets a named field of the stream's access log line. At most `limit::LOG_FIELDS`.
            fn log_field(name_ptr: i32, name_len: i32, value_ptr: i32, value_len: i32) -> i32;
            /// Writes the value of a key of the shared data to the guest's buffer and returns its length. If that is
            /// more than `buf_cap`, nothing was written. `version_out` (unless it is 0) receives the u32 that the
            /// standard calls `cas`.
            fn shared_get(key_ptr: i32, key_len: i32, buf_ptr: i32, buf_cap: i32, version_out: i32) -> i32;
            /// Sets a key of the shared data if its version matches [`expected`](crate::fast::expected). It expires
            /// after `ttl_ms` milliseconds (0: never).
            fn shared_set(key_ptr: i32, key_len: i32, value_ptr: i32, value_len: i32, expected: i64, ttl_ms: i64) -> i32;
            /// Deletes a key of the shared data under the same condition.
            fn shared_delete(key_ptr: i32, key_len: i32, expected: i64) -> i32;
            /// Writes the filter state stored with the stream under a key to the guest's buffer and returns its length.
            /// If that is more than `buf_cap`, nothing was written.
            fn state_get(key_ptr: i32, key_len: i32, buf_ptr: i32, buf_cap: i32) -> i32;
            /// Stores filter state with the stream, for all filters of its chain: the property `filter_state.KEY`.
            fn state_set(key_ptr: i32, key_len: i32, value_ptr: i32, value_len: i32) -> i32;
            /// Removes the filter state stored under a key.
            fn state_delete(key_ptr: i32, key_len: i32) -> i32;
            /// Reads a value of the stream's metadata, like `state_get`; `kind_out` receives its type, a u32 of
            /// [`kind`](crate::value::kind).
            fn metadata_get(space_ptr: i32, space_len: i32, key_ptr: i32, key_len: i32, kind_out: i32, buf_ptr: i32, buf_cap: i32) -> i32;
            /// Sets a typed value of the stream's metadata: the property `metadata.filter_metadata.SPACE.KEY`.
            fn metadata_set(space_ptr: i32, space_len: i32, key_ptr: i32, key_len: i32, kind: i32, value_ptr: i32, value_len: i32) -> i32;
            /// Removes a value of the stream's metadata.
            fn metadata_delete(space_ptr: i32, space_len: i32, key_ptr: i32, key_len: i32) -> i32;
            /// Returns a monotonic clock in nanoseconds, from an arbitrary start.
            fn now() -> i64;
            /// Returns 64 random bits, not for secrets.
            fn random() -> i64;
        }
    };
}

/// Every function of the module.
pub const HOSTCALLS: &[Function] = for_each_fast_call!(crate::function_table);

/// Callbacks in addition to the standard's, if the module exports them.
pub const CALLBACKS: &[Function] = crate::function_table! {
    fn tollgate_on_timer(context: i32, token: i64);
};

/// Header maps in addition to the standard's.
pub mod map {
    /// Fields added to whatever response the stream receives, from an upstream, a filter or the proxy itself.
    /// Write-only.
    pub const EVENTUAL_RESPONSE: i32 = 100;
}

/// Results of `variant_exists`.
pub mod variant {
    /// There is no such filter.
    pub const NO_FILTER: i32 = 0;
    /// The filter has no such variant.
    pub const NO_VARIANT: i32 = 1;
    /// The filter has this variant.
    pub const EXISTS: i32 = 2;
}

/// Bits of `subscribe`.
pub mod phase {
    /// `proxy_on_request_headers`.
    pub const REQUEST_HEADERS: u32 = 1;
    /// `proxy_on_request_body`.
    pub const REQUEST_BODY: u32 = 1 << 1;
    /// `proxy_on_request_trailers`.
    pub const REQUEST_TRAILERS: u32 = 1 << 2;
    /// `proxy_on_response_headers`.
    pub const RESPONSE_HEADERS: u32 = 1 << 3;
    /// `proxy_on_response_body`.
    pub const RESPONSE_BODY: u32 = 1 << 4;
    /// `proxy_on_response_trailers`.
    pub const RESPONSE_TRAILERS: u32 = 1 << 5;
    /// `proxy_on_log`.
    pub const LOG: u32 = 1 << 6;
    /// `proxy_on_context_create`, `proxy_on_done` and `proxy_on_delete`: not needed by a filter that keeps no state per
    /// stream.
    pub const LIFECYCLE: u32 = 1 << 7;
    /// `proxy_on_new_connection`.
    pub const NEW_CONNECTION: u32 = 1 << 8;
    /// `proxy_on_downstream_data`.
    pub const DOWNSTREAM_DATA: u32 = 1 << 9;
    /// `proxy_on_upstream_data`.
    pub const UPSTREAM_DATA: u32 = 1 << 10;
    /// `proxy_on_downstream_connection_close`.
    pub const DOWNSTREAM_CLOSE: u32 = 1 << 11;
    /// `proxy_on_upstream_connection_close`.
    pub const UPSTREAM_CLOSE: u32 = 1 << 12;
    /// The callbacks for HTTP.
    pub const HTTP: u32 =
        REQUEST_HEADERS | REQUEST_BODY | REQUEST_TRAILERS | RESPONSE_HEADERS | RESPONSE_BODY | RESPONSE_TRAILERS;
    /// The callbacks for TCP connections.
    pub const TCP: u32 = NEW_CONNECTION | DOWNSTREAM_DATA | UPSTREAM_DATA | DOWNSTREAM_CLOSE | UPSTREAM_CLOSE;
    /// All callbacks: the default for a module that never subscribes.
    pub const ALL: u32 = (1 << 13) - 1;
}

/// Bits of `route_select`'s `given`.
pub mod hash {
    /// `split_hash` selects among the route's clusters; otherwise the choice is random.
    pub const SPLIT: u32 = 1;
    /// `balance_hash` selects among the cluster's endpoints, if its balancer is `hash`.
    pub const BALANCE: u32 = 2;
}

/// The version that `shared_set` and `shared_delete` expect: one of these, or a version that was read, which is a u32
/// above 0.
pub mod expected {
    /// Any version.
    pub const ANY: i64 = -1;
    /// The key does not exist.
    pub const ABSENT: i64 = 0;
}

/// The address that `source_address` returns.
pub mod source {
    /// The peer of the connection.
    pub const PEER: i32 = 0;
    /// The client, as far as the listener's `trusted_hops` allow trusting `X-Forwarded-For`; otherwise the peer. The
    /// unspecified address (`::`, port 0) if the header has no valid address.
    pub const CLIENT: i32 = 1;
    /// The local end of the connection.
    pub const LOCAL: i32 = 2;
}

/// Response flags: why the proxy sent a local reply, or what it did to a response. The names are Envoy's where it has
/// one.
pub mod flag {
    /// `NR`: no route matched.
    pub const NO_ROUTE: u32 = 1;
    /// `RL`: rate limited.
    pub const RATE_LIMITED: u32 = 1 << 1;
    /// `UAEX`: denied by authorization.
    pub const UNAUTHORIZED: u32 = 1 << 2;
    /// `FI`: a fault was injected.
    pub const FAULT_INJECTED: u32 = 1 << 3;
    /// `DI`: a delay was injected.
    pub const DELAY_INJECTED: u32 = 1 << 4;
    /// `LR`: a filter sent a local reply.
    pub const LOCAL_REPLY: u32 = 1 << 5;
    /// `FF`: a filter failed (trap, timeout, memory).
    pub const FILTER_FAILED: u32 = 1 << 6;
    /// `NC`: there is no such cluster.
    pub const NO_CLUSTER: u32 = 1 << 7;
    /// `UH`: the cluster has no usable endpoint.
    pub const NO_HEALTHY_UPSTREAM: u32 = 1 << 8;
    /// `UF`: connecting to the upstream failed.
    pub const UPSTREAM_CONNECT_FAILURE: u32 = 1 << 9;
    /// `UC`: the upstream closed the connection before or during its response.
    pub const UPSTREAM_TERMINATED: u32 = 1 << 10;
    /// `UPE`: the upstream violated HTTP.
    pub const UPSTREAM_PROTOCOL: u32 = 1 << 11;
    /// `UT`: the request timed out.
    pub const UPSTREAM_TIMEOUT: u32 = 1 << 12;
    /// `UO`: a limit of the cluster was reached.
    pub const UPSTREAM_OVERFLOW: u32 = 1 << 13;
    /// `URX`: the retries or their budget were exhausted.
    pub const RETRY_LIMIT: u32 = 1 << 14;
    /// `DC`: the client disconnected.
    pub const DOWNSTREAM_TERMINATED: u32 = 1 << 15;
    /// `DPE`: the client violated HTTP.
    pub const DOWNSTREAM_PROTOCOL: u32 = 1 << 16;
    /// `SI`: the stream was idle for too long.
    pub const IDLE_TIMEOUT: u32 = 1 << 17;
    /// `DT`: the client was too slow to send its request.
    pub const DOWNSTREAM_TIMEOUT: u32 = 1 << 18;
    /// `OM`: a body exceeded the buffer limit.
    pub const BODY_TOO_LARGE: u32 = 1 << 19;
    /// `HG`: the request was also sent to a second endpoint (hedging).
    pub const HEDGED: u32 = 1 << 20;
    /// `OL`: the proxy itself is overloaded (load shedding).
    pub const OVERLOADED: u32 = 1 << 21;

    /// The flags that filters may set.
    pub const BY_FILTERS: u32 = NO_ROUTE | RATE_LIMITED | UNAUTHORIZED | FAULT_INJECTED | DELAY_INJECTED;

    /// Each flag's short name, as in the access log.
    pub const NAMES: &[(u32, &str)] = &[
        (NO_ROUTE, "NR"),
        (RATE_LIMITED, "RL"),
        (UNAUTHORIZED, "UAEX"),
        (FAULT_INJECTED, "FI"),
        (DELAY_INJECTED, "DI"),
        (LOCAL_REPLY, "LR"),
        (FILTER_FAILED, "FF"),
        (NO_CLUSTER, "NC"),
        (NO_HEALTHY_UPSTREAM, "UH"),
        (UPSTREAM_CONNECT_FAILURE, "UF"),
        (UPSTREAM_TERMINATED, "UC"),
        (UPSTREAM_PROTOCOL, "UPE"),
        (UPSTREAM_TIMEOUT, "UT"),
        (UPSTREAM_OVERFLOW, "UO"),
        (RETRY_LIMIT, "URX"),
        (DOWNSTREAM_TERMINATED, "DC"),
        (DOWNSTREAM_PROTOCOL, "DPE"),
        (IDLE_TIMEOUT, "SI"),
        (DOWNSTREAM_TIMEOUT, "DT"),
        (BODY_TOO_LARGE, "OM"),
        (HEDGED, "HG"),
        (OVERLOADED, "OL"),
    ];
}

/// Limits on what one filter instance may define and log. Exceeding a number results in `InternalFailure`, exceeding a
/// size in `BadArgument`.
pub mod limit {
    /// Interned header names.
    pub const NAMES: usize = 4096;
    /// Routes.
    pub const ROUTES: usize = 1 << 20;
    /// Buckets.
    pub const BUCKETS: usize = 4096;
    /// Limits.
    pub const LIMITS: usize = 4096;
    /// Headers in one `header_get_many`.
    pub const GET_MANY: usize = 64;
    /// Bytes of a document (a route, a bucket).
    pub const DOCUMENT: usize = 1 << 20;
    /// Log fields per stream added by filters.
    pub const LOG_FIELDS: usize = 16;
    /// Bytes of a log field's name, and of its value.
    pub const LOG_FIELD_BYTES: usize = 256;
    /// Concurrent timers per stream.
    pub const STREAM_TIMERS: usize = 16;
    /// Permits that one stream may hold at a time.
    pub const STREAM_PLACES: usize = 64;
    /// Keys of a stream's state.
    pub const STATE: usize = 64;
    /// Bytes of a key of a stream's state, and of its value.
    pub const STATE_BYTES: usize = 64 << 10;
    /// Values of a stream's metadata.
    pub const METADATA: usize = 64;
    /// Bytes of a metadata's namespace, and of its key.
    pub const METADATA_NAME: usize = 256;
    /// Bytes of a value of metadata.
    pub const METADATA_BYTES: usize = 4096;
    /// Configuration errors reported by one configure call.
    pub const CONFIG_ERRORS: usize = 64;
}

/// The state of a bucket after `bucket_take`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Take {
    /// Whole tokens left.
    pub remaining: u32,
    /// Milliseconds (rounded up) until the bucket is full again.
    pub reset_ms: u32,
    /// Milliseconds (rounded up) until the requested tokens will be available; 0 if they were.
    pub retry_ms: u32,
}

impl Take {
    /// Bytes in guest memory.
    pub const SIZE: usize = 12;

    /// Encodes for guest memory: three little-endian u32.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut b = [0; Self::SIZE];
        b[..4].copy_from_slice(&self.remaining.to_le_bytes());
        b[4..8].copy_from_slice(&self.reset_ms.to_le_bytes());
        b[8..].copy_from_slice(&self.retry_ms.to_le_bytes());
        b
    }

    /// Decodes from guest memory.
    #[inline]
    pub fn from_bytes(b: [u8; Self::SIZE]) -> Self {
        let at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        Take { remaining: at(0), reset_ms: at(4), retry_ms: at(8) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_is_three_little_endian_numbers() {
        let take = Take { remaining: 0x0403_0201, reset_ms: 0x0807_0605, retry_ms: 0x0c0b_0a09 };
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        assert_eq!((take.to_bytes(), Take::from_bytes(bytes)), (bytes, take));
    }
}
