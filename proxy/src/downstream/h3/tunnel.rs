//! Tunnels (`CONNECT`, RFC 9114 section 4.4) on an HTTP/3 request stream.
//!
//! h3 cannot be polled for whether it accepts bytes, so the tunnel ends in an in-memory pipe, and two loops copy
//! between the pipe and h3.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h3::{error::Code, server::RequestStream};
use http_body::Body as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf, duplex, split},
    time::timeout,
};

use super::{body::Incoming, transport::Sender};
use crate::{
    exchange::Tunnel,
    net::{Transport, pass_writes},
};

/// Bytes buffered in the pipe per direction.
const PIPE: usize = 64 << 10;

/// The state of the client's side that the pipe cannot express.
#[derive(Debug, Default)]
struct ClientEnd {
    /// The client aborted the stream instead of ending it.
    broke: Cell<bool>,
    /// The abort is to be reported to the client.
    aborts: Cell<bool>,
}

/// The tunnel's end of the pipe.
struct Near {
    pipe: DuplexStream,
    client_end: Rc<ClientEnd>,
}

impl AsyncRead for Near {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(cx, buffer))?;
        let broke = self.client_end.broke.get() && buffer.filled().len() == before;
        Poll::Ready(if broke { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) })
    }
}

pass_writes!([] Near, pipe);

impl Transport for Near {
    fn abort(&self) {
        self.client_end.aborts.set(true);
    }
}

/// Copies bytes until the tunnel or the client ends. Returns whether everything was sent to the client. After the
/// tunnel has ended, sending the rest may take up to `patience`.
pub(super) async fn run(
    tunnel: Tunnel,
    mut send: RequestStream<Sender, Bytes>,
    recv: Incoming,
    patience: Option<Duration>,
) -> bool {
    let client_end = Rc::<ClientEnd>::default();
    let sent_all = carry(tunnel, &mut send, recv, patience, &client_end).await;
    if client_end.aborts.get() {
        send.stop_stream(Code::H3_CONNECT_ERROR);
        return false;
    }
    sent_all
}

async fn carry(
    tunnel: Tunnel,
    send: &mut RequestStream<Sender, Bytes>,
    recv: Incoming,
    patience: Option<Duration>,
    client_end: &Rc<ClientEnd>,
) -> bool {
    let (near, far) = duplex(PIPE);
    let (from, to) = split(far);
    let (mut up, mut down) = (pin!(upwards(recv, to, client_end)), pin!(downwards(from, send, client_end)));
    let mut tunnel = pin!(tunnel.run(Near { pipe: near, client_end: client_end.clone() }));
    let (mut sent, mut sent_all) = (false, false);
    loop {
        let result = tokio::select! {
            () = &mut tunnel => break,
            result = &mut up, if !sent => {
                sent = true;
                result
            }
            result = &mut down, if !sent_all => {
                sent_all = true;
                result
            }
        };
        if result.is_err() {
            return false;
        }
    }
    sent_all || matches!(timeout(patience.unwrap_or(Duration::MAX), down).await, Ok(Ok(())))
}

async fn upwards(mut recv: Incoming, mut to: WriteHalf<DuplexStream>, client_end: &ClientEnd) -> Result<(), ()> {
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut recv).poll_frame(cx)).await {
        let Ok(frame) = frame else {
            // The tunnel receives the bytes before the abort, and then an error.
            client_end.broke.set(true);
            break;
        };
        if let Ok(data) = frame.into_data() {
            to.write_all(&data).await.map_err(drop)?;
        }
    }
    to.shutdown().await.map_err(drop)
}

async fn downwards(
    mut from: ReadHalf<DuplexStream>,
    send: &mut RequestStream<Sender, Bytes>,
    client_end: &ClientEnd,
) -> Result<(), ()> {
    loop {
        let mut data = BytesMut::with_capacity(PIPE / 4);
        if from.read_buf(&mut data).await.map_err(drop)? == 0 {
            return if client_end.aborts.get() { Ok(()) } else { send.finish().await.map_err(drop) };
        }
        send.send_data(data.freeze()).await.map_err(drop)?;
    }
}
