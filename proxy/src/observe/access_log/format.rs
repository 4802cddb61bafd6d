//! The format of a line: JSON, or text with `%name%` fields. A format is compiled once into segments, so that a line
//! needs no lookups by name.

use http::HeaderName;
use tollgate_abi::value as metadata;

use super::{
    Entry,
    encode::{self, text_escaped},
    fields::{FIELDS, Field, Value},
};

/// A compiled format.
#[derive(Debug, Clone)]
pub struct Format(Layout);

#[derive(Debug, Clone)]
enum Layout {
    Json,
    Text(Vec<Segment>),
}

#[derive(Debug, Clone)]
enum Segment {
    Literal(String),
    Field(&'static Field),
    /// `%req(name)%`
    Request(HeaderName),
    /// `%resp(name)%`
    Response(HeaderName),
    /// `%field(name)%`
    Added(String),
    /// `%metadata(namespace:key)%`
    Metadata(String, String),
    /// `%state(key)%`
    State(String),
}

/// An error in a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The field does not exist.
    #[error("`%{name}%` is not a field: {}", match suggestion {
        Some(meant) => format!("did you mean `%{meant}%`?"),
        None => format!("the fields are {}, %req(HEADER)%, %resp(HEADER)%, %field(NAME)%, \
            %metadata(NAMESPACE:KEY)% and %state(KEY)%", names()),
    })]
    Unknown {
        /// The text between the percent signs.
        name: String,
        /// The most similar name.
        suggestion: Option<&'static str>,
    },
    /// A `%` begins a field that never ends.
    #[error("the `%` at byte {at} begins a field that does not end; write `%%` for a percent sign")]
    Unterminated {
        /// Its position, in bytes.
        at: usize,
    },
    /// The name in `%req()%` or `%resp()%` is invalid.
    #[error("`{0}` is not a valid header name")]
    Header(String),
    /// `%metadata()%` has no namespace.
    #[error("`%metadata({0})%` has no key: use `%metadata(NAMESPACE:KEY)%`")]
    Metadata(String),
    /// The format contains a control character, such as a line end.
    #[error("the format contains the control character {0:?}")]
    Control(char),
    /// All lines would be the same.
    #[error("the format has no field, so all lines would be the same: use `json`, or fields such as %start%")]
    Constant,
}

fn names() -> String {
    FIELDS.iter().map(|field| format!("%{}%", field.name)).collect::<Vec<_>>().join(", ")
}

impl Format {
    /// Compiles `json`, or a line with `%name%` fields.
    pub fn parse(format: &str) -> Result<Self, FormatError> {
        if format == "json" {
            return Ok(Format(Layout::Json));
        }
        if let Some(control) = format.chars().find(|c| c.is_control() && *c != '\t') {
            return Err(FormatError::Control(control));
        }
        let mut segments = Vec::new();
        let mut literal = String::new();
        let mut rest = format;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            let at = format.len() - after.len() - 1;
            let (name, after) = after.split_once('%').ok_or(FormatError::Unterminated { at })?;
            if name.is_empty() {
                literal.push('%');
            } else {
                if !literal.is_empty() {
                    segments.push(Segment::Literal(std::mem::take(&mut literal)));
                }
                segments.push(Segment::parse(name)?);
            }
            rest = after;
        }
        literal.push_str(rest);
        if segments.is_empty() {
            return Err(FormatError::Constant);
        }
        literal.push('\n');
        segments.push(Segment::Literal(literal));
        Ok(Format(Layout::Text(segments)))
    }

    /// Whether a line needs [`Entry::request_headers`].
    pub fn request_headers(&self) -> bool {
        self.segments().iter().any(|segment| matches!(segment, Segment::Request(_)))
    }

    /// Whether a line needs [`Entry::response_headers`].
    pub fn response_headers(&self) -> bool {
        self.segments().iter().any(|segment| matches!(segment, Segment::Response(_)))
    }

    fn segments(&self) -> &[Segment] {
        match &self.0 {
            Layout::Json => &[],
            Layout::Text(segments) => segments,
        }
    }

    /// Appends a line, including its line end.
    pub fn write(&self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        match &self.0 {
            Layout::Json => json(entry, out),
            Layout::Text(segments) => segments.iter().for_each(|segment| segment.write(entry, out)),
        }
    }
}

fn json(entry: &Entry<'_>, out: &mut Vec<u8>) {
    let mut lead = b"{\"".as_slice();
    for field in FIELDS {
        out.extend_from_slice(lead);
        out.extend_from_slice(field.name.as_bytes());
        out.extend_from_slice(b"\":");
        encode::json(out, (field.get)(entry));
        lead = b",\"";
    }
    out.extend_from_slice(b"}\n");
}

impl Segment {
    fn parse(name: &str) -> Result<Self, FormatError> {
        let header =
            |name: &str| HeaderName::from_bytes(name.as_bytes()).map_err(|_| FormatError::Header(name.to_owned()));
        match name.strip_suffix(')').and_then(|call| call.split_once('(')) {
            Some(("req", name)) => return header(name).map(Segment::Request),
            Some(("resp", name)) => return header(name).map(Segment::Response),
            Some(("field", name)) => return Ok(Segment::Added(name.to_owned())),
            Some(("state", key)) => return Ok(Segment::State(key.to_owned())),
            Some(("metadata", name)) => {
                let (space, key) = name.split_once(':').ok_or_else(|| FormatError::Metadata(name.to_owned()))?;
                return Ok(Segment::Metadata(space.to_owned(), key.to_owned()));
            }
            _ => {}
        }
        FIELDS.iter().find(|field| field.name == name).map(Segment::Field).ok_or_else(|| unknown(name))
    }

    fn write(&self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        let value = match self {
            Segment::Literal(literal) => return out.extend_from_slice(literal.as_bytes()),
            Segment::Field(field) => (field.get)(entry),
            Segment::Request(name) => entry.request_headers.map_or(Value::Missing, |map| Value::Headers(map, name)),
            Segment::Response(name) => entry.response_headers.map_or(Value::Missing, |map| Value::Headers(map, name)),
            Segment::Added(name) => match entry.fields.iter().find(|(added, _)| added == name) {
                Some((_, value)) if !value.is_empty() => return text_escaped(out, value.as_bytes()),
                _ => Value::Missing,
            },
            Segment::State(key) => match entry.stored.and_then(|s| s.state(key.as_bytes())) {
                Some(value) if !value.is_empty() => return text_escaped(out, value),
                _ => Value::Missing,
            },
            Segment::Metadata(space, key) => {
                let found = entry.stored.and_then(|s| s.metadata(space.as_bytes(), key.as_bytes()));
                match found.and_then(|(kind, bytes)| metadata::Value::decode(kind, bytes)) {
                    Some(value) if metadata_text(out, &value) => return,
                    _ => Value::Missing,
                }
            }
        };
        encode::text(out, value);
    }
}

/// Appends a metadata value; returns false if it is empty.
fn metadata_text(out: &mut Vec<u8>, value: &metadata::Value<'_>) -> bool {
    match value {
        metadata::Value::Text("") | metadata::Value::Bytes(b"") => return false,
        metadata::Value::Text(text) => text_escaped(out, text.as_bytes()),
        metadata::Value::Bytes(bytes) => text_escaped(out, bytes),
        metadata::Value::Integer(n) => text_escaped(out, n.to_string().as_bytes()),
        metadata::Value::Number(n) => text_escaped(out, n.to_string().as_bytes()),
        metadata::Value::Bool(b) => text_escaped(out, b.to_string().as_bytes()),
    }
    true
}

fn unknown(name: &str) -> FormatError {
    let lower = name.to_ascii_lowercase();
    let suggestion = FIELDS
        .iter()
        .map(|field| (strsim::jaro_winkler(field.name, &lower), field.name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name);
    FormatError::Unknown { name: name.to_owned(), suggestion }
}
