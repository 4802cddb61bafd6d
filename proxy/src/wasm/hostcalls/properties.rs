//! Properties: a stream's attributes, with Envoy's names and encodings (text verbatim, numbers as 8 little-endian
//! bytes, booleans as one byte, times as nanoseconds).

use std::{fmt, time::UNIX_EPOCH};

use http::{
    HeaderMap, HeaderName,
    header::{COOKIE, REFERER, USER_AGENT},
};
use tollgate_abi::{
    fast::limit,
    pairs,
    path::Path,
    proxy_wasm::{MODULE, Status},
};
use wasmtime::{Caller, Linker};

use super::guest::{answer, slice, split, status};
use crate::{
    chain::{
        Headers, Stream,
        head::Name,
        network::NetworkStream,
        stored::{StoreError, StreamMetadata},
        stream::StreamState,
    },
    tls::ConnectionTls,
    wasm::{
        host::{Host, filter_log::Escaped, plugin_info::PluginInfo},
        scope::{call_scope, stream_ref::StreamRef},
    },
};

/// Properties set by filters are stored as filter state under keys with this prefix, as in Envoy.
const SET: &[u8] = b"wasm.";

/// The first path segments of the host's own properties, which filters cannot set.
const OWNED: &[&str] = &[
    "cluster_metadata",
    "cluster_name",
    "connection",
    "connection_id",
    "destination",
    "filter_state",
    "listener_direction",
    "listener_metadata",
    "metadata",
    "node",
    "plugin_name",
    "plugin_root_id",
    "plugin_vm_id",
    "request",
    "response",
    "route_metadata",
    "route_name",
    "source",
    "upstream",
    "upstream_filter_state",
    "upstream_host_metadata",
    "xds",
];

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "proxy_get_property",
        |mut caller: Caller<'_, Host>, path: i32, len: i32, out: i32, size_out: i32| {
            answer(&mut caller, out, size_out, |memory, host, data| {
                get(host, slice(memory, path, len)?, data).ok_or(Status::NotFound)
            })
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_set_property",
        |mut caller: Caller<'_, Host>, path: i32, len: i32, value: i32, value_len: i32| {
            status(set(&mut caller, (path, len), (value, value_len)))
        },
    )?;
    Ok(())
}

fn set(caller: &mut Caller<'_, Host>, path: (i32, i32), value: (i32, i32)) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    let (path, value) = (slice(memory, path.0, path.1)?, slice(memory, value.0, value.1)?);
    let path = path.strip_suffix(b"\0").unwrap_or(path);
    let first = path.split(|b| *b == 0).next().unwrap_or_default();
    if OWNED.iter().any(|owned| owned.as_bytes() == first) {
        host.identity.complain(format_args!("property \"{}\" belongs to the host and was not set", Dotted(path)));
        // The released SDKs panic on any status but `Ok`.
        return Ok(());
    }
    let set = match path.len() {
        0..=limit::STATE_BYTES => {
            let key = [SET, path].concat();
            call_scope::with_notes(|notes| notes.stored.set_state(&key, value, &host.budget))
        }
        _ => Some(Err(StoreError::Bad)),
    };
    if let Some(Err(why)) = set {
        host.identity.complain(format_args!("property not set: {why}"));
    }
    Ok(())
}

/// A path formatted for a log line.
struct Dotted<'a>(&'a [u8]);

impl fmt::Display for Dotted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, segment) in self.0.split(|b| *b == 0).take(8).enumerate() {
            write!(f, "{}{}", if nth == 0 { "" } else { "." }, Escaped(segment))?;
        }
        Ok(())
    }
}

/// Appends the value of a property: the host's own, or one set by a filter.
fn get(host: &Host, bytes: &[u8], data: &mut Vec<u8>) -> Option<()> {
    let path = Path::decode(bytes);
    let segments = path.as_ref().map_or(&[][..], Path::segments);
    if let Some(()) = of_plugin(&host.identity, segments, data) {
        if segments != ["plugin_root_id"] {
            host.note_named_effect();
        }
        return Some(());
    }
    call_scope::with_subject(|subject, _| {
        let own = match subject {
            StreamRef::Http(stream) => of_stream(stream, &stream.state.borrow(), segments, data),
            StreamRef::Tcp(stream) => of_network(stream, segments, data),
        };
        let own = own.or_else(|| of_connection(subject, segments, data));
        own.or_else(|| subject.with_notes(|notes| of_filters(notes.stored, bytes, segments, data)))
    })
    .flatten()
}

/// Values that filters have stored.
fn of_filters(stored: &StreamMetadata, path: &[u8], segments: &[&str], data: &mut Vec<u8>) -> Option<()> {
    let value = match segments {
        ["metadata", "filter_metadata", space] => {
            let all = stored.space(space.as_bytes());
            all.clone().next()?;
            pairs::encode(all, data);
            return Some(());
        }
        ["metadata", "filter_metadata", space, key] => stored.metadata(space.as_bytes(), key.as_bytes())?.1,
        ["filter_state", key] => stored.state(key.as_bytes())?,
        _ => {
            let path = path.strip_suffix(b"\0").unwrap_or(path);
            stored.find_state(|key| key.strip_prefix(SET) == Some(path))?
        }
    };
    data.extend_from_slice(value);
    Some(())
}

fn of_plugin(identity: &PluginInfo, segments: &[&str], data: &mut Vec<u8>) -> Option<()> {
    let text = match segments {
        ["plugin_name"] => &identity.name,
        ["plugin_root_id"] => &identity.root_id,
        ["plugin_vm_id"] => &identity.vm_id,
        _ => return None,
    };
    data.extend_from_slice(text.as_bytes());
    Some(())
}

/// Properties of streams of both kinds.
fn of_connection(subject: &StreamRef, segments: &[&str], data: &mut Vec<u8>) -> Option<()> {
    let (connection, client) = (subject.connection(), subject.client());
    let mut text = |bytes: &[u8]| data.extend_from_slice(bytes);
    match segments {
        ["source", "address"] => text(client.to_string().as_bytes()),
        ["source", "port"] => text(&i64::from(client.port()).to_le_bytes()),
        ["destination", "address"] => text(connection.local.to_string().as_bytes()),
        ["destination", "port"] => text(&i64::from(connection.local.port()).to_le_bytes()),
        ["connection", "id"] | ["connection_id"] => text(&connection.id.to_le_bytes()),
        ["connection", name] => return of_tls(connection.tls.as_deref(), name, data),
        ["xds", "filter_chain_name"] => text(connection.listener.as_bytes()),
        ["listener_direction"] | ["xds", "listener_direction"] => text(&0i64.to_le_bytes()),
        _ => return None,
    }
    Some(())
}

fn of_network(stream: &NetworkStream, segments: &[&str], data: &mut Vec<u8>) -> Option<()> {
    let state = stream.state.borrow();
    let mut text = |bytes: &[u8]| data.extend_from_slice(bytes);
    match segments {
        // Also of TLS that is passed through.
        ["connection", "requested_server_name"] => text(stream.server_name.as_deref().unwrap_or_default().as_bytes()),
        ["connection", "termination_details"] => text(state.details.as_bytes()),
        ["response", "flags"] => text(&i64::from(state.flags).to_le_bytes()),
        ["upstream", "address"] => text(state.endpoint.as_ref()?.to_string().as_bytes()),
        ["upstream", "port"] => text(&i64::from(state.endpoint.as_ref()?.inet()?.port()).to_le_bytes()),
        ["upstream", "local_address"] => text(state.upstream_local?.to_string().as_bytes()),
        ["upstream", "request_attempt_count"] => text(&i64::from(state.attempts).to_le_bytes()),
        ["cluster_name"] | ["xds", "cluster_name"] => text(state.cluster.as_ref()?.as_bytes()),
        ["route_name"] | ["xds", "route_name"] => text(state.route.as_ref()?.route.name.as_bytes()),
        _ => return None,
    }
    Some(())
}

/// All values of a field, joined as in Envoy. A filter that decides by a header must see all of it that later readers
/// see.
fn field(fields: &HeaderMap, name: &HeaderName, data: &mut Vec<u8>) -> Option<()> {
    let mut values = fields.get_all(name).iter();
    data.extend_from_slice(values.next()?.as_bytes());
    let between: &[u8] = if *name == COOKIE { b"; " } else { b"," };
    for value in values {
        data.extend_from_slice(between);
        data.extend_from_slice(value.as_bytes());
    }
    Some(())
}

/// The same for a head, which also has pseudo-headers.
fn header(head: &dyn Headers, fields: &HeaderMap, name: &str, data: &mut Vec<u8>) -> Option<()> {
    match Name::parse(name.as_bytes())? {
        Name::Field(name) => field(fields, &name, data),
        pseudo => {
            data.extend_from_slice(&head.first(&pseudo)?);
            Some(())
        }
    }
}

/// Total bytes of all names and values.
fn size(headers: &dyn Headers) -> u64 {
    let mut size = 0;
    headers.each(&mut |name, value| size += (name.len() + value.len()) as u64);
    size
}

fn map(headers: &dyn Headers, data: &mut Vec<u8>) {
    let mut all = Vec::with_capacity(headers.count());
    headers.each(&mut |name, value| all.push((name, value)));
    pairs::encode(all.iter().copied(), data);
}

/// Properties of TLS. As in Envoy, the first of several names counts, an absent one has no value, and the requested
/// server name is empty without SNI.
fn of_tls(tls: Option<&ConnectionTls>, name: &str, data: &mut Vec<u8>) -> Option<()> {
    let server_name = tls.and_then(|tls| tls.server_name.as_deref());
    let (peer, local) = (tls.and_then(|tls| tls.peer.as_ref()), tls.and_then(|tls| tls.local.as_deref()));
    let value = match name {
        "mtls" => {
            data.push(tls.is_some_and(ConnectionTls::is_mutual).into());
            return Some(());
        }
        "requested_server_name" => server_name.unwrap_or_default(),
        "tls_version" => tls?.version,
        // On a TLS connection, subjects always exist, and are empty without a certificate.
        "subject_local_certificate" => tls.map(|_| local.map_or("", |local| &local.subject))?,
        "subject_peer_certificate" => tls.map(|_| peer.map_or("", |peer| &peer.subject))?,
        "dns_san_local_certificate" => local?.dns_sans.first()?,
        "dns_san_peer_certificate" => peer?.dns_sans.first()?,
        "uri_san_local_certificate" => local?.uri_sans.first()?,
        "uri_san_peer_certificate" => peer?.uri_sans.first()?,
        "sha256_peer_certificate_digest" => &peer?.sha256,
        _ => return None,
    };
    data.extend_from_slice(value.as_bytes());
    Some(())
}

fn of_stream(stream: &Stream, state: &StreamState, segments: &[&str], data: &mut Vec<u8>) -> Option<()> {
    let path = state.request.path.as_ref();
    let query_at = path.iter().position(|b| *b == b'?');
    let mut text = |bytes: &[u8]| data.extend_from_slice(bytes);
    match segments {
        ["request", "path"] => text(path),
        ["request", "url_path"] => text(&path[..query_at.unwrap_or(path.len())]),
        ["request", "query"] => text(query_at.map_or(&[], |at| &path[at + 1..])),
        ["request", "host"] => text(&state.request.authority),
        ["request", "scheme"] => text(state.request.scheme.as_bytes()),
        ["request", "method"] => text(state.request.method.as_str().as_bytes()),
        ["request", "protocol"] => text(stream.protocol().as_bytes()),
        ["request", "id"] => text(stream.request_id.as_bytes()),
        ["request", "referer"] => return field(&state.request.fields, &REFERER, data),
        ["request", "useragent"] => return field(&state.request.fields, &USER_AGENT, data),
        ["request", "headers"] => map(&state.request, data),
        ["request", "headers", name] => return header(&state.request, &state.request.fields, name, data),
        ["request", "size"] => text(&(state.bytes[0] as i64).to_le_bytes()),
        ["request", "total_size"] => text(&((state.bytes[0] + size(&state.request)) as i64).to_le_bytes()),
        ["request", "time"] => {
            let since = stream.start_time().duration_since(UNIX_EPOCH).unwrap_or_default();
            text(&(since.as_nanos() as i64).to_le_bytes());
        }
        ["request", "duration"] => text(&(stream.start.elapsed().as_nanos() as i64).to_le_bytes()),
        ["response", "code"] => text(&i64::from(state.response.as_ref()?.status.as_u16()).to_le_bytes()),
        ["response", "grpc_status"] => text(&i64::from(stream.grpc.get()?.status.get()?).to_le_bytes()),
        ["response", "code_details"] => text(state.details.as_bytes()),
        ["response", "flags"] => text(&i64::from(state.flags).to_le_bytes()),
        ["response", "headers"] => map(state.response.as_ref()?, data),
        ["response", "headers", name] => {
            let response = state.response.as_ref()?;
            return header(response, &response.fields, name, data);
        }
        ["response", "trailers"] => map(state.trailers[1].as_ref()?, data),
        ["response", "trailers", name] => {
            return field(state.trailers[1].as_ref()?, &HeaderName::from_bytes(name.as_bytes()).ok()?, data);
        }
        ["response", "size"] => text(&(state.bytes[1] as i64).to_le_bytes()),
        ["response", "total_size"] => {
            let trailers = state.trailers[1].as_ref().map_or(0, |trailers| size(trailers));
            text(&((state.bytes[1] + size(state.response.as_ref()?) + trailers) as i64).to_le_bytes());
        }
        ["response", "backend_latency"] => text(&(stream.times.of_upstream()?.as_nanos() as i64).to_le_bytes()),
        ["upstream", "address"] => text(state.endpoint.as_ref()?.to_string().as_bytes()),
        ["upstream", "port"] => text(&i64::from(state.endpoint.as_ref()?.inet()?.port()).to_le_bytes()),
        ["upstream", "local_address"] => text(state.upstream_local?.to_string().as_bytes()),
        ["upstream", "request_attempt_count"] => text(&i64::from(state.attempts).to_le_bytes()),
        ["cluster_name"] | ["xds", "cluster_name"] => text(state.route.as_ref()?.cluster().name().as_bytes()),
        ["route_name"] | ["xds", "route_name"] => text(state.route.as_ref()?.route.name.as_bytes()),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tls::{Identity, tests::pki::Ca};

    fn value(tls: Option<&ConnectionTls>, name: &str) -> Option<String> {
        let mut data = Vec::new();
        of_tls(tls, name, &mut data)?;
        Some(String::from_utf8(data).unwrap())
    }

    #[test]
    fn host_owned_properties_match_the_specification() {
        let contract = include_str!("../../../../abi/SPEC.md");
        let said = contract
            .split_once("the host's segments cannot be set: ")
            .and_then(|(_, rest)| rest.split_once("The attempt"));
        let mut said: Vec<_> = said.unwrap().0.split('`').skip(1).step_by(2).collect();
        said.sort_unstable();
        assert_eq!(said, OWNED);
    }

    #[test]
    fn connection_properties_match_envoy() {
        let ca = Ca::new("ca");
        let local = Identity::parse(&ca.leaf(&["web.test", "spiffe://mesh/web"]).der).unwrap();
        let chain = [ca.leaf(&["a.test", "b.test", "spiffe://mesh/a"]).der];
        let connection = |chain: &[_], local| ConnectionTls::new(("TLSv1.3", ""), Some("web.test"), None, chain, local);
        let mutual = connection(&chain, Some(Arc::new(local))).unwrap();
        let digest = mutual.peer.as_ref().unwrap().sha256.to_string();
        let expected = [
            ("mtls", "\u{1}"),
            ("requested_server_name", "web.test"),
            ("tls_version", "TLSv1.3"),
            ("subject_local_certificate", "CN=web.test,O=Tests"),
            ("subject_peer_certificate", "CN=a.test,O=Tests"),
            ("dns_san_local_certificate", "web.test"),
            ("dns_san_peer_certificate", "a.test"),
            ("uri_san_local_certificate", "spiffe://mesh/web"),
            ("uri_san_peer_certificate", "spiffe://mesh/a"),
            ("sha256_peer_certificate_digest", &digest),
        ];
        for (name, expected) in expected {
            assert_eq!(value(Some(&mutual), name).as_deref(), Some(expected), "{name}");
        }
        let one_sided = connection(&[], None).unwrap();
        let plain = [("mtls", "\0"), ("requested_server_name", "")];
        for (name, _) in expected {
            let expected = plain.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
            assert_eq!(value(None, name).as_deref(), expected, "{name}");
            let expected = match name {
                "mtls" => Some("\0"),
                "requested_server_name" => Some("web.test"),
                "tls_version" => Some("TLSv1.3"),
                "subject_local_certificate" | "subject_peer_certificate" => Some(""),
                _ => None,
            };
            assert_eq!(value(Some(&one_sided), name).as_deref(), expected, "{name}");
        }
        assert_eq!(value(Some(&mutual), "other"), None);
    }
}
