//! Reads the tables in ARCHITECTURE.md that list which folder may depend on which.
//!
//! A table follows the line `<!-- layers: proxy/src [below wasm] -->` and has rows `` | `folder` | subject | `used`
//! `used` … | ``, from the top layer to the bottom. A row may list several folders of the same layer. There are three
//! rules: every dependency in the sources is in the table, every dependency in the table is in the sources, and all
//! of them point to rows further down.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default, PartialEq)]
pub struct Table {
    /// The crate's `src`, from the root of the workspace.
    pub src: String,
    /// The folder below `src` whose subfolders are listed; empty for the top.
    pub below: String,
    /// From top to bottom: the folders, and what they use.
    pub rows: Vec<(Vec<String>, BTreeSet<String>)>,
}

/// Returns all tables of a document.
pub fn tables(text: &str) -> Vec<Table> {
    let mut tables = vec![];
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(head) = line.trim().strip_prefix("<!-- layers:").and_then(|l| l.strip_suffix("-->")) else { continue };
        let mut words = head.split_whitespace();
        let mut table = Table { src: words.next().unwrap_or_default().to_owned(), ..Table::default() };
        if words.next() == Some("below") {
            table.below = words.next().unwrap_or_default().to_owned();
        }
        for line in lines.by_ref().skip_while(|l| l.trim().is_empty()).take_while(|l| l.starts_with('|')) {
            let cells: Vec<_> = line.trim_matches('|').split('|').collect();
            let folders: Vec<_> = names(cells[0]).collect();
            if !folders.is_empty() {
                table.rows.push((folders, cells.last().map(|c| names(c).collect()).unwrap_or_default()));
            }
        }
        tables.push(table);
    }
    tables
}

/// Returns the names in backticks, without a trailing slash or `.rs`.
fn names(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(|n| n.trim_end_matches('/').trim_end_matches(".rs").to_owned())
}

/// Returns the violations of the three rules, one per line. `arrows` are the pairs of folders in the sources, each
/// with a place.
pub fn check(table: &Table, arrows: &BTreeMap<(String, String), String>) -> Vec<String> {
    let mut wrong = vec![];
    let row: BTreeMap<&str, usize> =
        table.rows.iter().enumerate().flat_map(|(i, (folders, _))| folders.iter().map(move |r| (&**r, i))).collect();
    for ((from, to), place) in arrows {
        match (row.get(&**from), row.get(&**to)) {
            (Some(&i), Some(_)) if !table.rows[i].1.contains(to) => {
                wrong.push(format!("{from} → {to} is not in the table: {place}"))
            }
            (Some(_), Some(_)) => {}
            (None, _) => wrong.push(format!("`{from}` has no row: {place}")),
            (_, None) => wrong.push(format!("`{to}` has no row: {place}")),
        }
    }
    for (i, (folders, uses)) in table.rows.iter().enumerate() {
        for to in uses {
            let Some(&j) = row.get(&**to) else {
                wrong.push(format!("the row of `{}` names `{to}`, which has no row", folders[0]));
                continue;
            };
            if j <= i {
                wrong.push(format!("the row of `{}` names `{to}`, which is not below it", folders[0]));
            }
            if !folders.iter().any(|r| arrows.contains_key(&(r.clone(), to.clone()))) {
                wrong.push(format!("the row of `{}` names `{to}`, which it does not use", folders[0]));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    wrong
}
