//! `CONNECT` (RFC 9114 section 4.4): what becomes of a request's stream when its request was to be a tunnel.
//!
//! h3 cannot be polled for whether it takes bytes, so the tunnel ends in a pipe, and two loops carry between that and h3.

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

/// Bytes that wait in the pipe, each way.
const PIPE: usize = 64 << 10;

/// What has become of the client's side, beside what the pipe tells.
#[derive(Debug, Default)]
struct ClientEnd {
    /// The client has not ended it: it has broken off.
    broke: Cell<bool>,
    /// The client is to be told of an abort.
    aborts: Cell<bool>,
}

/// The pipe's end for the tunnel.
struct Near {
    pipe: DuplexStream,
    fate: Rc<ClientEnd>,
}

impl AsyncRead for Near {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(cx, buffer))?;
        let broke = self.fate.broke.get() && buffer.filled().len() == before;
        Poll::Ready(if broke { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) })
    }
}

pass_writes!([] Near, pipe);

impl Transport for Near {
    fn abort(&self) {
        self.fate.aborts.set(true);
    }
}

/// Carries bytes until the tunnel or the client ends it. Whether the client has been told all that it was to be told; for what
/// is left of that when the tunnel has ended, it has `patience`.
pub(super) async fn run(
    tunnel: Tunnel,
    mut send: RequestStream<Sender, Bytes>,
    recv: Incoming,
    patience: Option<Duration>,
) -> bool {
    let fate = Rc::<ClientEnd>::default();
    let told = carry(tunnel, &mut send, recv, patience, &fate).await;
    if fate.aborts.get() {
        send.stop_stream(Code::H3_CONNECT_ERROR);
        return false;
    }
    told
}

async fn carry(
    tunnel: Tunnel,
    send: &mut RequestStream<Sender, Bytes>,
    recv: Incoming,
    patience: Option<Duration>,
    fate: &Rc<ClientEnd>,
) -> bool {
    let (near, far) = duplex(PIPE);
    let (from, to) = split(far);
    let (mut up, mut down) = (pin!(upwards(recv, to, fate)), pin!(downwards(from, send, fate)));
    let mut tunnel = pin!(tunnel.run(Near { pipe: near, fate: fate.clone() }));
    let (mut sent, mut told) = (false, false);
    loop {
        let result = tokio::select! {
            () = &mut tunnel => break,
            result = &mut up, if !sent => {
                sent = true;
                result
            }
            result = &mut down, if !told => {
                told = true;
                result
            }
        };
        if result.is_err() {
            return false;
        }
    }
    told || matches!(timeout(patience.unwrap_or(Duration::MAX), down).await, Ok(Ok(())))
}

async fn upwards(mut recv: Incoming, mut to: WriteHalf<DuplexStream>, fate: &ClientEnd) -> Result<(), ()> {
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut recv).poll_frame(cx)).await {
        let Ok(frame) = frame else {
            // The tunnel gets what came before, and then this.
            fate.broke.set(true);
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
    fate: &ClientEnd,
) -> Result<(), ()> {
    loop {
        let mut data = BytesMut::with_capacity(PIPE / 4);
        if from.read_buf(&mut data).await.map_err(drop)? == 0 {
            return if fate.aborts.get() { Ok(()) } else { send.finish().await.map_err(drop) };
        }
        send.send_data(data.freeze()).await.map_err(drop)?;
    }
}
