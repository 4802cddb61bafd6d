//! The scalar types of the configuration: times (`250ms`), sizes (`64KiB`), addresses, the number of workers.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    str::FromStr,
    sync::Arc,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration, written as a number with a unit: `us`, `ms`, `s`, `m`, `h` (`250ms`, `1.5s`). From 0 to one year.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub std::time::Duration);

/// A number of bytes: a whole number, or one with a unit: `B`, `kB`, `MB`, `GB` (powers of 1000), `KiB`, `MiB`, `GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// The address of a stream socket: `127.0.0.1:80`, `[::1]:80`, `unix:/run/a.sock`. An endpoint's may also have a host name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IP address and a TCP port.
    Inet(SocketAddr),
    /// The path of a unix socket.
    Unix(Arc<Path>),
    /// A host name and a TCP port. [`FromStr`] does not accept it; see [`Address::of_endpoint`].
    Host(Arc<str>, u16),
}

/// The schema of an endpoint's address.
pub struct EndpointAddress;

/// An IP address, or a range of them (`10.0.0.0/8`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr(ipnet::IpNet);

/// TLS server names (SNI), in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerName {
    /// An exact name: `a.example`.
    Exact(Box<str>),
    /// A wildcard, `*.example`: all names that end with this suffix.
    Below(Box<str>),
}

/// HTTP statuses: one (`204`), or all from a first to a last one (`200-399`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StatusRange {
    /// The first status.
    pub first: u16,
    /// The last status.
    pub last: u16,
}

/// The number of worker threads: `auto` or 1 to 1024.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Workers {
    /// One per processor that this process may use.
    #[default]
    Auto,
    /// A fixed number.
    Count(u16),
}

impl Duration {
    /// `n` seconds.
    pub const fn secs(n: u64) -> Self {
        Duration(std::time::Duration::from_secs(n))
    }
    /// `n` milliseconds.
    pub const fn millis(n: u64) -> Self {
        Duration(std::time::Duration::from_millis(n))
    }
    /// Returns the duration, or `None` for 0, which means "unlimited" in the configuration.
    pub fn bound(self) -> Option<std::time::Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl ByteSize {
    /// Returns the size as an HTTP/2 window, within the protocol's limits (RFC 9113 section 6.9.1).
    pub fn window(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX).clamp(1 << 10, i32::MAX as u32)
    }
}

impl StatusRange {
    /// Whether it has this status.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl FromStr for StatusRange {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (first, last) = s.split_once('-').unwrap_or((s, s));
        let status = |text: &str| text.parse().ok().filter(|n| text.len() == 3 && (100..=599).contains(n));
        match (status(first), status(last)) {
            (Some(first), Some(last)) if first <= last => Ok(StatusRange { first, last }),
            _ => Err(format!("`{s}` is neither a status nor a range of statuses")),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.first == self.last {
            true => s.serialize_u16(self.first),
            false => s.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl de::Visitor<'_> for Either {
            type Value = StatusRange;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status or a range of statuses")
            }
            fn visit_str<E: de::Error>(self, s: &str) -> Result<StatusRange, E> {
                s.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<StatusRange, E> {
                n.to_string().parse().map_err(E::custom)
            }
        }
        d.deserialize_any(Either)
    }
}

impl JsonSchema for StatusRange {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StatusRange".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": 100, "maximum": 599, "format": "tollgate-statuses" })
    }
}

impl Workers {
    /// Returns the number of threads.
    pub fn count(self) -> usize {
        match self {
            Workers::Auto => std::thread::available_parallelism().map_or(1, |n| n.get()),
            Workers::Count(n) => n.into(),
        }
    }
}

impl Address {
    /// Parses the address of an endpoint, which may have a host name.
    pub fn of_endpoint(s: &str) -> Result<Address, String> {
        s.parse().or_else(|wrong| {
            let host = s.rsplit_once(':').filter(|(name, _)| is_host_name(name));
            let port = host.and_then(|(name, port)| Some((name, port.parse().ok()?)));
            port.map(|(name, port)| Address::Host(name.into(), port)).ok_or(wrong)
        })
    }

    /// Returns the IP address and port; `None` for a unix socket or a host name.
    pub fn inet(&self) -> Option<SocketAddr> {
        match self {
            Address::Inet(address) => Some(*address),
            Address::Unix(_) | Address::Host(..) => None,
        }
    }

    /// Whether sockets on both addresses would receive the same connections, or could not exist together.
    pub fn overlaps(&self, other: &Address) -> bool {
        match (self, other) {
            (Address::Inet(one), Address::Inet(other)) => {
                let all = one.ip().is_unspecified() || other.ip().is_unspecified();
                one.port() == other.port() && (all || one.ip() == other.ip())
            }
            (one, other) => one == other,
        }
    }
}

/// Whether a text is a host name: labels of letters, digits, `-` and `_`, of which the last is not a number (so that it
/// cannot be a mistyped IPv4 address). It may end with a dot.
pub fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let label = |label: &str| matches!(label.len(), 1..=63) && label.bytes().all(plain);
    let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    name.len() <= 253 && name.split('.').all(label) && !name.rsplit('.').next().is_some_and(is_number)
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Inet(address)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(path) = s.strip_prefix("unix:") {
            // `sun_path` on Linux has 108 bytes, including the terminating NUL.
            return match path.len() {
                0 => Err("`unix:` needs a path".to_owned()),
                1..=107 => Ok(Address::Unix(Path::new(path).into())),
                _ => Err(format!("the path of a unix socket has at most 107 bytes; `{path}` has {}", path.len())),
            };
        }
        s.parse().map(Address::Inet).map_err(|_| {
            format!("`{s}` is not an address; write an IP address and a port, such as 127.0.0.1:8080, or unix:/path")
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inet(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Host(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl Cidr {
    /// Whether the range contains the address. An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let one = || s.parse::<IpAddr>().ok().map(|ip| ipnet::IpNet::from(ip.to_canonical()));
        let range = s.parse::<ipnet::IpNet>().ok().or_else(one);
        range.map(Cidr).ok_or_else(|| format!("`{s}` is not an IP address or a range, such as 10.0.0.0/8"))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ServerName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let below = s.strip_prefix("*.");
        let name = below.unwrap_or(s);
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let label = |label: &str| matches!(label.len(), 1..=63) && label.bytes().all(plain);
        // SNI cannot contain an IP address (RFC 6066 section 3).
        if name.len() > 253 || !name.split('.').all(label) || name.parse::<IpAddr>().is_ok() {
            return Err(format!("`{s}` is not a server name or a wildcard, such as *.example.com"));
        }
        let name = name.to_ascii_lowercase().into();
        Ok(if below.is_some() { ServerName::Below(name) } else { ServerName::Exact(name) })
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerName::Exact(name) => f.write_str(name),
            ServerName::Below(name) => write!(f, "*.{name}"),
        }
    }
}

fn split_unit(s: &str) -> (&str, &str) {
    let s = s.trim();
    let at = s.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(s.len());
    (&s[..at], s[at..].trim_start())
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("`{s}` is not a time; write a number with a unit (us, ms, s, m, h), such as 250ms");
        let (number, unit) = split_unit(s);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let seconds = number
            * match unit {
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
        if seconds > 365.0 * 86_400.0 {
            return Err(format!("`{s}` is longer than a year"));
        }
        std::time::Duration::try_from_secs_f64(seconds).map(Duration).map_err(|_| wrong())
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.as_micros();
        match us {
            _ if us.is_multiple_of(1_000_000) => write!(f, "{}s", us / 1_000_000),
            _ if us.is_multiple_of(1_000) => write!(f, "{}ms", us / 1_000),
            _ => write!(f, "{us}us"),
        }
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{s}` is not a size; write a number with a unit (B, kB, KiB, MB, MiB, GB, GiB), such as 64KiB");
        let (number, unit) = split_unit(s);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let bytes = number
            * match unit {
                "" | "B" => 1.0,
                "kB" => 1e3,
                "MB" => 1e6,
                "GB" => 1e9,
                "KiB" => 1024.0,
                "MiB" => 1024.0 * 1024.0,
                "GiB" => 1024.0 * 1024.0 * 1024.0,
                _ => return Err(wrong()),
            };
        Ok(ByteSize(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n > 0 && n % (1 << 30) == 0 => write!(f, "{}GiB", n >> 30),
            n if n > 0 && n % (1 << 20) == 0 => write!(f, "{}MiB", n >> 20),
            n if n > 0 && n % (1 << 10) == 0 => write!(f, "{}KiB", n >> 10),
            n => write!(f, "{n}B"),
        }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for ServerName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServerName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Workers {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Workers::Auto => s.serialize_str("auto"),
            Workers::Count(n) => s.serialize_u16(*n),
        }
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(d)? {
            NumberOrText::Number(n) => Ok(ByteSize(n)),
            NumberOrText::Text(s) => s.parse().map_err(de::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(d)? {
            NumberOrText::Number(n @ 1..=1024) => Ok(Workers::Count(n as u16)),
            NumberOrText::Text(s) if s == "auto" => Ok(Workers::Auto),
            _ => Err(de::Error::custom("the number of workers is `auto` or 1 to 1024")),
        }
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "tollgate-time",
            "pattern": r"^[0-9]+(\.[0-9]+)? ?(us|µs|ms|s|m|h)$",
            "description": "A duration: a number with a unit (us, ms, s, m, h), such as 250ms.",
        })
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "minimum": 0,
            "format": "tollgate-size",
            "pattern": r"^[0-9]+(\.[0-9]+)? ?(B|kB|KiB|MB|MiB|GB|GiB)?$",
            "description": "A number of bytes, with or without a unit (B, kB, KiB, MB, MiB, GB, GiB), such as 64KiB.",
        })
    }
}

impl JsonSchema for Address {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Address".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "tollgate-address",
            "description": "An IP address and a port (127.0.0.1:8080, [::1]:8080), or unix:/path.",
        })
    }
}

impl JsonSchema for EndpointAddress {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "EndpointAddress".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "tollgate-endpoint-address",
            "description": "An IP address or a host name, and a port (127.0.0.1:8080, api.internal:8080), or unix:/path.",
        })
    }
}

impl JsonSchema for Cidr {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cidr".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "tollgate-cidr",
            "description": "An IP address, or a range such as 10.0.0.0/8.",
        })
    }
}

impl JsonSchema for ServerName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ServerName".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "tollgate-server-name",
            "description": "A server name (a.example), or a wildcard (*.example).",
        })
    }
}

impl JsonSchema for Workers {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Workers".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "minimum": 1,
            "maximum": 1024,
            "format": "tollgate-workers",
            "pattern": "^auto$",
            "description": "`auto` (one per processor) or a number from 1 to 1024.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_with_units() {
        for (text, us) in [("250ms", 250_000), ("1.5s", 1_500_000), ("2m", 120_000_000), ("0s", 0), ("7us", 7)] {
            let d: Duration = text.parse().unwrap();
            assert_eq!(d.0.as_micros(), us, "{text}");
            assert_eq!(d.to_string().parse::<Duration>().unwrap(), d);
        }
        for text in ["", "5", "ms", "-1s", "5 parsecs", "1e9s", "99999h"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_of_two_kinds() {
        for text in ["127.0.0.1:80", "[::1]:80", "unix:/run/a.sock", "unix:relative"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let long = format!("unix:/{}", "x".repeat(107));
        for text in ["", "localhost:80", "127.0.0.1", "unix:", "/run/a.sock", &long] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_of_endpoints_may_have_host_names() {
        for text in
            ["127.0.0.1:80", "unix:/a", "localhost:80", "api.internal.:65535", "_a-b.c1:0", "xn--bcher-kva.example:1"]
        {
            assert_eq!(Address::of_endpoint(text).unwrap().to_string(), text);
        }
        let long = format!("{}:1", ["a"; 128].join("."));
        for text in [
            "",
            ":80",
            "a:",
            "a:65536",
            "a:b",
            "a",
            "127.0.0.256:1",
            "1.2.3:1",
            "a..b:1",
            "a b:1",
            "b\u{fc}:1",
            ".:1",
            &long,
        ] {
            assert!(Address::of_endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_hold_addresses_of_their_family() {
        let inside = |range: &str, ip: &str| range.parse::<Cidr>().unwrap().contains(ip.parse().unwrap());
        assert!(inside("10.0.0.0/8", "10.1.2.3") && inside("10.0.0.1", "::ffff:10.0.0.1") && inside("::/0", "::1"));
        assert!(!inside("10.0.0.0/8", "11.0.0.0") && !inside("10.0.0.1", "10.0.0.2") && !inside("0.0.0.0/0", "::1"));
        assert!("10.0.0.0/33".parse::<Cidr>().is_err() && "x".parse::<Cidr>().is_err());
    }

    #[test]
    fn server_names_are_exact_or_all_below_one() {
        for (text, read) in [("a.Example", "a.example"), ("*.b_1.example", "*.b_1.example"), ("localhost", "localhost")]
        {
            assert_eq!(text.parse::<ServerName>().unwrap().to_string(), read);
        }
        let long = format!("{}a", "a.".repeat(127));
        for text in
            ["", "*", "*.", ".a", "a.", "a..b", "a*.b", "a.*.b", "*.*.a", "a b", "a:443", "10.0.0.1", "::1", &long]
        {
            assert!(text.parse::<ServerName>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_and_written_with_units() {
        for (text, n) in [("64KiB", 65_536), ("10", 10), ("1 MB", 1_000_000), ("1.5KiB", 1536)] {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, n, "{text}");
        }
        assert!("64K".parse::<ByteSize>().is_err());
        assert_eq!(ByteSize(65_536).to_string(), "64KiB");
    }
}
