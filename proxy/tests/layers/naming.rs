//! Tests of the layers test on tiny crates: every way in which a module can name another.

use std::{collections::BTreeMap, path::Path};

use super::{between_folders, folder, graph, source::Crate, table};

/// Returns the dependencies in a tiny crate.
fn arrows(files: &[(&str, &str)]) -> Vec<(String, String)> {
    let files: BTreeMap<&str, &str> = files.iter().copied().collect();
    let krate = Crate::read(&|path| files.get(path.to_str().unwrap()).map(|t| (*t).to_owned())).unwrap();
    let arrows = krate.arrows();
    between_folders(&arrows, &[""]).into_keys().collect()
}

/// Returns the dependencies in a crate with folders `a` and `b`, where `a/mod.rs` has this text, and `b` an item of
/// each kind.
fn named(a: &str) -> Vec<(String, String)> {
    arrows(&[
        ("lib.rs", "pub mod a; pub mod b; pub mod c;"),
        ("a/mod.rs", a),
        (
            "b/mod.rs",
            "pub mod inner; pub use self::inner::Thing; pub fn f() {} pub struct S; pub trait T {} #[macro_export] macro_rules! m { () => {} } pub mod c { pub const N: u8 = 1; }",
        ),
        ("b/inner.rs", "pub struct Thing; pub enum E { X }"),
        ("c.rs", "pub use crate::b::Thing as Other;"),
    ])
}

fn pair(from: &str, to: &str) -> (String, String) {
    (from.to_owned(), to.to_owned())
}

#[test]
fn every_way_of_naming_an_item_is_found() {
    for text in [
        "use crate::b::S;",
        "use crate::b;",
        "use crate::b::{self, f};",
        "use crate::{b::{inner::{E, Thing}}};",
        "use crate::b::S as Renamed;",
        "use crate::b::*;",
        "use crate::b::T as _;",
        "use super::b::S;",
        "pub use crate::b::S;",
        "fn x() { crate::b::f() }",
        "fn x() -> crate::b::S { todo!() }",
        "struct X(Vec<crate::b::S>);",
        "impl crate::b::T for u8 {}",
        "fn x<Y: crate::b::T>(y: Y) {}",
        "fn x(y: u8) { match y { crate::b::c::N => {} _ => {} } }",
        "fn x() { super::b::f() }",
        "fn x() { use crate::b::f; f() }",
        "fn x() { println!(\"{:?}\", crate::b::c::N) }",
        "fn x() { assert!(matches!(1, super::b::c::N)) }",
        "mod own { pub fn x() { super::super::b::f() } }",
        "macro_rules! y { () => { $crate::b::f() } }",
        "#[serde(default = \"crate::b::f\")] struct X;",
        "use crate as k; fn x() { k::b::f() }",
    ] {
        assert!(named(text).contains(&pair("a", "b")), "{text}");
    }
}

#[test]
fn names_of_other_crates_are_not_found() {
    for text in [
        "use b::S; use ::b::f;",
        "fn x() { b::f() }",
        "// crate::b::f()",
        "/// [`crate::b`]\nfn x() {}",
        "const X: &str = \"crate::b::f\";",
        "mod b { pub struct S; } use self::b::S;",
        "#[cfg(test)] use crate::b::S;",
        "#[cfg(test)] mod tests { use crate::b::S; }",
        "#[cfg(all(test, unix))] fn x() { crate::b::f() }",
        "#[cfg(not(target_arch = \"wasm32\"))] use crate::b::S;",
        "#[test] fn x() { crate::b::f() }",
        "pub(in crate::b) fn x() {}",
    ] {
        assert_eq!(named(text).iter().filter(|a| a.0 == "a").count(), 0, "{text}");
    }
    assert!(named("#[cfg(not(test))] use crate::b::S;").contains(&pair("a", "b")));
}

#[test]
fn a_re_export_counts_for_both_modules() {
    let found = named("use crate::c::Other;");
    assert!(found.contains(&pair("a", "b")) && found.contains(&pair("a", "c")), "{found:?}");
    // Glob imports bring names, too.
    let found = named("use crate::c::*; fn x(o: Other) {}");
    assert!(found.contains(&pair("a", "b")) && found.contains(&pair("a", "c")), "{found:?}");
}

#[test]
fn re_exporting_from_a_child_is_not_a_dependency() {
    let files = [
        ("lib.rs", "mod a;"),
        ("a/mod.rs", "mod x; pub use self::x::X; pub struct Y;"),
        ("a/x.rs", "use super::Y; pub struct X(Y);"),
    ];
    let files: BTreeMap<&str, &str> = files.into_iter().collect();
    let krate = Crate::read(&|path| files.get(path.to_str().unwrap()).map(|t| (*t).to_owned())).unwrap();
    let arrows: Vec<_> =
        krate.arrows().into_iter().map(|a| (a.from.display().to_string(), a.to.display().to_string())).collect();
    assert_eq!(arrows, [pair("a/x.rs", "a/mod.rs")]);
}

#[test]
fn files_belong_to_the_folder_below_a_prefix() {
    let prefixes = ["", "wasm"];
    for (file, expected) in [
        ("chain/mod.rs", "chain"),
        ("chain/network/flow.rs", "chain"),
        ("files.rs", "files"),
        ("wasm/mod.rs", "wasm"),
        ("wasm/vm.rs", "wasm/vm"),
        ("wasm/vm/recovery.rs", "wasm/vm"),
        ("wasm/engine/compiler/child.rs", "wasm/engine"),
    ] {
        assert_eq!(folder(Path::new(file), &prefixes), expected, "{file}");
    }
}

#[test]
fn cycles_are_found() {
    let edges = |text: &str| text.split(' ').map(|e| pair(&e[..1], &e[1..])).collect::<Vec<_>>();
    assert!(graph::cycles(edges("ab bc ac cd")).is_empty());
    assert_eq!(graph::cycles(edges("ab ba bc cd dc de")), [["a", "b"], ["c", "d"]]);
    assert_eq!(graph::cycles(edges("ab bc ca")), [["a", "b", "c"]]);
}

const TABLE: &str = "\
# Layers
<!-- layers: proxy/src -->
| folder | subject | uses |
|---|---|---|
| `a/` | first | `b` `c` |
| `b/` \\ `d/` | middle | `c` |
| `c/` | last | |

Text.
";

#[test]
fn a_table_must_match_the_sources() {
    let tables = table::tables(TABLE);
    assert_eq!((tables.len(), &*tables[0].src, tables[0].rows.len()), (1, "proxy/src", 3));
    let check = |pairs: &str| {
        let arrows = pairs.split(' ').map(|e| (pair(&e[..1], &e[1..]), format!("{}.rs:1", &e[..1]))).collect();
        table::check(&tables[0], &arrows)
    };
    assert_eq!(check("ab ac bc"), [""; 0]);
    assert_eq!(check("ab ac bc cb"), ["c → b is not in the table: c.rs:1"]);
    assert_eq!(check("ab ac bc xa"), ["`x` has no row: x.rs:1"]);
    assert_eq!(check("ab bc"), ["the row of `a` names `c`, which it does not use"]);
    let upward = table::tables(&TABLE.replace("| last | |", "| last | `a` |"));
    assert_eq!(
        table::check(
            &upward[0],
            &[("ab", 1), ("ac", 1), ("bc", 1), ("ca", 1)].map(|(e, _)| (pair(&e[..1], &e[1..]), String::new())).into()
        ),
        ["the row of `c` names `a`, which is not below it"]
    );
}
