//! Parses JSON (RFC 8259). The YAML parser would accept most of it, but not everything (long keys, tabs, surrogate
//! pairs), and it would accept much that is not JSON.

use serde_json::Number;

use super::{
    diagnostic::Diagnostic,
    node::{Key, Node, Span, Value},
    tree::{Entries, MAX_DEPTH, MAX_NODES, ParseResult, too_deep, too_many},
};

/// Parses a document.
pub(super) fn parse(text: &str) -> Result<ParseResult, Vec<Diagnostic>> {
    let mut reader = Reader { text, at: 0, nodes: 0, problems: Vec::new() };
    let document = reader.value(0).and_then(|node| {
        reader.space();
        match reader.peek() {
            None => Ok(node),
            Some(_) => Err(reader.unexpected("the end of the file")),
        }
    });
    match document {
        Ok(node) => Ok(ParseResult { node, problems: reader.problems }),
        Err(error) => {
            reader.problems.push(error);
            Err(reader.problems)
        }
    }
}

/// Parses a JSON number as exactly as `serde_json` can represent it.
pub(super) fn number(text: &str) -> Option<Number> {
    if let Ok(n) = text.parse::<u64>() {
        return Some(n.into());
    }
    // `-0` is left to floating point, which can represent it.
    if let Some(n) = text.parse::<i64>().ok().filter(|n| *n != 0) {
        return Some(n.into());
    }
    Number::from_f64(text.parse().ok()?)
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    nodes: usize,
    problems: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let is = self.peek() == Some(byte);
        self.at += usize::from(is);
        is
    }

    fn space(&mut self) {
        self.skip(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r'));
    }

    fn skip(&mut self, of: impl Fn(u8) -> bool) {
        while self.peek().is_some_and(&of) {
            self.at += 1;
        }
    }

    /// Returns the location of the current character.
    fn here(&self) -> Span {
        let len = self.text.get(self.at..).and_then(|t| t.chars().next()).map_or(0, char::len_utf8);
        Span::new(self.at, self.at + len)
    }

    fn unexpected(&self, expected: &str) -> Diagnostic {
        let rest = self.text.get(self.at..).unwrap_or("");
        let found = match rest.chars().next() {
            None => "the end of the file".into(),
            Some(c) => format!("`{}`", c.escape_debug()),
        };
        let error = Diagnostic::error(self.here(), format!("expected {expected}, found {found}"));
        match rest {
            _ if rest.starts_with("//") || rest.starts_with("/*") || rest.starts_with('#') => {
                error.help("JSON has no comments; YAML and TOML have".to_owned())
            }
            _ if rest.starts_with('\'') => error.help("strings are written in double quotes".to_owned()),
            _ => error,
        }
    }

    fn value(&mut self, depth: usize) -> Result<Node, Diagnostic> {
        self.space();
        let start = self.at;
        if depth > MAX_DEPTH {
            return Err(too_deep(self.here()));
        }
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(too_many(self.here()));
        }
        let value = match self.peek() {
            Some(b'{') => self.map(depth)?,
            Some(b'[') => self.seq(depth)?,
            Some(b'"') => return self.string().map(|(text, span)| Node::quoted(text, span)),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => self.word()?,
        };
        Ok(Node { span: Span::new(start, self.at), value })
    }

    fn map(&mut self, depth: usize) -> Result<Value, Diagnostic> {
        self.at += 1;
        let mut entries = Entries::default();
        self.space();
        if self.eat(b'}') {
            return Ok(Value::Map(Vec::new()));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.unexpected("a key in double quotes"));
            }
            let (name, span) = self.string()?;
            self.space();
            if !self.eat(b':') {
                return Err(self.unexpected("`:`"));
            }
            let node = self.value(depth + 1)?;
            if let Err(twice) = entries.insert(Key { name, span }, node) {
                self.problems.push(twice);
            }
            self.space();
            if self.eat(b'}') {
                return Ok(Value::Map(entries.into_list()));
            }
            self.comma(b'}', "`,` or `}`")?;
        }
    }

    fn seq(&mut self, depth: usize) -> Result<Value, Diagnostic> {
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.eat(b']') {
            return Ok(Value::Seq(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.eat(b']') {
                items.shrink_to_fit();
                return Ok(Value::Seq(items));
            }
            self.comma(b']', "`,` or `]`")?;
        }
    }

    fn comma(&mut self, close: u8, expected: &str) -> Result<(), Diagnostic> {
        let comma = self.here();
        if !self.eat(b',') {
            return Err(self.unexpected(expected));
        }
        self.space();
        match self.peek() {
            Some(b) if b == close => Err(Diagnostic::error(comma, "JSON allows no comma after the last one")),
            _ => Ok(()),
        }
    }

    fn number(&mut self) -> Result<Value, Diagnostic> {
        let start = self.at;
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            let _sign = self.eat(b'+') || self.eat(b'-');
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        if self.peek().is_some_and(|b| b.is_ascii_alphanumeric()) {
            return Err(self.unexpected("the number to end"));
        }
        let out_of_range = || Diagnostic::error(Span::new(start, self.at), format!("`{text}` is too large a number"));
        number(text).map(Value::Number).ok_or_else(out_of_range)
    }

    fn digits(&mut self) -> Result<(), Diagnostic> {
        let start = self.at;
        self.skip(|b| b.is_ascii_digit());
        if self.at == start { Err(self.unexpected("a digit")) } else { Ok(()) }
    }

    fn word(&mut self) -> Result<Value, Diagnostic> {
        let start = self.at;
        self.skip(|b| b.is_ascii_alphanumeric() || b == b'_');
        match &self.text[start..self.at] {
            "null" => Ok(Value::Null),
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            "" => Err(self.unexpected("a value")),
            word => Err(Diagnostic::error(Span::new(start, self.at), format!("expected a value, found `{word}`"))
                .help("strings are written in double quotes".to_owned())),
        }
    }

    fn string(&mut self) -> Result<(String, Span), Diagnostic> {
        let start = self.at;
        self.at += 1;
        let mut out = String::new();
        loop {
            let run = self.at;
            self.skip(|b| b != b'"' && b != b'\\' && b >= 0x20);
            out.push_str(&self.text[run..self.at]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok((out, Span::new(start, self.at)));
                }
                Some(b'\\') => out.push(self.escape()?),
                Some(b'\n' | b'\r') | None => {
                    let open = Span::new(start, start + 1);
                    return Err(Diagnostic::error(open, "the string that begins here has no end"));
                }
                Some(_) => return Err(self.unexpected("an escape instead of a control character")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Diagnostic> {
        let start = self.at;
        let kind = self.text.as_bytes().get(start + 1).copied();
        self.at += 2;
        Ok(match kind {
            Some(b'n') => '\n',
            Some(b't') => '\t',
            Some(b'r') => '\r',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(c @ (b'"' | b'\\' | b'/')) => c.into(),
            Some(b'u') => return self.unicode(start),
            _ => {
                let next = self.text.get(start + 1..).and_then(|t| t.chars().next()).map_or(0, char::len_utf8);
                return Err(Diagnostic::error(Span::new(start, start + 1 + next), "there is no such escape"));
            }
        })
    }

    fn unicode(&mut self, start: usize) -> Result<char, Diagnostic> {
        let mut unit = self.hex4();
        if let Some(high @ 0xd800..=0xdbff) = unit {
            let pair = self.text.as_bytes().get(self.at..self.at + 2) == Some(b"\\u");
            self.at += if pair { 2 } else { 0 };
            unit = match self.hex4() {
                Some(low @ 0xdc00..=0xdfff) if pair => Some(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)),
                _ => None,
            };
        }
        let wrong = || Diagnostic::error(Span::new(start, start + 2), "this escape is not a valid character");
        unit.and_then(char::from_u32).ok_or_else(wrong)
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_as_serde_json_reads_it() {
        for text in [
            "null",
            " [1, -2, 3.5, 1e3, -0, 18446744073709551615, 1E-2]\t",
            r#"{"a": {"b": [true, false, null]}, "": "\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00é"}"#,
            "[]",
            "{}",
        ] {
            let expected: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text).unwrap().node.to_json(), expected, "{text}");
        }
    }

    #[test]
    fn what_serde_json_refuses_is_refused() {
        for text in [
            "",
            "[",
            "[1",
            "[1,",
            "[1,]",
            "{",
            r#"{"a""#,
            r#"{"a":"#,
            r#"{"a":1,}"#,
            "{a:1}",
            "01",
            "1.",
            "-",
            "1e",
            "nul",
            "'a'",
            "\"",
            "\"\\",
            r#""\x""#,
            r#""\u12""#,
            r#""\ud83d""#,
            r#""\ud83dx""#,
            "\"a\nb\"",
            "\"\u{1}\"",
            "1 2",
            "1e999",
            "// x\n1",
            "é",
            "\"\\é\"",
            r#""\ud83d\ud83d""#,
            r#""\udc00""#,
            "1a",
        ] {
            assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        assert!(parse(&"[".repeat(100_000)).is_err());
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(parse(&deep(MAX_DEPTH)).is_ok());
        assert!(parse(&deep(MAX_DEPTH + 2)).is_err());
    }
}
