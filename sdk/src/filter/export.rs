//! The macros that turn a filter into a module.

/// Exports a [`Filter`](crate::Filter) or an [`AsyncFilter`](crate::AsyncFilter) from the module: the callbacks of
/// Proxy-Wasm 0.2.1 and of Tollgate, the ABI version marker and the allocator.
///
/// Expands to a module with a dispatcher for the filter and one `extern "C"` function per callback, which only forwards
/// its arguments to the dispatcher (in `tollgate_sdk::dispatch`). The filter's `PHASES` determine which callbacks the
/// host makes; the functions for other phases are empty. Outside of WebAssembly, the macro expands to nothing.
#[macro_export]
macro_rules! export {
    ($filter:ty) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code)]
        mod __tollgate_exports {
            use super::*;
            use ::std::mem::ManuallyDrop;
            use $crate::dispatch::{self, Dispatcher, Half};

            thread_local! {
                // A module never exits, so it needs no code to drop this.
                static DISPATCHER: ManuallyDrop<Dispatcher<$filter>> =
                    const { ManuallyDrop::new(Dispatcher::new()) };
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_abi_version_0_2_1() {}

            #[unsafe(no_mangle)]
            extern "C" fn malloc(size: usize) -> *mut u8 {
                dispatch::allocate(size)
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_context_create(context: u32, parent: u32) {
                DISPATCHER.with(|d| d.context_create(context, parent))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_vm_start(_root: u32, _size: usize) -> u32 {
                dispatch::start();
                1
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_configure(root: u32, size: usize) -> u32 {
                DISPATCHER.with(|d| d.configure(root, size)).into()
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_tick(root: u32) {
                DISPATCHER.with(|d| d.tick(root))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_queue_ready(root: u32, queue: u32) {
                DISPATCHER.with(|d| d.queue_ready(root, queue))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_http_call_response(
                root: u32,
                call: u32,
                headers: usize,
                size: usize,
                trailers: usize,
            ) {
                DISPATCHER.with(|d| d.http_call_response(root, call, headers, size, trailers))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_grpc_receive_initial_metadata(root: u32, call: u32, _count: usize) {
                DISPATCHER.with(|d| d.grpc_initial_metadata(root, call))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_grpc_receive(root: u32, call: u32, size: usize) {
                DISPATCHER.with(|d| d.grpc_message(root, call, size))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_grpc_receive_trailing_metadata(root: u32, call: u32, _count: usize) {
                DISPATCHER.with(|d| d.grpc_trailing_metadata(root, call))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_grpc_close(root: u32, call: u32, status: u32) {
                DISPATCHER.with(|d| d.grpc_close(root, call, status))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_request_headers(context: u32, _count: usize, end: u32) -> i32 {
                DISPATCHER.with(|d| d.headers(context, Half::Request, end != 0))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_request_body(context: u32, size: usize, end: u32) -> i32 {
                DISPATCHER.with(|d| d.body(context, Half::Request, size, end != 0))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_request_trailers(context: u32, _count: usize) -> i32 {
                DISPATCHER.with(|d| d.trailers(context, Half::Request))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_response_headers(context: u32, _count: usize, end: u32) -> i32 {
                DISPATCHER.with(|d| d.headers(context, Half::Response, end != 0))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_response_body(context: u32, size: usize, end: u32) -> i32 {
                DISPATCHER.with(|d| d.body(context, Half::Response, size, end != 0))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_response_trailers(context: u32, _count: usize) -> i32 {
                DISPATCHER.with(|d| d.trailers(context, Half::Response))
            }

            #[unsafe(no_mangle)]
            extern "C" fn tollgate_on_timer(context: u32, token: i64) {
                DISPATCHER.with(|d| d.timer(context, token))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_done(_context: u32) -> u32 {
                1
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_log(context: u32) {
                DISPATCHER.with(|d| d.log(context))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_delete(context: u32) {
                DISPATCHER.with(|d| d.delete(context))
            }
        }
    };
}

/// Exports a [`TcpFilter`](crate::TcpFilter) from the module, as [`export!`] does for HTTP filters. A module uses one
/// of the two macros.
#[macro_export]
macro_rules! export_tcp {
    ($filter:ty) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code)]
        mod __tollgate_exports {
            use super::*;
            use ::std::mem::ManuallyDrop;
            use $crate::{
                dispatch,
                tcp::dispatch::{Side, TcpDispatcher},
            };

            thread_local! {
                // A module never exits, so it needs no code to drop this.
                static DISPATCHER: ManuallyDrop<TcpDispatcher<$filter>> =
                    const { ManuallyDrop::new(TcpDispatcher::new()) };
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_abi_version_0_2_1() {}

            #[unsafe(no_mangle)]
            extern "C" fn malloc(size: usize) -> *mut u8 {
                dispatch::allocate(size)
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_context_create(context: u32, parent: u32) {
                DISPATCHER.with(|d| d.context_create(context, parent))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_vm_start(_root: u32, _size: usize) -> u32 {
                dispatch::start();
                1
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_configure(root: u32, size: usize) -> u32 {
                DISPATCHER.with(|d| d.configure(root, size)).into()
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_tick(root: u32) {
                DISPATCHER.with(|d| d.tick(root))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_queue_ready(root: u32, queue: u32) {
                DISPATCHER.with(|d| d.queue_ready(root, queue))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_new_connection(context: u32) -> i32 {
                DISPATCHER.with(|d| d.new_connection(context))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_downstream_data(context: u32, size: usize, end: u32) -> i32 {
                DISPATCHER.with(|d| d.data(context, Side::Downstream, size, end != 0))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_upstream_data(context: u32, size: usize, end: u32) -> i32 {
                DISPATCHER.with(|d| d.data(context, Side::Upstream, size, end != 0))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_downstream_connection_close(context: u32, peer: i32) {
                DISPATCHER.with(|d| d.close(context, peer))
            }

            #[unsafe(no_mangle)]
            extern "C" fn tollgate_on_timer(context: u32, token: i64) {
                DISPATCHER.with(|d| d.timer(context, token))
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_done(_context: u32) -> u32 {
                1
            }

            #[unsafe(no_mangle)]
            extern "C" fn proxy_on_delete(context: u32) {
                DISPATCHER.with(|d| d.delete(context))
            }
        }
    };
}
