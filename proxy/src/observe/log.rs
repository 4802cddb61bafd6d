//! Tollgate's own log, on standard error: for people, coloured on a terminal and plain in a pipe, or as JSON. What is
//! shown can be changed while it runs; how it is written cannot.
//!
//! Modules, filters and clients put text into it. In the log for people an entry begins at the beginning of a line, with its
//! time, and whatever is within it is indented: so nothing within an entry passes for another one.

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

/// What is wrong with the log's configuration, or with the moment of setting it up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// What is neither a level nor looks like a module.
    #[error("`{word}` is not a log level")]
    Level {
        /// The word.
        word: String,
        /// The level most like it.
        suggestion: Option<&'static str>,
    },
    /// `tracing-subscriber` did not understand it.
    #[error("`{directives}` is not a log filter: {error}")]
    Filter {
        /// What was given.
        directives: String,
        /// Why it was refused.
        #[source]
        error: ParseError,
    },
    /// What the command line or the environment says is wrong.
    #[error("`--log-level` (or TOLLGATE_LOG): {0}{hint}", hint = .0.help().map(|help| format!(": {help}")).unwrap_or_default())]
    Given(#[source] Box<LogError>),
    /// There is a log already.
    #[error("the log was set up before")]
    Twice,
    /// The log that this handle was for is no more.
    #[error("the log is gone")]
    Gone,
}

impl LogError {
    /// What would be right.
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

/// Changes what the log shows while it runs.
#[derive(Debug, Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    /// What was given when the process was started: it holds whatever the configuration says.
    given: Option<String>,
}

impl LogHandle {
    /// Shows what this says from now on: a level, or a filter such as `info,tollgate::wasm=debug`.
    pub fn set_level(&self, directives: &str) -> Result<(), LogError> {
        self.filter.reload(parse(directives)?).map_err(|_| LogError::Gone)
    }

    /// As a reloaded configuration says. Its format is not looked at.
    pub fn reload(&self, config: &Log) -> Result<(), LogError> {
        self.set_level(self.given.as_deref().or(config.level.as_deref()).unwrap_or(DEFAULT))
    }

    /// What is shown, as a filter.
    pub fn level(&self) -> Result<String, LogError> {
        self.filter.with_current(ToString::to_string).map_err(|_| LogError::Gone)
    }
}

/// Checks a level or filter without using it.
pub fn check(directives: &str) -> Result<(), LogError> {
    parse(directives).map(drop)
}

/// Whether standard error is a terminal that wants colours. <https://no-color.org>: any value that is not empty.
pub fn colours() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Sets up the process's log, on standard error. Once: later changes go through the handle. `given` holds whatever
/// configurations say.
pub fn init(config: &Log, given: Option<&str>) -> Result<LogHandle, LogError> {
    if let Some(given) = given {
        check(given).map_err(|error| LogError::Given(Box::new(error)))?;
    }
    let (subscriber, handle) = build(config, given, colours(), stderr::say)?;
    subscriber.try_init().map_err(|_| LogError::Twice)?;
    Ok(handle)
}

/// Logs a line; writes it to standard error as it is if there is no log yet.
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

/// Takes entries from `tracing-subscriber`, each in one piece.
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

/// Writes a field as the subscriber would, but so that it can do nothing to a terminal, or to who reads line by line.
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
        // What events of the crate `log` have their own place for.
        name if name.starts_with("log.") => Ok(()),
        name if out.has_ansi_escapes() => write!(out, " \x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}"),
        name => write!(out, " {name}={value}"),
    }
}

/// An entry whose strings have nothing in them that a terminal, or a reader of lines, takes for more than text. None of these
/// characters needs two units of UTF-16.
fn harmless_json(entry: &str) -> Cow<'_, str> {
    escape::replaced(
        entry,
        |c| escape::is_harmful(c) && c != '\n',
        |out, c| {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        },
    )
}

/// To `EnvFilter` almost any text is a target, so that `inof` or `info;debug` would silently show nothing. Here each part has to
/// be a level, Tollgate itself, or a path to a module, with a level or without.
fn parse(directives: &str) -> Result<EnvFilter, LogError> {
    let parts: Vec<&str> = directives.split(',').map(str::trim).collect();
    for part in &parts {
        check_directive(part)?;
    }
    // Values of fields are compared as they are: an expression, compiled, may take any amount of memory, and whoever
    // reaches the admin listener can send one.
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
    // What follows the target: a span, a level, or both. `EnvFilter` looks at those itself.
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
    fn what_is_within_an_entry_cannot_pass_for_another_one() {
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
            assert!(kept.take().contains("three"), "a wrong level changes nothing");
            handle.reload(&Log::default()).unwrap();
            debug!("four");
            assert_eq!(kept.take(), "");
            assert_eq!(handle.level().unwrap(), "info");
        });
    }

    #[test]
    fn values_of_fields_are_no_regular_expressions() {
        // Which this would not be.
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
    fn what_would_silence_everything_is_refused() {
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
