//! `CONNECT` (RFC 9114 section 4.4): what becomes of a request's stream when its request was to be a tunnel.
//!
//! h3 cannot be polled for whether it takes bytes, so the tunnel ends in a pipe, and two loops carry between that and h3.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h3::server::RequestStream;
use http_body::Body as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    time::timeout,
};

use super::{body::Incoming, transport::Sender};
use crate::exchange::Tunnel;

/// Bytes that wait in the pipe, each way.
const PIPE: usize = 64 << 10;

/// Carries bytes until the tunnel or the client ends it. Whether the client has been told all that it was to be told; for what
/// is left of that when the tunnel has ended, it has `patience`.
pub(super) async fn run(
    tunnel: Tunnel,
    mut send: RequestStream<Sender, Bytes>,
    recv: Incoming,
    patience: Option<Duration>,
) -> bool {
    let (near, far) = duplex(PIPE);
    let (from, to) = split(far);
    let (mut up, mut down) = (pin!(upwards(recv, to)), pin!(downwards(from, &mut send)));
    let mut tunnel = pin!(tunnel.run(near));
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

async fn upwards(mut recv: Incoming, mut to: WriteHalf<DuplexStream>) -> Result<(), ()> {
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut recv).poll_frame(cx)).await {
        if let Ok(data) = frame.map_err(drop)?.into_data() {
            to.write_all(&data).await.map_err(drop)?;
        }
    }
    to.shutdown().await.map_err(drop)
}

async fn downwards(mut from: ReadHalf<DuplexStream>, send: &mut RequestStream<Sender, Bytes>) -> Result<(), ()> {
    loop {
        let mut data = BytesMut::with_capacity(PIPE / 4);
        if from.read_buf(&mut data).await.map_err(drop)? == 0 {
            return send.finish().await.map_err(drop);
        }
        send.send_data(data.freeze()).await.map_err(drop)?;
    }
}
