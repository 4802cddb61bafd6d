//! gRPC-Web (grpc/doc/PROTOCOL-WEB.md): gRPC for clients that have no access to HTTP/2 frames or trailers, mainly
//! browsers.
//!
//! A request is translated to gRPC before any filter sees it, and its response is translated to gRPC-Web after all
//! filters have, so filters and upstreams are unaware of it. The trailers become the last frame of the body; in the
//! text variant, bodies are base64-encoded. CORS, which browsers also require, is left to filters.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body::{Body as _, Frame};

use super::{
    body::{Body, BodyError},
    grpc,
};

const TYPE: &str = "application/grpc-web";
const TEXT: &str = "-text";

/// The flag of a frame with trailers.
const TRAILERS: u8 = 0x80;

/// A translated request, with the format of its response.
#[derive(Debug)]
pub struct Translation {
    content_type: HeaderValue,
    text: bool,
}

/// Parses a media type: whether it is the text variant, and its suffix (`+proto` or empty). `None`: it is not gRPC-Web.
fn variant(media_type: &str) -> Option<(bool, String)> {
    let essence = media_type.split(';').next()?.trim_ascii().to_ascii_lowercase();
    let rest = essence.strip_prefix(TYPE)?;
    let (text, suffix) = rest.strip_prefix(TEXT).map_or((false, rest), |suffix| (true, suffix));
    (suffix.is_empty() || suffix.starts_with('+')).then(|| (text, suffix.to_owned()))
}

impl Translation {
    /// Translates a gRPC-Web request to gRPC. Returns `None` and changes nothing for any other request; only a `POST`
    /// can be gRPC-Web.
    pub fn begin(request: &mut Request<Body>) -> Option<Translation> {
        if request.method() != Method::POST {
            return None;
        }
        let fields = request.headers_mut();
        let (text, suffix) = variant(fields.get(header::CONTENT_TYPE)?.to_str().ok()?)?;
        // The client may accept the other variant for the response.
        let accepted = fields.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
        let wanted = accepted.flat_map(|v| v.split(',')).find_map(variant);
        let text_back = wanted.map_or(text, |(text, _)| text);
        let content_type = format!("{TYPE}{}{suffix}", if text_back { TEXT } else { "" });
        let content_type = HeaderValue::try_from(content_type).ok()?;
        let translated = HeaderValue::try_from(format!("application/grpc{suffix}")).ok()?;
        fields.insert(header::CONTENT_TYPE, translated);
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
        if text {
            fields.remove(header::CONTENT_LENGTH);
            let body = std::mem::take(request.body_mut());
            if !body.is_end_stream() {
                *request.body_mut() = Body::stream(Decoded { body, rest: BytesMut::new() });
            }
        }
        Some(Translation { content_type, text: text_back })
    }

    /// Translates a gRPC response to gRPC-Web. Other responses are unchanged, because clients use their HTTP status. So
    /// is a response that has only a head, because clients find the status there.
    pub fn end(self, response: Response<Body>) -> Response<Body> {
        if !grpc::is_grpc(response.headers()) {
            return response;
        }
        let (mut parts, body) = response.into_parts();
        parts.headers.insert(header::CONTENT_TYPE, self.content_type);
        if body.is_end_stream() {
            return Response::from_parts(parts, body);
        }
        // The body grows by the trailers, which are then no longer announced as fields.
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(header::TRAILER);
        Response::from_parts(parts, Body::stream(Encoded { body, text: self.text }))
    }
}

/// An error: the body is not base64.
#[derive(Debug, thiserror::Error)]
#[error("the body is not base64, which its media type requires")]
struct NotBase64;

/// A request's body, decoded from base64. It may consist of several base64 pieces, each with its own padding, whose
/// boundaries need not match those of the frames received.
struct Decoded {
    body: Body,
    /// The beginning of an incomplete group of four characters.
    rest: BytesMut,
}

impl Decoded {
    /// Decodes the complete groups so far.
    fn decode(&mut self, data: &[u8]) -> Result<Bytes, NotBase64> {
        self.rest.extend_from_slice(data);
        let whole = self.rest.split_to(self.rest.len() / 4 * 4);
        let mut out = Vec::with_capacity(whole.len() / 4 * 3);
        let mut left = &whole[..];
        while !left.is_empty() {
            // A piece ends with its padded group.
            let padded = left.iter().position(|b| *b == b'=');
            let (piece, more) = left.split_at(padded.map_or(left.len(), |at| (at / 4 + 1) * 4));
            STANDARD.decode_vec(piece, &mut out).map_err(|_| NotBase64)?;
            left = more;
        }
        Ok(out.into())
    }
}

impl http_body::Body for Decoded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let bad = |error: NotBase64| BodyError::Downstream(Box::new(error));
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                None if !self.rest.is_empty() => {
                    self.rest.clear();
                    return Poll::Ready(Some(Err(bad(NotBase64))));
                }
                end => return Poll::Ready(end),
            };
            let Some(data) = frame.data_ref() else { return Poll::Ready(Some(Ok(frame))) };
            let decoded = self.decode(data).map_err(bad)?;
            if !decoded.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(decoded))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}

/// A response's body with its trailers as the last frame. In the text variant each frame is encoded separately, so that
/// none waits for the next one.
struct Encoded {
    body: Body,
    text: bool,
}

impl http_body::Body for Encoded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)?) else { return Poll::Ready(None) };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => trailers_frame(&frame.into_trailers().unwrap_or_default()),
        };
        let data = if self.text { STANDARD.encode(data).into() } else { data };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Encodes trailers as a frame: lines as in HTTP/1.1, in lower case.
fn trailers_frame(trailers: &HeaderMap) -> Bytes {
    let length: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(TRAILERS);
    // Trailers are never anywhere near 4 GiB.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    for (name, value) in trailers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            frame.extend_from_slice(part);
        }
    }
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use http_body_util::BodyExt;

    use super::*;

    /// A body of these frames.
    struct Frames(VecDeque<Frame<Bytes>>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }
    }

    fn body(parts: &[&[u8]], trailers: &[(&'static str, &'static str)]) -> Body {
        let mut frames: VecDeque<_> = parts.iter().map(|part| Frame::data(Bytes::copy_from_slice(part))).collect();
        if !trailers.is_empty() {
            let field = |(name, value): &(&'static str, &'static str)| {
                (http::HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            frames.push_back(Frame::trailers(trailers.iter().map(field).collect()));
        }
        Body::stream(Frames(frames))
    }

    fn request(fields: &[(&str, &str)], body: Body) -> Request<Body> {
        let mut request = Request::post("/a/b");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(body).unwrap()
    }

    fn read(body: Body) -> Result<Vec<u8>, BodyError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(body.collect()).map(|all| all.to_bytes().into())
    }

    #[test]
    fn requests_become_grpc() {
        for (before, after, accept, back) in [
            ("application/grpc-web", "application/grpc", "*/*", "application/grpc-web"),
            ("application/grpc-web+proto", "application/grpc+proto", "", "application/grpc-web+proto"),
            ("application/grpc-web-text", "application/grpc", "", "application/grpc-web-text"),
            ("Application/gRPC-Web-Text+proto; x=1", "application/grpc+proto", "", "application/grpc-web-text+proto"),
            (
                "application/grpc-web+proto",
                "application/grpc+proto",
                "a/b, application/grpc-web-text",
                "application/grpc-web-text+proto",
            ),
            ("application/grpc-web-text", "application/grpc", "application/grpc-web+proto", "application/grpc-web"),
        ] {
            let fields = [("content-type", before), ("accept", accept), ("content-length", "4")];
            let mut request = request(&fields, body(&[b"AAAA"], &[]));
            let translation = Translation::begin(&mut request).unwrap();
            assert_eq!(request.headers()["content-type"], after, "{before}");
            assert_eq!(request.headers()["te"], "trailers");
            assert_eq!(request.headers().contains_key("content-length"), !before.to_lowercase().contains("text"));
            let response = Response::builder().header("content-type", "application/grpc").body(Body::Empty).unwrap();
            assert_eq!(translation.end(response).headers()["content-type"], back, "{before} {accept}");
        }
        for other in ["application/grpc", "application/grpc-webx", "application/grpc-web-textual", "text/plain", ""] {
            let mut request = request(&[("content-type", other)], Body::Empty);
            assert!(Translation::begin(&mut request).is_none(), "{other}");
            assert_eq!(request.headers()["content-type"], other);
        }
        assert!(Translation::begin(&mut request(&[], Body::Empty)).is_none());
    }

    #[test]
    fn base64_is_decoded_wherever_it_is_split() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..500 {
            let mut expected = Vec::new();
            let mut encoded = String::new();
            for _ in 0..random.usize(0..5) {
                let piece: Vec<u8> = (0..random.usize(0..40)).map(|_| random.u8(..)).collect();
                encoded += &STANDARD.encode(&piece);
                expected.extend(piece);
            }
            let mut left = encoded.as_bytes();
            let mut parts = Vec::new();
            while !left.is_empty() {
                let (part, more) = left.split_at(random.usize(0..=left.len().min(9)));
                parts.push(part);
                left = more;
            }
            let mut request = request(&[("content-type", "application/grpc-web-text")], body(&parts, &[]));
            Translation::begin(&mut request).unwrap();
            assert_eq!(read(request.into_body()).unwrap(), expected, "{parts:?}");
        }
    }

    #[test]
    fn invalid_base64_is_an_error() {
        for parts in [
            &[&b"AAA"[..]][..],
            &[b"AAAAA"],
            &[b"AA=A"],
            &[b"A*AA"],
            &[b"AAAA\r\nAA"],
            &[b"===="],
            &[b"AAAA", b"A"],
            &[b"AB=="],
        ] {
            let mut request = request(&[("content-type", "application/grpc-web-text")], body(parts, &[]));
            Translation::begin(&mut request).unwrap();
            assert!(matches!(read(request.into_body()), Err(BodyError::Downstream(_))), "{parts:?}");
        }
    }

    const FRAME: &[u8] = b"\x80\0\0\0\x24grpc-status: 0\r\ngrpc-message: fine\r\n";

    fn answered(kind: &str, parts: &[&[u8]]) -> Response<Body> {
        let mut request = request(&[("content-type", kind)], Body::Empty);
        let translation = Translation::begin(&mut request).unwrap();
        let trailers = [("grpc-status", "0"), ("grpc-message", "fine")];
        let response = Response::builder().header("content-type", "application/grpc").header("content-length", "3");
        translation.end(response.body(body(parts, &trailers)).unwrap())
    }

    #[test]
    fn trailers_become_the_last_frame() {
        let response = answered("application/grpc-web", &[b"ab", b"c"]);
        assert!(!response.headers().contains_key("content-length"));
        assert_eq!(read(response.into_body()).unwrap(), [b"abc", FRAME].concat());
    }

    #[test]
    fn base64_responses_decode_with_the_same_decoder() {
        for parts in [&[][..], &[&b"a"[..]], &[b"ab", b"c", b"defg"], &[b"\0\0\0\0\x01", b"\xff"]] {
            let encoded = read(answered("application/grpc-web-text", parts).into_body()).unwrap();
            let mut request = request(&[("content-type", "application/grpc-web-text")], body(&[&encoded], &[]));
            Translation::begin(&mut request).unwrap();
            assert_eq!(read(request.into_body()).unwrap(), [&parts.concat(), FRAME].concat());
        }
    }

    #[test]
    fn non_grpc_responses_are_unchanged() {
        let mut request = request(&[("content-type", "application/grpc-web")], Body::Empty);
        let translation = Translation::begin(&mut request).unwrap();
        let response =
            Response::builder().status(502).header("content-type", "text/html").header("content-length", "2");
        let response = translation.end(response.body(body(&[b"no"], &[])).unwrap());
        assert_eq!(
            (&response.headers()["content-type"], &response.headers()["content-length"]),
            (&"text/html".parse().unwrap(), &"2".parse().unwrap())
        );
        assert_eq!(read(response.into_body()).unwrap(), b"no");
    }
}
