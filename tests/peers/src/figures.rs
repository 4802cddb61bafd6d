//! Figures in documents. This program writes the text between `<!-- figure: KEY -->` and `<!-- /figure -->`, from a number in
//! a sentence to a section with tables. `document` resolves the keys.

use anyhow::{Context, ensure};

use crate::{scenario::Column, stats::Figure};

const BEGIN: &str = "<!-- figure: ";
const KEY_END: &str = " -->";
const END: &str = "<!-- /figure -->";

/// Replaces everything between marks. `of` returns the text for a key.
pub fn fill(text: &str, of: impl Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let (key, after) = after.split_once(KEY_END).with_context(|| format!("`{BEGIN}` without `{KEY_END}`"))?;
        let (old, after) = after.split_once(END).with_context(|| format!("`{key}` has no {END}"))?;
        ensure!(!old.contains(BEGIN), "`{key}` has no {END}");
        let new = of(key).with_context(|| format!("the figure `{key}`"))?;
        let begins_line = before.rsplit('\n').next().is_some_and(|line| line.trim().is_empty());
        ensure!(
            new.starts_with('\n') || !begins_line,
            "`{key}` begins a line, where Markdown treats a comment as a block"
        );
        filled += &format!("{before}{BEGIN}{key}{KEY_END}{new}{END}");
        rest = after;
    }
    Ok(filled + rest)
}

/// A median with its range and unit, for a sentence: `1.04 × (0.95–1.10)`.
pub fn in_text(figure: Figure, unit: &str, decimals: usize) -> String {
    let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
    format!("{}{unit} ({})", number(figure.middle, decimals), range(figure, decimals))
}

/// The same for a table, whose head has the unit.
pub fn in_table(figure: Figure, column: &Column) -> String {
    in_text(figure, "", column.decimals)
}

pub fn ratio(figure: Figure) -> String {
    in_text(figure, "×", 2)
}

/// The number of rounds that a figure covers, if not all.
pub fn of_rounds(some: usize, all: usize) -> String {
    if some < all { format!(", {some} of {all} rounds") } else { String::new() }
}

fn range(figure: Figure, decimals: usize) -> String {
    format!("{}–{}", number(figure.low, decimals), number(figure.high, decimals))
}

/// A number with commas between thousands.
pub fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').map_or((&*text, String::new()), |(w, f)| (w, format!(".{f}")));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{fraction}")
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Units of measured figures.
    const UNITS: [&str; 8] = ["µs", "ns", "×", "%", "MiB", "KiB", "requests/s", "instructions"];

    /// The lines with a number and a unit outside of marks, except for the given phrases, which name settings.
    pub fn unmarked<'a>(text: &'a str, phrases: &[&str]) -> Vec<&'a str> {
        let mut marked = false;
        let has_figure = |part: &str| UNITS.iter().any(|unit| follows_number(part, unit));
        let mut unmarked = Vec::new();
        for line in text.lines() {
            let mut rest = line;
            let mut outside = String::new();
            loop {
                let mark = if marked { END } else { BEGIN };
                let (before, after) =
                    rest.split_once(mark).map_or((rest, None), |(before, after)| (before, Some(after)));
                if !marked {
                    outside += before;
                }
                let Some(after) = after else { break };
                rest = after;
                marked = !marked;
            }
            for phrase in phrases {
                outside = outside.replace(phrase, "");
            }
            if has_figure(&outside) {
                unmarked.push(line);
            }
        }
        unmarked
    }

    fn follows_number(text: &str, unit: &str) -> bool {
        text.match_indices(unit).any(|(at, _)| {
            let word_ends = !text[at + unit.len()..].starts_with(char::is_alphanumeric);
            word_ends && text[..at].trim_end_matches(' ').ends_with(|c: char| c.is_ascii_digit())
        })
    }

    fn filled(text: &str) -> anyhow::Result<String> {
        fill(text, |key| {
            ensure!(key.starts_with('k'), "unknown");
            Ok(if key == "k2" { "\nnew\n".into() } else { format!("new {key}") })
        })
    }

    #[test]
    fn only_what_is_between_marks_changes() {
        let text =
            "# T\n\na <!-- figure: k / 1 -->old<!-- /figure -->, <!-- figure: k2 -->\nold\n<!-- /figure -->\n\nz\n";
        let new = filled(text).unwrap();
        let expected = "# T\n\na <!-- figure: k / 1 -->new k / 1<!-- /figure -->, <!-- figure: k2 -->\nnew\n<!-- /figure -->\n\nz\n";
        assert_eq!(new, expected);
        assert_eq!(filled(&new).unwrap(), new);
        assert!(filled("a <!-- figure: x -->1<!-- /figure -->").unwrap_err().to_string().contains("`x`"));
        assert!(filled("<!-- figure: k -->1").is_err());
        assert!(filled("a\n  <!-- figure: k -->1<!-- /figure -->").is_err(), "that would end the paragraph");
        assert!(filled("a <!-- figure: k --><!-- figure: k -->1<!-- /figure -->").is_err());
    }

    #[test]
    fn figures_outside_of_marks_are_found() {
        let found = |text| unmarked(text, &["64 bytes", "a limit of 5 %"]).len();
        assert_eq!(found("takes 3 µs"), 1);
        assert_eq!(found("takes 3µs, or 0.4 ×"), 1);
        assert_eq!(found("takes <!-- figure: k -->3 µs<!-- /figure --> of it"), 0);
        assert_eq!(found("takes <!-- figure: k -->3 µs<!-- /figure --> of 4 µs"), 1);
        assert_eq!(found("<!-- figure: k -->\n3 µs\n<!-- /figure -->\n3 µs"), 1);
        assert_eq!(found("with a limit of 5 %"), 0);
        assert_eq!(found("8 workers, 3 nsx, µs"), 0);
    }

    #[test]
    fn numbers() {
        assert_eq!(number(999.4, 0), "999");
        assert_eq!(number(1234567.0, 0), "1,234,567");
        assert_eq!(number(-1234.56, 1), "-1,234.6");
        assert_eq!(ratio(Figure { middle: 1.044, low: 0.9, high: 1.1, rounds: 5 }), "1.04 × (0.90–1.10)");
    }
}
