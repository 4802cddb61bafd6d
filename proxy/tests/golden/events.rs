//! Lists the events in the proxy's log from its sources: level, target and field names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

const MACROS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "event"];

/// Returns all events, one kind per line.
pub fn all() -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let targets = targets(&src.join("observe/target.rs"));
    let mut found = BTreeSet::new();
    let mut count = 0;
    let mut folders = vec![src];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of code") {
            let path = entry.expect("a file").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "tests") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a file of code");
                let tokens = text.parse::<TokenStream>().expect("tokens of Rust").into_iter().collect();
                scan(tokens, &mut |level, arguments| {
                    count += 1;
                    found.insert(event(level, arguments, &targets).unwrap_or_else(|| {
                        panic!("{}: `{level}!({arguments})` needs `target: target::…`", path.display())
                    }));
                });
            }
        }
    }
    assert!(count > 50, "only {count} events were found");
    found.into_iter().map(|line| line + "\n").collect()
}

/// Returns the target constants by name.
fn targets(file: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(file).expect("a file of code");
    let constants = text.lines().filter_map(|line| line.strip_prefix("pub const ")?.split_once(": &str = \""));
    let targets: BTreeMap<String, String> =
        constants.map(|(name, value)| (name.to_owned(), value.trim_end_matches("\";").to_owned())).collect();
    for one in targets.values() {
        let others = targets.values().filter(|other| *other != one);
        others.for_each(|other| assert!(!other.starts_with(one.as_str()), "filters for {one} also select {other}"));
    }
    targets
}

/// Calls `found` with the level and the arguments of each event, except in unit tests.
fn scan(tokens: Vec<TokenTree>, found: &mut impl FnMut(&str, &TokenStream)) {
    let mut is_test = false;
    for (i, token) in tokens.iter().enumerate() {
        let TokenTree::Group(group) = token else {
            is_test &= !matches!(token, TokenTree::Punct(p) if p.as_char() == ';');
            continue;
        };
        if group.delimiter() == Delimiter::Bracket {
            is_test |= group.stream().to_string().replace(' ', "") == "cfg(test)";
        } else if is_test && group.delimiter() == Delimiter::Brace {
            is_test = false;
            continue;
        }
        if let [.., TokenTree::Ident(name), TokenTree::Punct(p)] = &tokens[..i]
            && p.as_char() == '!'
            && MACROS.iter().any(|one| name == one)
        {
            found(&name.to_string(), &group.stream());
        }
        scan(stream(group), found);
    }
}

fn stream(group: &Group) -> Vec<TokenTree> {
    group.stream().into_iter().collect()
}

/// Formats an event as `level target field…`. `None` without a target.
fn event(level: &str, arguments: &TokenStream, targets: &BTreeMap<String, String>) -> Option<String> {
    let tokens: Vec<TokenTree> = arguments.clone().into_iter().collect();
    let parts = tokens.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ','));
    let mut parts = parts.map(|part| part.iter().map(ToString::to_string).collect::<Vec<_>>());
    let target = parts.next()?.concat();
    let mut line = format!("{level} {}", targets.get(target.strip_prefix("target:target::")?)?);
    for part in parts.take_while(|part| !part.first().is_some_and(|first| first.starts_with('"'))) {
        let name = part.iter().take_while(|word| *word != "=").map(String::as_str).collect::<String>();
        if !name.contains(':') {
            line = format!("{line} {}", name.trim_start_matches(['?', '%']));
        }
    }
    Some(line)
}
