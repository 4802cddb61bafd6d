//! Keeps what environment variables hold out of what is said about a configuration. It may be a secret, and messages go to logs and
//! to whoever may ask the admin listener. Each stands there as the file has it: `${NAME}`.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// Texts shorter than this are too often a part of others to be looked for within words.
const SHORT: usize = 4;

/// A text that a message must not show, and what it shows instead.
#[derive(Debug)]
struct Redaction {
    text: Vec<char>,
    /// It is a number, an address or the like, which messages also name as examples.
    common: bool,
    shown: String,
}

/// What a configuration's variables hold.
#[derive(Debug, Default)]
pub(super) struct Redactor(Vec<Redaction>);

impl Redactor {
    /// For variables, by name and value.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Redactor {
        let mut all = Vec::new();
        for (name, value) in variables {
            let value = value.trim();
            // Messages quote some values escaped, and paths without detours.
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
        // One may contain another.
        all.sort_by_key(|hidden| std::cmp::Reverse(hidden.text.len()));
        Redactor(all)
    }

    /// The message with variables in place of what they hold: anywhere in what it quotes, else if they stand alone.
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
    /// How long it is at a place of a text, if it is there.
    fn length_at(&self, text: &[char], at: usize, quoted: bool) -> Option<usize> {
        let rest = &text[at..];
        let same = self.text.iter().zip(rest).take_while(|(a, b)| is_same(**a, **b)).count();
        let whole = same == self.text.len();
        // Long ones are cut off.
        let cut = same >= SHORT && rest.get(same) == Some(&'…');
        let word = |c: Option<&char>| c.is_some_and(|c| c.is_alphanumeric() || *c == '_');
        let alone = !word(at.checked_sub(1).and_then(|before| text.get(before))) && !word(rest.get(same));
        let within = quoted && self.text.len() >= SHORT;
        let counts = within || (alone && (quoted || (self.text.len() >= SHORT && !self.common)));
        // The name of a variable, which is there in place of a value.
        let named = text[..at].ends_with(&['$', '{']);
        ((whole || cut) && counts && !named).then_some(same)
    }
}

/// Messages show some texts in small letters, or with blanks in place of what is not printed.
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
