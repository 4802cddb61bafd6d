//! A diagnostic together with what is shown of the files: positions, and the affected lines.

use std::{borrow::Cow, ops::Range, sync::Arc};

use annotate_snippets::{Annotation, AnnotationKind, Level, Origin, Renderer, Snippet};

use super::{
    diagnostic::{Diagnostic, Severity, Texts},
    node::Span,
    source::{Position, Source},
};
use crate::escape;

/// Longer lines (of a minified file) are not shown, only their number.
const LONGEST_LINE: usize = 2000;
/// Places in one file that are further apart than this are shown in separate excerpts.
const FARTHEST: usize = 16 << 10;

/// A diagnostic with its excerpts.
#[derive(Debug, Clone)]
pub(super) struct Located {
    pub(super) diagnostic: Diagnostic,
    /// The name of the file.
    pub(super) file: Arc<str>,
    /// The position of the diagnostic's span.
    pub(super) at: Option<Position>,
    /// The files and positions of the notes; `None` if a file has changed.
    notes: Vec<(Arc<str>, Option<Position>)>,
    excerpts: Vec<Excerpt>,
}

/// Some lines of a file, with marked places.
#[derive(Debug, Clone)]
struct Excerpt {
    file: Arc<str>,
    /// The number of the first line.
    line: usize,
    lines: String,
    marks: Vec<Mark>,
}

/// A marked place within an excerpt.
#[derive(Debug, Clone)]
struct Mark {
    range: Range<usize>,
    /// The text next to it; `None` for the place of the diagnostic itself.
    label: Option<String>,
}

impl Located {
    pub(super) fn new(diagnostic: Diagnostic, texts: &impl Texts) -> Located {
        let name = |file: usize| -> Arc<str> { texts.name_of(file).into() };
        let mut located =
            Located { file: name(diagnostic.file), at: None, notes: Vec::new(), excerpts: Vec::new(), diagnostic };
        let d = &located.diagnostic;
        let Some(span) = d.span else { return located };
        let Some(source) = texts.open(d.file) else { return located };
        located.at = Some(source.position(span.start));
        let mut together = vec![(span, None)];
        let mut apart = Vec::new();
        for note in &d.notes {
            let label = Some(note.text.clone());
            let other = if note.file == d.file { Some(source.clone()) } else { texts.open(note.file) };
            located.notes.push((name(note.file), other.as_ref().map(|source| source.position(note.span.start))));
            let is_near = span.start.abs_diff(note.span.start) <= FARTHEST;
            match other {
                Some(_) if note.file == d.file && is_near => together.push((note.span, label)),
                Some(other) => apart.push((name(note.file), other, note.span, label)),
                None => {}
            }
        }
        let first = Excerpt::new(&located.file, &source, &together);
        let first = first.or_else(|| Excerpt::new(&located.file, &source, &together[..1]));
        located.excerpts.extend(first);
        if !located.excerpts.is_empty() {
            let others = apart
                .iter()
                .filter_map(|(file, source, span, label)| Excerpt::new(file, source, &[(*span, label.clone())]));
            located.excerpts.extend(others);
        }
        located
    }

    /// Iterates over the related places: file, position and text.
    pub(super) fn notes(&self) -> impl Iterator<Item = (&str, Position, &str)> {
        let texts = self.diagnostic.notes.iter().map(|note| note.text.as_str());
        self.notes.iter().zip(texts).filter_map(|((file, at), text)| Some((&**file, (*at)?, text)))
    }

    /// Renders the diagnostic with its excerpts.
    pub(super) fn render(&self, renderer: &Renderer) -> String {
        let d = &self.diagnostic;
        let level = match d.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        // They may quote a file or a filter.
        let (message, name) = (escape::lines(&d.message), escape::line(&self.file));
        let help = d.help.as_deref().map(escape::lines);
        let title = level.primary_title(&*message);
        let help = help.as_deref().map(|help| Level::HELP.message(help));
        if self.excerpts.is_empty() {
            let origin = Origin::path(&*name);
            let origin = match self.at {
                Some(at) => origin.line(at.line).char_column(at.column),
                None => origin,
            };
            return renderer.render(&[title.element(origin).elements(help)]);
        }
        let snippets = self.excerpts.iter().map(|excerpt| {
            Snippet::source(same_length(&excerpt.lines))
                .path(escape::line(&excerpt.file))
                .line_start(excerpt.line)
                .annotations(excerpt.marks.iter().map(Mark::annotation))
        });
        renderer.render(&[title.elements(snippets).elements(help)])
    }
}

impl Excerpt {
    /// Returns the lines that contain these places, if they are suitable for display.
    fn new(file: &Arc<str>, source: &Source, places: &[(Span, Option<String>)]) -> Option<Excerpt> {
        let text = source.text();
        let first = places.iter().map(|(span, _)| span.start).min()?;
        let last = places.iter().map(|(span, _)| span.end).max()?;
        let first = text.floor_char_boundary(first);
        let last = text.floor_char_boundary(last).max(first);
        let start = text[..first].rfind('\n').map_or(0, |i| i + 1);
        let end = text[last..].find('\n').map_or(text.len(), |i| last + i);
        let lines = text[start..end].trim_end_matches('\r');
        if lines.is_empty() || lines.lines().any(|line| line.len() > LONGEST_LINE) {
            return None;
        }
        let clip = |at: usize| lines.floor_char_boundary(at.saturating_sub(start));
        let mark = |(span, label): &(Span, Option<String>)| Mark {
            range: clip(span.start)..clip(span.end),
            label: label.clone(),
        };
        let marks = places.iter().map(mark).collect();
        Some(Excerpt { file: file.clone(), line: source.position(start).line, lines: lines.to_owned(), marks })
    }
}

impl Mark {
    fn annotation(&self) -> Annotation<'_> {
        match &self.label {
            None => AnnotationKind::Primary.span(self.range.clone()),
            Some(label) => AnnotationKind::Context.span(self.range.clone()).label(escape::line(label)),
        }
    }
}

/// Replaces harmful characters by others of the same length, so that offsets stay valid.
fn same_length(text: &str) -> Cow<'_, str> {
    escape::replaced(
        text,
        |c| escape::is_harmful(c) && c != '\n' && c != '\t',
        |out, c| {
            out.push_str(match c.len_utf8() {
                1 => "?",
                2 => "\u{b7}",
                _ => "\u{fffd}",
            });
        },
    )
}
