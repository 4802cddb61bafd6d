//! Requests to the admin listener of a running proxy.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use serde_json::Value;
use tokio::{net::lookup_host, time::timeout};

use crate::{
    admin::read_token,
    config::units::Address,
    net::{Socket, TokioIo},
};

/// The timeout of a request.
const LONGEST: Duration = Duration::from_secs(30);

/// The limit on a response's body, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// The port of a URL without one: the default of `admin.address`.
const PORT: u16 = 9901;

/// An admin listener.
pub(super) struct AdminListener {
    url: String,
    /// The value of `Host`.
    host: String,
    place: Place,
    /// The value of `Authorization`.
    token: Option<HeaderValue>,
}

enum Place {
    Inet(String, u16),
    Unix(Address),
}

impl AdminListener {
    /// The listener at a URL such as `http://127.0.0.1:9901` or `unix:/run/admin.sock`.
    pub(super) fn new(url: &str, token_file: Option<&Path>) -> anyhow::Result<AdminListener> {
        let help = "write http://HOST:PORT or unix:PATH";
        let (host, place) = if url.starts_with("unix:") {
            ("localhost".to_owned(), Place::Unix(url.parse().map_err(anyhow::Error::msg)?))
        } else {
            let uri: Uri = url.parse().with_context(|| format!("`{url}` is not a URL; {help}"))?;
            let (Some(authority), true, "" | "/") = (uri.authority(), uri.scheme() == Some(&Scheme::HTTP), uri.path())
            else {
                bail!("`{url}` is not the URL of an admin listener; {help}");
            };
            let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
            (authority.to_string(), Place::Inet(host, authority.port_u16().unwrap_or(PORT)))
        };
        let token = token_file.map(|path| {
            let token = read_token(path).with_context(|| format!("no usable token in `{}`", path.display()))?;
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        });
        Ok(AdminListener { url: url.trim_end_matches('/').to_owned(), host, place, token: token.transpose()? })
    }

    /// The URL.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Sends a `GET`, and returns the response.
    ///
    /// # Errors There is no response, or it is not JSON.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let exchange = async {
            let mut request = Request::get(path).header(header::HOST, &self.host);
            if let Some(token) = &self.token {
                request = request.header(header::AUTHORIZATION, token);
            }
            self.exchange(request.body(Empty::new())?).await
        };
        let (status, body) = match timeout(LONGEST, exchange).await {
            Ok(result) => result.with_context(|| format!("cannot reach the admin listener at {}", self.url))?,
            Err(_) => bail!("the admin listener at {} timed out", self.url),
        };
        if status != StatusCode::OK {
            let said = String::from_utf8_lossy(&body).trim().chars().take(200).collect::<String>();
            bail!("{}{path} answers {status}: {said}", self.url);
        }
        serde_json::from_slice(&body)
            .with_context(|| format!("{}{path} is not JSON: is it an admin listener?", self.url))
    }

    async fn exchange(&self, request: Request<Empty<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)> {
        let address = match &self.place {
            Place::Unix(address) => address.clone(),
            Place::Inet(host, port) => {
                let mut addresses = lookup_host((host.as_str(), *port)).await?;
                Address::Inet(addresses.next().context("the host has no address")?)
            }
        };
        let stream = Socket::connect(&address, None).await.map_err(|(error, _)| error)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::task::spawn_local(connection);
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body =
                Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(anyhow::Error::from_boxed)?;
            Ok((status, body.to_bytes()))
        };
        let answer = answer.await;
        connection.abort();
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_admin_listeners_are_parsed() {
        let place = |url: &str| AdminListener::new(url, None).map(|listener| (listener.host, listener.place));
        let inet = |url: &str| match place(url) {
            Ok((host, Place::Inet(name, port))) => Some((host, name, port)),
            _ => None,
        };
        let expected = |host: &str, name: &str, port| Some((host.to_owned(), name.to_owned(), port));
        assert_eq!(inet("http://127.0.0.1:9901"), expected("127.0.0.1:9901", "127.0.0.1", 9901));
        assert_eq!(inet("http://[::1]:8/"), expected("[::1]:8", "::1", 8));
        assert_eq!(inet("http://localhost"), expected("localhost", "localhost", 9901));
        assert!(matches!(place("unix:a.sock"), Ok((host, Place::Unix(_))) if host == "localhost"));
        for wrong in ["https://a:1", "127.0.0.1:9901", "http://a:1/config", "unix:", "http://", ""] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
