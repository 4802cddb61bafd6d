//! Runs without WebAssembly and sockets: `cargo test -p tcp-token`.

use std::time::Duration;

use serde_json::json;
use tcp_token::TcpToken;
use tollgate_sdk::testing::TcpHost;

fn host(per_minute: u32) -> TcpHost<TcpToken> {
    TcpHost::new(json!({"tokens": {"ann": "open-sesame"}, "per_minute": per_minute})).unwrap()
}

#[test]
fn bytes_pass_only_after_the_token() {
    let host = host(10);
    let connection = host.connect();
    connection.client_sends(b"TOKEN open-");
    assert!(!connection.is_open());
    connection.client_sends(b"sesame\r\nhello");
    assert!(connection.is_open());
    connection.client_sends(b" world");
    assert_eq!(connection.upstream_got(), b"hello world");
    assert_eq!(connection.log_field("user").as_deref(), Some("ann"));
    connection.upstream_sends(b"good day");
    assert_eq!(connection.client_got(), b"good day");
}

#[test]
fn other_clients_are_rejected_with_a_reason() {
    let host = host(10);
    for (said, why) in
        [(&b"TOKEN wrong\n"[..], "unknown token"), (b"GET / HTTP/1.1\r\n", "unknown token"), (&[b'x'; 200], "no token")]
    {
        let connection = host.connect();
        connection.client_sends(said);
        assert!(connection.is_closed());
        assert_eq!(connection.client_got(), format!("ERROR {why}\r\n").into_bytes());
        assert!(connection.upstream_got().is_empty());
    }
    assert_eq!(host.metric("tcp_token.refused"), 3);
}

#[test]
fn silent_client_times_out() {
    let host = host(10);
    let (silent, connection) = (host.connect(), host.connect());
    connection.client_sends(b"TOK");
    host.advance(Duration::from_secs(4));
    assert!(!connection.is_closed());
    host.advance(Duration::from_secs(1));
    assert!(connection.is_closed() && silent.is_closed());

    let connection = host.connect();
    connection.client_sends(b"TOK");
    connection.client_sends(b"EN open-sesame\n");
    host.advance(Duration::from_secs(60));
    assert!(connection.is_open(), "a late timer has no effect");
}

#[test]
fn connections_per_token_are_limited() {
    let host = host(2);
    let connect = || {
        let connection = host.connect();
        connection.client_sends(b"TOKEN open-sesame\n");
        (connection.is_open(), connection.flags())
    };
    assert_eq!((connect().0, connect().0), (true, true));
    assert_eq!(connect(), (false, vec!["RL"]));
    host.advance(Duration::from_secs(30));
    assert!(connect().0);
}

#[test]
fn invalid_configuration_is_rejected_with_its_location() {
    let Err(error) = TcpHost::<TcpToken>::new(json!({"tokens": {"ann": ""}, "per_minute": 1})) else {
        panic!("the configuration was accepted")
    };
    assert_eq!(error.path, "tokens.ann");
}
