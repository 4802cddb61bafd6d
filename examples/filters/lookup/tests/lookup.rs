use lookup::Lookup;
use serde_json::json;
use tollgate_sdk::{
    CallError,
    testing::{Scripted, TestHost},
};

#[test]
fn answer_is_added_to_the_request() {
    let host = TestHost::<Lookup>::new(json!({"cluster": "teams"})).unwrap();
    let request = |user: &str| host.request("GET", "/").header("x-user", user).header("x-team", "forged").send();
    let (ann, bob, carol) = (request("ann"), request("bob"), request("carol"));
    assert!(!ann.continued());
    let calls = host.calls();
    assert_eq!(calls.iter().map(|call| call.path()).collect::<Vec<_>>(), ["/ann", "/bob", "/carol"]);
    host.answer(calls[1].id, Scripted::answer(404));
    assert_eq!((bob.continued(), bob.request_header("x-team")), (true, None));
    host.answer(calls[0].id, Scripted::answer(200).header("x-team", "red"));
    assert_eq!((ann.continued(), ann.request_header("x-team")), (true, Some("red")));
    assert_eq!(ann.log_field("looked_up"), Some("ann"));
    host.answer(calls[2].id, Scripted::fail(CallError::Timeout));
    assert_eq!((carol.status(), carol.details()), (Some(504), Some("callout_timeout")));
    assert!(request("../admin").continued(), "the service is not called");
    assert!(host.calls().is_empty());
}
