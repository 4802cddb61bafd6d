//! Checks the sources against the tables of layers in ARCHITECTURE.md: every dependency between two folders is in the
//! table, every entry of the table exists, all point downwards, and no folders depend on each other in a cycle.
//!
//! `source.rs` parses a crate and resolves paths, `walk.rs` finds paths, `table.rs` reads the tables, `graph.rs`
//! finds cycles, and `naming.rs` tests all of them. Every way of naming an item is a dependency: `use` (groups,
//! globs, renames), paths in types, expressions, patterns, bounds and macros, `super::` and `self::`, names from a
//! glob, and paths in attributes. A name is followed through re-exports to the module that defines it. Code for tests
//! does not count, nor do methods and fields, which would need type information.
//!
//! `LAYERS_PRINT=1 cargo test -p tollgate --test layers -- --nocapture` prints the tables that match the sources.

mod graph;
mod naming;
mod source;
mod table;
mod walk;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
};

use source::{Arrow, Crate};
use table::Table;

/// Returns the folder (or file) below one of the prefixes to which a file belongs; the longest prefix decides. With
/// `["", "wasm"]`, examples are `chain`, `wasm` and `wasm/engine`.
fn folder(file: &Path, prefixes: &[&str]) -> String {
    let prefix = prefixes
        .iter()
        .filter(|p| p.is_empty() || file.starts_with(p) || file == Path::new(&format!("{p}.rs")))
        .max_by_key(|p| p.len())
        .copied()
        .unwrap_or("");
    let rest = file.strip_prefix(prefix).unwrap_or(file);
    let mut parts = rest.components();
    let first = parts.next().map(|c| c.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
    let name = if parts.next().is_some() { first } else { first.trim_end_matches(".rs").to_owned() };
    match (prefix, &*name) {
        ("", name) => name.to_owned(),
        (prefix, "mod" | "") => prefix.to_owned(),
        (prefix, name) => format!("{prefix}/{name}"),
    }
}

/// Returns all dependencies between folders, each with its places.
fn between_folders<'a>(arrows: &'a [Arrow], prefixes: &[&str]) -> BTreeMap<(String, String), Vec<&'a Arrow>> {
    let mut map: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for arrow in arrows {
        let (from, to) = (folder(&arrow.from, prefixes), folder(&arrow.to, prefixes));
        // The root of a crate declares its modules and re-exports their items; that does not count.
        if from != to && to != "lib" && from != "lib" {
            map.entry((from, to)).or_default().push(arrow);
        }
    }
    map
}

/// Returns the dependencies between a table's folders, each with its first place.
fn found(table: &Table, root: &Path) -> BTreeMap<(String, String), String> {
    let krate = Crate::load(&root.join(&table.src)).unwrap();
    let arrows = krate.arrows();
    let prefixes: Vec<&str> = if table.below.is_empty() { vec![""] } else { vec!["", &table.below] };
    // A table about `wasm` calls `wasm/vm` just `vm`.
    let own = |folder: &str| match table.below.as_str() {
        "" => Some(folder.to_owned()),
        below => folder.strip_prefix(below)?.strip_prefix('/').map(str::to_owned),
    };
    between_folders(&arrows, &prefixes)
        .iter()
        .filter_map(|((from, to), places)| {
            let place = places[0];
            Some((
                (own(from)?, own(to)?),
                format!("{}/{}:{}: {}", table.src, place.from.display(), place.line, place.text),
            ))
        })
        .collect()
}

#[test]
fn sources_follow_the_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tables = table::tables(&fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap());
    let about: Vec<_> = tables.iter().map(|t| (&*t.src, &*t.below)).collect();
    assert_eq!(about, [("proxy/src", ""), ("proxy/src", "wasm"), ("sdk/src", "")], "the tables of ARCHITECTURE.md");
    let mut wrong = String::new();
    for table in &tables {
        let found = found(table, &root);
        if std::env::var_os("LAYERS_PRINT").is_some() {
            print(table, &found);
        }
        table::check(table, &found).iter().for_each(|line| writeln!(wrong, "{}: {line}", table.src).unwrap());
        for cycle in graph::cycles(found.into_keys()) {
            writeln!(wrong, "{}: a cycle: {}", table.src, cycle.join(" ")).unwrap();
        }
    }
    assert!(wrong.is_empty(), "ARCHITECTURE.md and the sources differ:\n{wrong}");
}

/// Prints a table as it should be, with its present rows and subjects.
fn print(table: &Table, found: &BTreeMap<(String, String), String>) {
    println!("\n{} {}", table.src, table.below);
    for (folders, _) in &table.rows {
        let uses: BTreeSet<_> =
            found.keys().filter(|(from, _)| folders.contains(from)).map(|(_, to)| format!("`{to}`")).collect();
        println!("| `{}` | {} |", folders.join("` `"), uses.into_iter().collect::<Vec<_>>().join(" "));
    }
}
