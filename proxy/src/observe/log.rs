//! Tollgate's own log, on standard error: as text, coloured on a terminal and plain in a pipe, or as JSON. The level
//! can be changed at run time; the format cannot.
//!
//! Modules, filters and clients put text into the log. In the text format, an entry begins with its time in the first column,
//! and its further lines are indented, so that nothing within an entry can pass for another entry.

pub mod stderr;

use std::{
    borrow::Cow,
    env,
    fmt::Write,
    io::{self, IsTerminal},
};

use tracing::{Subscriber, field::Field};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::ParseError,
    fmt::{self, format::Writer},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use super::target;
use crate::{
    config::model::{Log, LogFormat},
    escape,
};

const DEFAULT: &str = "info";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// An error in the log's configuration or setup.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A directive that is neither a level nor a module path.
    #[error("`{word}` is not a log level")]
    Level {
        /// The directive.
        word: String,
        /// The most similar level.
        suggestion: Option<&'static str>,
    },
    /// `tracing-subscriber` rejected the filter.
    #[error("`{directives}` is not a log filter: {error}")]
    Filter {
        /// The filter as given.
        directives: String,
        /// The reason.
        #[source]
        error: ParseError,
    },
    /// The command line or the environment has an invalid filter.
    #[error("`--log-level` (or TOLLGATE_LOG): {0}{hint}", hint = .0.help().map(|help| format!(": {help}")).unwrap_or_default())]
    Given(#[source] Box<LogError>),
    /// The log has already been set up.
    #[error("the log is already set up")]
    Twice,
    /// The handle's log no longer exists.
    #[error("the log no longer exists")]
    Gone,
}

impl LogError {
    /// A suggestion for a valid value.
    pub fn help(&self) -> Option<String> {
        match self {
            LogError::Level { suggestion: Some(level), .. } => Some(format!("did you mean `{level}`?")),
            LogError::Level { .. } => Some(format!("the levels are {}", LEVELS.join(", "))),
            LogError::Filter { .. } => Some("write a level, or levels by target: info,tollgate::wasm=debug".to_owned()),
            LogError::Given(error) => error.help(),
            LogError::Twice | LogError::Gone => None,
        }
    }
}

/// Changes the log's level at run time.
#[derive(Debug, Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    /// The level from the command line or the environment, which overrides the configuration.
    given: Option<String>,
}

impl LogHandle {
    /// Sets the level, or a filter such as `info,tollgate::wasm=debug`.
    pub fn set_level(&self, directives: &str) -> Result<(), LogError> {
        self.filter.reload(parse(directives)?).map_err(|_| LogError::Gone)
    }

    /// Applies the level of a reloaded configuration, and ignores its format.
    pub fn reload(&self, config: &Log) -> Result<(), LogError> {
        self.set_level(self.given.as_deref().or(config.level.as_deref()).unwrap_or(DEFAULT))
    }

    /// The current filter.
    pub fn level(&self) -> Result<String, LogError> {
        self.filter.with_current(ToString::to_string).map_err(|_| LogError::Gone)
    }
}

/// Checks a level or filter without using it.
pub fn check(directives: &str) -> Result<(), LogError> {
    parse(directives).map(drop)
}

/// Whether to use colours: standard error is a terminal and `NO_COLOR` is empty or unset (<https://no-color.org>).
pub fn colours() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Sets up the process's log on standard error, once; the handle makes later changes. `given` overrides the level of all
/// configurations.
pub fn init(config: &Log, given: Option<&str>) -> Result<LogHandle, LogError> {
    if let Some(given) = given {
        check(given).map_err(|error| LogError::Given(Box::new(error)))?;
    }
    let (subscriber, handle) = build(config, given, colours(), stderr::say)?;
    subscriber.try_init().map_err(|_| LogError::Twice)?;
    Ok(handle)
}

/// Logs a line, or writes it to standard error verbatim if the log is not set up yet.
pub fn say_in_any_case(line: &str) {
    match tracing::dispatcher::has_been_set() {
        true => tracing::info!(target: target::PROCESS, "{line}"),
        false => stderr::say(&format!("{line}\n")),
    }
}

fn build<S>(
    config: &Log,
    given: Option<&str>,
    colours: bool,
    say: S,
) -> Result<(impl Subscriber + Send + Sync + use<S>, LogHandle), LogError>
where
    S: Fn(&str) + Clone + Send + Sync + 'static,
{
    let filter = parse(given.or(config.level.as_deref()).unwrap_or(DEFAULT))?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = match config.format {
        LogFormat::Text => {
            let layer = fmt::layer().with_writer(move || Entries(say.clone()));
            layer.with_ansi(colours).fmt_fields(fmt::format::debug_fn(write_field)).boxed()
        }
        LogFormat::Json => {
            let say = move |entry: &str| say(&harmless_json(entry));
            fmt::layer().with_writer(move || Entries(say.clone())).json().flatten_event(true).boxed()
        }
    };
    Ok((Registry::default().with(filter).with(lines), LogHandle { filter: handle, given: given.map(str::to_owned) }))
}

/// Receives entries from `tracing-subscriber`, each in one call.
struct Entries<S>(S);

impl<S: Fn(&str)> io::Write for Entries<S> {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        self.0(&String::from_utf8_lossy(entry));
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a field as the subscriber would, but escaped so that it can neither control a terminal nor forge a line.
fn write_field(out: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug) -> std::fmt::Result {
    let value = format!("{value:?}");
    let value = escape::replaced(
        &value,
        |c| escape::is_harmful(c) && c != '\t',
        |out, c| match c {
            '\n' => out.push_str("\n    "),
            c => escape::escape(out, c),
        },
    );
    match field.name() {
        "message" => out.write_str(&value),
        // Metadata of events from the crate `log`, which is shown elsewhere.
        name if name.starts_with("log.") => Ok(()),
        name if out.has_ansi_escapes() => write!(out, " \x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}"),
        name => write!(out, " {name}={value}"),
    }
}

/// Escapes all characters in an entry that could control a terminal or forge a line. None of these characters needs two
/// units of UTF-16.
fn harmless_json(entry: &str) -> Cow<'_, str> {
    escape::replaced(
        entry,
        |c| escape::is_harmful(c) && c != '\n',
        |out, c| {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        },
    )
}

/// Parses a filter. `EnvFilter` accepts almost any text as a target, so `inof` or `info;debug` would silently show nothing. Here
/// each part must be a level, `tollgate`, or a module path, with or without a level.
fn parse(directives: &str) -> Result<EnvFilter, LogError> {
    let parts: Vec<&str> = directives.split(',').map(str::trim).collect();
    for part in &parts {
        check_directive(part)?;
    }
    // Field values are compared literally: a compiled regular expression can take any amount of memory, and anyone with access
    // to the admin listener can send one.
    EnvFilter::builder()
        .with_regex(false)
        .parse(parts.join(","))
        .map_err(|error| LogError::Filter { directives: directives.to_owned(), error })
}

fn check_directive(directive: &str) -> Result<(), LogError> {
    let lower = directive.to_ascii_lowercase();
    if LEVELS.contains(&lower.as_str()) || directive == "tollgate" {
        return Ok(());
    }
    // The target is followed by a span, a level, or both, which `EnvFilter` checks itself.
    let end = directive.find(['[', '=']).unwrap_or(directive.len());
    let (target, rest) = directive.split_at(end);
    let name = |part: &str| {
        let mut chars = part.chars();
        chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    };
    let is_module = target.split("::").all(name);
    let is_right = match rest.chars().next() {
        None => is_module && target.contains("::"),
        Some('[') => is_module || target.is_empty() && rest.contains("]="),
        Some(_) => is_module,
    };
    if is_right {
        return Ok(());
    }
    let suggestion = LEVELS
        .into_iter()
        .map(|level| (strsim::jaro_winkler(level, &lower), level))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, level)| level);
    Err(LogError::Level { word: directive.to_owned(), suggestion })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{debug, info, subscriber::with_default};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<String>>);

    impl Kept {
        fn take(&self) -> String {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    fn log(
        level: Option<&str>,
        format: LogFormat,
        colours: bool,
    ) -> (Kept, impl Subscriber + Send + Sync + use<>, LogHandle) {
        let kept = Kept::default();
        let writer = kept.clone();
        let config = Log { level: level.map(str::to_owned), format };
        let (subscriber, handle) =
            build(&config, None, colours, move |entry| writer.0.lock().unwrap().push_str(entry)).unwrap();
        (kept, subscriber, handle)
    }

    #[test]
    fn text_is_coloured_only_on_a_terminal() {
        for colours in [false, true] {
            let (kept, subscriber, _) = log(None, LogFormat::Text, colours);
            with_default(subscriber, || info!(n = 1, "hello\u{1b}[2J"));
            let text = kept.take();
            assert_eq!(text.contains("\u{1b}["), colours, "{text:?}");
            assert!(text.contains("hello") && !text.contains("\u{1b}[2J"), "{text:?}");
        }
    }

    #[test]
    fn text_within_an_entry_cannot_forge_another_entry() {
        let forged = "a\n2026-01-01T00:00:00Z  INFO forged\r\u{1b}[2K\u{9b}2K\u{2028}\u{202e}\tb";
        for colours in [false, true] {
            let (kept, subscriber, _) = log(None, LogFormat::Text, colours);
            with_default(subscriber, || info!(field = forged, other = %forged, "{forged}"));
            let text = kept.take();
            assert!(text.lines().skip(1).all(|line| line.starts_with("    ")), "{text:?}");
            assert!(
                !text.contains(['\r', '\u{9b}', '\u{2028}', '\u{202e}']) && !text.contains("\u{1b}[2K"),
                "{text:?}"
            );
        }
        let (kept, subscriber, _) = log(None, LogFormat::Json, true);
        with_default(subscriber, || info!(field = forged, "{forged}"));
        let text = kept.take();
        assert!(!text.trim_end().contains(escape::is_harmful), "{text:?}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["message"], &value["field"]), (&forged.into(), &forged.into()));
    }

    #[test]
    fn json_is_one_object_a_line() {
        let (kept, subscriber, _) = log(Some("debug"), LogFormat::Json, true);
        with_default(subscriber, || debug!(n = 1, "a \"b\"\nc"));
        let text = kept.take();
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["n"], &value["level"]), (&1.into(), &"DEBUG".into()));
        assert_eq!(value["message"], "a \"b\"\nc");
    }

    #[test]
    fn the_level_can_be_changed_at_run_time() {
        let (kept, subscriber, handle) = log(None, LogFormat::Text, false);
        with_default(subscriber, || {
            debug!("one");
            assert_eq!(kept.take(), "");
            handle.set_level("warn,tollgate=debug").unwrap();
            debug!("two");
            assert!(kept.take().contains("two"));
            assert!(handle.set_level("nonsense").is_err());
            debug!("three");
            assert!(kept.take().contains("three"), "an invalid level changes nothing");
            handle.reload(&Log::default()).unwrap();
            debug!("four");
            assert_eq!(kept.take(), "");
            assert_eq!(handle.level().unwrap(), "info");
        });
    }

    #[test]
    fn field_values_are_not_regular_expressions() {
        // An invalid regular expression.
        check("tollgate[{filter=(}]=debug").unwrap();
    }

    #[test]
    fn levels_are_checked() {
        for right in ["info", "WARN", "off", "tollgate", "info,tollgate::wasm=debug", "debug,wasmtime=off"] {
            check(right).unwrap_or_else(|error| panic!("{right}: {error}"));
        }
        let error = check("inof").unwrap_err();
        assert_eq!(error.to_string(), "`inof` is not a log level");
        assert_eq!(error.help().as_deref(), Some("did you mean `info`?"));
        let none = check("verbose").unwrap_err().help().unwrap();
        assert_eq!(none, "the levels are off, error, warn, info, debug, trace");
        for wrong in ["", "info,,", "5", "a=b=c", "tollgate=loud"] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn filters_that_would_silence_everything_are_rejected() {
        for wrong in
            ["info;debug", "info debug", "info;tollgate=debug", "info/debug", "debug:", "::", "[debug]", "\"info\""]
        {
            let error = check(wrong).expect_err(wrong);
            assert!(matches!(error, LogError::Level { .. }), "{wrong}: {error}");
        }
        let error = check("info,debug;trace").unwrap_err();
        assert_eq!(error.to_string(), "`debug;trace` is not a log level");
    }

    #[test]
    fn blanks_around_a_level_do_not_count() {
        for (blanks, plain) in [(" debug ", "debug"), ("info , tollgate::wasm=debug\n", "info,tollgate::wasm=debug")] {
            assert_eq!(parse(blanks).unwrap().to_string(), parse(plain).unwrap().to_string(), "{blanks:?}");
        }
        check("info, tollgate[request{path=\"/a\"}]=debug").unwrap_or_else(|error| panic!("{error}"));
    }
}
