//! The heads of a request and its response, as filters see them: header fields and pseudo-headers (`:path`, `:status`,
//! …) in one map, named as in HTTP/2 whatever the wire protocol.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header::COOKIE};
use tollgate_abi::doc;

use super::charge::ITEM;
use crate::{h1::encoder, upstream};

/// A header's name, parsed once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// `:method`
    Method,
    /// `:path`, with the query.
    Path,
    /// `:authority`, as in HTTP/2; `host` is accepted as an alias.
    Authority,
    /// `:scheme`
    Scheme,
    /// `:status`
    Status,
    /// A field.
    Field(HeaderName),
}

impl Name {
    /// Parses a name in any case. `None` if it is neither a field name (RFC 9110 section 5.1) nor a pseudo-header.
    pub fn parse(bytes: &[u8]) -> Option<Name> {
        Some(match bytes {
            b":method" => Name::Method,
            b":path" => Name::Path,
            b":authority" => Name::Authority,
            b":scheme" => Name::Scheme,
            b":status" => Name::Status,
            _ => match HeaderName::from_bytes(bytes).ok()? {
                http::header::HOST => Name::Authority,
                field => Name::Field(field),
            },
        })
    }
}

/// A header could not be changed: the value is invalid, the map cannot have this header, or it would become too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid header name or value here")]
pub struct BadHeader;

/// A filter cannot add a field to a map that has this many. The highest `limits.headers` is the same number, so a head
/// can arrive full. `HeaderMap` itself could hold more than twice as many.
pub const MAX_FIELDS: usize = 10_000;

/// Maximum bytes of a field's or pseudo-header's value that a filter sets. Values from clients and upstreams are limited
/// only by the size of the whole head.
pub const MAX_VALUE: usize = 64 << 10;

/// Memory cost of fields: names, values, and the map's overhead per field.
pub fn size(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| name.as_str().len() + value.len() + ITEM).sum()
}

/// A request's head.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// Path and query as sent to the upstream; normalized before any filter sees them.
    pub path: Bytes,
    /// The host and port that the request is for.
    pub authority: Bytes,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The fields; never `host`.
    pub fields: HeaderMap,
}

/// A response's head.
#[derive(Debug, Clone, Default)]
pub struct ResponseHead {
    /// The status.
    pub status: StatusCode,
    /// The fields.
    pub fields: HeaderMap,
}

/// RFC 3986 section 3.2.3 allows an empty port.
fn is_port(text: &str) -> bool {
    text.is_empty() || text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// Whether the text is a host with an optional port (RFC 9110 section 7.2): no user information, and a valid port.
pub fn is_host(text: &str) -> bool {
    // Fast path: most hosts are plain names, which need no parser.
    let name_ends = text.bytes().position(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-')));
    if let Some((name, rest)) = text.split_at_checked(name_ends.unwrap_or(text.len()))
        && !name.is_empty()
    {
        if rest.is_empty() {
            return true;
        }
        if let Some(port) = rest.strip_prefix(':') {
            return is_port(port);
        }
    }
    http::uri::Authority::try_from(text).is_ok_and(|authority| {
        let rest = text.strip_prefix(authority.host());
        rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
    })
}

/// `HeaderMap` hashes names byte by byte. Up to this many names, comparing with each is cheaper, because their lengths
/// mostly differ.
const FEW: usize = 16;

/// The number of names looked up in one pass.
const PER_PASS: usize = 8;

/// The lengths of a few names, one byte each: tests for a length without comparing each of them.
struct Lengths(u64);

impl Lengths {
    const ONES: u64 = 0x0101_0101_0101_0101;

    /// Packs the lengths of the field names. Other names count as 0, a length that no field's name has.
    fn of(names: &[Option<&Name>]) -> Lengths {
        debug_assert!(names.len() <= PER_PASS);
        let length = |name: &Option<&Name>| match name {
            Some(Name::Field(name)) => name.as_str().len() as u8,
            _ => 0,
        };
        Lengths(names.iter().fold(0, |all, name| all << 8 | u64::from(length(name))))
    }

    /// Whether any of them has this length. May rarely return a false positive, never a false negative.
    fn have(&self, length: usize) -> bool {
        let differences = self.0 ^ (u64::from(length as u8) * Self::ONES);
        differences.wrapping_sub(Self::ONES) & !differences & (Self::ONES << 7) != 0
    }
}

/// Appends a field's value to the earlier ones of the same name (RFC 9110 section 5.3).
fn join<'a>(values: &mut Option<Cow<'a, [u8]>>, name: &HeaderName, value: &'a HeaderValue) {
    match values {
        None => *values = Some(Cow::Borrowed(value.as_bytes())),
        Some(all) => {
            let all = all.to_mut();
            all.extend_from_slice(if name == COOKIE { b"; " } else { b", " });
            all.extend_from_slice(value.as_bytes());
        }
    }
}

/// The value of a field; multiple values are joined.
fn joined<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut all = None;
    if fields.keys_len() <= FEW {
        let text = name.as_str();
        fields.iter().filter(|(n, _)| n.as_str() == text).for_each(|(_, value)| join(&mut all, name, value));
    } else {
        fields.get_all(name).iter().for_each(|value| join(&mut all, name, value));
    }
    all
}

/// The value of the first field of a name.
fn first<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let value = if fields.keys_len() <= FEW {
        let text = name.as_str();
        fields.iter().find(|(n, _)| n.as_str() == text).map(|(_, value)| value)
    } else {
        fields.get(name)
    };
    value.map(|value| Cow::Borrowed(value.as_bytes()))
}

/// Sets a field to one value.
fn set_field(fields: &mut HeaderMap, name: &HeaderName, bytes: &[u8]) -> Result<(), BadHeader> {
    let value = value(bytes)?;
    if fields.len() >= MAX_FIELDS && !fields.contains_key(name) {
        return Err(BadHeader);
    }
    fields.insert(name, value);
    Ok(())
}

/// The result of looking up a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// No value.
    Nothing,
    /// One value.
    One(&'a [u8]),
    /// Multiple values, which [`Headers::get`] joins.
    Several,
}

impl<'a> Found<'a> {
    fn add(&mut self, value: &'a HeaderValue) {
        *self = if matches!(self, Found::Nothing) { Found::One(value.as_bytes()) } else { Found::Several };
    }
}

/// A head or trailers, as accessed by the header functions of the ABI.
pub trait Headers {
    /// The value; multiple fields of one name are joined.
    fn get(&self, name: &Name) -> Option<Cow<'_, [u8]>>;
    /// Looks up several names in one pass; `None` entries are skipped. `found` is as long as `names`, and initially
    /// empty.
    fn get_many<'a>(&'a self, names: &[Option<&Name>], found: &mut [Found<'a>]);
    /// The value of the first field of this name, as returned by Proxy-Wasm's `get_header_map_value`.
    fn first(&self, name: &Name) -> Option<Cow<'_, [u8]>>;
    /// Sets a header to one value.
    fn set(&mut self, name: &Name, value: &[u8]) -> Result<(), BadHeader>;
    /// Adds a field; sets a pseudo-header.
    fn add(&mut self, name: &Name, value: &[u8]) -> Result<(), BadHeader>;
    /// Removes all fields of this name; pseudo-headers are kept.
    fn remove(&mut self, name: &Name);
    /// Calls `f` for each pair, pseudo-headers first.
    fn each<'a>(&'a self, f: &mut dyn FnMut(&'a [u8], &'a [u8]));
    /// Replaces everything.
    fn replace(&mut self, pairs: &[(Name, &[u8])]) -> Result<(), BadHeader>;
    /// The number of pairs.
    fn count(&self) -> usize;
}

/// Whitespace around a value is not part of it (RFC 9110 section 5.5), and would make it malformed in HTTP/2.
fn trimmed(bytes: &[u8]) -> &[u8] {
    match bytes {
        [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] => trimmed(rest),
        _ => bytes,
    }
}

fn value(bytes: &[u8]) -> Result<HeaderValue, BadHeader> {
    if bytes.len() > MAX_VALUE {
        return Err(BadHeader);
    }
    HeaderValue::from_bytes(trimmed(bytes)).map_err(|_| BadHeader)
}

/// Whether bytes are a valid field value.
pub fn is_value(bytes: &[u8]) -> bool {
    value(bytes).is_ok()
}

impl RequestHead {
    fn pseudo(&self, name: &Name) -> Option<&[u8]> {
        Some(match name {
            Name::Method => self.method.as_str().as_bytes(),
            Name::Path => &self.path,
            Name::Authority => &self.authority,
            Name::Scheme => self.scheme.as_bytes(),
            _ => return None,
        })
    }

    /// Removes the framing fields, which are up to the sender.
    pub fn remove_framing(&mut self) {
        use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
        for name in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE] {
            self.fields.remove(name);
        }
    }

    /// The head in the form in which it is sent to an upstream.
    pub fn outgoing(&self) -> encoder::RequestHead<'_> {
        let RequestHead { method, path, authority, fields, .. } = self;
        encoder::RequestHead { method, target: path, host: Some(authority), fields, replaced: &[] }
    }

    fn set_pseudo(&mut self, name: &Name, value: &[u8]) -> Result<(), BadHeader> {
        if value.len() > MAX_VALUE {
            return Err(BadHeader);
        }
        match name {
            Name::Method => self.method = Method::from_bytes(value).map_err(|_| BadHeader)?,
            Name::Path => {
                // Nothing in a request line may break out of it.
                let fits = matches!(value.first(), Some(b'/' | b'*'))
                    && value.iter().all(|b| (0x21..0x7f).contains(b) || *b >= 0x80);
                fits.then(|| self.path = Bytes::copy_from_slice(value)).ok_or(BadHeader)?;
            }
            Name::Authority => {
                str::from_utf8(value).ok().filter(|text| is_host(text)).ok_or(BadHeader)?;
                self.authority = Bytes::copy_from_slice(value);
            }
            Name::Scheme => {
                self.scheme = match value {
                    b"http" => "http",
                    b"https" => "https",
                    _ => return Err(BadHeader),
                }
            }
            _ => return Err(BadHeader),
        }
        Ok(())
    }
}

impl upstream::Head for RequestHead {
    fn show<T>(&self, look: impl FnOnce(&encoder::RequestHead<'_>) -> T) -> T {
        look(&self.outgoing())
    }
}

impl Headers for RequestHead {
    fn get(&self, name: &Name) -> Option<Cow<'_, [u8]>> {
        match name {
            Name::Field(field) => joined(&self.fields, field),
            pseudo => self.pseudo(pseudo).map(Cow::Borrowed),
        }
    }

    fn get_many<'a>(&'a self, names: &[Option<&Name>], found: &mut [Found<'a>]) {
        let mut fields = false;
        for (name, found) in names.iter().zip(&mut *found) {
            match name {
                Some(Name::Field(_)) => fields = true,
                Some(pseudo) => *found = self.pseudo(pseudo).map_or(Found::Nothing, Found::One),
                None => {}
            }
        }
        if fields {
            self.fields.get_many(names, found);
        }
    }

    fn first(&self, name: &Name) -> Option<Cow<'_, [u8]>> {
        match name {
            Name::Field(field) => first(&self.fields, field),
            pseudo => self.pseudo(pseudo).map(Cow::Borrowed),
        }
    }

    fn set(&mut self, name: &Name, bytes: &[u8]) -> Result<(), BadHeader> {
        match name {
            Name::Field(field) => set_field(&mut self.fields, field, bytes),
            pseudo => self.set_pseudo(pseudo, bytes),
        }
    }

    fn add(&mut self, name: &Name, bytes: &[u8]) -> Result<(), BadHeader> {
        match name {
            Name::Field(_) => self.fields.add(name, bytes),
            pseudo => self.set_pseudo(pseudo, bytes),
        }
    }

    fn remove(&mut self, name: &Name) {
        Headers::remove(&mut self.fields, name);
    }

    fn each<'a>(&'a self, f: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        f(b":authority", &self.authority);
        f(b":path", &self.path);
        f(b":method", self.method.as_str().as_bytes());
        f(b":scheme", self.scheme.as_bytes());
        self.fields.each(f);
    }

    fn replace(&mut self, pairs: &[(Name, &[u8])]) -> Result<(), BadHeader> {
        let mut new = RequestHead { fields: HeaderMap::new(), ..self.clone() };
        pairs.iter().try_for_each(|(name, value)| new.add(name, value))?;
        *self = new;
        Ok(())
    }

    fn count(&self) -> usize {
        4 + self.fields.len()
    }
}

impl Headers for ResponseHead {
    fn get(&self, name: &Name) -> Option<Cow<'_, [u8]>> {
        match name {
            Name::Field(field) => joined(&self.fields, field),
            Name::Status => Some(Cow::Borrowed(self.status.as_str().as_bytes())),
            _ => None,
        }
    }

    fn get_many<'a>(&'a self, names: &[Option<&Name>], found: &mut [Found<'a>]) {
        self.fields.get_many(names, found);
        for (name, found) in names.iter().zip(found) {
            if let Some(Name::Status) = name {
                *found = Found::One(self.status.as_str().as_bytes());
            }
        }
    }

    fn first(&self, name: &Name) -> Option<Cow<'_, [u8]>> {
        match name {
            Name::Field(field) => first(&self.fields, field),
            _ => self.get(name),
        }
    }

    fn set(&mut self, name: &Name, bytes: &[u8]) -> Result<(), BadHeader> {
        match name {
            Name::Status => {
                let status = StatusCode::from_bytes(bytes).map_err(|_| BadHeader)?;
                // An interim or invalid status would break the framing of what follows.
                if !(200..=599).contains(&status.as_u16()) {
                    return Err(BadHeader);
                }
                self.status = status;
                Ok(())
            }
            _ => self.fields.set(name, bytes),
        }
    }

    fn add(&mut self, name: &Name, bytes: &[u8]) -> Result<(), BadHeader> {
        if *name == Name::Status { self.set(name, bytes) } else { self.fields.add(name, bytes) }
    }

    fn remove(&mut self, name: &Name) {
        Headers::remove(&mut self.fields, name);
    }

    fn each<'a>(&'a self, f: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        f(b":status", self.status.as_str().as_bytes());
        self.fields.each(f);
    }

    fn replace(&mut self, pairs: &[(Name, &[u8])]) -> Result<(), BadHeader> {
        let mut new = ResponseHead { status: self.status, fields: HeaderMap::new() };
        pairs.iter().try_for_each(|(name, value)| new.add(name, value))?;
        *self = new;
        Ok(())
    }

    fn count(&self) -> usize {
        1 + self.fields.len()
    }
}

/// Trailers, and the fields of heads.
impl Headers for HeaderMap {
    fn get(&self, name: &Name) -> Option<Cow<'_, [u8]>> {
        if let Name::Field(field) = name { joined(self, field) } else { None }
    }

    fn get_many<'a>(&'a self, names: &[Option<&Name>], found: &mut [Found<'a>]) {
        if self.keys_len() > FEW {
            for (name, found) in names.iter().zip(found) {
                if let Some(Name::Field(name)) = name {
                    self.get_all(name).iter().for_each(|value| found.add(value));
                }
            }
            return;
        }
        for (names, found) in names.chunks(PER_PASS).zip(found.chunks_mut(PER_PASS)) {
            let lengths = Lengths::of(names);
            for (field, value) in self {
                if !lengths.have(field.as_str().len()) {
                    continue;
                }
                for (name, found) in names.iter().zip(&mut *found) {
                    if matches!(name, Some(Name::Field(name)) if name == field) {
                        found.add(value);
                    }
                }
            }
        }
    }

    fn first(&self, name: &Name) -> Option<Cow<'_, [u8]>> {
        if let Name::Field(field) = name { first(self, field) } else { None }
    }

    fn set(&mut self, name: &Name, bytes: &[u8]) -> Result<(), BadHeader> {
        if let Name::Field(field) = name { set_field(self, field, bytes) } else { Err(BadHeader) }
    }

    fn add(&mut self, name: &Name, bytes: &[u8]) -> Result<(), BadHeader> {
        let Name::Field(field) = name else { return Err(BadHeader) };
        let value = value(bytes)?;
        if self.len() >= MAX_FIELDS {
            return Err(BadHeader);
        }
        self.try_append(field.clone(), value).map_err(|_| BadHeader)?;
        Ok(())
    }

    fn remove(&mut self, name: &Name) {
        if let Name::Field(field) = name {
            HeaderMap::remove(self, field);
        }
    }

    fn each<'a>(&'a self, f: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        for (name, value) in self {
            f(name.as_str().as_bytes(), value.as_bytes());
        }
    }

    fn replace(&mut self, pairs: &[(Name, &[u8])]) -> Result<(), BadHeader> {
        let mut new = HeaderMap::with_capacity(pairs.len());
        pairs.iter().try_for_each(|(name, value)| new.add(name, value))?;
        *self = new;
        Ok(())
    }

    fn count(&self) -> usize {
        self.len()
    }
}

/// Maximum number of header changes per route.
const MAX_OPS: usize = 1000;

/// Changes to header fields, validated when they were defined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct HeaderOps {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
}

impl HeaderOps {
    /// Validates the names and values of a document.
    pub fn new(doc: &doc::HeaderOps) -> Result<HeaderOps, BadHeader> {
        if doc.remove.len() + doc.set.len() + doc.add.len() > MAX_OPS {
            return Err(BadHeader);
        }
        let name = |n: &String| HeaderName::from_bytes(n.as_bytes()).map_err(|_| BadHeader);
        let pairs = |list: &[(String, String)]| -> Result<Box<[_]>, BadHeader> {
            list.iter().map(|(n, v)| Ok((name(n)?, value(v.as_bytes())?))).collect()
        };
        Ok(HeaderOps {
            remove: doc.remove.iter().map(name).collect::<Result<_, _>>()?,
            set: pairs(&doc.set)?,
            add: pairs(&doc.add)?,
        })
    }

    /// Applies the changes.
    pub fn apply(&self, fields: &mut HeaderMap) {
        for name in &self.remove {
            fields.remove(name);
        }
        for (name, value) in &self.set {
            fields.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            fields.append(name.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> RequestHead {
        let mut fields = HeaderMap::new();
        for (name, value) in [("a", "1"), ("a", "2"), ("cookie", "x=1"), ("cookie", "y=2")] {
            fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let (path, authority) = (Bytes::from_static(b"/p?q"), Bytes::from_static(b"h"));
        RequestHead { method: Method::GET, path, authority, scheme: "http", fields }
    }

    fn name(text: &str) -> Name {
        Name::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn several_fields_of_one_name_are_joined() {
        let head = request();
        assert_eq!(head.get(&name("A")).unwrap().as_ref(), b"1, 2");
        assert_eq!(head.get(&name("cookie")).unwrap().as_ref(), b"x=1; y=2");
        assert_eq!(head.first(&name("a")).unwrap().as_ref(), b"1");
        assert_eq!(head.get(&name("Host")).unwrap().as_ref(), b"h");
        assert_eq!(head.get(&name("none")), None);
    }

    #[test]
    fn values_set_by_filters_are_trimmed() {
        let mut head = request();
        for (set, expected) in [(" x y\t", "x y"), ("\t", ""), ("", ""), ("x", "x")] {
            head.set(&name("b"), set.as_bytes()).unwrap();
            assert_eq!(head.get(&name("b")).as_deref(), Some(expected.as_bytes()), "{set:?}");
        }
        assert!(head.set(&name("b"), b"x\n").is_err() && head.add(&name("b"), b"\n x").is_err());
    }

    #[test]
    fn looking_up_several_names_equals_looking_up_each() {
        let long = "x-a-name-as-long-as-those-of-faults";
        let names =
            ["cookie", ":path", "none", "a", ":status", "host", "a", long, "x-another-that-is-not-there"].map(name);
        let mut wanted: Vec<Option<&Name>> = names.iter().map(Some).collect();
        wanted.push(None);
        let check = |headers: &dyn Headers, fields: usize| {
            let mut found = vec![Found::Nothing; wanted.len()];
            headers.get_many(&wanted, &mut found);
            for (name, found) in wanted.iter().zip(found) {
                let (first, all) = name.map_or((None, None), |name| (headers.first(name), headers.get(name)));
                let expected = match &first {
                    None => Found::Nothing,
                    Some(value) if first == all => Found::One(value),
                    Some(_) => Found::Several,
                };
                assert_eq!(found, expected, "{name:?}, {fields} fields");
            }
        };
        // Few fields, and too many to compare one by one.
        for more in [0, 100] {
            let mut head = request();
            for value in ["1", "2"] {
                head.fields.append(HeaderName::from_static(long), HeaderValue::from_static(value));
            }
            for i in 0..more {
                head.fields.append(HeaderName::try_from(format!("x-{i}")).unwrap(), HeaderValue::from_static("v"));
            }
            let fields = head.fields.clone();
            check(&head, more);
            check(&ResponseHead { status: StatusCode::NOT_FOUND, fields: fields.clone() }, more);
            check(&fields, more);
            assert_eq!(head.get(&name("a")).unwrap().as_ref(), b"1, 2");
            assert_eq!(head.first(&name("a")).unwrap().as_ref(), b"1");
            assert_eq!(head.get(&name(long)).unwrap().as_ref(), b"1, 2");
            assert_eq!(head.first(&name(long)).unwrap().as_ref(), b"1");
        }
    }

    #[test]
    fn invalid_values_are_rejected() {
        let mut head = request();
        for (header, bad) in [
            (":path", "/a b"),
            (":path", "/a\r\nx: y"),
            (":path", "a"),
            (":path", ""),
            (":method", "GE T"),
            (":authority", "a\r\nb"),
            (":scheme", "ftp"),
            (":status", "200"),
            ("x", "a\r\nb: c"),
            ("x", "a\0b"),
        ] {
            assert_eq!(head.set(&name(header), bad.as_bytes()), Err(BadHeader), "{header}: {bad}");
        }
        let mut response = ResponseHead::default();
        for bad in ["100", "101", "199", "600", "2000", "x"] {
            assert_eq!(response.set(&Name::Status, bad.as_bytes()), Err(BadHeader), "{bad}");
        }
    }

    #[test]
    fn failed_replacement_leaves_the_map_unchanged() {
        let mut head = request();
        let bad = [(name(":path"), b"/new".as_slice()), (name("x"), b"\n".as_slice())];
        assert_eq!(head.replace(&bad), Err(BadHeader));
        assert_eq!(head.path, "/p?q");
        head.replace(&bad[..1]).unwrap();
        assert_eq!(
            (head.path.as_ref(), head.fields.len(), head.authority.as_ref()),
            (b"/new".as_slice(), 0, b"h".as_slice())
        );
    }
}
