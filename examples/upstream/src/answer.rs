//! The server's responses.

use std::{
    cell::Cell,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, SizeHint},
    header::{self, HeaderValue, InvalidHeaderValue},
};
use serde_json::{Map, Value, json};

/// The largest response to `/bytes/N`, in bytes.
const MOST_BYTES: u64 = 1 << 30;
/// The longest delay of `/delay/MS`.
const LONGEST: Duration = Duration::from_secs(60);

/// The server's state, shared by all connections.
pub(crate) struct Upstream {
    name: String,
    header: HeaderValue,
    delay: Duration,
    fail_percent: f64,
    requests: Cell<u64>,
}

type Reply<E> = Response<UnsyncBoxBody<Bytes, E>>;

impl Upstream {
    pub(crate) fn new(name: &str, delay: Duration, fail_percent: f64) -> Result<Upstream, InvalidHeaderValue> {
        let header = HeaderValue::from_str(name)?;
        Ok(Upstream { name: name.to_owned(), header, delay, fail_percent, requests: Cell::new(0) })
    }

    pub(crate) async fn answer<B>(&self, request: Request<B>) -> Reply<B::Error>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let mut reply = if request.uri().path() == "/stats" {
            of(StatusCode::OK, json_text(&json!({"name": self.name, "requests": self.requests.get()})))
        } else {
            self.requests.set(self.requests.get() + 1);
            if !self.delay.is_zero() {
                tokio::time::sleep(self.delay).await;
            }
            if fastrand::f64() * 100.0 < self.fail_percent {
                of(StatusCode::SERVICE_UNAVAILABLE, format!("{} fails as requested\n", self.name))
            } else {
                self.page(request).await
            }
        };
        reply.headers_mut().insert("x-upstream", self.header.clone());
        if !reply.headers().contains_key(header::CONTENT_TYPE) && !reply.body().is_end_stream() {
            reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        reply
    }

    async fn page<B>(&self, request: Request<B>) -> Reply<B::Error>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let path = request.uri().path();
        let path = path.strip_prefix('/').unwrap_or(path);
        let (place, argument) = path.split_once('/').unwrap_or((path, ""));
        match (place, argument) {
            ("headers", "") => {
                let mut reply = of(StatusCode::OK, json_text(&headers(request.headers())));
                reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                reply
            }
            ("echo", "") => {
                let kind = request.headers().get(header::CONTENT_TYPE).cloned();
                let mut reply = Response::new(request.into_body().boxed_unsync());
                if let Some(kind) = kind {
                    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
                }
                reply
            }
            ("auth", "") => {
                let right = request.headers().get(header::AUTHORIZATION).is_some_and(|v| v == "Bearer demo");
                if right { empty(StatusCode::NO_CONTENT) } else { of(StatusCode::UNAUTHORIZED, "who are you?\n") }
            }
            ("status", number) => {
                let status = number.parse().ok().filter(|n| (200..=599).contains(n));
                match status.and_then(|n| StatusCode::from_u16(n).ok()) {
                    // These have no body by definition.
                    Some(status @ (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)) => empty(status),
                    Some(status) => of(status, format!("{status}\n")),
                    None => of(StatusCode::BAD_REQUEST, "/status/N: N is 200 to 599\n"),
                }
            }
            ("delay", ms) => match ms.parse().map(Duration::from_millis) {
                Ok(time) if time <= LONGEST => {
                    tokio::time::sleep(time).await;
                    of(StatusCode::OK, format!("{} has waited for {ms} ms\n", self.name))
                }
                _ => of(StatusCode::BAD_REQUEST, "/delay/MS: MS is 0 to 60000\n"),
            },
            ("bytes", count) => match count.parse() {
                Ok(left @ 0..=MOST_BYTES) => Response::new(Filler { left }.map_err(absurd).boxed_unsync()),
                _ => of(StatusCode::BAD_REQUEST, "/bytes/N: N is 0 to 1073741824\n"),
            },
            _ => {
                let line = format!("{}: {} {} {:?}\n", self.name, request.method(), request.uri(), request.version());
                of(StatusCode::OK, line)
            }
        }
    }
}

/// Converts an impossible error to the error type of request bodies.
fn absurd<E>(never: Infallible) -> E {
    match never {}
}

fn of<E: 'static>(status: StatusCode, body: impl Into<Bytes>) -> Reply<E> {
    let mut reply = Response::new(Full::new(body.into()).map_err(absurd).boxed_unsync());
    *reply.status_mut() = status;
    reply
}

fn empty<E: 'static>(status: StatusCode) -> Reply<E> {
    let mut reply = Response::new(Empty::new().map_err(absurd).boxed_unsync());
    *reply.status_mut() = status;
    reply
}

fn json_text(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Converts headers to a JSON object; a header with several fields becomes a list.
fn headers(headers: &hyper::HeaderMap) -> Value {
    let text = |value: &HeaderValue| Value::from(String::from_utf8_lossy(value.as_bytes()));
    let mut map = Map::new();
    for name in headers.keys() {
        let mut values: Vec<_> = headers.get_all(name).iter().map(text).collect();
        let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
        map.insert(name.to_string(), value);
    }
    Value::Object(map)
}

/// A body of this many bytes that does not hold them in memory.
struct Filler {
    left: u64,
}

impl Body for Filler {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static CHUNK: [u8; 64 << 10] = [b'.'; 64 << 10];
        let size = self.left.min(CHUNK.len() as u64);
        self.left -= size;
        Poll::Ready((size > 0).then(|| Ok(Frame::data(Bytes::from_static(&CHUNK[..size as usize])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(upstream: &Upstream, request: Request<Full<Bytes>>) -> (u16, hyper::HeaderMap, Bytes) {
        let (parts, body) = upstream.answer(request).await.into_parts();
        (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes())
    }

    async fn get(path: &str) -> (u16, hyper::HeaderMap, Bytes) {
        let upstream = Upstream::new("blue", Duration::ZERO, 0.0).unwrap();
        ask(&upstream, Request::get(path).header("x-one", "1").body(Full::default()).unwrap()).await
    }

    #[tokio::test]
    async fn pages() {
        let (status, headers, body) = get("/some/where?x=1").await;
        assert_eq!((status, &headers["x-upstream"]), (200, &HeaderValue::from_static("blue")));
        assert_eq!(body, "blue: GET /some/where?x=1 HTTP/1.1\n");

        let (_, headers, body) = get("/headers").await;
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), json!({"x-one": "1"}));

        assert_eq!(get("/status/418").await.0, 418);
        assert_eq!(get("/status/204").await.2, "");
        assert_eq!(get("/delay/1").await.0, 200);
        assert_eq!(get("/bytes/100000").await.2.len(), 100_000);
        assert_eq!(get("/auth").await.0, 401);
        for wrong in ["/status/99", "/status/x", "/delay/x", "/delay/60001", "/bytes/-1", "/bytes/1073741825"] {
            assert_eq!(get(wrong).await.0, 400, "{wrong}");
        }
    }

    #[tokio::test]
    async fn echoes_and_counts() {
        let upstream = Upstream::new("blue", Duration::ZERO, 0.0).unwrap();
        let post = Request::post("/echo").header("content-type", "x/y").body(Full::from("hello")).unwrap();
        let (_, headers, body) = ask(&upstream, post).await;
        assert_eq!((headers["content-type"].as_bytes(), &*body), (&b"x/y"[..], &b"hello"[..]));
        let stats = Request::get("/stats").body(Full::default()).unwrap();
        let (_, _, body) = ask(&upstream, stats).await;
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), json!({"name": "blue", "requests": 1}));
    }

    #[tokio::test]
    async fn fails_at_the_requested_rate() {
        let upstream = Upstream::new("blue", Duration::ZERO, 30.0).unwrap();
        let mut failed = 0;
        for _ in 0..1000 {
            let (status, ..) = ask(&upstream, Request::get("/").body(Full::default()).unwrap()).await;
            failed += u32::from(status == 503);
        }
        assert!((200..400).contains(&failed), "{failed}");
    }
}
