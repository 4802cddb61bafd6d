//! The file of cases as written by users. `docs/tools.md` describes the fields.

use std::{collections::BTreeMap, fmt, marker::PhantomData, net::IpAddr};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer, value::SeqAccessDeserializer},
};
use serde_json::Value as Json;

use super::want::Want;
use crate::config::units::Duration;

/// A whole file. The cases are parsed one by one, so that each has its own errors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The `filter` section of a configuration; `name` and `wasm` have defaults.
    #[serde(default)]
    pub filter: serde_json::Map<String, Json>,
    /// The `listener` section of a configuration, without `name`, `address` and `chain`.
    #[serde(default)]
    pub listener: serde_json::Map<String, Json>,
    /// Clusters for all cases.
    #[serde(default)]
    pub clusters: BTreeMap<String, List<Answer>>,
    /// The cases.
    pub cases: Vec<Json>,
}

/// A configuration of the filter, and the steps to run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The case's name.
    pub name: String,
    /// The filter's configuration, instead of the file's.
    pub config: Option<Json>,
    /// Additional clusters, or other answers of the file's clusters.
    #[serde(default)]
    pub clusters: BTreeMap<String, List<Answer>>,
    /// The expected error when the filter rejects its configuration.
    #[serde(default, deserialize_with = "given")]
    pub refused: Option<Want>,
    /// The steps, in sequence.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// A request, or a period of time.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// A client's request.
    pub request: Option<Request>,
    /// Time that passes without a request.
    pub wait: Option<Duration>,
    /// The expected outcome.
    #[serde(default)]
    pub expect: Expect,
}

/// A client's request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub message: Message,
    pub host: String,
    pub client: IpAddr,
}

/// Headers and body of a request or response to send.
#[derive(Debug, Clone, Default)]
pub struct Message {
    pub headers: BTreeMap<String, List<Text>>,
    pub body: Vec<u8>,
    pub trailers: BTreeMap<String, List<Text>>,
}

impl Message {
    fn new(
        headers: BTreeMap<String, List<Text>>,
        body: Option<String>,
        json: Option<Json>,
        trailers: BTreeMap<String, List<Text>>,
    ) -> Result<Message, &'static str> {
        let body = match (body, json) {
            (Some(_), Some(_)) => return Err("`body` and `json` are mutually exclusive"),
            (Some(text), None) => text.into_bytes(),
            (None, Some(json)) => json.to_string().into_bytes(),
            (None, None) => Vec::new(),
        };
        if body.is_empty() && !trailers.is_empty() {
            return Err("`trailers` require a body");
        }
        Ok(Message { headers, body, trailers })
    }
}

/// The response of a cluster to a request.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub message: Message,
    pub delay: std::time::Duration,
    pub fail: Option<Fail>,
}

impl Default for Answer {
    fn default() -> Self {
        Answer { status: 200, message: Message::default(), delay: std::time::Duration::ZERO, fail: None }
    }
}

/// The way in which a cluster fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fail {
    /// The connection cannot be established.
    Connect,
    /// The connection is aborted before a response.
    Reset,
    /// There is never a response.
    Hang,
}

/// The expected outcome of a step. Omitted fields are not checked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// The client's response.
    pub response: Option<Gets<Response>>,
    /// The request at the upstream.
    pub upstream: Option<Gets<Sent>>,
    /// The filter's own HTTP callouts.
    pub calls: Option<Vec<Sent>>,
    /// The name of the route.
    #[serde(deserialize_with = "given")]
    pub route: Option<Want>,
    /// The cluster of the route.
    #[serde(deserialize_with = "given")]
    pub cluster: Option<Want>,
    /// The response flags.
    pub flags: Option<Vec<String>>,
    /// The reason why the proxy or a filter responded itself.
    #[serde(deserialize_with = "given")]
    pub details: Option<Want>,
    /// Fields of the access log.
    pub log_fields: BTreeMap<String, Want>,
    /// The time from the request to the end of the response.
    pub takes: Option<Duration>,
    /// Log lines: each text is a part of one.
    pub logs: Vec<Want>,
    /// Metrics after the step.
    pub metrics: BTreeMap<String, f64>,
}

/// An explicit `null` means that the value must be absent; an omitted field is not checked.
fn given<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Want>, D::Error> {
    Want::deserialize(d).map(Some)
}

/// Something, or `none`.
#[derive(Debug)]
pub enum Gets<T> {
    None,
    Some(Box<T>),
}

/// An expected response.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Response {
    pub status: Option<u16>,
    pub headers: BTreeMap<String, Want>,
    #[serde(deserialize_with = "given")]
    pub body: Option<Want>,
    pub json: Option<Json>,
    pub trailers: BTreeMap<String, Want>,
}

/// An expected request to a cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sent {
    #[serde(deserialize_with = "given")]
    pub cluster: Option<Want>,
    #[serde(deserialize_with = "given")]
    pub method: Option<Want>,
    #[serde(deserialize_with = "given")]
    pub path: Option<Want>,
    #[serde(deserialize_with = "given")]
    pub host: Option<Want>,
    pub headers: BTreeMap<String, Want>,
    #[serde(deserialize_with = "given")]
    pub body: Option<Want>,
    pub json: Option<Json>,
    pub trailers: BTreeMap<String, Want>,
    /// The number of attempts.
    pub attempts: Option<usize>,
}

/// A single value or a list.
#[derive(Debug, Clone)]
pub struct List<T>(pub Vec<T>);

/// A text; numbers and booleans are accepted, too.
#[derive(Debug, Clone)]
pub struct Text(pub String);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<List<T>, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(List)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<List<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(|one| List(vec![one]))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<List<T>, E> {
                T::deserialize(de::value::StrDeserializer::new(text)).map(|one| List(vec![one]))
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<List<T>, E> {
                self.visit_str(&n.to_string())
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<List<T>, E> {
                self.visit_str(&n.to_string())
            }
            fn visit_f64<E: de::Error>(self, n: f64) -> Result<List<T>, E> {
                self.visit_str(&n.to_string())
            }
            fn visit_bool<E: de::Error>(self, b: bool) -> Result<List<T>, E> {
                self.visit_str(&b.to_string())
            }
        }
        d.deserialize_any(Either(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match Json::deserialize(d)? {
            Json::String(text) => Ok(Text(text)),
            Json::Number(n) => Ok(Text(n.to_string())),
            Json::Bool(b) => Ok(Text(b.to_string())),
            _ => Err(de::Error::custom("expected text")),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Gets<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = Gets<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`none` or a map")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Gets<T>, E> {
                if text == "none" { Ok(Gets::None) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Gets<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(|some| Gets::Some(Box::new(some)))
            }
        }
        d.deserialize_any(Either(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Request {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            #[serde(default = "get")]
            method: String,
            path: String,
            #[serde(default)]
            headers: BTreeMap<String, List<Text>>,
            body: Option<String>,
            json: Option<Json>,
            #[serde(default)]
            trailers: BTreeMap<String, List<Text>>,
            #[serde(default = "host")]
            host: String,
            #[serde(default = "client")]
            client: IpAddr,
        }
        fn get() -> String {
            "GET".to_owned()
        }
        fn host() -> String {
            "example.com".to_owned()
        }
        fn client() -> IpAddr {
            IpAddr::from([192, 0, 2, 1])
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Request;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`METHOD /path` or a map")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Request, E> {
                let (method, path) =
                    text.split_once(' ').ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))?;
                let (method, path) = (method.to_owned(), path.trim_start().to_owned());
                Ok(Request { method, path, message: Message::default(), host: host(), client: client() })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Request, A::Error> {
                let f = Fields::deserialize(MapAccessDeserializer::new(map))?;
                let message = Message::new(f.headers, f.body, f.json, f.trailers).map_err(de::Error::custom)?;
                Ok(Request { method: f.method, path: f.path, message, host: f.host, client: f.client })
            }
        }
        d.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            status: Option<u16>,
            #[serde(default)]
            headers: BTreeMap<String, List<Text>>,
            body: Option<String>,
            json: Option<Json>,
            #[serde(default)]
            trailers: BTreeMap<String, List<Text>>,
            delay: Option<Duration>,
            fail: Option<Fail>,
        }
        let f = Fields::deserialize(d)?;
        let message = Message::new(f.headers, f.body, f.json, f.trailers).map_err(de::Error::custom)?;
        let status = f.status.unwrap_or(200);
        if !(200..=599).contains(&status) {
            return Err(de::Error::custom("a status must be 200 to 599"));
        }
        Ok(Answer { status, message, delay: f.delay.map_or(std::time::Duration::ZERO, |d| d.0), fail: f.fail })
    }
}
