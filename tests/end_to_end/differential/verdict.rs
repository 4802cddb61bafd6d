//! Compares the outcome of a message with the expected one.

use super::{
    model::{Down, Flags, Reply, Request, Row, Up, Want},
    upstream::Arrival,
};
use crate::harness::{
    exchange::{End, Outcome, Response},
    frames::Fields,
};

/// An exchange as recorded in the access log.
#[derive(Debug, Clone)]
pub struct Logged {
    pub status: String,
    pub flags: String,
    pub details: String,
}

/// Fields that framing and the proxy itself add or remove; they differ by version.
const OF_THE_HOP: &[&str] = &[
    "alt-svc",
    "connection",
    "content-length",
    "date",
    "expect",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
    "x-row",
];

fn end_to_end(fields: &Fields) -> Fields {
    let mut kept: Fields = fields
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .filter(|(name, _)| !name.starts_with(':') && !OF_THE_HOP.contains(&name.as_str()))
        .collect();
    // Values of one name keep their order; different names need not.
    kept.sort_by(|(one, _), (other, _)| one.cmp(other));
    kept
}

/// Returns the first deviation, if any.
pub fn judge(row: &Row, want: &Want, got: &Outcome, arrivals: &[Arrival], log: Option<&Logged>) -> Result<(), String> {
    let upstream = judge_upstream(&row.request, want.up, arrivals);
    let client = judge_client(row, want.down, got, log);
    let flags = match (want.flags, log) {
        (Flags::Any, _) => Ok(()),
        (Flags::Gone, None) => Ok(()),
        (_, None) if matches!(want.up, Up::Nothing) => Ok(()),
        (Flags::None, Some(log)) if log.flags == "-" => Ok(()),
        (Flags::Some, Some(log)) if log.flags != "-" => Ok(()),
        (Flags::Gone, Some(log)) if log.flags == "DC" => Ok(()),
        (_, log) => Err(format!("the log has {log:?}")),
    };
    let status = match (got, log) {
        (Outcome::Whole(response), Some(log)) if log.status != response.status.to_string() => {
            Err(format!("the client got {}, the log has {log:?}", response.status))
        }
        _ => Ok(()),
    };
    let all: Vec<String> = [upstream, client, flags, status].into_iter().filter_map(Result::err).collect();
    if all.is_empty() { Ok(()) } else { Err(all.join("; ")) }
}

fn judge_upstream(sent: &Request, want: Up, arrivals: &[Arrival]) -> Result<(), String> {
    let told = || match arrivals {
        [] => "nothing arrived".to_owned(),
        _ => format!("this arrived: {}", short(&format!("{arrivals:?}"))),
    };
    let last = arrivals.last();
    let right = match want {
        Up::Anything => true,
        Up::Nothing => last.is_none(),
        Up::NotWhole => arrivals.iter().all(|arrival| arrival.whole == Some(false)),
        Up::Whole(change) => {
            let mut wanted = sent.clone();
            change(&mut wanted);
            last.is_some_and(|arrival| {
                arrival.whole == Some(true)
                    && !arrival.waits
                    && arrival.method == wanted.method
                    && arrival.target == wanted.target
                    && arrival.host == wanted.host
                    && end_to_end(&arrival.fields) == end_to_end(&wanted.fields)
                    && arrival.body == wanted.body.unwrap_or_default().concat()
                    && end_to_end(&arrival.trailers) == end_to_end(&wanted.trailers)
            })
        }
    };
    if right { Ok(()) } else { Err(told()) }
}

fn judge_client(row: &Row, want: Down, got: &Outcome, log: Option<&Logged>) -> Result<(), String> {
    let right = match (want, got) {
        (Down::Left, Outcome::Left) => true,
        (Down::Whole(change), Outcome::Whole(response)) => {
            let mut wanted = row.reply.clone();
            change(&mut wanted);
            is_the_answer(&row.request, &wanted, response)
        }
        (Down::Refused, Outcome::Whole(response)) => response.status == 400,
        // PROTOCOL_ERROR and H3_MESSAGE_ERROR: the request is malformed, the connection is not affected.
        (Down::Refused, Outcome::Broken { status: None, end }) => matches!(end, End::Closed | End::Reset(1 | 0x10e)),
        (Down::Own(status, details), Outcome::Whole(response)) => {
            response.status == status && log.is_none_or(|log| log.details == details)
        }
        (Down::Failed, Outcome::Whole(response)) => response.status >= 500,
        (Down::Failed, Outcome::Broken { end, .. }) => end.is_alone(),
        _ => false,
    };
    if right { Ok(()) } else { Err(format!("the client got {}, logged {log:?}", short(&format!("{got:?}")))) }
}

fn is_the_answer(request: &Request, wanted: &Reply, got: &Response) -> bool {
    let bodiless = request.method == "HEAD" || matches!(wanted.status, 204 | 304);
    let body = if bodiless { Vec::new() } else { wanted.body.iter().flatten().flatten().copied().collect() };
    let length = |fields: &Fields| fields.iter().find(|(name, _)| name == "content-length").cloned();
    // A client that sends the body without waiting may still get a 100.
    let told = got.interim.iter().filter(|(status, _)| *status != 100 || request.waits);
    let told: Vec<_> = told.map(|(status, fields)| (*status, end_to_end(fields))).collect();
    let waited = request.waits.then(|| (100, Fields::new()));
    let interim = wanted.interim.iter().map(|(status, fields)| (*status, end_to_end(fields)));
    let interim: Vec<_> = waited.into_iter().chain(interim).collect();
    got.status == wanted.status
        && told == interim
        && got.body == body
        && end_to_end(&got.fields) == end_to_end(&wanted.fields)
        && end_to_end(&got.trailers) == end_to_end(&wanted.trailers)
        && (!bodiless || length(&got.fields) == length(&wanted.fields))
        && got.interim.iter().all(|(_, fields)| length(fields).is_none())
}

fn short(text: &str) -> String {
    let mut chars = text.chars();
    let kept: String = chars.by_ref().take(700).collect();
    if chars.next().is_some() { kept + "…" } else { kept }
}
