//! Escapes text of modules, filters, files and clients for display. A terminal interprets escape sequences, and a log
//! reader treats text after a line feed as another line, so neither is ever output unescaped.

use std::{borrow::Cow, fmt::Write};

/// Whether a character could forge a line or its appearance: controls, the line and paragraph separators that some
/// readers treat as line ends, and characters that reorder text on a screen.
pub fn is_harmful(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') || c.is_control()
}

/// Returns the text as one line, with harmful characters escaped as `\n`, `\x1b`, `\u{2028}` and the like.
pub fn line(text: &str) -> Cow<'_, str> {
    replaced(text, is_harmful, escape)
}

/// Like [`line`], but keeps line breaks and tabs.
pub fn lines(text: &str) -> Cow<'_, str> {
    replaced(text, |c| is_harmful(c) && !matches!(c, '\n' | '\t'), escape)
}

/// Calls `replace` for each character that is `wrong`, and returns the resulting text.
pub fn replaced(text: &str, wrong: impl Fn(char) -> bool, replace: impl Fn(&mut String, char)) -> Cow<'_, str> {
    let Some(first) = text.find(&wrong) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        match wrong(c) {
            true => replace(&mut out, c),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Appends a character as an escape sequence of a string literal.
pub(super) fn escape(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        // Writing to a `String` cannot fail.
        c if c.is_ascii() => drop(write!(out, "\\x{:02x}", u32::from(c))),
        c => drop(write!(out, "\\u{{{:x}}}", u32::from(c))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_escapes_are_escaped() {
        let nasty = "a\tb\n\u{1b}[2J\r\u{9b}31m\u{2028}\u{202e}é";
        assert_eq!(line(nasty), "a\\tb\\n\\x1b[2J\\r\\u{9b}31m\\u{2028}\\u{202e}é");
        assert_eq!(lines(nasty), "a\tb\n\\x1b[2J\\r\\u{9b}31m\\u{2028}\\u{202e}é");
        assert!(matches!(line("plain: é, \"x\" \\"), Cow::Borrowed(_)));
    }
}
