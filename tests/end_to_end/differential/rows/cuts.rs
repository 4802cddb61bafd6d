//! Truncated messages: the client's and the upstream's, at every point.

use super::super::model::{Down, How, Point, Row, Up, Version};
use crate::harness::frames::code;

pub fn rows() -> Vec<Row> {
    let large = vec![b'x'; 200_000];
    let of_streams = "an HTTP/2 error code or GOAWAY; HTTP/1.1 can only close the connection";
    let requests = vec![
        Row::new("a client leaves within its head").cut(Point::Head).want(Up::Nothing, Down::Left),
        Row::new("a client leaves within a body").post(&[b"hello", b"world"]).length("10").cut(Point::Piece),
        Row::new("a client leaves within a body of unknown length").post(&[b"hello", b"world"]).cut(Point::Piece),
        Row::new("a client leaves within a large body").post(&[&large, &large]).length("400000").cut(Point::Piece),
        Row::new("a client leaves within a large body of unknown length").post(&[&large, &large]).cut(Point::Piece),
        Row::new("a client leaves before a body's end").post(&[b"hello"]).cut(Point::End),
        Row::new("a client leaves before a large body's end").post(&[&large]).cut(Point::End),
        Row::new("a client leaves before its trailers")
            .post(&[b"hello"])
            .with(&[("trailer", "x-sum")])
            .trailers(&[("x-sum", "1")])
            .cut(Point::End),
        Row::new("a client leaves within its trailers")
            .post(&[b"hello"])
            .with(&[("trailer", "x-sum")])
            .trailers(&[("x-sum", "1")])
            .cut(Point::Trailers),
        Row::new("a client ends its direction within its head").half_closes(Point::Head),
        Row::new("a client ends its direction within a body")
            .post(&[b"hello", b"world"])
            .length("10")
            .half_closes(Point::Piece),
        Row::new("a client ends its direction within a body of unknown length")
            .post(&[b"hello", b"world"])
            .half_closes(Point::Piece),
        Row::new("a client ends its direction before the last chunk").post(&[b"hello"]).half_closes(Point::End),
        Row::new("a client ends its direction within a large body").post(&[&large, &large]).half_closes(Point::Piece),
        Row::new("a client ends its direction within its trailers")
            .post(&[b"hello"])
            .trailers(&[("x-sum", "1")])
            .half_closes(Point::Trailers),
        Row::new("the client disconnects before the response")
            .post(&[b"hello"])
            .length("5")
            .stops(Point::Start, How::Silence)
            .cut(Point::After)
            .want(Up::Whole(|_| {}), Down::Left),
        Row::new("the client disconnects in the middle of the response")
            .answer(200, &[], Some(&[b"hello"]))
            .stops(Point::Piece, How::Silence)
            .cut(Point::After)
            .want(Up::Whole(|_| {}), Down::Left),
    ];
    let answer = |name, point, how| {
        Row::new(name)
            .answer(200, &[], Some(&[b"hello", b"world"]))
            .reply(|reply| reply.trailers = vec![("x-sum".to_owned(), "1".to_owned())])
            .with(&[("te", "trailers")])
            .stops(point, how)
    };
    let of_length = |name, point, how| {
        Row::new(name)
            .post(&[b"request"])
            .answer(200, &[("content-length", "10")], Some(&[b"hello", b"world"]))
            .stops(point, how)
    };
    let large_answer = |name, how| Row::new(name).answer(200, &[], Some(&[&large, &large])).stops(Point::Piece, how);
    let reset = How::Reset(code::INTERNAL_ERROR);
    let answers = vec![
        answer("an upstream closes without an answer", Point::Start, How::Close),
        of_length("an upstream closes without an answer to a POST", Point::Start, How::Close),
        answer("an upstream closes within its head", Point::Head, How::Close),
        answer("an upstream closes after its head", Point::Body, How::Close),
        of_length("an upstream closes after a head with a length", Point::Body, How::Close),
        answer("an upstream closes within its body", Point::Piece, How::Close),
        of_length("an upstream closes within a body of known length", Point::Piece, How::Close),
        large_answer("an upstream closes within a large body", How::Close),
        answer("an upstream closes before its trailers", Point::End, How::Close),
        answer("an upstream closes within its trailers", Point::Trailers, How::Close),
        answer("an upstream resets without an answer", Point::Start, reset),
        of_length("an upstream resets without an answer to a POST", Point::Start, reset),
        answer("an upstream resets after its head", Point::Body, reset),
        answer("an upstream resets within its body", Point::Piece, reset),
        of_length("an upstream resets within a body of known length", Point::Piece, reset),
        large_answer("an upstream resets within a large body", reset),
        answer("an upstream resets before its trailers", Point::End, reset),
        answer("a reset without an error within a body", Point::Piece, How::Reset(code::NO_ERROR))
            .not_to(Version::H1, of_streams),
        answer("a reset without an error before the end", Point::End, How::Reset(code::NO_ERROR))
            .not_to(Version::H1, of_streams),
        answer("a cancelled answer", Point::Piece, How::Reset(code::CANCEL)).not_to(Version::H1, of_streams),
        of_length("a refused answer", Point::Piece, How::Reset(code::REFUSED_STREAM)).not_to(Version::H1, of_streams),
        of_length("a refused request", Point::Start, How::Reset(code::REFUSED_STREAM)).not_to(Version::H1, of_streams),
        answer("GOAWAY within a body", Point::Piece, How::Goaway).not_to(Version::H1, of_streams),
        answer("GOAWAY instead of an answer", Point::Start, How::Goaway).not_to(Version::H1, of_streams),
        Row::new("an upstream closes after its answer")
            .stops(Point::After, How::Close)
            .want(Up::Whole(|_| {}), Down::Whole(|_| {})),
        of_length("an answer whose stream does not end with its length", Point::End, How::Silence)
            .want(Up::Whole(|_| {}), Down::Whole(|_| {}))
            .not_to(Version::H1, "there the length is the end")
            .not_from(&[Version::H2, Version::H3], "there only the end of the stream is the end")
            .not_held("it would wait for the end"),
        Row::new("an interim answer and no other").interim(100, &[], 1).stops(Point::Start, How::Close),
    ];
    [requests, answers].into_iter().flatten().collect()
}
