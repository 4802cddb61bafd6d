//! Answers: their framing, statuses, fields, trailers, and preceding interim answers.

use super::{
    super::model::{Down, How, Point, Row, Up, Version, Ways},
    H1,
};

pub fn rows() -> Vec<Row> {
    let large = vec![b'y'; 200_000];
    // Without a body it is unknown what a filter that reads bodies would turn it into.
    let no_length = |row: Row| {
        row.but(
            Ways::Held,
            Up::Whole(|_| {}),
            Down::Whole(|reply| reply.fields.retain(|(name, _)| name != "content-length")),
            "a filter might change the body whose length this would be",
        )
    };
    let framing = vec![
        Row::new("an answer of unknown length").answer(200, &[], Some(&[b"hel", b"lo"])),
        Row::new("an answer that ends with its connection")
            .answer(200, &[], Some(&[b"hel", b"lo"]))
            .reply(|reply| reply.until_close = true),
        Row::new("an empty answer of known length").answer(200, &[("content-length", "0")], Some(&[])),
        Row::new("an empty answer of unknown length").answer(200, &[], Some(&[])),
        Row::new("an answer without a body").answer(200, &[], None),
        Row::new("a large answer of known length").answer(200, &[("content-length", "200000")], Some(&[&large])),
        Row::new("a large answer of unknown length").answer(200, &[], Some(&[&large, &large])),
        Row::new("an answer in many small pieces").answer(200, &[], Some(&[&b"x"[..]; 300])),
        Row::new("204").answer(204, &[], None),
        Row::new("204 with a length")
            .answer(204, &[("content-length", "5"), ("etag", "\"a\"")], None)
            .gets(|reply| reply.fields.retain(|(name, _)| name != "content-length")),
        Row::new("205").answer(205, &[("content-length", "0")], None),
        no_length(Row::new("304 with a length").answer(304, &[("content-length", "5"), ("etag", "\"a\"")], None)),
        no_length(Row::new("HEAD with a length").method("HEAD").answer(200, &[("content-length", "70000")], None)),
        Row::new("HEAD without a length").method("HEAD").answer(200, &[], None),
        no_length(Row::new("HEAD and an error").method("HEAD").answer(404, &[("content-length", "9")], None)),
        no_length(Row::new("HEAD answered with a body").method("HEAD").answer(
            200,
            &[("content-length", "5")],
            Some(&[b"hello"]),
        )),
        Row::new("204 with a body").answer(204, &[], Some(&[b"hello"])),
        Row::new("304 with a body").answer(304, &[("etag", "\"a\"")], Some(&[b"hello"])),
        Row::new("chunks and a length of an answer")
            .of_h1("HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .want(Up::Whole(|_| {}), Down::Own(502, "upstream_protocol_error")),
        Row::new("an answer's chunk of no size")
            .of_h1("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\ntwo\r\nok\r\n0\r\n\r\n")
            .want(Up::Whole(|_| {}), Down::Failed),
        Row::new("an answer's chunk that is longer than it says")
            .of_h1("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nok\r\n0\r\n\r\n")
            .want(Up::Whole(|_| {}), Down::Failed),
        Row::new("an unknown coding of an answer")
            .of_h1("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .want(Up::Whole(|_| {}), Down::Own(502, "upstream_protocol_error")),
        Row::new("201 to a POST").post(&[b"hello"]).answer(201, &[("location", "/a")], Some(&[b"made"])),
        Row::new("404").answer(404, &[("content-type", "text/plain")], Some(&[b"not here"])),
        Row::new("500").answer(500, &[], Some(&[b"broken"])),
        Row::new("503 with a retry-after").answer(503, &[("retry-after", "5")], Some(&[])),
        Row::new("an unknown status").answer(299, &[], Some(&[b"odd"])),
        Row::new("the highest status").answer(599, &[], Some(&[b"odd"])),
        Row::new("an early answer")
            .post(&[b"hello"])
            .length("5")
            .reply(|reply| reply.early = true)
            .want(Up::Anything, Down::Whole(|_| {})),
        Row::new("an early answer to a large body")
            .post(&[&large])
            .reply(|reply| reply.early = true)
            .want(Up::Anything, Down::Whole(|_| {})),
    ];
    let fields = vec![
        Row::new("cookies are set each on its own").answer(
            200,
            &[("set-cookie", "a=1"), ("set-cookie", "b=2; Path=/")],
            Some(&[b"ok"]),
        ),
        Row::new("an answer's value beyond ASCII").answer(200, &[("x-a", "caf\u{e9}")], Some(&[b"ok"])),
        Row::new("an answer's empty value").answer(200, &[("x-a", "")], Some(&[b"ok"])),
        Row::new("an answer's field twice").answer(200, &[("x-a", "1"), ("x-a", "2")], Some(&[b"ok"])),
        Row::new("an answer's long value").answer(200, &[("x-a", &"v".repeat(4000))], Some(&[b"ok"])),
        Row::new("a location on another site").answer(302, &[("location", "https://other.test/a?b#c")], None),
        Row::new("an answer about its connection")
            .answer(200, &[("keep-alive", "5"), ("proxy-connection", "close"), ("content-length", "2")], Some(&[b"ok"]))
            .gets(|reply| reply.fields.clear())
            .but(
                Ways::To(Version::H2),
                Up::Whole(|_| {}),
                Down::Own(502, "upstream_protocol_error"),
                "HTTP/2 has no such fields, and a response with them is malformed (RFC 9113 section 8.2.2)",
            ),
        Row::new("an answer's invalid name")
            .answer(200, &[("x\"a", "1")], Some(&[b"ok"]))
            .want(Up::Whole(|_| {}), Down::Own(502, "upstream_protocol_error")),
        Row::new("an answer's name with capitals").answer(200, &[("X-A", "1")], Some(&[b"ok"])).but(
            Ways::To(Version::H2),
            Up::Whole(|_| {}),
            Down::Own(502, "upstream_protocol_error"),
            "names are in small letters in HTTP/2 (RFC 9113 section 8.2.1)",
        ),
        Row::new("blanks around an answer's value")
            .answer(200, &[("x-a", " 1 ")], Some(&[b"ok"]))
            .gets(|reply| reply.fields[0].1 = "1".to_owned())
            .but(
                Ways::To(Version::H2),
                Up::Whole(|_| {}),
                Down::Own(502, "upstream_protocol_error"),
                "only in HTTP/1.1 is white space around a value not part of it (RFC 9113 section 8.2.1)",
            ),
        Row::new("an answer that consists of gRPC trailers only").answer(
            200,
            &[("content-type", "application/grpc"), ("grpc-status", "5")],
            None,
        ),
        Row::new("NUL in an answer's value")
            .answer(200, &[("x-a", "1\x002")], Some(&[b"ok"]))
            .want(Up::Whole(|_| {}), Down::Own(502, "upstream_protocol_error")),
        Row::new("a control byte in an answer's value")
            .answer(200, &[("x-a", "1\x012")], Some(&[b"ok"]))
            .want(Up::Whole(|_| {}), Down::Own(502, "upstream_protocol_error")),
        Row::new("an answer's head that is too large")
            .answer(200, &[("x-a", &"v".repeat(100_000))], Some(&[b"ok"]))
            .want(Up::Whole(|_| {}), Down::Own(502, "upstream_protocol_error")),
        Row::new("two lengths of an answer")
            .answer(200, &[("content-length", "2"), ("content-length", "3")], Some(&[b"ok"]))
            .want(Up::Whole(|_| {}), Down::Own(502, "upstream_protocol_error")),
        Row::new("one length of an answer twice")
            .answer(200, &[("content-length", "2"), ("content-length", "2")], Some(&[b"ok"]))
            .want(Up::Whole(|_| {}), Down::Own(502, "upstream_protocol_error")),
        Row::new("an invalid length of an answer")
            .answer(200, &[("content-length", "two")], Some(&[b"ok"]))
            .want(Up::Whole(|_| {}), Down::Own(502, "upstream_protocol_error")),
        Row::new("less than an answer's length")
            .answer(200, &[("content-length", "9")], Some(&[b"ok"]))
            .stops(Point::Piece, How::Close),
        Row::new("more than an answer's length")
            .answer(200, &[("content-length", "1")], Some(&[b"ok"]))
            .want(Up::Whole(|_| {}), Down::Failed)
            .not_to(Version::H1, "what follows an answer is not part of it"),
        Row::new("an invalid status")
            .reply(|reply| {
                reply.raw =
                    Some(("HTTP/1.1 2x0 Odd\r\n\r\n".to_owned(), vec![(":status".to_owned(), "2x0".to_owned())]))
            })
            .want(Up::Whole(|_| {}), Down::Own(502, "upstream_protocol_error")),
        Row::new("an invalid answer")
            .reply(|reply| {
                reply.raw = Some(("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), vec![("x-a".to_owned(), "1".to_owned())]))
            })
            .want(Up::Whole(|_| {}), Down::Own(502, "upstream_protocol_error")),
    ];
    let trailers = vec![
        Row::new("an answer's trailers for a client that accepts them")
            .with(&[("te", "trailers")])
            .answer(200, &[], Some(&[b"ok"]))
            .reply(|reply| reply.trailers = vec![("x-sum".to_owned(), "1".to_owned())]),
        Row::new("an answer's trailers that were announced")
            .answer(200, &[("trailer", "x-sum")], Some(&[b"ok"]))
            .reply(|reply| reply.trailers = vec![("x-sum".to_owned(), "1".to_owned())]),
        Row::new("an answer's trailers that the client does not accept")
            .answer(200, &[], Some(&[b"ok"]))
            .reply(|reply| reply.trailers = vec![("x-sum".to_owned(), "1".to_owned())])
            .but(
                Ways::From(H1),
                Up::Whole(|_| {}),
                Down::Whole(|reply| reply.trailers.clear()),
                "a client of HTTP/1.1 that has not asked may not know trailers (RFC 9110 section 6.5.1)",
            ),
        Row::new("trailers of an answer without a body")
            .with(&[("te", "trailers")])
            .answer(200, &[], Some(&[]))
            .reply(|reply| reply.trailers = vec![("x-sum".to_owned(), "1".to_owned())]),
        Row::new("an answer's trailers about framing")
            .with(&[("te", "trailers")])
            .answer(200, &[], Some(&[b"ok"]))
            .reply(|reply| {
                reply.trailers =
                    vec![("x-sum".to_owned(), "1".to_owned()), ("content-length".to_owned(), "2".to_owned())];
            })
            .gets(|reply| reply.trailers.truncate(1)),
        Row::new("an answer's trailers of which none may be forwarded")
            .with(&[("te", "trailers")])
            .answer(200, &[], Some(&[b"ok"]))
            .reply(|reply| reply.trailers = vec![("content-length".to_owned(), "2".to_owned())])
            .gets(|reply| reply.trailers.clear()),
        Row::new("an answer's trailers that begin with a pseudo-field")
            .with(&[("te", "trailers")])
            .answer(200, &[], Some(&[b"ok"]))
            .reply(|reply| {
                reply.trailers = vec![(":status".to_owned(), "500".to_owned()), ("x-sum".to_owned(), "1".to_owned())];
            })
            .want(Up::Whole(|_| {}), Down::Failed),
        Row::new("an answer's trailers that end with a pseudo-field")
            .with(&[("te", "trailers")])
            .answer(200, &[], Some(&[b"ok"]))
            .reply(|reply| {
                reply.trailers = vec![("x-sum".to_owned(), "1".to_owned()), (":path".to_owned(), "/other".to_owned())];
            })
            .want(Up::Whole(|_| {}), Down::Failed),
    ];
    let interim = vec![
        Row::new("103").interim(103, &[("link", "</a>")], 1),
        Row::new("103 twice").interim(103, &[("link", "</a>")], 2),
        Row::new("103 with a length").interim(103, &[("link", "</a>"), ("content-length", "5")], 1),
        Row::new("102").interim(102, &[], 1),
        Row::new("100 that the client does not wait for")
            .post(&[b"hello"])
            .interim(100, &[], 1)
            .gets(|reply| reply.interim.clear()),
        Row::new("103 and an error").interim(103, &[], 1).answer(404, &[], Some(&[b"no"])),
        Row::new("too many interim answers")
            .interim(103, &[], 40)
            .want(Up::Whole(|_| {}), Down::Own(502, "too_many_interim_responses")),
        Row::new("101 without an upgrade request")
            .answer(101, &[], None)
            .want(Up::Whole(|_| {}), Down::Own(502, "upstream_protocol_error")),
    ];
    [framing, fields, trailers, interim].into_iter().flatten().collect()
}
