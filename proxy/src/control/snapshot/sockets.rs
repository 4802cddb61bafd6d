//! The sockets of a snapshot: opened for addresses that no listener has yet.

use super::SnapshotBuilder;
use crate::{
    config::{Diagnostic, Loaded, units::Address},
    listener::socket::{self, AddressClaim},
    snapshot::{ListenerParts, Snapshot, Sockets},
};
use std::sync::Arc;

impl SnapshotBuilder {
    /// Opens sockets for listeners that are new or have another address.
    pub(super) fn sockets(
        &self,
        loaded: &Loaded,
        previous: Option<&Snapshot>,
        listeners: &[Arc<ListenerParts>],
        claim: AddressClaim,
        wrong: &mut Vec<Diagnostic>,
    ) -> Vec<Sockets> {
        let mut sockets: Vec<Sockets> = (0..self.workers).map(|_| Sockets::default()).collect();
        let held: Vec<&Address> =
            previous.into_iter().flat_map(|p| &p.listeners).flat_map(|l| l.config.all_addresses()).collect();
        for (index, listener) in listeners.iter().enumerate() {
            let config = &listener.config;
            for (nth, address) in config.all_addresses().enumerate() {
                let mut cannot = |address: &dyn std::fmt::Display, error: std::io::Error, help: Option<&str>| {
                    let pointer = match nth.checked_sub(1) {
                        None => format!("/listeners/{index}/address"),
                        Some(nth) => format!("/listeners/{index}/addresses/{nth}"),
                    };
                    let message = format!("cannot listen on {address}: {error}");
                    wrong.push(loaded.source.diagnostic(&pointer, message, help.map(str::to_owned)));
                };
                // Sockets belong to an address, not to a listener, whose name may have changed.
                let mut before = previous.into_iter().flat_map(|p| &p.listeners).map(|l| &l.config);
                let before = before.find(|before| before.all_addresses().any(|a| a == address));
                if before.is_none() {
                    let opened = sockets[0].streams.keys();
                    let claim = if overlapped(address, held.iter().copied().chain(opened)) {
                        AddressClaim::Shared
                    } else {
                        claim
                    };
                    match socket::open(address, &config.socket, self.workers, claim) {
                        Ok(new) => {
                            sockets.iter_mut().zip(new).for_each(|(all, s)| _ = all.streams.insert(address.clone(), s))
                        }
                        Err(e) => {
                            let help = refused_address(address, e.kind());
                            cannot(address, e, help);
                        }
                    }
                }
                #[cfg(feature = "http3")]
                if let Some(inet) = address.inet()
                    && config.http3
                    && !before.is_some_and(|before| before.http3)
                {
                    // Not alongside existing ones: their connections would lose datagrams to the new socket.
                    let opened = sockets[0].datagrams.keys();
                    let claim = if overlapped(address, opened) { AddressClaim::Shared } else { claim };
                    match socket::listen_datagrams(inet, self.workers, claim) {
                        Ok(new) => sockets
                            .iter_mut()
                            .zip(new)
                            .for_each(|(all, s)| _ = all.datagrams.insert(address.clone(), s)),
                        Err(e) => {
                            // The connections of the listener's previous HTTP/3 still use its socket.
                            let help = match overlapped(address, held.iter().copied().filter(|held| *held != address)) {
                                true => {
                                    "while HTTP/3 is on another address of the same port, clients' connections there would be \
                                     lost; `tollgate run --replace PID` replaces this process with the new addresses"
                                }
                                false => {
                                    "if HTTP/3 has just been turned off, its connections are still draining: try again later"
                                }
                            };
                            let used = e.kind() == std::io::ErrorKind::AddrInUse;
                            cannot(&format_args!("{address} over UDP"), e, used.then_some(help));
                        }
                    }
                }
            }
        }
        sockets
    }
}

/// Whether an address includes one of these, or one of them includes it. While both exist, the kernel shares
/// connections between them.
fn overlapped<'a>(address: &Address, mut others: impl Iterator<Item = &'a Address>) -> bool {
    others.any(|other| other.overlaps(address))
}

/// Returns advice on an address that cannot be listened on.
fn refused_address(address: &Address, error: std::io::ErrorKind) -> Option<&'static str> {
    match (address.inet()?.port(), error) {
        (1..1024, std::io::ErrorKind::PermissionDenied) => Some(
            "ports below 1024 need CAP_NET_BIND_SERVICE (`AmbientCapabilities=` in a systemd unit, or `setcap \
             cap_net_bind_service=+ep` on the executable), or a lower `net.ipv4.ip_unprivileged_port_start`",
        ),
        (_, std::io::ErrorKind::AddrInUse) => {
            Some("another process listens on this address; `tollgate run --replace PID` replaces a running Tollgate")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn an_unavailable_address_comes_with_advice() {
        let help = |address: &str, kind| refused_address(&address.parse().unwrap(), kind).unwrap_or_default();
        assert!(help("0.0.0.0:80", ErrorKind::PermissionDenied).contains("CAP_NET_BIND_SERVICE"));
        assert!(help("0.0.0.0:80", ErrorKind::AddrInUse).contains("--replace"));
        assert_eq!(help("0.0.0.0:8080", ErrorKind::PermissionDenied), "");
        assert_eq!(help("unix:/run/a.sock", ErrorKind::PermissionDenied), "");
    }
}
