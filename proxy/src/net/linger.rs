//! How this side ends a connection without losing what it has sent.
//!
//! A socket that is closed while bytes are unread, or that gets bytes afterwards, is reset, and the peer's system may throw
//! away what its program has not read yet (RFC 9112 section 9.6). So the sending direction is shut down first, and what the
//! peer still says is read and dropped until it closes, too. nginx calls this a lingering close, Envoy a delayed one.

use std::{future::poll_fn, io, pin::Pin, task::Poll, time::Duration};

use tokio::{
    io::ReadBuf,
    time::{Instant, timeout},
};

use super::Transport;

/// How often the kernel is asked how much the peer has acknowledged.
const LOOK: Duration = Duration::from_millis(250);

/// How long a peer that has everything may be silent before the connection is closed.
const SILENCE: Duration = Duration::from_secs(1);

/// How long a peer may acknowledge nothing while there is something for it.
const STALL: Duration = Duration::from_secs(30);

/// How long a peer that has everything may go on talking.
const TALK: Duration = Duration::from_secs(30);

/// How long it may take a peer to fetch what there is for it.
const LONGEST: Duration = Duration::from_secs(300);

/// Ends a connection: sends what is left of it (TLS: the close_notify), then waits until the peer has closed it, or has
/// acknowledged everything and been silent for a second. At most 300 seconds for a peer that takes its time to read, 30 for one
/// that acknowledges nothing or does not stop talking.
pub async fn linger(mut stream: impl Transport) {
    // Not an array: it would be part of every connection's task.
    let mut sink = vec![0; 16 << 10];
    let begun = Instant::now();
    let (mut moved, mut fetched) = (begun, None);
    let (mut is_shut, mut unsent) = (false, usize::MAX);
    loop {
        match timeout(LOOK, read_some(&mut stream, &mut is_shut, &mut sink)).await {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(_)) => moved = Instant::now(),
            Err(_) => {}
        }
        let now = Instant::now();
        let left = if is_shut { stream.unacknowledged() } else { unsent };
        if left < unsent {
            (moved, unsent) = (now, left);
        }
        let patience = if left == 0 { SILENCE } else { STALL };
        let end = if left == 0 { *fetched.get_or_insert(now) + TALK } else { begun + LONGEST };
        if now >= (moved + patience).min(end) {
            return;
        }
    }
}

/// Shuts the sending direction down, if that is not done yet, and reads what there is meanwhile. 0: the peer has closed.
async fn read_some(stream: &mut impl Transport, is_shut: &mut bool, sink: &mut [u8]) -> io::Result<usize> {
    poll_fn(|cx| {
        if !*is_shut && let Poll::Ready(shut) = Pin::new(&mut *stream).poll_shutdown(cx) {
            shut?;
            *is_shut = true;
        }
        let mut space = ReadBuf::new(sink);
        Pin::new(&mut *stream).poll_read(cx, &mut space).map_ok(|()| space.filled().len())
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::net::Socket;

    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Socket::Tcp(listener.accept().await.unwrap().0), far)
    }

    #[tokio::test]
    async fn what_the_peer_has_not_acknowledged_is_counted() {
        let (mut near, far) = pair().await;
        assert_eq!(near.unacknowledged().unwrap(), 0);
        // More than both systems keep.
        let mut written = 0;
        let chunk = vec![7; 1 << 20];
        while let Ok(n) = timeout(LOOK, near.write(&chunk)).await {
            written += n.unwrap();
        }
        let left = near.unacknowledged().unwrap();
        assert!(left > 0 && left <= written, "{left} of {written}");
        drop(far);
    }

    #[tokio::test]
    async fn a_peer_that_goes_on_talking_while_it_reads_slowly_gets_everything() {
        let (mut near, mut far) = pair().await;
        let data = vec![7; 1 << 20];
        let sending = async {
            near.write_all(&data).await.unwrap();
            linger(near).await;
        };
        let reading = async {
            let (mut read, mut some) = (0, vec![0; 64 << 10]);
            loop {
                // It stops when this side is gone, which it must not be before all is read.
                far.write_all(b"ping").await.unwrap();
                match far.read(&mut some).await.unwrap() {
                    0 => break,
                    n => read += n,
                }
            }
            drop(far);
            read
        };
        let ((), read) = tokio::join!(sending, reading);
        assert_eq!(read, data.len());
    }

    // In real time: it is the kernel that waits for the peer.
    #[tokio::test]
    async fn a_peer_that_has_everything_and_never_closes_is_not_waited_for() {
        let (near, far) = pair().await;
        let begun = Instant::now();
        linger(near).await;
        assert!(begun.elapsed() < STALL);
        drop(far);
    }
}
