//! `cargo test -p tcp-token`: neither WebAssembly nor sockets.

use std::time::Duration;

use serde_json::json;
use tcp_token::TcpToken;
use tollgate_sdk::testing::TcpHost;

fn host(per_minute: u32) -> TcpHost<TcpToken> {
    TcpHost::new(json!({"tokens": {"ann": "open-sesame"}, "per_minute": per_minute})).unwrap()
}

#[test]
fn nothing_goes_on_before_the_token_and_everything_after() {
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
fn others_are_told_why_not() {
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
fn a_client_that_says_nothing_more_is_not_waited_for() {
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
    assert!(connection.is_open(), "a timer that is late changes nothing");
}

#[test]
fn a_token_is_good_for_so_many_connections() {
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
fn a_wrong_configuration_is_refused_with_its_place() {
    let Err(error) = TcpHost::<TcpToken>::new(json!({"tokens": {"ann": ""}, "per_minute": 1})) else {
        panic!("it was taken")
    };
    assert_eq!(error.path, "tokens.ann");
}
