//! From a request as hyper has read it to a stream as filters see it.

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri, header, request::Parts};

use super::{Site, grpc, reply::Fault};
use crate::{
    chain::{RequestHead, Stream, head::is_host, stream::ConnectionInfo},
    http::{
        fields::{add_via, forwarded, remove_hop_by_hop},
        path::normalise,
    },
};

/// The one host that a request is for (RFC 9112 section 3.2): of its target if that is absolute, else of `Host`.
fn authority(uri: &Uri, fields: &mut HeaderMap) -> Result<Bytes, Fault> {
    let mut hosts = fields.get_all(header::HOST).iter();
    let (host, more) = (hosts.next().cloned(), hosts.next().is_some());
    fields.remove(header::HOST);
    if more {
        return Err(Fault::BadHost);
    }
    let host = match (uri.scheme(), uri.authority()) {
        (Some(_), Some(authority)) => Bytes::copy_from_slice(authority.as_str().as_bytes()),
        // Only CONNECT has a target that is nothing but a host (RFC 9112 section 3.2.3).
        (None, Some(_)) => return Err(Fault::BadHost),
        (_, None) => Bytes::copy_from_slice(host.ok_or(Fault::BadHost)?.as_bytes()),
    };
    match str::from_utf8(&host) {
        Ok(text) if is_host(text) => Ok(host),
        _ => Err(Fault::BadHost),
    }
}

/// Path and query, with the path in its one spelling.
fn path(site: &Site, method: &Method, uri: &Uri) -> Result<Bytes, Fault> {
    let path = uri.path();
    if path == "*" && method == Method::OPTIONS {
        return Ok(Bytes::from_static(b"*"));
    }
    // An absolute target may have an empty path, which is `/`.
    let path = if path.is_empty() { "/" } else { path };
    let normal = normalise(path.as_bytes(), &site.path).map_err(Fault::BadPath)?;
    Ok(match uri.query() {
        Some(query) => [&*normal, b"?", query.as_bytes()].concat().into(),
        None => Bytes::copy_from_slice(&normal),
    })
}

/// Makes a stream of a request. With a fault, the request must be refused; the stream is there all the same, to be logged.
pub(super) fn begin(site: &Rc<Site>, connection: Rc<ConnectionInfo>, parts: Parts) -> (Rc<Stream>, Option<Fault>) {
    let Parts { method, uri, headers: mut fields, version, .. } = parts;
    let authority = match authority(&uri, &mut fields) {
        // HTTP/1.0 knows no `Host`.
        Err(Fault::BadHost) if version == http::Version::HTTP_10 && !fields.contains_key(header::HOST) => {
            Ok(Bytes::new())
        }
        authority => authority,
    };
    let path = path(site, &method, &uri);
    let fault = match (method == Method::CONNECT, &authority, &path) {
        (true, ..) => Some(Fault::Connect),
        (_, Err(fault), _) | (_, _, Err(fault)) => Some(*fault),
        _ => None,
    };
    let authority = authority.unwrap_or_default();
    let original_path = uri.path_and_query().map_or(uri.path(), |p| p.as_str());
    let original_path = Bytes::copy_from_slice(original_path.as_bytes());
    let path = path.unwrap_or_else(|_| original_path.clone());
    remove_hop_by_hop(&mut fields);
    // It is answered here, by hyper, when the body is first wanted.
    fields.remove(header::EXPECT);
    add_via(&mut fields, site.via.as_ref());
    let scheme = "http";
    let origin = forwarded(&mut fields, connection.peer, &connection.peer_value, &authority, scheme, site.trusted_hops);
    let head = RequestHead { method, path, authority, scheme, fields };
    let stream =
        Stream::new(connection, origin.client, site.chain.clone(), head, original_path, version, origin.request_id);
    grpc::begin(&stream);
    (stream, fault)
}
