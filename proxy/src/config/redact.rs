//! Removes the values of environment variables from messages about a configuration. They may be secrets, and messages
//! go to logs and to clients of the admin listener. Each is replaced by its reference, `${NAME}`.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// Texts shorter than this are replaced only as whole words: they occur in other words too often.
const SHORT: usize = 4;

/// A text to hide in messages, and its replacement.
#[derive(Debug)]
struct Redaction {
    text: Vec<char>,
    /// Whether the text is a number, an address or similar, which messages also use in examples.
    common: bool,
    shown: String,
}

/// Hides the values of a configuration's environment variables.
#[derive(Debug, Default)]
pub(super) struct Redactor(Vec<Redaction>);

impl Redactor {
    /// Creates a redactor for the variables that are set.
    pub fn of<'v>(variables: impl IntoIterator<Item = (&'v String, &'v Option<OsString>)>) -> Redactor {
        let set = variables
            .into_iter()
            .filter_map(|(name, value)| Some((name.clone(), value.as_ref()?.to_string_lossy().into_owned())));
        Redactor::new(set)
    }

    /// Creates a redactor for variables, given by name and value.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Redactor {
        let mut all = Vec::new();
        for (name, value) in variables {
            let value = value.trim();
            // Messages quote some values escaped, and paths normalized.
            let escaped = value.escape_debug().to_string();
            let path = value.contains('/').then(|| {
                let path: PathBuf = Path::new(value.trim_start_matches("./")).components().collect();
                path.display().to_string()
            });
            let mut texts: Vec<_> = [Some(value.to_owned()), Some(escaped), path].into_iter().flatten().collect();
            texts.sort();
            texts.dedup();
            let common = is_common(value);
            let hidden =
                |text: String| Redaction { text: text.chars().collect(), common, shown: format!("${{{name}}}") };
            all.extend(texts.into_iter().filter(|text| !text.is_empty()).map(hidden));
        }
        // Longest first, since one value may contain another.
        all.sort_by_key(|hidden| std::cmp::Reverse(hidden.text.len()));
        Redactor(all)
    }

    /// Replaces values by their variables: within quotes anywhere, elsewhere only as whole words.
    pub fn conceal(&self, message: &mut String) {
        if self.0.is_empty() {
            return;
        }
        let text: Vec<char> = message.chars().collect();
        let (mut out, mut at, mut quote) = (String::with_capacity(message.len()), 0, None);
        while let Some(&c) = text.get(at) {
            let found = self.0.iter().find_map(|hidden| Some((hidden, hidden.length_at(&text, at, quote.is_some())?)));
            if let Some((hidden, length)) = found {
                out.push_str(&hidden.shown);
                at += length;
                continue;
            }
            quote = match quote {
                None => matches!(c, '`' | '"').then_some(c),
                Some(open) => (c != open).then_some(open),
            };
            out.push(c);
            at += 1;
        }
        *message = out;
    }
}

impl Redaction {
    /// Returns the length of the match at a position, if the text matches there.
    fn length_at(&self, text: &[char], at: usize, quoted: bool) -> Option<usize> {
        let rest = &text[at..];
        let same = self.text.iter().zip(rest).take_while(|(a, b)| is_same(**a, **b)).count();
        let whole = same == self.text.len();
        // A long value may be truncated with an ellipsis.
        let cut = same >= SHORT && rest.get(same) == Some(&'…');
        let word = |c: Option<&char>| c.is_some_and(|c| c.is_alphanumeric() || *c == '_');
        let alone = !word(at.checked_sub(1).and_then(|before| text.get(before))) && !word(rest.get(same));
        let within = quoted && self.text.len() >= SHORT;
        let counts = within || (alone && (quoted || (self.text.len() >= SHORT && !self.common)));
        // The name inside a reference that already replaces a value.
        let named = text[..at].ends_with(&['$', '{']);
        ((whole || cut) && counts && !named).then_some(same)
    }
}

/// Messages show some texts in lower case, or with spaces in place of control characters.
fn is_same(a: char, b: char) -> bool {
    a.eq_ignore_ascii_case(&b) || (a.is_control() && b == ' ')
}

fn is_common(value: &str) -> bool {
    value.parse::<f64>().is_ok()
        || value.parse::<bool>().is_ok()
        || value.parse::<IpAddr>().is_ok()
        || value.parse::<SocketAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_variables_and_not_what_they_hold() {
        let long = "k".repeat(80);
        let variables = [
            ("NAME", "Sekrit-two"),
            ("PART", "Sekrit"),
            ("KEY", "-----BEGIN\nx"),
            ("FILE", "./keys//sekret.wasm"),
            ("LONG", &*long),
            ("AB", "ab"),
            ("PORT", "8080"),
            ("EMPTY", ""),
            ("SELF", "SELF"),
        ];
        let concealer = Redactor::new(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        for (message, expected) in [
            ("there is no cluster named `Sekrit-two`", "there is no cluster named `${NAME}`"),
            ("`sekrit-two`: write `pre-sekritpost`", "`${NAME}`: write `pre-${PART}post`"),
            ("string \"Sekrit\", Sekrit, Sekrits", "string \"${PART}\", ${PART}, Sekrits"),
            ("`-----BEGIN x`, \"-----BEGIN\\nx\"", "`${KEY}`, \"${KEY}\""),
            ("cannot read `/conf/keys/sekret.wasm`", "cannot read `/conf/${FILE}`"),
            (&format!("`pre-{}…` is not", &long[..50]), "`pre-${LONG}…` is not"),
            ("`ab` or `about`, ab", "`${AB}` or `about`, ab"),
            ("`8080`, such as 127.0.0.1:8080", "`${PORT}`, such as 127.0.0.1:8080"),
            ("`SELF` is in `${SELF}`", "`${SELF}` is in `${SELF}`"),
            ("`` is empty, é", "`` is empty, é"),
        ] {
            let mut text = message.to_owned();
            concealer.conceal(&mut text);
            assert_eq!(text, expected);
            concealer.conceal(&mut text);
            assert_eq!(text, expected, "a second time");
        }
    }
}
