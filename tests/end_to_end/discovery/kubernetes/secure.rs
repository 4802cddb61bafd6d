//! An API server behind TLS, with tokens.

use std::fs;

use super::{super::Farm, discovery, endpoints, last_error};
use crate::harness::{
    Config, Proxy,
    kubernetes::{Api, Fault},
    pki::Authority,
    wait_until,
};

#[test]
fn api_server_is_verified_and_gets_the_current_token() {
    let (farm, api) = (Farm::new(2), Api::new());
    api.set("web-1", "web", farm.port, &[1]);
    api.require_token("first");
    let authority = Authority::with(&["localhost"]);
    let (ca, token) = (authority.path("ca.pem"), authority.path("token"));
    fs::write(&token, "first\n").expect("a file");
    let front = Proxy::start(Config::to(&api.server).listener(&authority.tls(&["localhost"], "")));
    let config = |ca: &str| {
        let url = format!("https://localhost:{}", front.address("main").port());
        let top = format!("kubernetes: {{url: '{url}', token_file: '{token}', tls: {{ca: ['{ca}']}}}}");
        Config::new().top(&top).listener("cluster: web").cluster("web", &[] as &[&str], &discovery(""))
    };
    let mut proxy = Proxy::start(config(&ca));
    assert_eq!(endpoints(&proxy), [1]);

    // A replaced token is used for the next request, also if the old one is refused.
    api.require_token("second");
    api.fail(Fault::Close);
    wait_until("the token to be refused", || last_error(&proxy).contains("401 Unauthorized"));
    assert_eq!(endpoints(&proxy), [1]);
    fs::write(authority.path("next"), "second").expect("a file");
    fs::rename(authority.path("next"), &token).expect("it is replaced");
    api.set("web-1", "web", farm.port, &[2]);
    wait_until("the token to be used", || endpoints(&proxy) == [2]);

    // Another authority: nothing is sent, and nothing is taken away.
    let stranger = Authority::with(&[]);
    let requests = api.server.requests().len();
    proxy.change_config(config(&stranger.path("ca.pem")));
    wait_until("the server to be refused", || last_error(&proxy).contains("TLS"));
    assert_eq!(endpoints(&proxy), [2]);
    assert_eq!(api.server.requests().len(), requests);
}
