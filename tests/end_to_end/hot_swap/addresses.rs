//! Listeners are renamed, change places, get wider and narrower addresses, while clients connect to them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use crate::harness::{Client, Proxy, Upstream, not_run, reserve, wait_until};

/// Clients that connect anew for each request.
struct Connecting {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Connecting {
    fn start(addresses: &[SocketAddr]) -> Connecting {
        let (over, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let client = |address: &SocketAddr| {
            let (address, over, answered) = (*address, over.clone(), answered.clone());
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let response = Client::connect(address).request("GET", "/", &[("Connection", "close")], b"");
                    assert_eq!(response.status(), 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let clients = addresses.iter().map(client).collect();
        Connecting { over, answered, clients }
    }

    /// Waits until some more have been answered.
    fn meet(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        wait_until("further requests to be answered", || {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a request has failed");
            self.answered.load(Ordering::Relaxed) > before + 50
        });
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().expect("no request fails"));
    }
}

fn config(listeners: &str, one: &Upstream, two: &Upstream) -> String {
    let clusters = format!(
        "clusters: [{{name: a, endpoints: [{{address: \"{one}\"}}]}}, {{name: b, endpoints: [{{address: \"{two}\"}}]}}]"
    );
    format!("listeners: [{listeners}]\n{clusters}\n")
}

#[test]
fn listeners_are_renamed_and_change_places_and_no_client_notices() {
    let (a, b) = (Upstream::saying("a"), Upstream::saying("b"));
    let with = |listeners: &str| config(listeners, &a, &b);
    let one = "{name: one, address: '@main@', cluster: a}, {name: two, address: '@other@', cluster: b}";
    let mut proxy = Proxy::start(with(one));
    let load = Connecting::start(&[proxy.address("main"), proxy.address("other")]);
    let mut idle = proxy.client();
    assert_eq!(idle.get("/").text(), "a");
    load.meet();
    // Other names.
    proxy.change_config(with(&one.replace("name: one", "name: uno").replace("name: two", "name: due")));
    load.meet();
    assert_eq!(proxy.get("/").text(), "a");
    // Each has the other's address.
    let swapped = "{name: uno, address: '@other@', cluster: a}, {name: due, address: '@main@', cluster: b}";
    proxy.change_config(with(swapped));
    load.meet();
    wait_until("the other listener to answer", || proxy.get("/").text() == "b");
    load.end();
    assert_eq!(proxy.metrics().sum("tollgate_connections_refused_total", &[]), 0.0);
    drop(idle);
}

#[test]
fn a_listeners_address_gets_wider_and_narrower_and_no_client_notices() {
    let (a, b) = (Upstream::saying("a"), Upstream::saying("b"));
    let narrow = config("{name: one, address: '@main@', cluster: a}", &a, &b);
    let mut proxy = Proxy::start(narrow.clone());
    let port = proxy.address("main").port();
    let wide = config(&format!("{{name: one, address: '0.0.0.0:{port}', cluster: b}}"), &a, &b);
    let load = Connecting::start(&[proxy.address("main"); 2]);
    for _ in 0..10 {
        load.meet();
        proxy.change_config(wide.clone());
        wait_until("the wide one to answer", || proxy.get("/").text() == "b");
        load.meet();
        proxy.change_config(narrow.clone());
        wait_until("the narrow one to answer", || proxy.get("/").text() == "a");
    }
    load.end();
}

/// The sockets that go wait for handshakes that have begun; who has the configuration in force must not meet them.
#[test]
fn an_address_that_has_just_been_removed_may_come_back_at_once() {
    let (a, b) = (Upstream::saying("a"), Upstream::saying("b"));
    let one = "{name: one, address: '@main@', cluster: a}";
    let two = "{name: two, address: '@other@', addresses: ['unix:two.sock'], cluster: b}";
    let (alone, both) = (config(one, &a, &b), config(&format!("{one}, {two}"), &a, &b));
    let mut proxy = Proxy::start(both.clone());
    let other = proxy.address("other");
    for _ in 0..3 {
        proxy.change_config(alone.clone());
        let refused = std::net::TcpStream::connect(other).expect_err("nobody listens");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        proxy.change_config(both.clone());
        assert_eq!(Client::connect(other).get("/").text(), "b");
    }
}

#[test]
fn a_unix_socket_passes_from_one_listener_to_another() {
    let (a, b) = (Upstream::saying("a"), Upstream::saying("b"));
    let listener = |name: &str| config(&format!("{{name: {name}, address: 'unix:one.sock', cluster: a}}"), &a, &b);
    let mut proxy = Proxy::start(listener("one"));
    proxy.change_config(listener("two"));
    let path = proxy.dir().join("one.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(path).expect("somebody listens");
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.0\r\nHost: test\r\n\r\n").expect("it reads");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text).expect("it answers");
    assert!(text.starts_with("HTTP/1.0 200"), "{text}");
}

/// Listeners on all IPv4 addresses and on all IPv6 addresses of one port, from the start and by a reload: each gets its own, and
/// `[::]` gets both while it is alone.
#[test]
fn all_addresses_of_both_families_stand_beside_each_other() {
    let (a, b) = (Upstream::saying("a"), Upstream::saying("b"));
    let reserved = reserve();
    let port = reserved.port();
    let four = format!("{{name: four, address: '0.0.0.0:{port}', cluster: a}}");
    let six = format!("{{name: six, address: '[::]:{port}', cluster: b}}");
    let both = config(&format!("{four}, {six}"), &a, &b);
    let (alone, swapped) = (config(&six, &a, &b), config(&format!("{six}, {four}"), &a, &b));
    let (v4, v6) =
        ([SocketAddr::from(([127, 0, 0, 1], port)); 2], SocketAddr::new("::1".parse().expect("an address"), port));
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return not_run::for_want_of("IPv6", "::1 cannot be listened on");
    }
    let get = |address| Client::connect(address).get("/").text().to_owned();
    let mut proxy = Proxy::start(both.clone());
    assert_eq!((get(v4[0]), get(v6)), ("a".to_owned(), "b".to_owned()));
    let load = Connecting::start(&[v4[0], v4[1], v6]);
    for next in [alone, swapped, both] {
        load.meet();
        let is_alone = !next.contains("name: four");
        proxy.change_config(next);
        wait_until("IPv4 connections to be where they belong", || get(v4[0]) == if is_alone { "b" } else { "a" });
        assert_eq!(get(v6), "b");
    }
    load.meet();
    load.end();
}
