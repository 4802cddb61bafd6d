//! Connecting to one of several addresses of a host ("happy eyeballs", RFC 8305): a broken address family, or a dead
//! address, costs a quarter of a second instead of a timeout.

use std::{future::Future, io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

/// The time between the starts of two attempts, unless the earlier one fails before ("Connection Attempt Delay").
const DELAY: Duration = Duration::from_millis(250);

/// Connects to the addresses in their order, each attempt starting when the one before has failed or has taken 250 ms.
/// The first connection is returned, and the other attempts are abandoned. The error lists those of all addresses.
pub async fn race<T, F>(addresses: &[SocketAddr], connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut left = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    let mut next = Instant::now();
    let (mut kind, mut errors) = (io::ErrorKind::AddrNotAvailable, String::new());
    loop {
        if Instant::now() >= next || attempts.is_empty() {
            match left.next() {
                Some(address) => {
                    let attempt = connect(address);
                    attempts.push(async move { (address, attempt.await) });
                    next = Instant::now() + DELAY;
                }
                None if attempts.is_empty() => {
                    let why = if errors.is_empty() { "the host has no address".to_owned() } else { errors };
                    return Err(io::Error::new(kind, why));
                }
                None => {}
            }
        }
        let more = left.len() > 0;
        tokio::select! {
            Some((address, result)) = attempts.next() => match result {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    kind = error.kind();
                    let comma = if errors.is_empty() { "" } else { "; " };
                    errors.push_str(&format!("{comma}{address}: {error}"));
                    next = Instant::now();
                }
            },
            () = sleep_until(next), if more => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::sleep;

    use super::*;

    /// What an address does: after so many milliseconds it accepts, or refuses.
    async fn raced(addresses: &[(&str, u64, bool)]) -> (io::Result<SocketAddr>, Vec<(String, u128)>) {
        let started = RefCell::new(Vec::new());
        let start = Instant::now();
        let all: Vec<SocketAddr> = addresses.iter().map(|(address, ..)| address.parse().unwrap()).collect();
        let connected = race(&all, |address| {
            started.borrow_mut().push((address.to_string(), start.elapsed().as_millis()));
            let index = all.iter().position(|other| *other == address).unwrap();
            let (_, time, accepts) = addresses[index];
            async move {
                sleep(Duration::from_millis(time)).await;
                if accepts { Ok(address) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
            }
        });
        let connected = connected.await;
        (connected, started.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn next_address_is_tried_after_a_quarter_of_a_second_or_a_failure() {
        let slow = [("[::1]:1", 10_000, true), ("1.1.1.1:1", 100, true), ("[::2]:1", 1, true)];
        let (connected, started) = raced(&slow).await;
        assert_eq!(connected.unwrap().to_string(), "1.1.1.1:1");
        assert_eq!(started, [("[::1]:1".to_owned(), 0), ("1.1.1.1:1".to_owned(), 250)]);

        let failing = [("[::1]:1", 10, false), ("1.1.1.1:1", 10_000, true), ("[::2]:1", 400, true)];
        let (connected, started) = raced(&failing).await;
        assert_eq!(connected.unwrap().to_string(), "[::2]:1");
        assert_eq!(started.iter().map(|(_, at)| *at).collect::<Vec<_>>(), [0, 10, 260]);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_first_address_still_wins_if_the_others_fail() {
        let (connected, _) = raced(&[("[::1]:1", 900, true), ("1.1.1.1:1", 5, false)]).await;
        assert_eq!(connected.unwrap().to_string(), "[::1]:1");
    }

    #[tokio::test(start_paused = true)]
    async fn error_names_all_addresses() {
        let (connected, _) = raced(&[("[::1]:1", 300, false), ("1.1.1.1:1", 5, false)]).await;
        let error = connected.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let text = error.to_string();
        assert!(text.contains("[::1]:1: ") && text.contains("; ") && text.contains("1.1.1.1:1: "), "{text}");
        assert!(raced(&[]).await.0.unwrap_err().to_string().contains("no address"));
    }
}
