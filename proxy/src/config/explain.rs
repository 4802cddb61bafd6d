//! Translates schema errors into messages, each at the key or value it is about.
//!
//! Errors that filters report about their own configuration get the same treatment where they come from serde.

use jsonschema::{ValidationError, error::ValidationErrorKind as Kind};
use serde_json::Value as Json;

use super::{
    diagnostic::Diagnostic,
    node::{Found, Node, Value},
    schema,
    source::Source,
    spiffe::SpiffeId,
    suggest::{meant, meant_beside},
    units::{Address, ByteSize, Duration, is_host_name},
};

/// The maximum number of schema errors. Locating an error takes a moment, and no report shows this many.
const MOST: usize = 2000;

/// Checks a value, which is at `pointer` in a source, against the schema of its section. Returns whether it is valid.
pub(super) fn check(
    source: &Source,
    section: &str,
    pointer: &str,
    json: &Json,
    problems: &mut Vec<Diagnostic>,
) -> bool {
    let validator = schema::validator(section);
    // Collecting errors takes longer, so it is done only if there are any.
    if validator.is_valid(json) {
        return true;
    }
    for error in validator.iter_errors(json).take(MOST.saturating_sub(problems.len())) {
        explain(&error, source, pointer, problems);
    }
    false
}

fn explain(error: &ValidationError<'_>, source: &Source, pointer: &str, problems: &mut Vec<Diagnostic>) {
    let place = format!("{pointer}{}", error.instance_path().as_str());
    let found = source.root().find(&place);
    if found.node.value == Value::Undefined {
        return;
    }
    let span = source.first_line(found.span());
    let path = error.schema_path().as_str().to_owned();
    let (around, section) = schema::around(&path);
    let connect = place.starts_with("/clusters/");
    let mut report = |message: String, help: Option<String>| {
        problems.push(Diagnostic::error(span, message).help(help));
    };
    match error.kind() {
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
            let variants = variants(around);
            if !variants.is_empty() {
                let (message, help) = unknown_variant(found.node, section, &variants);
                return report(message, help);
            }
            let choices = choices(around);
            if !choices.is_empty() && matches!(found.node.value, Value::Map(_)) {
                let given = |(name, _): &(&&str, _)| found.node.get(name).is_some();
                let branches: Vec<_> = choices.iter().zip(context).filter(given).collect();
                return match &branches[..] {
                    [(_, errors)] => errors.iter().for_each(|error| explain(error, source, pointer, problems)),
                    _ => report(format!("this must have exactly one of {}", list(&choices)), None),
                };
            }
            context.iter().flatten().for_each(|error| explain(error, source, pointer, problems));
        }
        Kind::Enum { .. } | Kind::Constant { .. } => {
            let (message, help) = unknown_variant(found.node, section, &variants(around));
            report(message, help);
        }
        Kind::AdditionalProperties { .. } => unknown_fields(found.node, around, section, problems),
        Kind::Required { property } => report(format!("missing field `{}`", text(property)), None),
        Kind::Type { .. } => {
            let (message, help) = wrong_type(&found, around, section, connect, source);
            report(message, help);
        }
        Kind::Pattern { .. } | Kind::Format { .. } => {
            let (message, help) = wrong_format(found.node, around, connect);
            let off = place == "/admin/address" && is_off(found.node);
            report(
                message,
                if off { Some("to disable the admin listener, write `admin: false`".to_owned()) } else { help },
            );
        }
        kind @ (Kind::Minimum { .. } | Kind::Maximum { .. }) => {
            let bound = |name: &str| around.get(name).filter(|v| v.is_number()).map(number);
            // `u32::MAX` as the upper limit is worth mentioning only if the value exceeds it.
            let max =
                bound("maximum").filter(|max| !(matches!(kind, Kind::Minimum { .. }) && *max == u32::MAX.to_string()));
            let range = match (bound("minimum"), max) {
                (Some(min), Some(max)) => format!("from {min} to {max}"),
                (Some(min), None) => format!("{min} or greater"),
                (None, Some(max)) => format!("{max} or less"),
                (None, None) => "in the schema's range".to_owned(),
            };
            report(format!("`{}` is out of range", shown(found.node)), Some(format!("it must be {range}")));
        }
        Kind::MinLength { .. } => report("this must not be empty".to_owned(), None),
        Kind::MinItems { .. } => report("the list must not be empty".to_owned(), None),
        _ => report(error.to_string(), None),
    }
}

/// Reports unknown fields. The schema error lists them too, but looking each one up would take quadratic time.
fn unknown_fields(node: &Node, around: &Json, section: &str, problems: &mut Vec<Diagnostic>) {
    let Value::Map(entries) = &node.value else { return };
    let known: Vec<&str> =
        around["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let absent: Vec<&str> = known.iter().copied().filter(|name| node.get(name).is_none()).collect();
    for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.name.as_str())).take(MOST) {
        let all = || format!("the fields here are {}", list(&known));
        let help = meant(section, &key.name).or_else(|| meant_beside(&key.name, &known));
        let help = help.or_else(|| did_you_mean(&key.name, &absent)).unwrap_or_else(all);
        problems.push(Diagnostic::error(key.span, format!("unknown field `{}`", clip(&key.name))).help(help));
    }
}

/// Returns the values that a schema allows if it is an enumeration.
fn variants(schema: &Json) -> Vec<&str> {
    let nested = ["oneOf", "anyOf"].into_iter().filter_map(|k| schema[k].as_array()).flatten().flat_map(variants);
    let consts = schema.get("const").into_iter().chain(schema["enum"].as_array().into_iter().flatten());
    consts.filter_map(Json::as_str).chain(nested).collect()
}

/// Returns the fields of which a schema requires exactly one, if it is such a choice.
fn choices(schema: &'static Json) -> Vec<&'static str> {
    let only = |branch: &'static Json| branch["required"].as_array().filter(|all| all.len() == 1)?[0].as_str();
    schema["oneOf"].as_array().and_then(|branches| branches.iter().map(only).collect()).unwrap_or_default()
}

fn unknown_variant(node: &Node, section: &str, variants: &[&str]) -> (String, Option<String>) {
    let all = format!("it is one of {}", list(variants));
    match node.as_str() {
        Some(name) => {
            let help = meant(section, name).or_else(|| did_you_mean(name, variants)).unwrap_or(all);
            (format!("unknown variant `{}`", clip(name)), Some(help))
        }
        None => (format!("expected a string, found {}", node.kind()), Some(all)),
    }
}

fn wrong_type(
    found: &Found<'_>,
    around: &Json,
    section: &str,
    connect: bool,
    source: &Source,
) -> (String, Option<String>) {
    let node = found.node;
    // For `drain_timeout: 30`, the most helpful answer is the format of a time.
    if around.get("format").is_some_and(is_ours) && matches!(node.value, Value::Number(_) | Value::Bool(_)) {
        return wrong_format(node, around, connect);
    }
    let one = |name: &Json| match text(name) {
        "string" => "a string",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "`true` or `false`",
        "array" => "a list",
        "object" => "a map",
        _ => "nothing",
    };
    let expected = match &around["type"] {
        Json::Array(types) if types.len() > 3 => "a value".to_owned(),
        Json::Array(types) => types.iter().map(one).collect::<Vec<_>>().join(" or "),
        single => one(single).to_owned(),
    };
    let written = source.text().get(node.span.start..node.span.end).unwrap_or_default();
    let (kind, is_list) = (json_type(node), expected == "a list");
    let help = match &node.value {
        Value::Null if found.key.is_some() => Some("set a value, or remove the field to use its default".to_owned()),
        Value::String(text) if text.variable => {
            Some(format!("with its variables expanded, it is `{}`", clip(&text.text)))
        }
        // YAML 1.1 treats these as booleans.
        Value::String(text) if matches!(&*text.text.to_ascii_lowercase(), "yes" | "on") => {
            (expected == "`true` or `false`").then(|| "write `true`".to_owned())
        }
        Value::String(text) if matches!(&*text.text.to_ascii_lowercase(), "no" | "off") => {
            (expected == "`true` or `false`").then(|| "write `false`".to_owned())
        }
        Value::Map(_) if is_list && written.starts_with('[') => {
            Some(format!("write `[{written}]`: in TOML, two brackets begin an item of a list"))
        }
        Value::Map(_) if is_list => Some("a list is written `[...]`, or in YAML with `- ` before each item".to_owned()),
        Value::Number(_) if text(&around["pattern"]).contains("[0-7]") => {
            Some(format!("write it in quotes: `\"{}\"`", written.strip_prefix("0o").unwrap_or(written)))
        }
        _ => meant(section, kind),
    };
    let found = match &node.value {
        Value::Number(n) if expected == "a whole number" => format!("`{n}`"),
        _ => node.kind().to_owned(),
    };
    (format!("expected {expected}, found {found}"), help)
}

/// Returns the type of a value in JSON Schema's terms.
fn json_type(node: &Node) -> &'static str {
    match &node.value {
        Value::Null | Value::Undefined => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Seq(_) => "array",
        Value::Map(_) => "object",
    }
}

fn is_ours(format: &Json) -> bool {
    use schema::{ADDRESS, CIDR, ENDPOINT_ADDRESS, HOST_NAME, SERVER_NAME, SIZE, SOCKET_ADDRESS, TIME, WORKERS};
    [TIME, SIZE, WORKERS, ADDRESS, ENDPOINT_ADDRESS, HOST_NAME, SOCKET_ADDRESS, CIDR, SERVER_NAME]
        .contains(&text(format))
}

/// Explains a value in the wrong format. `connect`: an address is one to connect to, not to listen on.
fn wrong_format(node: &Node, around: &Json, connect: bool) -> (String, Option<String>) {
    let value = shown(node);
    if [schema::ADDRESS, schema::ENDPOINT_ADDRESS].contains(&text(&around["format"]))
        && value.starts_with("unix:")
        && let Some(Err(error)) = node.as_str().map(str::parse::<Address>)
    {
        return (error, None);
    }
    let (kind, help) = match text(&around["format"]) {
        schema::TIME => ("time", "write a number with a unit (us, ms, s, m, h), such as 250ms"),
        schema::SIZE => ("size", "write a number with a unit (B, kB, KiB, MB, MiB, GB, GiB), such as 64KiB"),
        schema::WORKERS => ("number of workers", "write `auto` or a number from 1 to 1024"),
        schema::SOCKET_ADDRESS if value.starts_with("unix:") => {
            ("TCP address", "this cannot be a unix socket: write an IP address and a port, such as 0.0.0.0:9902")
        }
        schema::ADDRESS | schema::ENDPOINT_ADDRESS | schema::SOCKET_ADDRESS => {
            return (format!("`{value}` is not a socket address"), Some(address_help(&value, connect)));
        }
        schema::CIDR => ("range of IP addresses", "write an address or a range of them, such as 10.0.0.0/8"),
        schema::STATUSES => {
            ("status or a range of statuses", "write a number from 100 to 599, or two, such as 200-399")
        }
        schema::HOST_NAME => ("host name", "write a name, such as api.internal"),
        schema::SERVER_NAME if value == "*" => {
            ("server name", "leave it out: other names go to `tcp.clusters`, or else to the listener's `cluster`")
        }
        schema::SERVER_NAME => ("server name", "write a name, or `*.` before one for all below it: *.example.com"),
        schema::SPIFFE_ID => ("SPIFFE ID", "write one such as spiffe://mesh.local/ns/default/sa/web"),
        schema::CA_URL => ("certificate authority's URL", "write http://HOST:PORT: requests use plain HTTP"),
        _ if text(&around["pattern"]) == "^/" => ("path", "a path begins with `/`"),
        _ => ("valid value", "see the field's description in `tollgate schema`"),
    };
    // The types themselves report errors that this table does not cover, such as a time that is too long.
    let own = match text(&around["format"]) {
        schema::TIME => value.parse::<Duration>().err(),
        schema::SIZE => value.parse::<ByteSize>().err(),
        schema::SPIFFE_ID => {
            let error = node.as_str().and_then(|text| text.parse::<SpiffeId>().err());
            error.map(|error| format!("`{value}` is not a SPIFFE ID: {error}"))
        }
        _ => None,
    };
    match own {
        Some(own) if !own.contains("; ") => (own, None),
        _ => (format!("`{value}` is not a {kind}"), Some(help.to_owned())),
    }
}

/// Whether the value is a word for "disabled".
fn is_off(node: &Node) -> bool {
    let word = node.as_str().unwrap_or_default().to_ascii_lowercase();
    ["off", "no", "none", "disabled", "disable"].contains(&word.as_str())
}

/// Returns advice on an invalid address. `connect`: the address is one to connect to, not to listen on.
fn address_help(value: &str, connect: bool) -> String {
    let right = match connect {
        true => "write a host name or an IP address, and a port, such as api.internal:8080 or 127.0.0.1:8080",
        false => "write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080",
    };
    let (host, port) = value.rsplit_once(':').unwrap_or((value, ""));
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = value.strip_prefix('$').filter(|rest| !rest.starts_with('{')) {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        return format!("an environment variable is written in braces: `${{{}}}{}`", &rest[..end], &rest[end..]);
    }
    if let Some((scheme, rest)) = value.split_once("://") {
        let bare = rest.split('/').next().unwrap_or_default();
        let bare = format!(
            "write it without `{scheme}://`{}",
            if bare.len() < rest.len() { " and without a path" } else { "" }
        );
        return match scheme {
            "https" => format!("{bare}; for TLS, add the section `tls`"),
            _ => bare,
        };
    }
    if value.starts_with('/') {
        return format!("for a unix socket, write `unix:{value}`");
    }
    if is_port(port) && port.parse::<u16>().is_err() {
        return "a port is at most 65535".to_owned();
    }
    // Other proxies accept `:8080`, `*:8080` and `8080` for all addresses.
    let port = if is_port(value) { value } else { port };
    if is_port(port) && matches!(host, "" | "*") || is_port(value) {
        if connect {
            return format!("the host is missing: write one, such as 127.0.0.1:{port}");
        }
        return format!("for all addresses, write 0.0.0.0:{port} (IPv4) or [::]:{port} (IPv6, and IPv4 too)");
    }
    if host.parse::<std::net::Ipv4Addr>().is_ok() && port.is_empty() || value.parse::<std::net::IpAddr>().is_ok() {
        return format!("the port is missing: {right}");
    }
    if connect && is_host_name(value) {
        return format!("the port is missing: {right}");
    }
    match !connect && host.contains(|c: char| c.is_ascii_alphabetic()) && !host.contains(':') {
        true => format!("this cannot be a host name: {right}"),
        false => right.to_owned(),
    }
}

/// Creates the diagnostic for an error that `who`, such as a filter, reported at the path `inner`, which resolves to
/// `found`. serde's messages about fields, variants and types are translated like the schema's.
pub(super) fn in_tree(source: &Source, found: Found<'_>, inner: &str, message: &str, who: &str) -> Diagnostic {
    let whose = match (who.is_empty(), inner.is_empty()) {
        (true, _) => None,
        (_, true) => Some(format!("reported by {who}")),
        (_, false) => Some(format!("reported by {who} at `{inner}`")),
    };
    let error = |span, message: String, help: Option<String>| {
        Diagnostic::error(source.first_line(span), message).help(help.or_else(|| whose.clone()))
    };
    let between = |start: &str| message.strip_prefix(start).and_then(|rest| rest.split_once('`'));
    let named = |rest: &str| rest.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    if let Some((name, rest)) = between("unknown field `") {
        let known = named(rest);
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let hint = meant_beside(name, &known).or_else(|| did_you_mean(name, &known));
        let hint = hint.unwrap_or_else(|| format!("the fields here are {}", list(&known)));
        let own = found.key.filter(|key| key.name == name);
        let key = own.or_else(|| found.node.entry(name).map(|(key, _)| key));
        let span = key.map_or(found.span(), |key| key.span);
        return error(span, format!("unknown field `{}`", clip(name)), Some(hint));
    }
    let path = found.node.as_str().filter(|text| text.starts_with('/'));
    if let Some((name, rest)) = between("unknown variant `") {
        let known = named(rest);
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let help = match path.filter(|_| known.contains(&"prefix")) {
            Some(path) => path_help(path),
            None => did_you_mean(name, &known).unwrap_or_else(|| format!("it is one of {}", list(&known))),
        };
        return error(found.span(), format!("unknown variant `{}`", clip(name)), Some(help));
    }
    // A choice given only by name: `check: tcp`.
    if let Some(name) = found.node.as_str().filter(|_| message.starts_with("invalid type: unit variant, expected")) {
        let help = format!("write it as a map: `{{{0}: …}}`", clip(name));
        return error(found.span(), format!("`{}` needs a value", clip(name)), Some(help));
    }
    if let Some(expected) =
        message.strip_prefix("invalid type: ").and_then(|m| m.rsplit_once(", expected ")).map(|(_, e)| e)
    {
        let expected = match expected {
            "a sequence" => "a list",
            "a boolean" => "`true` or `false`",
            "f32" | "f64" => "a number",
            other if other.len() < 6 && other.starts_with(['u', 'i']) && other[1..].parse::<u8>().is_ok() => {
                "a whole number"
            }
            "usize" => "a whole number",
            other if other.starts_with("tuple variant ") => "a list",
            other
                if ["struct ", "newtype variant", "enum ", "struct variant"]
                    .iter()
                    .any(|kind| other.starts_with(kind)) =>
            {
                "a map"
            }
            other => other,
        };
        let help = match expected {
            "a map" => path.map(path_help),
            "a list" => found.node.as_str().map(|text| format!("write `['{}']`", clip(text))),
            _ => None,
        };
        return error(found.span(), format!("expected {expected}, found {}", found.node.kind()), help);
    }
    error(found.span(), message.to_owned(), None)
}

fn path_help(path: &str) -> String {
    format!("write `{{prefix: {0}}}`, or `{{exact: {0}}}`", clip(path))
}

/// Returns a hint with the most similar name, if one is close enough.
pub(super) fn did_you_mean(name: &str, known: &[&str]) -> Option<String> {
    // `drainTimeout` and `drain-timeout` differ from `drain_timeout` only in style.
    let plain =
        |s: &str| s.chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect::<String>();
    // Long names are not compared, because the distance takes quadratic time.
    let name = (name.len() <= 64).then(|| plain(name))?;
    let near = |k: &str| strsim::damerau_levenshtein(&name, &plain(k));
    // List fields have plural names: `policy` means `policies`.
    if let Some(stem) = name.strip_suffix('y')
        && let Some(plural) = known.iter().find(|k| plain(k) == format!("{stem}ies"))
    {
        return Some(format!("did you mean `{plural}`?"));
    }
    let limit = if name.chars().count() < 4 { 0 } else { 1 + name.len() / 4 };
    let (distance, best) = known.iter().map(|k| (near(k), *k)).min_by_key(|(distance, _)| *distance)?;
    // `4xx` is far from `retriable_4xx`, but cannot mean anything else.
    let mut longer = known.iter().copied().filter(|k| name.len() >= 3 && plain(k).contains(&name));
    let meant = match (longer.next(), longer.next()) {
        _ if distance <= limit => Some(best),
        (Some(only), None) => Some(only),
        _ => None,
    };
    meant.map(|meant| format!("did you mean `{meant}`?"))
}

/// Formats names as a list for messages.
pub(super) fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        None => "none".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// Returns the text without control characters, shortened to 60 characters.
pub(super) fn clip(text: &str) -> String {
    let mut clipped: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        clipped.push('…');
    }
    clipped
}

fn shown(node: &Node) -> String {
    node.as_str().map_or_else(|| clip(&node.to_json().to_string()), clip)
}

fn number(value: &Json) -> String {
    value.as_f64().filter(|f| f.fract() == 0.0).map_or_else(|| value.to_string(), |f| format!("{f:.0}"))
}

fn text(value: &Json) -> &str {
    value.as_str().unwrap_or("")
}
