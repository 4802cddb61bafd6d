//! Says in our own words what a schema error means, at the key or the value that it is about.

use jsonschema::{ValidationError, error::ValidationErrorKind as Kind};
use serde_json::Value as Json;

use super::{
    diagnostic::Diagnostic,
    node::{Found, Node, Value},
    schema,
    source::Source,
    units::{Address, ByteSize, Duration},
};
use crate::ca::spiffe::SpiffeId;

/// Finding the place of an error takes a moment, and nobody is shown this many.
const MOST: usize = 2000;

/// Checks the tree of a source against the schema.
pub(super) fn check(source: &Source, json: &Json, problems: &mut Vec<Diagnostic>) {
    for error in schema::validator().iter_errors(json).take(MOST) {
        explain(&error, source, problems);
    }
}

fn explain(error: &ValidationError<'_>, source: &Source, problems: &mut Vec<Diagnostic>) {
    let found = source.root().find(error.instance_path().as_str());
    if found.node.value == Value::Undefined {
        return;
    }
    let span = source.first_line(found.span());
    let around = schema::around(error.schema_path().as_str());
    let mut report = |message: String, help: Option<String>| {
        problems.push(Diagnostic::error(span, message).help(help));
    };
    match error.kind() {
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
            let variants = variants(around);
            if !variants.is_empty() {
                let (message, help) = unknown_variant(found.node, &variants);
                return report(message, help);
            }
            let choices = choices(around);
            if !choices.is_empty() && matches!(found.node.value, Value::Map(_)) {
                let given = |(name, _): &(&&str, _)| found.node.get(name).is_some();
                let branches: Vec<_> = choices.iter().zip(context).filter(given).collect();
                return match &branches[..] {
                    [(_, errors)] => errors.iter().for_each(|error| explain(error, source, problems)),
                    _ => report(format!("this must have exactly one of {}", list(&choices)), None),
                };
            }
            // An optional section is "this or null". That it is not null is not what is wrong with it.
            let not_null = |e: &ValidationError<'_>| schema::around(e.schema_path().as_str())["type"] == "null";
            for error in context.iter().filter(|branch| !branch.iter().all(not_null)).flatten() {
                explain(error, source, problems);
            }
        }
        Kind::Enum { .. } | Kind::Constant { .. } => {
            let (message, help) = unknown_variant(found.node, &variants(around));
            report(message, help);
        }
        Kind::AdditionalProperties { .. } => unknown_fields(found.node, around, problems),
        Kind::Required { property } => report(format!("missing field `{}`", text(property)), None),
        Kind::Type { .. } => {
            let (message, help) = wrong_type(&found, around);
            report(message, help);
        }
        Kind::Pattern { .. } | Kind::Format { .. } => {
            let (message, help) = wrong_format(found.node, around);
            report(message, help);
        }
        kind @ (Kind::Minimum { .. } | Kind::Maximum { .. }) => {
            let bound = |name: &str| around.get(name).filter(|v| v.is_number()).map(number);
            // That four billion is too much is of interest only to who has written more.
            let max =
                bound("maximum").filter(|max| !(matches!(kind, Kind::Minimum { .. }) && *max == u32::MAX.to_string()));
            let range = match (bound("minimum"), max) {
                (Some(min), Some(max)) => format!("from {min} to {max}"),
                (Some(min), None) => format!("{min} or greater"),
                (None, Some(max)) => format!("{max} or less"),
                (None, None) => "in the range that the schema says".to_owned(),
            };
            report(format!("`{}` is out of range", shown(found.node)), Some(format!("it must be {range}")));
        }
        Kind::MinLength { .. } => report("this must not be empty".to_owned(), None),
        Kind::MinItems { .. } => report("the list must not be empty".to_owned(), None),
        _ => report(error.to_string(), None),
    }
}

/// The error names the fields too, but looking each of them up takes quadratic time.
fn unknown_fields(node: &Node, around: &Json, problems: &mut Vec<Diagnostic>) {
    let Value::Map(entries) = &node.value else { return };
    let known: Vec<&str> =
        around["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let absent: Vec<&str> = known.iter().copied().filter(|name| node.get(name).is_none()).collect();
    for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.name.as_str())).take(MOST) {
        let all = || format!("the fields here are {}", list(&known));
        let help = did_you_mean(&key.name, &absent).unwrap_or_else(all);
        problems.push(Diagnostic::error(key.span, format!("unknown field `{}`", clip(&key.name))).help(help));
    }
}

/// The values that a schema allows, if it is an enumeration.
fn variants(schema: &Json) -> Vec<&str> {
    let nested = ["oneOf", "anyOf"].into_iter().filter_map(|k| schema[k].as_array()).flatten().flat_map(variants);
    let consts = schema.get("const").into_iter().chain(schema["enum"].as_array().into_iter().flatten());
    consts.filter_map(Json::as_str).chain(nested).collect()
}

/// The fields of which a schema wants exactly one, if it is such a choice.
fn choices(schema: &'static Json) -> Vec<&'static str> {
    let only = |branch: &'static Json| branch["required"].as_array().filter(|all| all.len() == 1)?[0].as_str();
    schema["oneOf"].as_array().and_then(|branches| branches.iter().map(only).collect()).unwrap_or_default()
}

fn unknown_variant(node: &Node, variants: &[&str]) -> (String, Option<String>) {
    let all = format!("it is one of {}", list(variants));
    match node.as_str() {
        Some(name) => (format!("unknown variant `{}`", clip(name)), Some(did_you_mean(name, variants).unwrap_or(all))),
        None => (format!("expected a string, found {}", node.kind()), Some(all)),
    }
}

fn wrong_type(found: &Found<'_>, around: &Json) -> (String, Option<String>) {
    let node = found.node;
    // `drain_timeout: 30` is best answered with how a time is written.
    if around.get("format").is_some_and(is_ours) && matches!(node.value, Value::Number(_) | Value::Bool(_)) {
        return wrong_format(node, around);
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
        Json::Array(types) => types.iter().filter(|t| *t != "null").map(one).collect::<Vec<_>>().join(" or "),
        single => one(single).to_owned(),
    };
    let empty = node.value == Value::Null && found.key.is_some();
    let help = empty.then(|| "give it a value, or remove the field if its default will do".to_owned());
    let found = match &node.value {
        Value::Number(n) if expected == "a whole number" => format!("`{n}`"),
        _ => node.kind().to_owned(),
    };
    (format!("expected {expected}, found {found}"), help)
}

fn is_ours(format: &Json) -> bool {
    use schema::{ADDRESS, CIDR, SERVER_NAME, SIZE, TIME, WORKERS};
    [TIME, SIZE, WORKERS, ADDRESS, CIDR, SERVER_NAME].contains(&text(format))
}

fn wrong_format(node: &Node, around: &Json) -> (String, Option<String>) {
    let value = shown(node);
    let (kind, help) = match text(&around["format"]) {
        schema::TIME => ("time", "write a number with a unit (us, ms, s, m, h), such as 250ms"),
        schema::SIZE => ("size", "write a number with a unit (B, kB, KiB, MB, MiB, GB, GiB), such as 64KiB"),
        schema::WORKERS => ("number of workers", "write `auto` or a number from 1 to 1024"),
        schema::ADDRESS => ("socket address", address_help(&value)),
        schema::CIDR => ("range of IP addresses", "write an address or a range of them, such as 10.0.0.0/8"),
        schema::SERVER_NAME if value == "*" => {
            ("server name", "leave it out: other names go to `tcp.clusters`, or else to the listener's `cluster`")
        }
        schema::SERVER_NAME => ("server name", "write a name, or `*.` before one for all below it: *.example.com"),
        schema::SPIFFE_ID => ("SPIFFE ID", "write one such as spiffe://mesh.local/ns/default/sa/web"),
        schema::CA_URL => ("certificate authority's URL", "write http://HOST:PORT: it is asked by plain HTTP"),
        _ if text(&around["pattern"]) == "^/" => ("path", "a path begins with `/`"),
        _ => ("valid value", "see the field's description in `tollgate schema`"),
    };
    // The types themselves know of errors that this table does not, such as a time that is too long.
    let own = match text(&around["format"]) {
        schema::TIME => value.parse::<Duration>().err(),
        schema::SIZE => value.parse::<ByteSize>().err(),
        schema::SPIFFE_ID => {
            let error = node.as_str().and_then(|text| text.parse::<SpiffeId>().err());
            error.map(|error| format!("`{value}` is not a SPIFFE ID: {error}"))
        }
        schema::ADDRESS if value.starts_with("unix:") => value.parse::<Address>().err(),
        _ => None,
    };
    match own {
        Some(own) if !own.contains("; ") => (own, None),
        _ => (format!("`{value}` is not a {kind}"), Some(help.to_owned())),
    }
}

fn address_help(value: &str) -> &'static str {
    let (host, port) = value.rsplit_once(':').unwrap_or((value, ""));
    if host.parse::<std::net::Ipv4Addr>().is_ok() && port.is_empty() || value.parse::<std::net::IpAddr>().is_ok() {
        "the port is missing: write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080"
    } else if host.contains(|c: char| c.is_ascii_alphabetic()) && !host.contains(':') {
        "host names are not looked up: write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080"
    } else {
        "write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080"
    }
}

/// A mistake in the value at `pointer`, as a filter has told it: `inner` is its path in there. What serde says of unknown
/// fields becomes like the file's own.
pub fn of_filter(source: &Source, pointer: &str, inner: &str, message: &str, help: String) -> Diagnostic {
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    let Some((name, rest)) = unknown else { return source.diagnostic_in(pointer, inner, message, Some(help)) };
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let hint = did_you_mean(name, &known).unwrap_or_else(|| format!("the fields here are {}", list(&known)));
    let found = source.root().find(pointer).follow(inner);
    let key = found.node.entry(name).map(|(key, _)| key).or(found.key.filter(|key| key.name == name));
    let span = key.map_or(found.span(), |key| key.span);
    Diagnostic::error(source.first_line(span), format!("unknown field `{}`", clip(name))).help(hint)
}

/// The name that was probably meant.
pub(super) fn did_you_mean(name: &str, known: &[&str]) -> Option<String> {
    // `drainTimeout` and `drain-timeout` are nothing but other customs.
    let plain =
        |s: &str| s.chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect::<String>();
    // A name of megabytes is compared with nothing: the distance takes quadratic time.
    let name = (name.len() <= 64).then(|| plain(name))?;
    let near = |k: &str| strsim::damerau_levenshtein(&name, &plain(k));
    let limit = if name.chars().count() < 4 { 0 } else { 1 + name.len() / 4 };
    let (distance, best) = known.iter().map(|k| (near(k), *k)).min_by_key(|(distance, _)| *distance)?;
    // `4xx` is far from `retriable_4xx`, but cannot be anything else.
    let mut longer = known.iter().copied().filter(|k| name.len() >= 3 && plain(k).contains(&name));
    let meant = match (longer.next(), longer.next()) {
        _ if distance <= limit => Some(best),
        (Some(only), None) => Some(only),
        _ => None,
    };
    meant.map(|meant| format!("did you mean `{meant}`?"))
}

/// Names in a row.
pub(super) fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        None => "none".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// What a file says, but not at any length.
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
