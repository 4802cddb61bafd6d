//! Cases that need no message: data, queues, metrics, properties, rejected calls.

use super::*;

impl Run {
    /// Runs the cases that need no message: data, queues, metrics, properties.
    pub(super) fn state(&mut self, function: &str, about: &str) -> Result<Next, String> {
        match (function, about) {
            ("proxy_log", "ok") => {
                for level in [
                    LogLevel::Trace,
                    LogLevel::Debug,
                    LogLevel::Info,
                    LogLevel::Warn,
                    LogLevel::Error,
                    LogLevel::Critical,
                ] {
                    same!(host::log(level, "a message of a case"), Ok(()));
                }
                same!(host::log(LogLevel::Info, ""), Ok(()));
            }
            ("proxy_get_log_level", "ok") => yes!(sdk::log_level_is_info()),
            ("proxy_get_current_time_nanoseconds", "ok") => {
                let now = host::get_current_time().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
                yes!(now.as_secs() > 1_700_000_000);
            }
            ("proxy_set_shared_data", "ok") => {
                host::set_shared_data("key", Some(b"one"), None).unwrap();
                let (value, cas) = host::get_shared_data("key").unwrap();
                same!(value, Some(b"one".to_vec()));
                yes!(cas.is_some());
                host::set_shared_data("key", Some(b"two"), cas).unwrap();
                same!(host::get_shared_data("key").unwrap().0, Some(b"two".to_vec()));
            }
            ("proxy_set_shared_data", "cas-mismatch") => {
                host::set_shared_data("compared", Some(b"one"), None).unwrap();
                let (_, cas) = host::get_shared_data("compared").unwrap();
                host::set_shared_data("compared", Some(b"two"), cas).unwrap();
                same!(host::set_shared_data("compared", Some(b"three"), cas), Err(Status::CasMismatch));
            }
            ("proxy_get_shared_data", "ok") => {
                host::set_shared_data("early", Some(b"bird"), None).unwrap();
                same!(host::get_shared_data("early").unwrap().0, Some(b"bird".to_vec()));
            }
            ("proxy_get_shared_data", "not-found") => {
                same!(host::get_shared_data("nothing here"), Ok((None, None)));
            }
            ("proxy_register_shared_queue", "ok") => {
                let first = host::register_shared_queue("first").unwrap();
                same!(host::register_shared_queue("first"), Ok(first));
                yes!(host::register_shared_queue("second") != Ok(first));
            }
            ("proxy_resolve_shared_queue", "ok") => {
                let queue = host::register_shared_queue("resolved").unwrap();
                same!(host::resolve_shared_queue("conformance", "resolved"), Ok(Some(queue)));
                same!(host::resolve_shared_queue("", "resolved"), Ok(Some(queue)));
            }
            ("proxy_resolve_shared_queue", "not-found") => {
                same!(host::resolve_shared_queue("conformance", "nowhere"), Ok(None));
                same!(host::resolve_shared_queue("another vm", "first"), Ok(None));
            }
            ("proxy_enqueue_shared_queue", "not-found") => {
                same!(host::enqueue_shared_queue(0x7fff_ffff, Some(b"x")), Err(Status::NotFound));
            }
            ("proxy_dequeue_shared_queue", "ok") => {
                let queue = host::register_shared_queue("taken").unwrap();
                host::enqueue_shared_queue(queue, Some(b"one")).unwrap();
                host::enqueue_shared_queue(queue, Some(b"two")).unwrap();
                same!(host::dequeue_shared_queue(queue), Ok(Some(b"one".to_vec())));
                same!(host::dequeue_shared_queue(queue), Ok(Some(b"two".to_vec())));
            }
            ("proxy_dequeue_shared_queue", "empty") => {
                let queue = host::register_shared_queue("never filled").unwrap();
                same!(host::dequeue_shared_queue(queue), Ok(None));
            }
            ("proxy_dequeue_shared_queue", "not-found") => {
                same!(host::dequeue_shared_queue(0x7fff_ffff), Err(Status::NotFound));
            }
            ("proxy_define_metric", "ok") => {
                let counter = host::define_metric(Metric::Counter, "conformance_counter").unwrap();
                yes!(host::define_metric(Metric::Gauge, "conformance_gauge") != Ok(counter));
                yes!(host::define_metric(Metric::Histogram, "conformance_histogram").is_ok());
            }
            ("proxy_increment_metric", "ok") => {
                let counter = host::define_metric(Metric::Counter, "conformance_incremented").unwrap();
                same!(host::increment_metric(counter, 3), Ok(()));
                same!(host::get_metric(counter), Ok(3));
                let gauge = host::define_metric(Metric::Gauge, "conformance_up_and_down").unwrap();
                same!((host::increment_metric(gauge, 5), host::increment_metric(gauge, -2)), (Ok(()), Ok(())));
                same!(host::get_metric(gauge), Ok(3));
            }
            ("proxy_increment_metric", "bad-argument") => {
                let counter = host::define_metric(Metric::Counter, "conformance_never_down").unwrap();
                same!(host::increment_metric(counter, -1), Err(Status::BadArgument));
                let histogram = host::define_metric(Metric::Histogram, "conformance_not_incremented").unwrap();
                same!(host::increment_metric(histogram, 1), Err(Status::BadArgument));
            }
            ("proxy_increment_metric", "not-found") => {
                same!(host::increment_metric(100_000, 1), Err(Status::NotFound));
            }
            ("proxy_record_metric", "ok") => {
                let gauge = host::define_metric(Metric::Gauge, "conformance_set").unwrap();
                same!(host::record_metric(gauge, 7), Ok(()));
                same!(host::get_metric(gauge), Ok(7));
                let histogram = host::define_metric(Metric::Histogram, "conformance_values").unwrap();
                same!(host::record_metric(histogram, 12), Ok(()));
            }
            ("proxy_record_metric", "not-found") => same!(host::record_metric(100_000, 1), Err(Status::NotFound)),
            ("proxy_get_metric", "ok") => {
                let counter = host::define_metric(Metric::Counter, "conformance_read").unwrap();
                same!(host::get_metric(counter), Ok(0));
            }
            ("proxy_get_metric", "bad-argument-histogram") => {
                let histogram = host::define_metric(Metric::Histogram, "conformance_not_read").unwrap();
                same!(host::get_metric(histogram), Err(Status::BadArgument));
            }
            ("proxy_get_metric", "not-found") => same!(host::get_metric(100_000), Err(Status::NotFound)),
            ("proxy_get_property", "ok") => same!(text("request.path"), some("/conformance?a=b")),
            ("proxy_get_property", "plugin") => {
                for name in ["plugin_name", "plugin_root_id", "plugin_vm_id"] {
                    same!(text(name), some("conformance"));
                }
            }
            ("proxy_get_property", "request") => {
                for (name, value) in [
                    ("request.url_path", "/conformance"),
                    ("request.query", "a=b"),
                    ("request.host", "test"),
                    ("request.scheme", "http"),
                    ("request.method", "POST"),
                    ("request.protocol", "HTTP/1.1"),
                    ("request.referer", "here"),
                    ("request.useragent", "conformance"),
                    ("request.headers.x-one", "1"),
                ] {
                    same!(text(name), some(value));
                }
                yes!(number("request.time").is_some() && number("request.duration").is_some());
            }
            ("proxy_get_property", "connection") => {
                yes!(text("source.address").is_some() && number("source.port").is_some());
                yes!(text("destination.address").is_some() && number("connection.id").is_some());
                same!(property("connection.mtls"), Some(vec![0]));
                same!(text("xds.filter_chain_name"), some("main"));
            }
            ("proxy_get_property", "not-found") => {
                same!((property("request.none"), property("none"), property("response.code")), (None, None, None));
            }
            ("proxy_set_property", "ok") => {
                host::set_property(vec!["mine"], Some(b"value")).unwrap();
                same!(text("mine"), some("value"));
                host::set_property(vec!["a", "path"], Some(b"2")).unwrap();
                same!(text("a.path"), some("2"));
            }
            ("proxy_set_effective_context", "bad-argument-no-such-stream") => {
                same!(host::set_effective_context(0x7fff_ffff), Err(Status::BadArgument));
                same!(header(Map::HttpRequestHeaders, "x-one"), some("1"));
            }
            ("proxy_http_call", "bad-argument") => {
                same!(call("nobody"), Err(Status::BadArgument));
                let without = |nth: usize| {
                    let mut head = CALL.to_vec();
                    head.remove(nth);
                    host::dispatch_http_call("web", head, None, vec![], TIME)
                };
                same!(
                    (without(0), without(1), without(2)),
                    (Err(Status::BadArgument), Err(Status::BadArgument), Err(Status::BadArgument))
                );
            }
            ("proxy_grpc_call", "parse-failure") => {
                same!(grpc("nobody", "Once"), Err(Status::ParseFailure));
                same!(grpc("web", "Once"), Err(Status::ParseFailure));
                same!(grpc("grpc", ""), Err(Status::ParseFailure));
            }
            ("proxy_grpc_stream", "parse-failure") => {
                same!((stream("nobody"), stream("web")), (Err(Status::ParseFailure), Err(Status::ParseFailure)));
            }
            ("proxy_grpc_send", "not-found") => {
                same!(host::send_grpc_stream_message(0x7fff_ffff, Some(b"x"), true), Err(Status::NotFound));
            }
            ("proxy_grpc_send", "bad-argument-no-stream") => {
                let call = grpc("grpc", "Once").unwrap();
                same!(host::send_grpc_stream_message(call, Some(b"y"), true), Err(Status::BadArgument));
            }
            ("proxy_grpc_close", "not-found") => same!(host::close_grpc_stream(0x7fff_ffff), Err(Status::NotFound)),
            ("proxy_grpc_cancel", "not-found") => {
                same!(host::cancel_grpc_call(0x7fff_ffff), Err(Status::NotFound));
                same!(host::cancel_grpc_stream(0x7fff_ffff), Err(Status::NotFound));
            }
            ("proxy_grpc_cancel", "ok") => {
                let call = stream("grpc").unwrap();
                same!(host::cancel_grpc_stream(call), Ok(()));
                same!(host::cancel_grpc_stream(call), Err(Status::NotFound));
            }
            ("proxy_get_buffer_bytes", "not-found-in-this-phase") => {
                same!((buffer(Buffer::HttpRequestBody), buffer(Buffer::HttpCallResponseBody)), (None, None));
            }
            ("proxy_continue_stream" | "proxy_continue_request", "ok-nothing-to-continue") => {
                host::resume_http_request().unwrap();
                host::resume_http_response().unwrap();
            }
            ("proxy_call_foreign_function" | "proxy_clear_route_cache", _) => sdk::other(&self.case)?,
            _ => return Ok(NotHere),
        }
        PASSED
    }
}
