//! Cases of answers to calls.

use super::*;

impl Run {
    /// Runs the cases of answers to calls.
    pub(super) fn answer(&mut self, function: &str, about: &str, at: At) -> Result<Next, String> {
        match (function, about, at) {
            ("proxy_http_call", "ok-but-it-fails", HttpCall { call, headers, body, trailers }) => {
                same!((call, headers, body, trailers), (self.id, 0, 0, 0));
                same!(header(Map::HttpCallResponseHeaders, ":status"), None);
            }
            (_, "ok-absolute-url-as-path", HttpCall { call, .. }) => {
                same!(call, self.id);
                same!(buffer(Buffer::HttpCallResponseBody), some("GET /echo?a=b called"));
            }
            (_, _, HttpCall { call, headers, body, trailers }) => {
                same!((call, headers >= 2, body, trailers), (self.id, true, 6, 1));
                same!(header(Map::HttpCallResponseHeaders, ":status"), some("200"));
                same!(header(Map::HttpCallResponseHeaders, "x-answer"), some("42"));
                same!(header(Map::HttpCallResponseTrailers, "x-end"), some("yes"));
                same!(buffer(Buffer::HttpCallResponseBody), some("answer"));
                // The crate has selected the stream.
                same!(header(Map::HttpRequestHeaders, "x-one"), some("1"));
            }
            ("proxy_get_status", _, GrpcCall { status, .. }) => {
                same!(status, 7);
                same!(host::get_grpc_status(), Ok((7, some("denied"))));
            }
            ("proxy_grpc_call", "ok-but-it-fails", GrpcCall { call, status, .. }) => {
                same!((call, status), (self.id, 7));
            }
            (_, _, GrpcCall { call, status, size }) => {
                same!((call, status, size), (self.id, 0, 7));
                same!(buffer(Buffer::GrpcReceiveBuffer), some("message"));
            }
            (_, _, GrpcInitial { call, count }) => {
                yes!(call == self.id && count >= 1);
                same!(header(Map::GrpcReceiveInitialMetadata, "x-initial"), some("1"));
                if function != "proxy_on_grpc_receive_initial_metadata" {
                    return HOLD;
                }
            }
            (_, _, GrpcMessage { call, size }) => {
                let message = buffer(Buffer::GrpcReceiveBuffer).unwrap_or_default();
                same!((call, size), (self.id, message.len()));
                self.seen += &message;
                return HOLD;
            }
            (_, _, GrpcTrailing { call, .. }) => {
                same!(call, self.id);
                same!(header(Map::GrpcReceiveTrailingMetadata, "x-trailing"), some("2"));
                if function != "proxy_on_grpc_receive_trailing_metadata" {
                    return HOLD;
                }
            }
            (_, "ok-during-the-close-callback", GrpcClose { call, status }) => {
                same!((call, status), (self.id, 0));
                let cancels = function == "proxy_grpc_cancel";
                same!(if cancels { host::cancel_grpc_stream(call) } else { host::close_grpc_stream(call) }, Ok(()));
            }
            (_, _, GrpcClose { call, status }) => {
                same!((call, status), (self.id, 0));
                let both = ["proxy_grpc_stream", "proxy_grpc_send"].contains(&function);
                same!(&*self.seen, if both { "firstsecond" } else { "first" });
            }
            _ => return HOLD,
        }
        host::resume_http_request().unwrap();
        PASSED
    }
}
