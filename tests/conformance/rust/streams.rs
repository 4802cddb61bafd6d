//! Cases that span several callbacks of a request or a connection.

use super::*;

impl Run {
    /// Runs the cases that begin with the request headers and continue in other callbacks.
    pub(super) fn request(&mut self, function: &str, about: &str, end: Option<bool>) -> Result<Next, String> {
        match (function, about) {
            ("proxy_on_request_headers", "end-of-stream") => same!(end, Some(true)),
            ("proxy_on_request_headers", _) => yes!(end != Some(true)),
            ("proxy_set_tick_period_milliseconds" | "proxy_on_tick" | "proxy_set_effective_context", _)
            | ("proxy_continue_stream" | "proxy_continue_request", _) => {
                host::set_tick_period(Duration::from_millis(1)).unwrap();
                self.wait();
                return HOLD;
            }
            ("proxy_enqueue_shared_queue" | "proxy_on_queue_ready", _) => {
                self.id = host::register_shared_queue("told").unwrap();
                host::enqueue_shared_queue(self.id, Some(b"news")).unwrap();
                self.wait();
                return GO_ON;
            }
            ("proxy_send_local_response", "ok") => {
                let fields = vec![("x-own", "1"), ("content-length", "99")];
                host::send_http_response(403, fields, Some(b"go away")).unwrap();
                return HOLD;
            }
            ("proxy_send_local_response", "ok-of-a-grpc-request") => sdk::other(&self.case)?,
            ("proxy_close_stream", "ok") => {
                sdk::other(&self.case)?;
                return HOLD;
            }
            ("proxy_http_call", "ok") | ("proxy_on_http_call_response", _) => {
                let mut head = CALL.to_vec();
                head.push(("x-sent", "1"));
                let sent = host::dispatch_http_call("web", head, Some(b"question"), vec![("x-last", "1")], TIME);
                self.id = sent.unwrap();
                return HOLD;
            }
            ("proxy_http_call", "ok-absolute-url-as-path") => {
                let head = vec![(":method", "GET"), (":path", "http://x.example/echo?a=b"), (":authority", "called")];
                self.id = host::dispatch_http_call("web", head, None, vec![], TIME).unwrap();
                return HOLD;
            }
            ("proxy_http_call", "ok-but-it-fails") => {
                self.id = call("nowhere").unwrap();
                return HOLD;
            }
            ("proxy_grpc_call", "ok-but-it-fails") | ("proxy_get_status", _) => self.id = grpc("grpc", "Fail").unwrap(),
            ("proxy_grpc_call", _) | ("proxy_on_grpc_receive", _) => self.id = grpc("grpc", "Once").unwrap(),
            ("proxy_grpc_stream" | "proxy_grpc_send", _) => {
                self.id = stream("grpc").unwrap();
                same!(host::send_grpc_stream_message(self.id, Some(b"first"), false), Ok(()));
                same!(host::send_grpc_stream_message(self.id, Some(b"second"), true), Ok(()));
            }
            (name, _) if name.contains("grpc") => {
                self.id = stream("grpc").unwrap();
                same!(host::send_grpc_stream_message(self.id, Some(b"first"), false), Ok(()));
                same!(host::close_grpc_stream(self.id), Ok(()));
            }
            _ => return GO_ON,
        }
        // Holds the request, so that its stream exists when the call ends.
        if function.contains("grpc") || function == "proxy_get_status" { HOLD } else { PASSED }
    }

    /// Runs the later parts of the request, and the response.
    pub(super) fn message(&mut self, function: &str, about: &str, at: At) -> Result<Next, String> {
        match (function, about, at) {
            ("proxy_on_request_body", _, RequestBody { size }) => same!(size, 5),
            ("proxy_on_request_trailers", _, RequestTrailers { count }) => same!(count, 1),
            ("proxy_on_response_headers", _, ResponseHeaders { count, end }) => {
                yes!(count >= 2 && end != Some(true));
            }
            ("proxy_on_response_body", _, ResponseBody { size }) => same!(size, 5),
            ("proxy_on_response_trailers", _, ResponseTrailers { count }) => same!(count, 1),
            ("proxy_on_log", _, Log) => yes!(self.step > 5),
            ("proxy_on_done", _, Done) => {}
            ("proxy_get_header_map_value", "every-map-in-its-phase", RequestTrailers { .. }) => {
                same!(header(Map::HttpRequestTrailers, "x-trailer"), some("end"));
                return GO_ON;
            }
            ("proxy_get_header_map_value", "every-map-in-its-phase", ResponseHeaders { .. }) => {
                same!(header(Map::HttpResponseHeaders, "x-up"), some("yes"));
                return GO_ON;
            }
            ("proxy_get_header_map_value", "every-map-in-its-phase", ResponseTrailers { .. }) => {
                same!(header(Map::HttpResponseTrailers, "x-up-trailer"), some("end"));
            }
            ("proxy_get_buffer_bytes", "ok", RequestBody { .. }) => {
                same!(buffer(Buffer::HttpRequestBody), some("hello"));
                same!(host::get_buffer(Buffer::HttpRequestBody, 1, 3), Ok(Some(b"ell".to_vec())));
                return GO_ON;
            }
            ("proxy_get_buffer_bytes", "ok", ResponseBody { .. }) => {
                same!(buffer(Buffer::HttpResponseBody), some("world"));
            }
            ("proxy_get_buffer_bytes", "ok-nothing-after-the-end", RequestBody { .. }) => {
                same!(host::get_buffer(Buffer::HttpRequestBody, 5, 10), Ok(None));
                same!(host::get_buffer(Buffer::HttpRequestBody, 1000, 10), Ok(None));
            }
            ("proxy_set_buffer_bytes", _, RequestBody { .. }) => {
                let body = Buffer::HttpRequestBody;
                let set = |start, size, text: &str| host::set_buffer(body, start, size, text.as_bytes()).unwrap();
                let wanted = match about {
                    "ok" => {
                        set(0, usize::MAX, "replaced");
                        some("replaced")
                    }
                    "ok-prepend" => {
                        set(0, 0, "a ");
                        some("a hello")
                    }
                    "ok-append" => {
                        set(5, 0, "!");
                        set(1000, 1000, "?");
                        some("hello!?")
                    }
                    "ok-inside" => {
                        set(1, 3, "-");
                        some("h-o")
                    }
                    _ => {
                        set(0, usize::MAX, "");
                        None
                    }
                };
                same!(buffer(body), wanted);
            }
            ("proxy_send_local_response", "ok-in-a-response-callback", ResponseHeaders { .. }) => {
                host::send_http_response(404, vec![], Some(b"mine")).unwrap();
            }
            ("proxy_send_local_response", "ok", ResponseHeaders { .. }) => {
                same!(header(Map::HttpResponseHeaders, ":status"), some("403"));
                same!(header(Map::HttpResponseHeaders, "x-own"), some("1"));
            }
            ("proxy_close_stream", "ok-response", ResponseHeaders { .. }) => sdk::other(&self.case)?,
            ("proxy_close_stream", "ok", Log) => {}
            ("proxy_continue_response", _, ResponseHeaders { .. }) => {
                host::set_tick_period(Duration::from_millis(1)).unwrap();
                self.wait();
                return HOLD;
            }
            ("proxy_get_property", "response", ResponseHeaders { .. }) => {
                same!((number("response.code"), text("response.headers.x-up")), (Some(200), some("yes")));
            }
            ("proxy_get_property", "upstream", ResponseHeaders { .. }) => {
                yes!(text("upstream.address").is_some() && number("upstream.port").is_some());
                same!((text("cluster_name"), number("upstream.request_attempt_count")), (some("web"), Some(1)));
            }
            _ => return GO_ON,
        }
        PASSED
    }

    /// Runs ticks and queue messages.
    pub(super) fn root(&mut self, function: &str, at: At) -> Result<Next, String> {
        match at {
            Tick => {
                host::set_tick_period(Duration::ZERO).unwrap();
                same!(header(Map::HttpRequestHeaders, "x-one"), None);
                same!(host::set_effective_context(self.context), Ok(()));
                same!(header(Map::HttpRequestHeaders, "x-one"), some("1"));
                if function == "proxy_continue_response" {
                    host::resume_http_response().unwrap();
                } else {
                    host::resume_http_request().unwrap();
                }
            }
            QueueReady { queue } => {
                same!(queue, self.id);
                same!(host::dequeue_shared_queue(queue), Ok(Some(b"news".to_vec())));
            }
            _ => return Err(format!("unexpected {at:?}")),
        }
        PASSED
    }

    /// Runs TCP connections; `seen` has the bytes received before the first line was complete.
    pub(super) fn tcp(&mut self, function: &str, at: At) -> Result<Next, String> {
        match (function, at) {
            ("proxy_on_new_connection", Downstream { .. }) => same!(&*self.seen, "new"),
            ("proxy_on_downstream_data", Downstream { size }) => {
                same!(buffer(Buffer::DownstreamData).map(|data| data.len()), Some(size));
            }
            ("proxy_get_buffer_bytes", Downstream { .. }) => {
                same!(host::get_buffer(Buffer::DownstreamData, 0, 5), Ok(Some(b"CASE ".to_vec())));
                same!(buffer(Buffer::UpstreamData), None);
                same!(header(Map::HttpRequestHeaders, ":path"), None);
            }
            ("proxy_get_property", Downstream { .. }) => {
                yes!(text("source.address").is_some() && number("connection.id").is_some());
                same!((text("xds.filter_chain_name"), property("request.path")), (some("tcp"), None));
            }
            ("proxy_on_upstream_data", Upstream { size }) => {
                same!((size, buffer(Buffer::UpstreamData)), (8, some("welcome\n")));
            }
            ("proxy_set_buffer_bytes", Upstream { .. }) => {
                host::set_buffer(Buffer::UpstreamData, 0, 8, b"changed\n").unwrap();
                same!(buffer(Buffer::UpstreamData), some("changed\n"));
            }
            ("proxy_continue_stream", Downstream { .. }) => {
                sdk::other(&self.case)?;
                return HOLD;
            }
            ("proxy_continue_stream", Upstream { .. }) | ("proxy_close_stream", DownstreamClose) => {}
            ("proxy_close_stream", Downstream { .. }) => {
                sdk::other(&self.case)?;
                return HOLD;
            }
            ("proxy_on_upstream_connection_close", UpstreamClose) => {}
            ("proxy_on_downstream_connection_close", DownstreamClose) => {}
            _ => return GO_ON,
        }
        PASSED
    }
}
