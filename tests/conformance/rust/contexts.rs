//! The contexts of the module, for both lines of the crate: they pass their callbacks to the running case.

use proxy_wasm::{
    hostcalls as host,
    traits::{Context, HttpContext, RootContext, StreamContext},
    types::{Action, ContextType, PeerType},
};

use super::{
    run::{self, At, Run},
    sdk,
};

pub struct Root;

impl Context for Root {}

impl RootContext for Root {
    fn on_vm_start(&mut self, size: usize) -> bool {
        let is = size == 6 && sdk::vm_configuration(self) == Some(b"the vm".to_vec());
        run::judge("proxy_on_vm_start/ok", if is { Ok(()) } else { Err(format!("{size} bytes")) });
        true
    }

    fn on_configure(&mut self, size: usize) -> bool {
        let is = size == 10 && sdk::plugin_configuration(self) == Some(b"the plugin".to_vec());
        for case in sdk::CONFIGURING {
            run::judge(case, if is { Ok(()) } else { Err(format!("{size} bytes")) });
        }
        true
    }

    fn on_tick(&mut self) {
        run::root(At::Tick);
    }

    fn on_queue_ready(&mut self, queue: u32) {
        run::root(At::QueueReady { queue });
    }

    fn get_type(&self) -> Option<ContextType> {
        // One module serves both: a connection has no request.
        let is_http = host::get_property(vec!["request", "method"]).unwrap().is_some();
        Some(if is_http { ContextType::HttpContext } else { ContextType::StreamContext })
    }

    fn create_http_context(&self, context: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream { context, ..Stream::default() }))
    }

    fn create_stream_context(&self, context: u32) -> Option<Box<dyn StreamContext>> {
        Some(Box::new(Stream { context, ..Stream::default() }))
    }
}

/// A request or a connection.
#[derive(Default)]
struct Stream {
    context: u32,
    seen: &'static str,
    run: Option<Run>,
}

impl Stream {
    fn at(&mut self, at: At) -> Action {
        self.run.as_mut().map_or(Action::Continue, |run| run.at(at))
    }

    fn request(&mut self, count: usize, end: Option<bool>) -> Action {
        if run::asked(&include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/cases.txt")).lines().collect::<Vec<_>>()) {
            return Action::Pause;
        }
        self.run = run::begin(self.context);
        self.at(At::RequestHeaders { count, end })
    }
}

impl Context for Stream {
    fn on_http_call_response(&mut self, call: u32, headers: usize, body: usize, trailers: usize) {
        self.at(At::HttpCall { call, headers, body, trailers });
    }

    fn on_grpc_call_response(&mut self, call: u32, status: u32, size: usize) {
        self.at(At::GrpcCall { call, status, size });
    }

    fn on_grpc_stream_initial_metadata(&mut self, call: u32, count: u32) {
        self.at(At::GrpcInitial { call, count });
    }

    fn on_grpc_stream_message(&mut self, call: u32, size: usize) {
        self.at(At::GrpcMessage { call, size });
    }

    fn on_grpc_stream_trailing_metadata(&mut self, call: u32, count: u32) {
        self.at(At::GrpcTrailing { call, count });
    }

    fn on_grpc_stream_close(&mut self, call: u32, status: u32) {
        self.at(At::GrpcClose { call, status });
    }

    fn on_done(&mut self) -> bool {
        self.at(At::Done);
        true
    }
}

impl HttpContext for Stream {
    heads!();

    fn on_http_request_body(&mut self, size: usize, _: bool) -> Action {
        if size > 0 { self.at(At::RequestBody { size }) } else { Action::Continue }
    }

    fn on_http_request_trailers(&mut self, count: usize) -> Action {
        self.at(At::RequestTrailers { count })
    }

    fn on_http_response_body(&mut self, size: usize, _: bool) -> Action {
        if size > 0 { self.at(At::ResponseBody { size }) } else { Action::Continue }
    }

    fn on_http_response_trailers(&mut self, count: usize) -> Action {
        self.at(At::ResponseTrailers { count })
    }

    fn on_log(&mut self) {
        self.at(At::Log);
    }
}

impl StreamContext for Stream {
    fn on_new_connection(&mut self) -> Action {
        self.seen = "new";
        Action::Continue
    }

    fn on_downstream_data(&mut self, size: usize, _: bool) -> Action {
        if size == 0 {
            return Action::Continue;
        }
        if self.run.is_none() {
            self.run = run::begin_tcp(self.context, self.seen);
        }
        self.at(At::Downstream { size })
    }

    fn on_upstream_data(&mut self, size: usize, _: bool) -> Action {
        if size > 0 { self.at(At::Upstream { size }) } else { Action::Continue }
    }

    fn on_downstream_close(&mut self, _: PeerType) {
        self.at(At::DownstreamClose);
    }

    fn on_upstream_close(&mut self, _: PeerType) {
        self.at(At::UpstreamClose);
    }
}
