//! Parses TOML with the `toml` crate, whose tables record spans.

use ::toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    diagnostic::Diagnostic,
    node::{Key, Node, Span, Value},
    tree::{MAX_DEPTH, MAX_NODES, ParseResult, too_deep, too_many},
};

/// Up to this size, all syntax errors are reported. A larger, hostile file could contain millions of them.
const RECOVERABLE: usize = 1 << 20;
/// Later syntax errors are mostly consequences of the first ones.
const MOST: usize = 20;

/// Parses a document.
pub(super) fn parse(text: &str) -> Result<ParseResult, Vec<Diagnostic>> {
    let explain = |e: &toml::de::Error| {
        let span = e.span().map_or(Span::new(text.len(), text.len()), |s| Span::new(s.start, s.end));
        Diagnostic::error(span, format!("this is not TOML: {}", e.message()))
    };
    let (table, errors) = if text.len() <= RECOVERABLE {
        DeTable::parse_recoverable(text)
    } else {
        (DeTable::parse(text).map_err(|e| vec![explain(&e)])?, Vec::new())
    };
    if !errors.is_empty() {
        return Err(errors.iter().take(MOST).map(explain).collect());
    }
    let mut reader = Reader { nodes: 0, problems: Vec::new() };
    let span = table.span();
    match reader.table(table.into_inner(), Span::new(span.start, span.end), 0) {
        Ok(node) => Ok(ParseResult { node, problems: reader.problems }),
        Err(error) => Err(vec![error]),
    }
}

struct Reader {
    nodes: usize,
    problems: Vec<Diagnostic>,
}

impl Reader {
    fn table(&mut self, table: DeTable<'_>, span: Span, depth: usize) -> Result<Node, Diagnostic> {
        let mut entries = Vec::with_capacity(table.len());
        for (key, value) in table {
            let span = Span::new(key.span().start, key.span().end);
            let node = self.value(value, depth + 1)?;
            entries.push((Key { name: key.into_inner().into_owned(), span }, node));
        }
        // The crate sorts keys by name; filters should receive them in the order of the file.
        entries.sort_by_key(|(key, _)| key.span.start);
        Ok(Node { span, value: Value::Map(entries) })
    }

    fn value(&mut self, value: Spanned<DeValue<'_>>, depth: usize) -> Result<Node, Diagnostic> {
        let span = Span::new(value.span().start, value.span().end);
        if depth > MAX_DEPTH {
            return Err(too_deep(span));
        }
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(too_many(span));
        }
        let value = match value.into_inner() {
            DeValue::Table(table) => return self.table(table, span, depth),
            DeValue::Array(items) => {
                Value::Seq(items.into_iter().map(|item| self.value(item, depth + 1)).collect::<Result<_, _>>()?)
            }
            DeValue::String(text) => return Ok(Node::quoted(text, span)),
            DeValue::Datetime(time) => return Ok(Node::quoted(time.to_string(), span)),
            DeValue::Boolean(b) => Value::Bool(b),
            DeValue::Integer(n) => {
                let signed = i64::from_str_radix(n.as_str(), n.radix()).map(serde_json::Number::from);
                match signed.or_else(|_| u64::from_str_radix(n.as_str(), n.radix()).map(serde_json::Number::from)) {
                    Ok(n) => Value::Number(n),
                    Err(_) => return Ok(self.no_number(n.as_str(), span)),
                }
            }
            DeValue::Float(n) => match n.as_str().parse().ok().and_then(serde_json::Number::from_f64) {
                Some(n) => Value::Number(n),
                None => return Ok(self.no_number(n.as_str(), span)),
            },
        };
        Ok(Node { span, value })
    }

    /// Reports a number that JSON cannot represent.
    fn no_number(&mut self, text: &str, span: Span) -> Node {
        self.problems.push(Diagnostic::error(span, format!("`{text}` is not a number that can be used here")));
        Node::quoted(text, span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_is_read_in_the_order_of_the_file() {
        let text = "z = 0x1F\na = [1.5, 1_000]\n[[t]]\nb.c = 'x'\n[t.d]\ne = 2026-01-02\n[[t]]\n";
        let node = parse(text).unwrap().node;
        let json = serde_json::to_string(&node.to_json()).unwrap();
        assert_eq!(json, r#"{"z":31,"a":[1.5,1000],"t":[{"b":{"c":"x"},"d":{"e":"2026-01-02"}},{}]}"#);
        let header = node.find("/t/1").span();
        assert_eq!(&text[header.start..header.end], "[[t]]");
    }

    #[test]
    fn depth_is_bounded() {
        assert!(parse(&format!("a = {}", "[".repeat(100_000))).is_err());
        assert!(parse(&format!("a = {}", "{a=".repeat(100_000))).is_err());
        assert!(parse(&format!("{}a = 1", "a.".repeat(100_000))).is_err());
        assert!(parse(&format!("[{}a]", "a.".repeat(100_000))).is_err());
    }
}
