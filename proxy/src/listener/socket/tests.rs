//! Tests of listening sockets. Those that need packet filter rules run in their own network namespace, if one can be
//! created.

use std::{net::IpAddr, os::unix::net as unix, process::Command};

use socket2::SockFilter;
use tokio::net::{TcpListener, TcpStream};

use super::*;

#[path = "../../../../tests/end_to_end/harness/not_run.rs"]
mod not_run;

fn address(socket: &ListenSocket) -> SocketAddr {
    match socket {
        ListenSocket::Tcp(socket) => socket.local_addr().unwrap(),
        ListenSocket::Unix(..) => panic!("not TCP"),
    }
}

fn listen_on(address: &str, options: &SocketOptions) -> io::Result<Vec<ListenSocket>> {
    listen(&address.parse().unwrap(), options, 1, AddressClaim::Sole)
}

#[test]
fn all_workers_listen_on_one_port_exclusively() {
    let options = SocketOptions::default();
    let sockets = listen(&"127.0.0.1:0".parse().unwrap(), &options, 3, AddressClaim::Sole).unwrap();
    let first = address(&sockets[0]);
    assert!(sockets.iter().all(|s| address(s) == first));
    assert_eq!(listen(&first.into(), &options, 1, AddressClaim::Sole).unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn an_address_can_be_shared_explicitly() {
    let options = SocketOptions::default();
    let first = listen(&"127.0.0.1:0".parse().unwrap(), &options, 2, AddressClaim::Sole).unwrap();
    let second = listen(&address(&first[0]).into(), &options, 2, AddressClaim::Shared).unwrap();
    assert_eq!(address(&second[1]), address(&first[0]));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let unix_address = Address::Unix(path.as_path().into());
    let first = listen(&unix_address, &options, 1, AddressClaim::Sole).unwrap();
    let waiting = unix::UnixStream::connect(&path).unwrap();
    let second = listen(&unix_address, &options, 1, AddressClaim::Shared).unwrap();
    let ListenSocket::Unix(_, old) = &first[0] else { panic!("not unix") };
    old.accept().expect("the waiting connection was kept");
    drop((first, waiting));
    let _new = unix::UnixStream::connect(&path).expect("the second socket's file stays");
    let ListenSocket::Unix(_, new) = &second[0] else { panic!("not unix") };
    new.accept().unwrap();
    drop(second);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    fs::write(&path, "data").unwrap();
    assert_eq!(listen(&unix_address, &options, 1, AddressClaim::Shared).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(fs::read_to_string(&path).unwrap(), "data");
}

/// The runtime gets no turn to learn of the connections.
#[tokio::test]
async fn connections_made_before_a_socket_closes_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let tcp = listen_on("127.0.0.1:0", &SocketOptions::default()).unwrap().remove(0);
    let there = address(&tcp);
    let tcp = net::Listener::try_from(tcp).unwrap();
    let clients: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(there).unwrap()).collect();
    assert_eq!(tcp.close().len(), clients.len());
    assert!(std::net::TcpStream::connect(there).is_err());
    let sockets =
        listen(&Address::Unix(path.as_path().into()), &SocketOptions::default(), 1, AddressClaim::Sole).unwrap();
    let unix = net::Listener::try_from(sockets.into_iter().next().unwrap()).unwrap();
    let clients: Vec<_> = (0..3).map(|_| unix::UnixStream::connect(&path).unwrap()).collect();
    assert_eq!(unix.close().len(), clients.len());
    assert!(!path.exists());
}

/// The SYN-ACKs to these clients are lost at first, so that their handshakes are in progress when the socket is to be
/// closed.
#[tokio::test]
async fn a_handshake_in_progress_completes_on_a_socket_that_stops_accepting() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const DROP_ALL: SockFilter = SockFilter::new(0x06, 0, 0, 0);
    let options = SocketOptions::default();
    for (narrow, wide) in [("127.0.0.1", "0.0.0.0"), ("[::1]", "[::]")] {
        let Ok(mut narrow) = listen_on(&format!("{narrow}:0"), &options) else {
            not_run::for_want_of("IPv6", &format!("there is no {narrow}"));
            continue;
        };
        let narrow = narrow.remove(0);
        let there = address(&narrow);
        let narrow = net::Listener::try_from(narrow).unwrap();
        let slow = Socket::new(Domain::for_address(there), Type::STREAM, None).unwrap();
        slow.attach_filter(&[DROP_ALL]).unwrap();
        slow.set_nonblocking(true).unwrap();
        slow.connect(&there.into()).expect_err("the handshake is in progress");
        let connect = || std::net::TcpStream::connect(there);
        let connected = connect().unwrap();

        narrow.leave_to_others().unwrap();
        assert_eq!(connect().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let wide = format!("{wide}:{}", there.port()).parse().unwrap();
        let wide = listen(&wide, &options, 1, AddressClaim::Shared).unwrap().remove(0);
        let wide = net::Listener::try_from(wide).unwrap();
        let new = connect().unwrap();
        // The kernel sends the SYN-ACK again after a second.
        slow.detach_filter().unwrap();
        let accept = async |socket: &net::Listener| {
            tokio::time::timeout(Duration::from_secs(30), socket.accept())
                .await
                .expect("a connection is accepted")
                .unwrap()
        };
        assert_eq!(accept(&narrow).await.1, connected.local_addr().unwrap());
        assert_eq!(accept(&wide).await.1, new.local_addr().unwrap());
        let mut slow = TcpStream::from_std(slow.into()).unwrap();
        let (mut accepted, peer) = accept(&narrow).await;
        assert_eq!(peer, slow.local_addr().unwrap());
        accepted.write_all(b"x").await.unwrap();
        assert_eq!(slow.read_u8().await.unwrap(), b'x');
        assert!(narrow.close().is_empty());
    }
}

#[cfg(feature = "http3")]
#[test]
fn all_workers_have_a_udp_socket_on_one_port() {
    let address = address(&listen_on("127.0.0.1:0", &SocketOptions::default()).unwrap()[0]);
    let sockets = listen_datagrams(address, 3, AddressClaim::Sole).unwrap();
    assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
    assert_eq!(listen_datagrams(address, 1, AddressClaim::Sole).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(sockets);
    listen_datagrams(address, 1, AddressClaim::Sole).unwrap();
}

#[test]
fn only_a_left_over_unix_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let address = Address::Unix(path.as_path().into());
    let options = SocketOptions { mode: Some("600".into()), ..SocketOptions::default() };
    let sockets = listen(&address, &options, 2, AddressClaim::Sole).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(listen(&address, &options, 1, AddressClaim::Sole).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(sockets);
    // As left over by a crashed process.
    drop(unix::UnixListener::bind(&path).unwrap());
    listen(&address, &options, 1, AddressClaim::Sole).unwrap();
}

#[test]
fn a_unix_sockets_file_is_removed_with_the_last_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let mut sockets =
        listen(&Address::Unix(path.as_path().into()), &SocketOptions::default(), 2, AddressClaim::Sole).unwrap();
    drop(sockets.pop());
    unix::UnixStream::connect(&path).unwrap();
    drop(sockets);
    assert!(!path.exists());
}

#[test]
fn a_successors_unix_socket_file_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let address = Address::Unix(path.as_path().into());
    let first = listen(&address, &SocketOptions::default(), 1, AddressClaim::Sole).unwrap();
    fs::remove_file(&path).unwrap();
    let second = listen(&address, &SocketOptions::default(), 1, AddressClaim::Sole).unwrap();
    drop(first);
    unix::UnixStream::connect(&path).unwrap();
    drop(second);
    assert!(!path.exists());
}

#[test]
fn a_unix_socket_with_a_full_backlog_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let address = Address::Unix(path.as_path().into());
    let options = SocketOptions { backlog: 1, ..SocketOptions::default() };
    let sockets = listen(&address, &options, 1, AddressClaim::Sole).unwrap();
    let waiting: Vec<_> = (0..2).map(|_| unix::UnixStream::connect(&path).unwrap()).collect();
    assert_eq!(listen(&address, &options, 1, AddressClaim::Sole).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop((sockets, waiting));
}

#[test]
fn other_kinds_of_files_are_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("precious");
    fs::write(&path, "data").unwrap();
    let error =
        listen(&Address::Unix(path.as_path().into()), &SocketOptions::default(), 1, AddressClaim::Sole).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(fs::read_to_string(&path).unwrap(), "data");
}

#[test]
fn connections_inherit_their_listeners_keep_alive() {
    let options = |time: &str| SocketOptions { keep_alive: time.parse().unwrap(), ..SocketOptions::default() };
    for (time, idle, interval) in [("30s", 30, 30), ("5m", 300, 75), ("500ms", 1, 1), ("8000h", 32767, 75)] {
        let sockets = listen_on("127.0.0.1:0", &options(time)).unwrap();
        let ListenSocket::Tcp(listener) = &sockets[0] else { panic!("not TCP") };
        listener.set_nonblocking(false).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(idle), "{time}");
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), Duration::from_secs(interval), "{time}");
    }
    let sockets = listen_on("127.0.0.1:0", &options("0s")).unwrap();
    let ListenSocket::Tcp(listener) = &sockets[0] else { panic!("not TCP") };
    assert!(!SockRef::from(listener).keepalive().unwrap());
}

#[test]
fn a_transparent_socket_can_have_any_address() {
    let options = |transparent| SocketOptions { transparent, ..SocketOptions::default() };
    // Addresses reserved for documentation, which no machine has.
    for foreign in ["192.0.2.1:0", "[2001:db8::1]:0"] {
        let refused = listen_on(foreign, &options(false)).unwrap_err();
        match listen_on(foreign, &options(true)) {
            Ok(sockets) => assert_eq!(address(&sockets[0]).ip(), foreign.parse::<SocketAddr>().unwrap().ip()),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                assert!(e.to_string().contains("CAP_NET_ADMIN"), "{e}");
                return not_run::for_want_of("CAP_NET_ADMIN", "no socket can be transparent");
            }
            // A machine without IPv6.
            Err(_) if refused.kind() != io::ErrorKind::AddrNotAvailable => {}
            Err(e) => panic!("{foreign}: {e}"),
        }
    }
}

/// An environment variable that is set inside the namespace.
const INSIDE: &str = "TOLLGATE_TEST_NAMESPACE";

/// Creates a namespace with only the loopback device, which accepts packets for all documentation addresses: port 81
/// is redirected to port 8081, and port 82 goes to the transparent socket on port 8082. `$0` is this program.
const NAMESPACE: &str = r#"
set -e
ip link set lo up
ip addr add 198.51.100.7/32 dev lo
ip route add 192.0.2.0/24 dev lo
ip -6 addr add 2001:db8::7/128 dev lo nodad
ip -6 route add 2001:db8:1::/48 dev lo
for family in 4 6; do
    ip -$family rule add fwmark 1 lookup 100
    ip -$family route add local default dev lo table 100
done
for tables in iptables ip6tables; do
    $tables -t nat -A OUTPUT -p tcp --dport 81 -j REDIRECT --to-ports 8081
    $tables -t mangle -A OUTPUT -p tcp --dport 82 -j MARK --set-mark 1
    $tables -t mangle -A PREROUTING -p tcp --dport 82 -j TPROXY --on-port 8082 --tproxy-mark 1
done
echo the namespace is ready
exec "$0" --exact listener::socket::tests::a_redirected_connection_knows_where_it_was_going --nocapture
"#;

#[test]
fn a_redirected_connection_knows_where_it_was_going() {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(redirected());
    }
    let this = std::env::current_exe().unwrap();
    let output = Command::new("unshare").args(["--net", "sh", "-c", NAMESPACE]).arg(this).env(INSIDE, "1").output();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output {
        Ok(output) if said(&output.stdout).contains("the namespace is ready") => {
            let passed = output.status.success() && said(&output.stdout).contains("1 passed");
            assert!(passed, "{}\n{}", said(&output.stdout), said(&output.stderr));
        }
        Ok(output) => not_run::for_want_of("network namespaces with iptables", said(&output.stderr).trim()),
        Err(e) => not_run::for_want_of("network namespaces with iptables", &format!("`unshare`: {e}")),
    }
}

/// Connects to a redirected address inside the namespace, and returns the accepted connection.
async fn accepted(listener: &TcpListener, to: SocketAddr) -> net::Socket {
    let (client, accepted) = tokio::join!(TcpStream::connect(to), listener.accept());
    client.unwrap();
    net::Socket::Tcp(accepted.unwrap().0)
}

async fn redirected() {
    let open = |at: &str, transparent| {
        let options = SocketOptions { transparent, ..SocketOptions::default() };
        match listen_on(at, &options).unwrap().remove(0) {
            ListenSocket::Tcp(socket) => TcpListener::from_std(socket).unwrap(),
            ListenSocket::Unix(..) => panic!("not TCP"),
        }
    };
    let to: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8:1::1".parse().unwrap()];
    for (to, any) in to.into_iter().zip(["0.0.0.0", "[::]"]) {
        let listener = open(&format!("{any}:8081"), false);
        let socket = accepted(&listener, SocketAddr::new(to, 81)).await;
        assert_ne!(socket.local_addr().unwrap().ip(), to);
        assert_eq!(original_destination(&socket), Some(SocketAddr::new(to, 81)));

        let listener = open(&format!("{any}:8082"), true);
        let socket = accepted(&listener, SocketAddr::new(to, 82)).await;
        assert_eq!(socket.local_addr().unwrap(), SocketAddr::new(to, 82));
    }
    let listener = open("[::]:8081", false);
    let socket = accepted(&listener, SocketAddr::new(to[0], 81)).await;
    assert_eq!(original_destination(&socket), None);
    let listener = open("[::]:8082", true);
    let socket = accepted(&listener, SocketAddr::new(to[0], 82)).await;
    assert_eq!(socket.local_addr().unwrap().ip().to_canonical(), to[0]);
}

#[tokio::test]
async fn other_connections_have_no_original_destination() {
    let (a, _b) = tokio::net::UnixStream::pair().unwrap();
    assert_eq!(original_destination(&net::Socket::Unix(a)), None);
}

#[test]
fn a_full_listener_rejects_connections_until_one_ends() {
    let shared = Arc::new(ListenerShared::default());
    shared.set_limit(2);
    let permits: Vec<_> = (0..3).map(|_| shared.enter()).collect();
    assert_eq!(permits.iter().filter(|p| p.is_some()).count(), 2);
    drop(permits);
    assert!(shared.enter().is_some());
    assert_eq!(shared.connections(), 0);
}
