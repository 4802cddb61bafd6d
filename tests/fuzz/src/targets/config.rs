//! Configuration files.

use tollgate::config::{Format, Loader};

use crate::{Outcome, Target};

/// The three parsers and everything after them. Errors have a valid place; a valid configuration is unchanged when it
/// is written and parsed again.
fn check(input: &[u8]) -> Outcome {
    let Ok(text) = str::from_utf8(input) else { return Outcome::of(()) };
    let mut outcomes = Vec::new();
    for format in [Format::Yaml, Format::Json, Format::Toml] {
        match LOADER.with(|loader| loader.parse("fuzz", text, format)) {
            Ok(loaded) => {
                let shown = loaded.shown().to_string();
                let again = LOADER.with(|loader| loader.parse("again", &shown, Format::Json));
                let again = again.unwrap_or_else(|errors| panic!("{errors}\nin {shown}"));
                assert_eq!(again.shown().to_string(), shown);
                outcomes.push((true, loaded.warnings.len()));
            }
            Err(errors) => {
                assert!(errors.has_errors());
                assert!(!errors.render(false).is_empty() && !errors.to_json().is_null());
                outcomes.push((false, errors.len()));
            }
        }
    }
    Outcome::of((outcomes, text.len().min(800) / 16))
}

thread_local! {
    static LOADER: Loader<'static> = Loader::default().env(|name| (name == "SET").then(|| "8080".to_owned()));
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"listeners:\n  - name: a\n    address: 127.0.0.1:80\n",
        b"clusters:\n  - name: b\n    endpoints: [127.0.0.1:81]\n",
        b"{\"listeners\":[{\"address\":\"127.0.0.1:80\"}]}",
        b"[[listeners]]\naddress = \"127.0.0.1:80\"\n",
        b"${SET}",
        b"${UNSET:-a}",
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!str ",
        b"- ",
        b": ",
        b"\n  ",
        b"\"",
        b"10s",
        b"1MiB",
        b"1e999",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
        b"|\n",
        b"'''",
    ],
    max_len: 2000,
    check,
};
