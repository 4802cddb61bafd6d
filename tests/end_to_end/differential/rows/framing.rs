//! The length of a request in all the ways to declare it, and its trailers.

use super::{
    super::model::{Down, Row, Up, Version, Ways},
    H1,
};

const LARGE: usize = 200_000;

/// A `POST` with a trailer that must not be forwarded.
fn bad_trailer(name: &'static str, trailer: (&str, &str)) -> Row {
    Row::new(name).post(&[b"hello"]).trailers(&[trailer]).want(Up::NotWhole, Down::Refused)
}

pub fn rows() -> Vec<Row> {
    let large = vec![b'x'; LARGE];
    vec![
        Row::new("a request without a body"),
        Row::new("a body of known length").post(&[b"hello"]).length("5"),
        Row::new("a body of unknown length").post(&[b"hello"]),
        Row::new("a body of known length in pieces").post(&[b"he", b"l", b"lo"]).length("5"),
        Row::new("a body of unknown length in pieces").post(&[b"he", b"l", b"lo"]),
        Row::new("an empty body of known length").post(&[]).length("0"),
        Row::new("an empty body of unknown length").post(&[]),
        Row::new("a large body of known length").post(&[&large]).length("200000"),
        Row::new("a large body of unknown length").post(&[&large, &large]),
        Row::new("a body of many small pieces").post(&[&b"x"[..]; 300]),
        Row::new("GET with a body").body(&[b"hello"]).length("5"),
        Row::new("GET with a body of unknown length").body(&[b"hello"]),
        Row::new("DELETE with a body").method("DELETE").body(&[b"hello"]).length("5"),
        Row::new("PUT with a body of unknown length").method("PUT").body(&[b"hello"]),
        Row::new("OPTIONS with a body").method("OPTIONS").body(&[b"hello"]).length("5"),
        Row::new("one length twice").post(&[b"hello"]).length("5").length("5").refused(),
        Row::new("one length twice and no body").length("0").length("0").refused(),
        Row::new("a list of one length").post(&[b"hello"]).length("5, 5").refused(),
        Row::new("two lengths").post(&[b"hello"]).length("5").length("6").refused(),
        Row::new("a length with a sign").post(&[b"hello"]).length("+5").refused(),
        Row::new("a negative length").post(&[b"hello"]).length("-5").refused(),
        Row::new("an empty length").post(&[b"hello"]).length("").refused(),
        Row::new("a hexadecimal length").post(&[b"hello"]).length("0x5").refused(),
        Row::new("a length that overflows").post(&[b"hello"]).length("18446744073709551621").refused(),
        Row::new("less than the length")
            .post(&[b"hello"])
            .length("9")
            .want(Up::NotWhole, Down::Refused)
            .not_from(H1, "a body that ends early is a connection that ends, see the cuts"),
        Row::new("more than the length")
            .post(&[b"hello", b"world"])
            .length("5")
            .want(Up::NotWhole, Down::Refused)
            .not_from(H1, "what follows a body is the next request"),
        Row::new("a length and no body")
            .method("POST")
            .length("5")
            .want(Up::NotWhole, Down::Refused)
            .not_from(H1, "a body that ends early is a connection that ends, see the cuts"),
        Row::new("a transfer coding")
            .post(&[b"hello"])
            .with(&[("transfer-encoding", "chunked")])
            .refused()
            .not_from(H1, "there it is the framing of every body of unknown length"),
        Row::new("chunks and a length")
            .raw("content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
            .refused(),
        Row::new("an unknown coding").raw("transfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").refused(),
        Row::new("a chunk of no size")
            .raw("transfer-encoding: chunked\r\n\r\nfive\r\nhello\r\n0\r\n\r\n")
            .want(Up::NotWhole, Down::Refused),
        Row::new("a chunk that is longer than it says")
            .raw("transfer-encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n")
            .want(Up::NotWhole, Down::Refused),
        Row::new("chunks with extensions")
            .raw("transfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n")
            .arrives(|request| request.body = Some(vec![b"hello".to_vec()])),
        Row::new("a folded field").raw("x-a: 1\r\n 2\r\n\r\n").refused(),
        Row::new("a line that ends with LF").raw("x-a: 1\n\r\n").refused(),
        Row::new("trailers that were announced")
            .post(&[b"hello"])
            .with(&[("te", "trailers"), ("trailer", "x-sum")])
            .trailers(&[("x-sum", "1")]),
        Row::new("trailers of an empty body")
            .post(&[])
            .with(&[("te", "trailers"), ("trailer", "x-sum")])
            .trailers(&[("x-sum", "1")]),
        Row::new("trailers that were not announced")
            .post(&[b"hello"])
            .trailers(&[("x-sum", "1")])
            .arrives(|request| request.trailers.clear())
            .but(
                Ways::HeldTo(Version::H2),
                Up::Whole(|_| {}),
                Down::Whole(|_| {}),
                "they are known before the request is sent, so it uses a separate connection, where they do no harm",
            ),
        Row::new("GET with a length of 0").length("0"),
        Row::new("several trailers, one twice").post(&[b"hello"]).with(&[("trailer", "x-a, x-b")]).trailers(&[
            ("x-a", "1"),
            ("x-b", ""),
            ("x-a", "2"),
        ]),
        Row::new("trailers about framing and routing")
            .post(&[b"hello"])
            .with(&[("trailer", "x-sum")])
            .trailers(&[("x-sum", "1"), ("content-length", "9"), ("authorization", "x"), ("host", "other")])
            .arrives(|request| request.trailers.truncate(1)),
        Row::new("trailers of which none may be forwarded")
            .post(&[b"hello"])
            .with(&[("te", "trailers"), ("trailer", "x-sum")])
            .trailers(&[("content-length", "9"), ("host", "other")])
            .arrives(|request| request.trailers.clear()),
        Row::new("trailers about the connection")
            .post(&[b"hello"])
            .with(&[("trailer", "x-sum")])
            .trailers(&[("x-sum", "1"), ("keep-alive", "5")])
            .want(Up::NotWhole, Down::Refused)
            .but(
                Ways::From(H1),
                Up::Whole(|request| request.trailers.truncate(1)),
                Down::Whole(|_| {}),
                "a connection-specific field of HTTP/1.1, which is not forwarded",
            ),
        bad_trailer("trailers with an invalid name", ("x\"sum", "1")),
        bad_trailer("trailers with an empty name", ("", "1")),
        bad_trailer("trailers with NUL", ("x-sum", "1\x002")),
        bad_trailer("trailers with LF", ("x-sum", "1\n2")),
        bad_trailer("trailers with a control byte", ("x-sum", "\x1f")),
        bad_trailer("trailers with a pseudo-field", (":path", "/other")),
        bad_trailer("trailers with a status", (":status", "200")),
        Row::new("a body sent without waiting for 100")
            .post(&[b"hello"])
            .length("5")
            .with(&[("expect", "100-continue")]),
        Row::new("a body that waits for 100")
            .post(&[b"hello"])
            .length("5")
            .with(&[("expect", "100-continue")])
            .waiting(),
    ]
}
