//! Checks of the `sources` section, and of clusters that take their endpoints from a source. Names are checked with all
//! others, in `outline`.

use super::{
    diagnostic::Diagnostic,
    node::{Node, Value},
    source::Source,
    url::HttpUrl,
};

/// The ways in which a source can be reached.
const WAYS: [&str; 2] = ["http", "directory"];

/// Checks a tree of any shape.
pub(super) fn check(source: &Source, problems: &mut Vec<Diagnostic>) {
    let root = source.root();
    for entry in items(root, "sources") {
        let Value::Map(_) = entry.value else { continue };
        let given: Vec<_> = WAYS.iter().filter_map(|way| entry.entry(way)).collect();
        match given[..] {
            [_] => {}
            [] => problems.push(
                Diagnostic::error(source.first_line(entry.span), "the source says nothing of where its resources are")
                    .help("add `http: {url: ...}` or `directory: {path: ...}`".to_owned()),
            ),
            [_, (second, _), ..] => problems.push(
                Diagnostic::error(second.span, "a source has either `http` or `directory`")
                    .help("make two sources of it".to_owned()),
            ),
        }
    }
    let urls = items(root, "sources").iter().filter_map(|entry| entry.get("http")?.get("url"));
    for (node, url) in urls.filter_map(|node| Some((node, node.as_str()?))) {
        // What has another scheme does not match the schema.
        if url.starts_with("http")
            && let Err(wrong) = url.parse::<HttpUrl>()
        {
            problems.push(Diagnostic::error(node.span, wrong));
        }
    }
    for cluster in items(root, "clusters") {
        let Some((key, _)) = cluster.entry("discovery") else { continue };
        if !cluster.get("endpoints").map_or(&[][..], Node::items).is_empty() {
            let both = "a cluster has either `endpoints` or `discovery`";
            problems.push(Diagnostic::error(key.span, both).help("remove one of them".to_owned()));
        }
    }
}

/// Whether any source may supply clusters, so that their names cannot be checked.
pub(super) fn supply_clusters(root: &Node) -> bool {
    let of_all = |entry: &Node| match entry.get("supplies") {
        None => true,
        Some(kinds) => kinds.items().iter().any(|kind| kind.as_str() == Some("clusters")),
    };
    items(root, "sources").iter().any(of_all)
}

fn items<'n>(root: &'n Node, section: &str) -> &'n [Node] {
    root.get(section).map_or(&[], Node::items)
}
