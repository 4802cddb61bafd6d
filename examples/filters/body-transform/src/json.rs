//! Redacts JSON without changing anything else in it, such as the order of fields or the notation of numbers.

/// Maximum nesting depth of objects and lists.
const DEPTH: usize = 128;

/// Replaces the values of all fields with these names by `"***"`. `None`: not valid JSON, or too deeply nested.
pub(crate) fn redact(text: &[u8], names: &[String]) -> Option<Vec<u8>> {
    let mut walk = Walk { text, at: 0, names, out: Vec::with_capacity(text.len()), copied: 0 };
    walk.value(DEPTH)?;
    walk.space();
    if walk.at != text.len() {
        return None;
    }
    walk.out.extend(&text[walk.copied..]);
    Some(walk.out)
}

struct Walk<'a> {
    text: &'a [u8],
    at: usize,
    names: &'a [String],
    out: Vec<u8>,
    /// How much of the text is in `out`, verbatim or redacted.
    copied: usize,
}

impl Walk<'_> {
    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Consumes this byte, after white space.
    fn pass(&mut self, byte: u8) -> Option<()> {
        self.space();
        (self.text.get(self.at) == Some(&byte)).then(|| self.at += 1)
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        self.space();
        match self.text.get(self.at)? {
            b'{' => self.list(b'}', |walk| walk.field(depth)),
            b'[' => self.list(b']', |walk| walk.value(depth)),
            b'"' => self.string().map(|_| ()),
            _ => self.word(),
        }
    }

    /// Consumes an object or a list, up to the closing bracket.
    fn list(&mut self, end: u8, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.at += 1;
        if self.pass(end).is_some() {
            return Some(());
        }
        loop {
            item(self)?;
            if self.pass(b',').is_none() {
                return self.pass(end);
            }
        }
    }

    fn field(&mut self, depth: usize) -> Option<()> {
        self.space();
        let name = self.string()?;
        self.pass(b':')?;
        self.space();
        let start = self.at;
        let redacts = self.names.contains(&name);
        let before = (self.out.len(), self.copied);
        self.value(depth)?;
        if redacts {
            // Discards what was redacted inside.
            self.out.truncate(before.0);
            self.out.extend(&self.text[before.1..start]);
            self.out.extend(b"\"***\"");
            self.copied = self.at;
        }
        Some(())
    }

    /// Consumes a string and decodes it: `"\u0070in"` is `pin`.
    fn string(&mut self) -> Option<String> {
        let start = self.at;
        self.pass(b'"')?;
        loop {
            match self.text.get(self.at)? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        serde_json::from_slice(self.text.get(start..self.at)?).ok()
    }

    /// Consumes a number, `true`, `false` or `null`.
    fn word(&mut self) -> Option<()> {
        let start = self.at;
        while matches!(self.text.get(self.at), Some(b'a'..=b'z' | b'E' | b'0'..=b'9' | b'+' | b'-' | b'.')) {
            self.at += 1;
        }
        serde_json::from_slice::<serde::de::IgnoredAny>(&self.text[start..self.at]).ok().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_the_named_fields_change() {
        let redact = |text: &str| {
            let names = ["pin".to_string(), "card".to_string()];
            super::redact(text.as_bytes(), &names).map(|out| String::from_utf8(out).unwrap())
        };
        for (text, expected) in [
            (r#"{"pin": 1234}"#, r#"{"pin": "***"}"#),
            (r#" {"b":1.00,"a":[{"pin":"x\"}"}, 2e3]} "#, r#" {"b":1.00,"a":[{"pin":"***"}, 2e3]} "#),
            (r#"{"card": {"pin": 1, "no": [2]}, "c": null}"#, r#"{"card": "***", "c": null}"#),
            (r#"{"\u0070in": true, "pins": {}, "x": []}"#, r#"{"\u0070in": "***", "pins": {}, "x": []}"#),
            (r#""pin""#, r#""pin""#),
        ] {
            assert_eq!(redact(text).as_deref(), Some(expected), "{text}");
        }
        for text in ["", "{", "{\"pin\"", "{\"pin\": }", "[1,]", "{} {}", "nil", "\"\\", "[1 2]", &"[".repeat(10_000)] {
            assert_eq!(redact(text), None, "{text}");
        }
    }
}
