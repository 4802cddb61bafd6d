//! `X-Forwarded-Client-Cert`: forwards the client's identity to upstreams, as Envoy does.
//!
//! The field is a list of elements, `KEY=VALUE;KEY=VALUE`, one per proxy on the path, the proxy nearest to the
//! upstream last. The keys are, in this order, `By` (URIs of the proxy's certificate), `Hash` (SHA-256 of the
//! client's certificate), `Cert` (the client's certificate as percent-encoded PEM), `Subject`, `URI` and `DNS`. A
//! value that contains `,`, `;` or `=` is in double quotes; `Cert` and `Subject` always are, and `"` in a subject is
//! `\"`.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{connection::ConnectionTls, identity::Identity};
use crate::config::model::ForwardedClientCert;

const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Applies the listener's policy to a request's field. `tls` is the connection of the request.
pub fn apply(fields: &mut HeaderMap, policy: ForwardedClientCert, tls: Option<&ConnectionTls>) {
    if policy == ForwardedClientCert::Forward {
        return;
    }
    let element = tls.and_then(ConnectionTls::forwarded).filter(|_| policy != ForwardedClientCert::Strip);
    let Some(element) = element else {
        fields.remove(X_FORWARDED_CLIENT_CERT);
        return;
    };
    let before: Vec<&HeaderValue> = match policy {
        ForwardedClientCert::Append => fields.get_all(X_FORWARDED_CLIENT_CERT).iter().collect(),
        _ => Vec::new(),
    };
    let value = match before.is_empty() {
        true => element.clone(),
        false => {
            let all: Vec<&[u8]> = before.into_iter().chain([element]).map(HeaderValue::as_bytes).collect();
            // Joining valid values gives a valid value. If not, the earlier elements would be dropped.
            HeaderValue::from_bytes(&all.join(&b","[..])).unwrap_or_else(|_| element.clone())
        }
    };
    fields.insert(X_FORWARDED_CLIENT_CERT, value);
}

/// Builds the element for a client.
pub(crate) fn element(peer: &Identity, local: Option<&Identity>) -> HeaderValue {
    let mut out = String::with_capacity(256 + peer.url_encoded_pem().len());
    for uri in local.iter().flat_map(|local| &local.uri_sans) {
        put(&mut out, "By", uri);
    }
    put(&mut out, "Hash", &peer.sha256);
    separate(&mut out);
    out.extend(["Cert=\"", peer.url_encoded_pem(), "\""]);
    separate(&mut out);
    // RFC 2253 has already escaped all characters that are special in a quoted value.
    out.extend(["Subject=\"", &peer.subject, "\""]);
    peer.uri_sans.iter().for_each(|uri| put(&mut out, "URI", uri));
    if peer.uri_sans.is_empty() {
        put(&mut out, "URI", "");
    }
    peer.dns_sans.iter().for_each(|name| put(&mut out, "DNS", name));
    // Every part is printable ASCII.
    HeaderValue::from_str(&out).unwrap_or(HeaderValue::from_static(""))
}

fn separate(out: &mut String) {
    if !out.is_empty() {
        out.push(';');
    }
}

fn put(out: &mut String, key: &str, value: &str) {
    separate(out);
    out.push_str(key);
    out.push('=');
    // Envoy writes these unquoted. It would parse the values that are quoted here as several elements.
    match value.contains([',', ';', '=']) {
        true => out.extend(["\"", value, "\""]),
        false => out.push_str(value),
    }
}
