use grpc_health::GrpcHealth;
use serde_json::json;
use tollgate_sdk::{GrpcError, grpc::code, testing::TestHost};

#[test]
fn requests_pass_while_the_service_is_serving() {
    let host = TestHost::<GrpcHealth>::new(json!({"cluster": "users", "service": "find"})).unwrap();
    host.grpc_service("users", |call| {
        assert_eq!((&*call.service, &*call.method), ("grpc.health.v1.Health", "Check"));
        assert_eq!(call.messages, [b"\x0a\x04find"]);
        Ok(vec![8, 1])
    });
    assert!(host.request("GET", "/").send().continued());
    host.grpc_service("users", |_| Ok(vec![8, 2]));
    let refused = host.request("GET", "/").send();
    assert_eq!(
        (refused.status(), refused.grpc_status(), refused.details()),
        (Some(503), Some(14), Some("not_serving"))
    );
    host.grpc_service("users", |_| Err(GrpcError { status: code::UNIMPLEMENTED, message: String::new() }));
    assert_eq!(host.request("GET", "/").send().details(), Some("grpc_callout_unimplemented"));
}

#[test]
fn first_message_of_a_stream_decides_and_ends_it() {
    let host = TestHost::<GrpcHealth>::new(json!({"cluster": "users", "watch": true})).unwrap();
    let request = host.request("GET", "/").send();
    let call = host.grpc_calls().remove(0);
    assert_eq!((&*call.method, call.ended), ("Watch", true));
    assert_eq!(call.messages, [b""]);
    host.grpc_message(call.id, [8, 1]);
    assert_eq!(request.request_header("x-health"), Some("watched"));
    assert!(host.grpc_calls().is_empty());
}
