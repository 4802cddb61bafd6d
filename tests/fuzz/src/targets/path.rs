//! The normalization of paths.

use tollgate_abi::spelling::{self, BadPath, EscapedSlashes, Parameters, PathRules, compared};

use crate::{Outcome, Target};

/// A normalized path is unchanged by normalization, and satisfies the rules.
fn check(input: &[u8]) -> Outcome {
    let mut outcomes = Vec::new();
    for merge_slashes in [true, false] {
        for escaped_slashes in [EscapedSlashes::Keep, EscapedSlashes::Reject, EscapedSlashes::Decode] {
            for parameters in [Parameters::Keep, Parameters::Strip, Parameters::Reject] {
                let rules = PathRules { merge_slashes, escaped_slashes, parameters };
                let normalised = spelling::path(input, &rules);
                outcomes.push(normalised.as_ref().map(|path| path.len().min(64) / 8).map_err(|e| *e as u8));
                match normalised {
                    Ok(path) => one_spelling(input, &path, &rules),
                    Err(BadPath::Relative) => assert_ne!(input.first(), Some(&b'/')),
                    Err(BadPath::Encoding) => assert!(input.contains(&b'%')),
                    Err(BadPath::Nul) => assert!(input.contains(&b'%') || input.contains(&0)),
                    Err(BadPath::EscapedSlash) => assert_eq!(escaped_slashes, EscapedSlashes::Reject),
                    Err(BadPath::Parameters) => assert_eq!(parameters, Parameters::Reject),
                    Err(BadPath::HiddenSegment) => assert!(input.contains(&b';')),
                }
            }
        }
    }
    Outcome::of(outcomes)
}

fn one_spelling(input: &[u8], path: &[u8], rules: &PathRules) {
    assert_eq!(path.first(), Some(&b'/'));
    assert!(path.len() <= 3 * input.len());
    assert_eq!(spelling::path(path, rules).as_deref(), Ok(path));
    let mut segments = path.split(|b| *b == b'/').skip(1);
    // Also for servers that strip parameters.
    assert!(segments.all(|segment| {
        let name = segment.split(|b| *b == b';').next().unwrap_or_default();
        name != b"." && name != b".."
    }));
    assert!(!rules.merge_slashes || !path.windows(2).any(|two| two == b"//"));
    assert!(rules.parameters == Parameters::Keep || !path.contains(&b';'));
    assert!(path.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(b)));
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        let digits = &path[at + 1..at + 3];
        assert!(digits.iter().all(|d| d.is_ascii_digit() || matches!(d, b'A'..=b'F')));
        let value = u8::from_str_radix(str::from_utf8(digits).expect("digits"), 16).expect("digits");
        assert!(value != 0 && !value.is_ascii_alphanumeric() && !b"-._~".contains(&value));
        let slash = matches!(value, b'/' | b'\\');
        assert!(!slash || rules.escaped_slashes == EscapedSlashes::Keep);
    }
    let form = compared(path);
    assert_eq!(compared(&form), form);
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"/",
        b"//",
        b"/.",
        b"/..",
        b"/../",
        b"%2e",
        b"%2E%2e",
        b"%2f",
        b"%5C",
        b"\\",
        b"%25",
        b"%00",
        b"%61",
        b"%e4",
        b"%",
        b"a",
        b";",
        b".;",
        b"%3b",
        b"%40",
        b"\xc3\xa9",
        b"{",
    ],
    max_len: 300,
    check,
};
