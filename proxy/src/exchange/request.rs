//! Creation of a stream, as filters see it, from a received request.

use std::{borrow::Cow, rc::Rc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Uri, Version,
    header::{self, Entry},
    request::Parts,
};
use tollgate_abi::spelling;

use super::{ListenerContext, deadline_header, grpc, reply::LocalFailure, upgrade::Upgrade};
use crate::{
    chain::{
        RequestHead, Stream,
        head::is_host,
        stream::{ConnectionInfo, IncomingRequest, StreamProgress},
    },
    config::model::HeaderUnderscores,
    http::fields::{ConnectionOptions, Present, add_via, forwarded, remove_underscores, take_hop_by_hop},
    tls::xfcc,
};

/// Returns the one host that a request is for (RFC 9112 section 3.2), in its normal form: that of an absolute target,
/// or else of `Host`.
pub(crate) fn authority(
    method: &Method,
    uri: &Uri,
    version: Version,
    fields: &mut HeaderMap,
) -> Result<Bytes, LocalFailure> {
    let host = match fields.entry(header::HOST) {
        Entry::Vacant(_) => None,
        Entry::Occupied(host) if host.iter().nth(1).is_none() => Some(host.remove()),
        Entry::Occupied(hosts) => {
            hosts.remove_entry_mult();
            return Err(LocalFailure::BadHost);
        }
    };
    let host = match (uri.scheme(), uri.authority()) {
        // `Host` is required even with an absolute target (RFC 9112 section 3.2).
        (Some(_), Some(_)) if version == Version::HTTP_11 && host.is_none() => return Err(LocalFailure::BadHost),
        (Some(_), Some(authority)) => {
            // Later versions do not have to cope with proxies that change one of the two (RFC 9113 section 8.3.1).
            if version >= Version::HTTP_2 && host.is_some_and(|host| host != authority.as_str()) {
                return Err(LocalFailure::BadHost);
            }
            Bytes::copy_from_slice(authority.as_str().as_bytes())
        }
        // A tunnel needs a port (RFC 9110 section 9.3.6).
        (None, Some(authority)) if method == Method::CONNECT && authority.port_u16().is_some_and(|port| port > 0) => {
            Bytes::copy_from_slice(authority.as_str().as_bytes())
        }
        // Only CONNECT may have an authority-form target (RFC 9112 section 3.2.3).
        (None, Some(_)) => return Err(LocalFailure::BadHost),
        (_, None) if method == Method::CONNECT => return Err(LocalFailure::BadHost),
        (_, None) => Bytes::copy_from_slice(host.ok_or(LocalFailure::BadHost)?.as_bytes()),
    };
    if !str::from_utf8(&host).is_ok_and(is_host) {
        return Err(LocalFailure::BadHost);
    }
    let respelled = match spelling::host(&host).ok_or(LocalFailure::BadHost)? {
        Cow::Borrowed(_) => None,
        Cow::Owned(host) => Some(host.into()),
    };
    Ok(respelled.unwrap_or(host))
}

/// A mark on an HTTP/2 or HTTP/3 request whose head exceeds the listener's limit but was short enough to be read.
/// Oversized HTTP/1.1 heads are not read at all.
#[derive(Debug, Clone, Copy)]
pub struct HeadTooLarge;

impl HeadTooLarge {
    /// Marks a request if its head, with `fields` bytes of fields, exceeds the limit.
    pub fn mark(parts: &mut Parts, fields: usize, listener: &ListenerContext) {
        let uri = &parts.uri;
        let target = uri.authority().map_or(0, |host| host.as_str().len()) + uri.path().len();
        // Add the size of the four pseudo-header fields (RFC 9113 section 6.5.2).
        let target = target + uri.query().map_or(0, str::len) + 4 * 32 + ":method:scheme:authority:path".len();
        if (fields + target) as u64 > listener.config.limits.header_bytes.0 {
            parts.extensions.insert(HeadTooLarge);
        }
    }
}

/// Returns path and query, with the path in its normal form.
fn path(listener: &ListenerContext, method: &Method, uri: &Uri) -> Result<Bytes, LocalFailure> {
    if method == Method::CONNECT {
        return Ok(Bytes::from_static(b"/"));
    }
    let path = uri.path();
    if path == "*" && method == Method::OPTIONS {
        return Ok(Bytes::from_static(b"*"));
    }
    // An absolute target may have an empty path, which means `/`.
    let path = if path.is_empty() { "/" } else { path };
    let normal = spelling::path(path.as_bytes(), &listener.config.path).map_err(LocalFailure::BadPath)?;
    Ok(match uri.query() {
        Some(query) => [&*normal, b"?", query.as_bytes()].concat().into(),
        None => Bytes::copy_from_slice(&normal),
    })
}

/// A request prepared for the filters.
pub(super) struct PreparedRequest {
    /// The stream as filters see it.
    pub(super) stream: Rc<Stream>,
    /// The reason to reject it. The stream exists nevertheless, for logging.
    pub(super) failure: Option<LocalFailure>,
    /// The upgrade that it requests.
    pub(super) upgrade: Option<Upgrade>,
    /// The fields listed in `Connection`, which only filters see.
    pub(super) listed: ConnectionOptions,
    /// Whether the client waits for a 100 (Continue) before it sends the body.
    pub(super) expects: bool,
}

/// Creates a stream from a request.
pub(super) fn begin(
    listener: &Rc<ListenerContext>,
    connection: Rc<ConnectionInfo>,
    progress: Rc<StreamProgress>,
    mut parts: Parts,
    bodiless: bool,
) -> PreparedRequest {
    let present = Present::of(&parts.headers);
    let upgrade = Upgrade::wanted(listener, &mut parts, present, bodiless);
    let too_large = parts.extensions.get::<HeadTooLarge>().is_some();
    let Parts { method, uri, headers: mut fields, version, .. } = parts;
    // HTTP/1.0 has no `Host`.
    let authority = match version == Version::HTTP_10 && uri.authority().is_none() && !fields.contains_key(header::HOST)
    {
        true => Ok(Bytes::new()),
        false => authority(&method, &uri, version, &mut fields),
    };
    let path = path(listener, &method, &uri);
    if version >= Version::HTTP_2 {
        // Before fields are counted, because clients do not count cookie crumbs.
        join_cookies(&mut fields);
    }
    let too_many = fields.len() > listener.config.limits.headers as usize;
    let underscores = listener.config.header_underscores;
    let failure = match (&upgrade, &authority, &path) {
        _ if too_large => Some(LocalFailure::HeadTooLarge),
        _ if too_many => Some(LocalFailure::TooManyFields),
        _ if !spelling::is_method(method.as_str().as_bytes()) => Some(LocalFailure::BadMethod),
        _ if present.underscores && underscores == HeaderUnderscores::Reject => Some(LocalFailure::Underscore),
        (Err(failure), ..) | (_, Err(failure), _) | (_, _, Err(failure)) => Some(*failure),
        _ => None,
    };
    let upgrade = upgrade.ok().flatten();
    let authority = authority.unwrap_or_default();
    let original_path = uri.path_and_query().map_or(uri.path(), |p| p.as_str());
    let original_path = Bytes::copy_from_slice(original_path.as_bytes());
    let path = path.unwrap_or_else(|_| original_path.clone());
    if present.underscores && underscores == HeaderUnderscores::Drop {
        remove_underscores(&mut fields);
    }
    let listed = take_hop_by_hop(&mut fields, present);
    if let Some(upgrade) = &upgrade {
        upgrade.restore(&mut fields);
    }
    if present.client_cert || connection.tls.is_some() {
        xfcc::apply(&mut fields, listener.config.forwarded_client_cert, connection.tls.as_deref());
    }
    if present.expect {
        // The proxy answers it itself when the body is first read.
        fields.remove(header::EXPECT);
    }
    add_via(&mut fields, listener.via.of(version));
    let (scheme, hops) = (connection.scheme(), listener.config.trusted_hops);
    let origin = forwarded(&mut fields, connection.peer, &connection.peer_value, &authority, scheme, hops);
    let head = RequestHead { method, path, authority, scheme: origin.scheme, fields };
    let arrival =
        IncomingRequest { client: origin.client, head, original_path, version, request_id: origin.request_id };
    let stream = Stream::new(connection, progress, listener.chain.pin(|| fastrand::u64(..)), arrival);
    grpc::begin(&stream);
    deadline_header::begin(listener, &stream);
    PreparedRequest { stream, failure, upgrade, listed, expects: present.expect }
}

/// Decrements `Max-Forwards`, which limits how far `OPTIONS` and `TRACE` travel (RFC 9110 section 7.6.2). A request at
/// its last hop is answered here.
pub(super) fn count_hop(head: &mut RequestHead) -> Result<(), LocalFailure> {
    if !matches!(head.method, Method::OPTIONS | Method::TRACE) {
        return Ok(());
    }
    let Some(left) = head.fields.get(header::MAX_FORWARDS).and_then(|left| left.to_str().ok()?.parse::<u64>().ok())
    else {
        return Ok(());
    };
    let left = left.checked_sub(1).ok_or(match head.method {
        Method::OPTIONS => LocalFailure::LastHop,
        _ => LocalFailure::LastHopTrace,
    })?;
    head.fields.insert(header::MAX_FORWARDS, left.into());
    Ok(())
}

/// Joins `Cookie` fields that HTTP/2 may have split, which servers behind a proxy do not expect (RFC 9113 section
/// 8.2.3).
fn join_cookies(fields: &mut HeaderMap) {
    let mut cookies = fields.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut all = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        all.extend_from_slice(b"; ");
        all.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(all) = HeaderValue::from_maybe_shared(Bytes::from(all)) {
        fields.insert(header::COOKIE, all);
    }
}
