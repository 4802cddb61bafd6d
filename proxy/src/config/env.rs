//! Environment variables in a configuration: `${NAME}` and `${NAME:-default}` in any value; `$$` is a literal `$`.
//!
//! They are expanded in the values of the tree, not in the text, so a variable's value can never become a key, a list
//! or a second value. The type of an expanded value is determined later (`normalize`).

use std::ffi::OsString;

use super::{
    diagnostic::Diagnostic,
    node::{Node, Span, Text, Value},
};

/// Looks up a variable.
pub(super) type Lookup<'f> = dyn Fn(&str) -> Option<OsString> + 'f;

/// Expands the variables in every value of the tree.
pub(super) fn substitute(node: &mut Node, source: &str, env: &Lookup<'_>, problems: &mut Vec<Diagnostic>) {
    match &mut node.value {
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
        Value::Seq(items) => items.iter_mut().for_each(|item| substitute(item, source, env, problems)),
        Value::Map(entries) => entries.iter_mut().for_each(|(_, value)| substitute(value, source, env, problems)),
        Value::String(Text { text, plain, .. }) if text.contains('$') => {
            let before = problems.len();
            let new = expand(text, env, &mut |reference, message, help| {
                let span = locate(source, node.span, reference);
                problems.push(Diagnostic::error(span, message).help(help.map(str::to_owned)));
            });
            let failed = problems.len() > before;
            // A value that could not be expanded is not checked further, for example for being an address.
            node.value = match failed {
                true => Value::Undefined,
                false => Value::String(Text { variable: text.contains("${"), text: new, plain: *plain }),
            };
        }
        Value::String(_) | Value::Undefined => {}
    }
}

/// Returns the values of an unexpanded tree that contain variables: their JSON pointers, and the text as written.
pub(super) fn references(node: &Node) -> Vec<(String, String)> {
    let mut found = Vec::new();
    collect(node, &mut String::new(), &mut found);
    found
}

fn collect(node: &Node, pointer: &mut String, found: &mut Vec<(String, String)>) {
    let within = |key: &str, node: &Node, pointer: &mut String, found: &mut Vec<(String, String)>| {
        let length = pointer.len();
        pointer.push('/');
        pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
        collect(node, pointer, found);
        pointer.truncate(length);
    };
    match &node.value {
        Value::String(Text { text, .. }) if text.contains("${") => found.push((pointer.clone(), text.clone())),
        Value::Seq(items) => {
            items.iter().enumerate().for_each(|(nth, item)| within(&nth.to_string(), item, pointer, found))
        }
        Value::Map(entries) => entries.iter().for_each(|(key, value)| within(&key.name, value, pointer, found)),
        _ => {}
    }
}

/// Locates a reference within a scalar. If escapes prevent that, the location is the scalar itself.
fn locate(source: &str, scalar: Span, reference: &str) -> Span {
    let found = source.get(scalar.start..scalar.end).and_then(|raw| raw.find(reference));
    found.map_or(scalar, |at| Span::new(scalar.start + at, scalar.start + at + reference.len()))
}

/// Returns the text with all references expanded; `fail` is called for each invalid one.
fn expand(text: &str, env: &Lookup<'_>, fail: &mut dyn FnMut(&str, String, Option<&str>)) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix("${") {
            let Some(end) = after.find('}') else {
                let help = "write a literal `$` as `$$`";
                fail("${", "`${` is not closed with `}`".to_owned(), Some(help));
                return out;
            };
            match value(&after[..end], env) {
                Ok(value) => out.push_str(&value),
                Err((message, help)) => fail(&rest[..end + 3], message, Some(help)),
            }
            rest = &after[end + 1..];
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

/// Returns the value of a reference, the text between `${` and `}`.
fn value(reference: &str, env: &Lookup<'_>) -> Result<String, (String, &'static str)> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(letter) {
        let message = format!("`{name}` is not the name of an environment variable");
        return Err((message, "write `${NAME}` or `${NAME:-default}`, and a literal `$` as `$$`"));
    }
    if default.is_some_and(|d| d.contains("${")) {
        let message = "a default cannot contain another variable".to_owned();
        return Err((message, "write `${NAME:-default}` with plain text for the default"));
    }
    // As in a shell, `:-` also applies to a variable that is set but empty.
    let value = env(name).map(OsString::into_string).transpose().map_err(|_| {
        let message = format!("the environment variable `{name}` holds bytes that are not UTF-8");
        (message, "set it to valid UTF-8")
    })?;
    match (value, default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            let message = format!("the environment variable `{name}` is not set");
            Err((message, "set it, or give a default: `${NAME:-default}`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn references_are_replaced() {
        let env = |name: &str| match name {
            "A" => Some("x".into()),
            "EMPTY" => Some(OsString::new()),
            // Neither unset nor valid text.
            "LATIN1" => Some(OsString::from_vec(b"caf\xe9".to_vec())),
            _ => None,
        };
        for (text, expected) in [
            ("${A}", Ok("x")),
            ("<${A}|${A:-y}>", Ok("<x|x>")),
            ("${B:-y}${EMPTY:-z}[${EMPTY}]${B:-}", Ok("yz[]")),
            ("${B:-a:-b}", Ok("a:-b")),
            ("$${A} $$ $A ^a$ $", Ok("${A} $ $A ^a$ $")),
            ("${B}", Err("the environment variable `B` is not set")),
            ("${LATIN1}", Err("the environment variable `LATIN1` holds bytes that are not UTF-8")),
            ("${LATIN1:-x}", Err("the environment variable `LATIN1` holds bytes that are not UTF-8")),
            ("${}", Err("`` is not the name of an environment variable")),
            ("${1}", Err("`1` is not the name of an environment variable")),
            ("${A", Err("`${` is not closed with `}`")),
            ("${A:-${B}}", Err("a default cannot contain another variable")),
        ] {
            let mut errors = Vec::new();
            let new = expand(text, &env, &mut |_, message, _| errors.push(message));
            match expected {
                Ok(expected) => assert_eq!((new.as_str(), errors.len()), (expected, 0), "{text}"),
                Err(expected) => assert_eq!(errors, [expected], "{text}"),
            }
        }
    }
}
