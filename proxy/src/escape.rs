//! Text of modules, filters, files and clients on its way to people's eyes. A terminal obeys escape sequences, and a reader of
//! a log takes what follows a line feed for another line: so neither ever passes as it is.

use std::{borrow::Cow, fmt::Write};

/// Whether a character could forge a line or its look: controls, the line and paragraph separators that some readers take for
/// line ends, and those that reorder text on a screen.
pub fn is_harmful(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') || c.is_control()
}

/// As one line: `\n`, `\x1b`, `\u{2028}` and the like in place of what is harmful.
pub fn line(text: &str) -> Cow<'_, str> {
    replaced(text, is_harmful, escape)
}

/// The same, but lines stay lines, and tabs stay tabs.
pub fn lines(text: &str) -> Cow<'_, str> {
    replaced(text, |c| is_harmful(c) && !matches!(c, '\n' | '\t'), escape)
}

/// The text, with `replace` called for each character that is `wrong`.
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

/// A character as it is written in a program.
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
    fn nothing_passes_that_a_terminal_obeys() {
        let nasty = "a\tb\n\u{1b}[2J\r\u{9b}31m\u{2028}\u{202e}é";
        assert_eq!(line(nasty), "a\\tb\\n\\x1b[2J\\r\\u{9b}31m\\u{2028}\\u{202e}é");
        assert_eq!(lines(nasty), "a\tb\n\\x1b[2J\\r\\u{9b}31m\\u{2028}\\u{202e}é");
        assert!(matches!(line("plain: é, \"x\" \\"), Cow::Borrowed(_)));
    }
}
