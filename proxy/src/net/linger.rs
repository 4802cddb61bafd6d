//! Lingering close: ends a connection without losing data that was sent.
//!
//! The kernel resets a socket that is closed while it holds unread bytes or that receives bytes after the close, and
//! the peer's system may then discard data that its program has not read yet (RFC 9112 section 9.6). So the write side
//! is shut down first, and further input is read and discarded until the peer closes as well. nginx calls this a
//! lingering close, Envoy a delayed close.

use std::{future::poll_fn, io, pin::Pin, task::Poll, time::Duration};

use tokio::{
    io::ReadBuf,
    time::{Instant, timeout},
};

use super::Transport;

/// Interval between checks of how much the peer has acknowledged.
const LOOK: Duration = Duration::from_millis(250);

/// Time that a peer that has received everything may be silent before the connection is closed.
const SILENCE: Duration = Duration::from_secs(1);

/// Time that a peer may acknowledge nothing while data is outstanding.
const STALL: Duration = Duration::from_secs(30);

/// Time that a peer that has received everything may keep sending.
const TALK: Duration = Duration::from_secs(30);

/// Total time that a peer may take to receive the outstanding data.
const LONGEST: Duration = Duration::from_secs(300);

/// Ends a connection: sends what is left (with TLS: the close_notify), then waits until the peer has closed it, or has
/// acknowledged everything and been silent for one second. Waits at most 300 seconds for a peer that reads slowly, and
/// 30 for one that acknowledges nothing or does not stop sending.
pub async fn linger(mut stream: impl Transport) {
    // On the heap: an array would enlarge every connection's task.
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

/// Shuts down the write side if that is not done yet, and reads available input meanwhile. 0 means that the peer has
/// closed.
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
    async fn unacknowledged_bytes_are_counted() {
        let (mut near, far) = pair().await;
        assert_eq!(near.unacknowledged().unwrap(), 0);
        // More than the buffers of both systems hold.
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
    async fn slow_reader_that_keeps_sending_receives_everything() {
        let (mut near, mut far) = pair().await;
        let data = vec![7; 1 << 20];
        let sending = async {
            near.write_all(&data).await.unwrap();
            linger(near).await;
        };
        let reading = async {
            let (mut read, mut some) = (0, vec![0; 64 << 10]);
            loop {
                // It stops when this side closes, which must not happen before everything is read.
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

    // In real time, because the kernel waits for the peer.
    #[tokio::test]
    async fn peer_that_received_everything_and_never_closes_is_not_waited_for() {
        let (near, far) = pair().await;
        let begun = Instant::now();
        linger(near).await;
        assert!(begun.elapsed() < STALL);
        drop(far);
    }
}
