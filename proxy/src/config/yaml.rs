//! Parses YAML 1.2 from the events of `saphyr-parser`.
//!
//! Events are used instead of saphyr's own tree because they expose duplicate keys and whether a scalar was quoted, and
//! allow limiting the depth before the stack overflows. Scalars follow the core schema (YAML 1.2.2, section 10.3), so
//! `no` and `on` are strings.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span as Mark, Tag};

use super::{
    diagnostic::Diagnostic,
    json,
    node::{Key, Node, Span, Text, Value},
    tree::{Entries, MAX_DEPTH, MAX_NODES, ParseResult, too_deep, too_many},
};

/// The maximum number of bytes that aliases may repeat, so that a short text cannot expand into a huge tree ("billion
/// laughs").
const MAX_REPEATED: usize = 64 << 20;

/// Rejects the control characters that YAML does not allow (YAML 1.2.2, section 5.1). The parser treats a NUL as the
/// end of the file, so the text after one would be lost silently.
fn refuse_control_characters(text: &str) -> Result<(), Diagnostic> {
    let forbidden = |b: u8| b < b' ' && !matches!(b, b'\t' | b'\n' | b'\r');
    let Some(at) = text.bytes().position(forbidden) else { return Ok(()) };
    let code = text.as_bytes()[at];
    let message = format!("YAML does not allow the control character U+{code:04X}");
    let help = match code {
        0 => "remove it; a file that was being written during a crash may contain zero bytes".to_owned(),
        _ => format!("remove it, or write it as `\\x{code:02X}` in double quotes"),
    };
    Err(Diagnostic::error(Span::new(at, at + 1), message).help(help))
}

/// Parses a document.
pub(super) fn parse(text: &str) -> Result<ParseResult, Vec<Diagnostic>> {
    refuse_control_characters(text).map_err(|error| vec![error])?;
    let mut reader = Reader {
        offsets: Offsets { text, ascii: text.is_ascii(), chars: 0, bytes: 0 },
        stack: Vec::new(),
        root: None,
        anchors: HashMap::new(),
        nodes: 0,
        repeated: 0,
        documents: 0,
        problems: Vec::new(),
    };
    for event in Parser::new_from_str(text) {
        let done = match event {
            Ok((event, mark)) => {
                let span = reader.span(mark);
                reader.event(event, span)
            }
            Err(error) => Err(reader.syntax(&error)),
        };
        if let Err(error) = done {
            reader.problems.push(error);
            return Err(reader.problems);
        }
    }
    match reader.root {
        Some(node) => Ok(ParseResult { node, problems: reader.problems }),
        None => Ok(ParseResult { node: Node { span: Span::default(), value: Value::Null }, problems: reader.problems }),
    }
}

/// Returns the value of an unquoted scalar.
pub(super) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    match number(text) {
        Some(n) => Value::Number(n),
        None => Value::String(Text { text: text.to_owned(), plain: true, variable: false }),
    }
}

/// Parses a number of the core schema. Infinity and NaN stay text, since JSON cannot represent them.
fn number(text: &str) -> Option<serde_json::Number> {
    let radix = |digits: &str, radix| {
        let all = digits.bytes().all(|b| b.is_ascii_hexdigit());
        all.then(|| u64::from_str_radix(digits, radix).ok()).flatten().map(serde_json::Number::from)
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let fits = (digits(whole) && (fraction.is_empty() || digits(fraction))) || (whole.is_empty() && digits(fraction));
    if !fits || !digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)) {
        return None;
    }
    json::number(text.strip_prefix('+').unwrap_or(text))
}

/// A list or map that is not complete yet.
enum Frame {
    Seq { start: usize, anchor: usize, items: Vec<Node> },
    Map { start: usize, anchor: usize, entries: Entries, key: Option<Key>, merge: bool },
}

struct Reader<'t> {
    offsets: Offsets<'t>,
    stack: Vec<Frame>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    repeated: usize,
    documents: usize,
    problems: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Diagnostic> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Diagnostic::error(span, "a second document begins here")
                        .help("a configuration is one document: remove the `---`".to_owned()));
                }
            }
            Event::SequenceStart(anchor, tag) => {
                self.open(span, tag.as_deref())?;
                self.stack.push(Frame::Seq { start: span.start, anchor, items: Vec::new() });
            }
            Event::MappingStart(anchor, tag) => {
                self.open(span, tag.as_deref())?;
                let entries = Entries::default();
                self.stack.push(Frame::Map { start: span.start, anchor, entries, key: None, merge: false });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (node, anchor) = match self.stack.pop() {
                    Some(Frame::Seq { start, anchor, mut items }) => {
                        items.shrink_to_fit();
                        let end = items.last().map_or(start, |item| item.span.end);
                        let end = if span.is_empty() { end } else { span.end };
                        (Node { span: Span::new(start, end), value: Value::Seq(items) }, anchor)
                    }
                    Some(Frame::Map { start, anchor, entries, .. }) => {
                        let end = if span.is_empty() { entries.end().unwrap_or(start) } else { span.end };
                        (Node { span: Span::new(start, end), value: Value::Map(entries.into_list()) }, anchor)
                    }
                    None => return Ok(()),
                };
                self.add(node, anchor)?;
            }
            Event::Scalar(text, style, anchor, tag) => {
                let span = self.trimmed(span);
                if self.wants_key() {
                    // Keys are always text: `404: x` has the key "404".
                    let mut name = text.into_owned();
                    // The scanner reserves more than most keys need, and a large file has many.
                    name.shrink_to_fit();
                    self.key(Key { name, span }, style == ScalarStyle::Plain);
                    return Ok(());
                }
                let value = scalar(&text, style, tag.as_deref(), span)?;
                self.add(Node { span, value }, anchor)?;
            }
            Event::Alias(id) => {
                let inside = || Diagnostic::error(span, "this alias refers to a value that contains it");
                let mut node = self.anchors.get(&id).ok_or_else(inside)?.clone();
                self.charge(&node, span)?;
                // An error in an aliased scalar is best shown where the alias is used. The items of an aliased map or
                // list keep their own locations.
                node.span = span;
                if self.wants_key() {
                    let name = node.as_str().map_or_else(|| node.to_json().to_string(), str::to_owned);
                    self.key(Key { name, span }, false);
                    return Ok(());
                }
                self.add(node, 0)?;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn wants_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame::Map { key: None, .. }))
    }

    fn key(&mut self, new: Key, bare: bool) {
        if let Some(Frame::Map { key, merge, .. }) = self.stack.last_mut() {
            *merge = bare && new.name == "<<";
            *key = Some(new);
        }
    }

    /// Checks a list or a map before it is opened.
    fn open(&self, span: Span, tag: Option<&Tag>) -> Result<(), Diagnostic> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(too_deep(span));
        }
        if self.wants_key() {
            return Err(Diagnostic::error(span, "a key must be a string, not a list or a map").help(
                self.offsets.text[span.start..]
                    .starts_with('{')
                    .then(|| "put `${...}` and `{{...}}` in quotes".to_owned()),
            ));
        }
        match tag {
            Some(tag) if !tag.is_yaml_core_schema() => Err(unknown_tag(tag, span)),
            _ => Ok(()),
        }
    }

    /// Adds a complete value to its parent.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Diagnostic> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(too_many(node.span));
        }
        if anchor > 0 {
            self.charge(&node, node.span)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Frame::Seq { items, .. }) => items.push(node),
            Some(Frame::Map { entries, key, merge, .. }) => {
                let Some(key) = key.take() else { return Ok(()) };
                if std::mem::take(merge) {
                    let help = "YAML 1.2 has no merge keys; use an alias for a whole value";
                    let none = Diagnostic::error(key.span, "merge keys (`<<`) are not supported");
                    self.problems.push(none.help(help.to_owned()));
                } else if let Err(twice) = entries.insert(key, node) {
                    self.problems.push(twice);
                }
            }
        }
        Ok(())
    }

    /// Accounts for the size of a copied node, and for its depth at its new place.
    fn charge(&mut self, node: &Node, span: Span) -> Result<(), Diagnostic> {
        let (nodes, bytes, depth) = measure(node);
        self.nodes += nodes;
        self.repeated += bytes;
        if self.nodes > MAX_NODES || self.repeated > MAX_REPEATED {
            return Err(too_many(span));
        }
        if self.stack.len() + depth > MAX_DEPTH + 1 { Err(too_deep(span)) } else { Ok(()) }
    }

    fn span(&mut self, mark: Mark) -> Span {
        let start = self.offsets.byte(mark.start.index());
        Span::new(start, self.offsets.byte(mark.end.index()))
    }

    /// Drops the trailing white space that the scanner includes in block scalars.
    fn trimmed(&self, span: Span) -> Span {
        Span::new(span.start, span.start + self.offsets.text[span.start..span.end].trim_end().len())
    }

    fn syntax(&mut self, error: &ScanError) -> Diagnostic {
        let start = self.offsets.byte(error.marker().index());
        syntax(self.offsets.text, start, error.info())
    }
}

/// Explains a syntax error. The scanner often reports errors a line late and in its own terms, so the nearby lines are
/// searched for the most common mistakes.
fn syntax(text: &str, start: usize, info: &str) -> Diagnostic {
    let end = start + text[start..].chars().next().filter(|c| !c.is_whitespace()).map_or(0, char::len_utf8);
    let not_yaml = |span: Span| Diagnostic::error(span, format!("this is not YAML: {info}"));
    let first = text[..start].rfind('\n').map_or(0, |i| i + 1);
    // The current line, and the last non-blank line before it.
    let before = text[..first].trim_end().rfind('\n').map_or(0, |i| i + 1);
    let lines = [first, before].map(|at| (at, text[at..].lines().next().unwrap_or("")));
    for (at, line) in lines {
        let indent = line.len() - line.trim_start().len();
        if let Some(tab) = line[..indent].find('\t') {
            let span = Span::new(at + tab, at + tab + 1);
            return not_yaml(span).help("YAML is indented with spaces, not with tabs".to_owned());
        }
    }
    let (at, line) = lines[0];
    if line.contains("${") {
        return not_yaml(Span::new(start, end))
            .help("inside of `[...]` and `{...}`, put `${...}` in quotes".to_owned());
    }
    if info.contains("anchor")
        && let Some(star) = line.find('*')
    {
        let word = line[star..].split([',', ']', '}', ' ']).next().unwrap_or("*");
        return not_yaml(Span::new(at + star, at + star + word.len()))
            .help(format!("put text that begins with `*` in quotes: `\"{word}\"`"));
    }
    if info.contains("simple key") || info.contains("mapping values") {
        for (at, line) in lines {
            let key = line.trim_start_matches([' ', '-']);
            let word = key.split([' ', '#']).next().unwrap_or("");
            let is_name = !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if is_name && !key.contains(": ") && !key.trim_end().ends_with(':') {
                let at = at + line.len() - key.len();
                let span = Span::new(at, at + word.len());
                return Diagnostic::error(span, format!("this is not YAML: there is no `:` after `{word}`"));
            }
        }
    }
    not_yaml(Span::new(start, end))
}

/// Returns the number of values, bytes and levels of a tree.
fn measure(node: &Node) -> (usize, usize, usize) {
    let mut total = (1, size_of::<Node>(), 1);
    let mut add = |child: &Node, key: usize| {
        let (nodes, bytes, depth) = measure(child);
        total = (total.0 + nodes, total.1 + bytes + key, total.2.max(depth + 1));
    };
    match &node.value {
        Value::Null | Value::Undefined | Value::Bool(_) | Value::Number(_) => {}
        Value::String(text) => total.1 += text.text.len(),
        Value::Seq(items) => items.iter().for_each(|item| add(item, 0)),
        Value::Map(entries) => entries.iter().for_each(|(key, node)| add(node, key.name.len())),
    }
    total
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Result<Value, Diagnostic> {
    let string = || Value::String(Text { text: text.to_owned(), plain: false, variable: false });
    let Some(tag) = tag else {
        return Ok(if style == ScalarStyle::Plain { plain(text) } else { string() });
    };
    if !tag.is_yaml_core_schema() {
        return if tag.handle.is_empty() && tag.suffix == "!" { Ok(string()) } else { Err(unknown_tag(tag, span)) };
    }
    match (tag.suffix.as_str(), plain(text)) {
        ("str", _) => Ok(string()),
        ("int", value @ Value::Number(_)) if !text.contains(['.', 'e', 'E']) || text.starts_with("0x") => Ok(value),
        ("float", value @ Value::Number(_)) | ("bool", value @ Value::Bool(_)) | ("null", value @ Value::Null) => {
            Ok(value)
        }
        ("int" | "float" | "bool" | "null", _) => {
            Err(Diagnostic::error(span, format!("`{text}` is not what its tag `!!{}` says", tag.suffix)))
        }
        _ => Err(unknown_tag(tag, span)),
    }
}

fn unknown_tag(tag: &Tag, span: Span) -> Diagnostic {
    Diagnostic::error(span, format!("the tag `{}{}` has no meaning here", tag.handle, tag.suffix))
        .help("put text that begins with `!` in quotes".to_owned())
}

/// Turns the scanner's offsets, which count characters, into bytes. They come nearly in order, so the last one is kept.
struct Offsets<'t> {
    text: &'t str,
    ascii: bool,
    chars: usize,
    bytes: usize,
}

impl Offsets<'_> {
    fn byte(&mut self, index: usize) -> usize {
        if self.ascii {
            return index.min(self.text.len());
        }
        let steps = index.abs_diff(self.chars);
        let passed = |moved: &mut dyn Iterator<Item = char>| {
            moved.take(steps).fold((0, 0), |(chars, bytes), c| (chars + 1, bytes + c.len_utf8()))
        };
        if index >= self.chars {
            let (chars, bytes) = passed(&mut self.text[self.bytes..].chars());
            (self.chars, self.bytes) = (self.chars + chars, self.bytes + bytes);
        } else {
            let (chars, bytes) = passed(&mut self.text[..self.bytes].chars().rev());
            (self.chars, self.bytes) = (self.chars - chars, self.bytes - bytes);
        }
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_follow_the_core_schema() {
        for (text, json) in [
            ("12", "12"),
            ("-12", "-12"),
            ("+12", "12"),
            ("0o17", "15"),
            ("0xfF", "255"),
            ("1.5", "1.5"),
            (".5", "0.5"),
            ("1.", "1.0"),
            ("1e3", "1000.0"),
            ("007", "7"),
            ("true", "true"),
            ("~", "null"),
            ("yes", "\"yes\""),
            ("1_000", "\"1_000\""),
            (".inf", "\".inf\""),
            ("1e999", "\"1e999\""),
            (".", "\".\""),
            ("-", "\"-\""),
            ("0x", "\"0x\""),
            ("0x+1", "\"0x+1\""),
            ("127.0.0.1:80", "\"127.0.0.1:80\""),
            ("12:30", "\"12:30\""),
        ] {
            let node = Node { span: Span::default(), value: plain(text) };
            assert_eq!(node.to_json().to_string(), json, "{text}");
        }
    }

    #[test]
    fn places_are_right_beyond_ascii_and_with_every_line_end() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["ä: 'ö'", "b:", "  - { ü: \u{1f600}x, d: 5 }", "  - |", "    é", "", "e: &f [g]", "h: *f", ""]
                .join(end);
            let node = parse(&text).unwrap().node;
            for (pointer, expected) in [
                ("/ä", "'ö'"),
                ("/b", "b"),
                ("/b/0", "{ ü: \u{1f600}x, d: 5 }"),
                ("/b/0/ü", "\u{1f600}x"),
                ("/b/0/d", "5"),
                ("/b/1", "é"),
                ("/e/0", "g"),
                ("/h", "h"),
            ] {
                let found = node.find(pointer);
                let span = found.span();
                assert!(found.whole, "{pointer}");
                assert_eq!(&text[span.start..span.end], expected, "{pointer} {end:?}");
            }
        }
    }

    #[test]
    fn nothing_is_lost_after_a_control_character() {
        // The parser takes a NUL for the end of the text: the second policy would be gone.
        let lost = |at: &str| format!("policies:\n- allow\n#{at}\n- deny\n");
        for (character, code) in [("\0", "U+0000"), ("\u{1}", "U+0001"), ("\u{1b}", "U+001B")] {
            let errors = parse(&lost(character)).unwrap_err();
            assert_eq!(errors.len(), 1);
            assert_eq!(errors[0].message, format!("YAML does not allow the control character {code}"));
            assert_eq!(errors[0].span, Some(Span::new(19, 20)));
        }
        for text in ["a: b\n\0\0\0\0", "\0", "a: 'b\0c'", "a: b\0", "ä: |\n  x\0\n"] {
            assert!(parse(text).unwrap_err()[0].message.ends_with("U+0000"), "{text:?}");
        }
        // Escaped, it is a character like others.
        assert_eq!(parse(r#"a: "b\0c""#).unwrap().node.get("a").and_then(Node::as_str), Some("b\0c"));
        assert!(parse("a: b\t# c\r\nd: e\n").is_ok());
    }

    #[test]
    fn depth_and_size_are_bounded() {
        for open in ["[", "- ", "{a: ", "? ", "&a [", "!!seq [", "a: {"] {
            let _ = parse(&open.repeat(3000));
        }
        assert!(parse(&"[".repeat(3000)).is_err());
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(parse(&deep(MAX_DEPTH)).is_ok());
        assert!(parse(&deep(MAX_DEPTH + 1)).is_err());
        let mut laughs = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
        for i in 1..10 {
            laughs += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", "));
        }
        assert!(parse(&laughs).unwrap_err()[0].message.starts_with("too many values"));
        let mut nested = "a0: &a0 [1]\n".to_owned();
        for i in 1..200 {
            nested += &format!("a{i}: &a{i} [*a{}]\n", i - 1);
        }
        assert!(parse(&nested).unwrap_err()[0].message.starts_with("nested too deeply"));
        assert!(parse("&a [*a]").is_err());
    }
}
