//! Chains chosen by what a connection announces, over real sockets.

use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serde_json::json;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    chain::slot::SlottedChain,
    control::snapshot::SnapshotBuilder,
    listener::connection::begin,
    net::Socket,
    observe::Registry,
    upstream::{PoolOptions, Pools},
};

/// The rules of a chain, whose context has this name. It serves HTTP/1.1, and no filter.
fn rules(name: &str, tls: bool, server_names: &[&str]) -> ChainRules {
    let config = json!({"name": name, "address": "127.0.0.1:80", "protocol": "http1"});
    let metrics = SnapshotBuilder::listener_metrics(&Registry::new(1), name, false).unwrap();
    let (chain, pools) = (SlottedChain::single(Vec::new()), Pools::new(PoolOptions::default()));
    let context = ListenerContext::new(Arc::new(serde_json::from_value(config).unwrap()), chain, metrics, pools);
    let server_names = server_names.iter().map(|name| name.parse().unwrap()).collect();
    ChainRules { matches: ChainMatch { tls: Some(tls), server_names }, context: Rc::new(context), tcp: None }
}

fn name(chain: &ActiveChain) -> String {
    chain.handle.context().name.to_string()
}

/// The first flight of a TLS client.
fn hello(server_name: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), server_name.to_owned().try_into().unwrap()).unwrap();
    let mut sent = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut sent).unwrap();
    }
    sent
}

/// Returns the name of the chain that a connection with these first bytes gets, or why it is rejected.
async fn chain_of(chains: &ActiveChains, first: &[u8]) -> Result<String, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.write_all(first).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let local = stream.local_addr().unwrap();
    match begin(chains, Socket::Tcp(stream), peer, local).await {
        Ok(opened) => Ok(name(&opened.expect("the client is connected").chain)),
        Err(rejected) => Err(rejected.why),
    }
}

#[tokio::test]
async fn connection_gets_the_first_chain_that_matches_it() {
    let chains = ActiveChains::new(vec![
        rules("exact", true, &["a.test"]),
        rules("below", true, &["*.a.test", "b.test"]),
        rules("plain", false, &[]),
    ]);
    for (server_name, chain) in [("A.test", "exact"), ("x.y.a.test", "below"), ("b.test", "below")] {
        assert_eq!(chain_of(&chains, &hello(server_name)).await.as_deref(), Ok(chain), "{server_name}");
    }
    assert_eq!(chain_of(&chains, b"GET / HTTP/1.1\r\n").await.as_deref(), Ok("plain"));
    for server_name in ["xa.test", "c.test", "127.0.0.1"] {
        let rejected = chain_of(&chains, &hello(server_name)).await.unwrap_err();
        assert!(rejected.contains("no filter chain"), "{server_name}: {rejected}");
    }
}

#[tokio::test]
async fn chains_keep_their_connections_over_an_update_and_are_drained_when_they_go() {
    let chains = ActiveChains::new(vec![rules("one", true, &["a.test"]), rules("two", false, &[])]);
    let before = [true, false].map(|is_tls| {
        let server_name = is_tls.then(|| "a.test".into());
        chains.choose(&ConnectionFacts { is_tls, server_name }).unwrap()
    });
    chains.update(vec![rules("new", false, &[]), rules("other", true, &["b.test"])]);
    assert_eq!(before.each_ref().map(|chain| chain.handle.is_draining()), [true, false]);
    assert_eq!(name(&before[1]), "new");
    assert!(Rc::ptr_eq(&before[1], &chains.first()));
    chains.drain();
    assert!(before[1].handle.is_draining());
}
