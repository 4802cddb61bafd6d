//! Documents from filters: routes and buckets as JSON, and a bucket's result as bytes.

use serde::{Serialize, de::DeserializeOwned};
use tollgate_abi::{
    doc::{Bucket, Route},
    fast::Take,
};

use crate::{Outcome, Target};

/// What was parsed can be written, and parses to the same.
fn check(input: &[u8]) -> Outcome {
    if let Some((bytes, _)) = input.split_first_chunk() {
        assert_eq!(Take::from_bytes(*bytes).to_bytes(), *bytes);
    }
    Outcome::of((read_again::<Route>(input), read_again::<Bucket>(input)))
}

/// Returns whether it was parsed, or the kind of error and its approximate position.
fn read_again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(input: &[u8]) -> (bool, String, usize) {
    match serde_json::from_slice::<T>(input) {
        Ok(document) => {
            let text = serde_json::to_vec(&document).expect("a document can be written");
            assert_eq!(serde_json::from_slice::<T>(&text).expect("a document can be read"), document);
            (true, String::new(), text.len() / 64)
        }
        Err(e) => (false, format!("{:?}", e.classify()), e.column() / 64),
    }
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"\"name\":\"a\",",
        b"\"clusters\":[{\"cluster\":\"a\",\"weight\":1}],",
        b"\"retry\":{\"on\":[\"5xx\"],\"attempts\":1,\"backoff_ms\":1}",
        b"\"timeout_ms\":",
        b"null",
        b"18446744073709551615",
        b"-1",
        b"1e3",
        b"\\ud800",
        b"[",
        b"{",
        b"}",
    ],
    max_len: 4096,
    check,
};
