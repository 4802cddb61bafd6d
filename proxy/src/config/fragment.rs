//! A document of a source: resources in the form of a configuration file, each checked by itself, so that an error in one
//! does not affect the others.

use std::{cell::RefCell, path::Path, sync::Arc};

use serde::de::DeserializeOwned;

use super::{
    check::read_value,
    diagnostic::{Diagnostic, Diagnostics},
    env,
    explain::{clip, list},
    load::Loader,
    model::{Cluster, Endpoint, Supply},
    node::{Key, Node, Span, Value},
    normalize,
    outline::Outline,
    parse::{Format, Variables, tree},
    paths,
    redact::Redactor,
    resources::{FileResources, Resource},
    semantics, sockets,
    source::{Position, Source},
    tree::ParseResult,
    units::Address,
};

/// What a document may contain.
const SECTIONS: [&str; 5] = ["listeners", "filters", "clusters", "endpoints", "removed"];

/// The most errors of a file of endpoints that are told.
const MOST_ERRORS: usize = 5;

/// The resources of a document.
#[derive(Debug, Default)]
pub struct Fragment {
    /// Listeners and filters, each as a file with one resource.
    pub parts: Vec<FileResources>,
    /// Clusters.
    pub clusters: Vec<Resource<Cluster>>,
    /// Endpoints, by the name of a service.
    pub endpoints: Vec<Resource<ServiceEndpoints>>,
    /// Resources that are gone. Only a document that contains nothing but changes may say so.
    pub removed: Vec<(Supply, String)>,
    /// Resources with errors.
    pub refused: Vec<RefusedResource>,
}

impl Supply {
    /// The section of a configuration file by whose rules an entry is checked. Endpoints are checked as a cluster that has
    /// nothing else.
    fn checked_as(self) -> &'static str {
        match self {
            Supply::Endpoints => "clusters",
            other => other.section(),
        }
    }
}

/// The endpoints of a service.
#[derive(Debug, PartialEq)]
pub struct ServiceEndpoints {
    /// The name by which clusters refer to them.
    pub name: String,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A resource with errors.
#[derive(Debug)]
pub struct RefusedResource {
    /// Its kind.
    pub kind: Supply,
    /// Its name.
    pub name: String,
    /// A hash of what was written.
    pub sha256: [u8; 32],
    /// The errors: the place (line and column), and the message.
    pub errors: Vec<(String, String)>,
}

impl Loader<'_> {
    /// Reads a document. `name` is for messages. Relative paths are relative to `dir`.
    ///
    /// # Errors The document is unusable as a whole: it has another syntax, other sections, or a resource without a name.
    pub fn fragment(&self, name: &str, dir: &Path, text: String, format: Format) -> Result<Fragment, Diagnostics> {
        let mut source = Source::new(Path::new(name), text).in_dir(dir);
        let mut problems = Vec::new();
        let root = match tree(source.text(), format) {
            Ok(ParseResult { node, problems: mut found }) => {
                problems.append(&mut found);
                node
            }
            Err(errors) => return Err(Diagnostics::new(&Arc::new(source), errors)),
        };
        let mut fragment = Fragment::default();
        let mut at = (0, Position { line: 1, column: 1 });
        let entries = match root.value {
            Value::Map(entries) => entries,
            // An empty document is an empty state.
            Value::Null => Vec::new(),
            _ => {
                let message = format!("expected a map with {}", list(&SECTIONS));
                problems.push(Diagnostic::error(source.first_line(root.span), message));
                Vec::new()
            }
        };
        for (key, node) in entries {
            let name = key.name.as_str();
            match (Supply::of_section(name), node.value) {
                (_, Value::Null) => {}
                (Some(kind), Value::Seq(items)) => {
                    for item in items {
                        at = (item.span.start, source.position_from(at, item.span.start));
                        self.entry(&mut source, kind, (item, at.1), &mut fragment, &mut problems);
                    }
                }
                (None, Value::Map(kinds)) if name == "removed" => removed(kinds, &mut fragment, &mut problems),
                _ if SECTIONS.contains(&name) => {
                    let expected = if name == "removed" { "a map of lists" } else { "a list" };
                    problems.push(Diagnostic::error(key.span, format!("`{name}` must be {expected}")));
                }
                _ => {
                    let message = format!("a source does not supply `{}`", clip(name));
                    let help = format!("a source's document has {}", list(&SECTIONS));
                    problems.push(Diagnostic::error(key.span, message).help(help));
                }
            }
        }
        if problems.is_empty() { Ok(fragment) } else { Err(Diagnostics::new(&Arc::new(source), problems)) }
    }

    /// Reads a file that has only a cluster's field `endpoints`.
    ///
    /// # Errors What is wrong, with the line and the column.
    pub fn endpoints(&self, path: &Path, text: String, format: Format) -> Result<Vec<Endpoint>, String> {
        let mut source = Source::new(path, text);
        let found = tree(source.text(), format);
        let (node, mut problems) = match found {
            Ok(ParseResult { node, problems }) => (node, problems),
            Err(errors) => (Node { span: Span::default(), value: Value::Null }, errors),
        };
        let root = node.span;
        let list = match node.value {
            Value::Map(entries) => {
                let (list, others): (Vec<_>, Vec<_>) =
                    entries.into_iter().partition(|(key, _)| key.name == "endpoints");
                problems.extend(others.iter().map(|(key, _)| {
                    let message = format!("unknown field `{}`", clip(&key.name));
                    Diagnostic::error(key.span, message).help("the file has only `endpoints`".to_owned())
                }));
                list.into_iter().next()
            }
            _ => None,
        };
        if list.is_none() && problems.is_empty() {
            let help = "write `endpoints: [10.0.0.1:80]`, or `endpoints: []` for none".to_owned();
            problems.push(Diagnostic::error(source.first_line(root), "the field `endpoints` is missing").help(help));
        }
        let Some(list) = list.filter(|_| problems.is_empty()) else {
            return Err(Diagnostics::new(&Arc::new(source), problems).to_string());
        };
        // As the endpoints of a service, whose name is not in the file.
        let name = Key { name: "name".to_owned(), span: root };
        let entry = Node { span: root, value: Value::Map(vec![(name, Node::quoted("endpoints", root)), list]) };
        let (mut fragment, start) = (Fragment::default(), source.position(root.start));
        self.entry(&mut source, Supply::Endpoints, (entry, start), &mut fragment, &mut problems);
        let service = fragment.endpoints.pop().and_then(|service| Arc::into_inner(service.value));
        service.map(|service| service.endpoints).ok_or_else(|| {
            let errors = fragment.refused.iter().flat_map(|refused| &refused.errors).take(MOST_ERRORS);
            let line = |(at, message): &(String, String)| format!("{}:{at}: {message}", path.display());
            errors.map(line).collect::<Vec<_>>().join("\n")
        })
    }

    /// Reads an entry of a section, which begins at a position.
    fn entry(
        &self,
        source: &mut Source,
        kind: Supply,
        (node, at): (Node, Position),
        fragment: &mut Fragment,
        problems: &mut Vec<Diagnostic>,
    ) {
        let span = node.span;
        let Some(name) = node.get("name").and_then(Node::as_str).filter(|name| !name.is_empty()).map(str::to_owned)
        else {
            let message = format!("an entry of `{}` has no name", kind.section());
            return problems.push(Diagnostic::error(source.first_line(span), message));
        };
        let mut wrong = Vec::new();
        if kind == Supply::Endpoints
            && let Value::Map(entries) = &node.value
        {
            let others = entries.iter().map(|(key, _)| key).filter(|key| !matches!(&*key.name, "name" | "endpoints"));
            wrong.extend(others.map(|key| {
                let message = format!("unknown field `{}`", clip(&key.name));
                Diagnostic::error(key.span, message).help("endpoints have `name` and `endpoints`".to_owned())
            }));
        }
        let section = kind.checked_as();
        let key = Key { name: section.to_owned(), span };
        let mut root = Node { span, value: Value::Map(vec![(key, Node { span, value: Value::Seq(vec![node]) })]) };
        let variables = RefCell::new(Variables::new());
        let lookup = |name: &str| {
            let value = (self.env)(name);
            variables.borrow_mut().insert(name.to_owned(), value.clone());
            value
        };
        let is_part = matches!(kind, Supply::Listeners | Supply::Filters);
        let references = if is_part { env::references(&root) } else { Vec::new() };
        env::substitute(&mut root, source.text(), &lookup, &mut wrong);
        normalize::fit(&mut root);
        source.set_root(root);
        semantics::check(source, &self.foreign, &mut wrong);
        let json = source.root().get(section).and_then(|list| list.items().first()).map(Node::to_json);
        let mut entry = Entry { source, section, json: json.unwrap_or_default(), wrong };
        let line = at.line;
        match kind {
            Supply::Clusters => {
                let cluster = entry.read(sockets::resolve_cluster);
                fragment.clusters.extend(cluster.map(|(cluster, sha256)| Resource {
                    value: Arc::new(cluster),
                    sha256,
                    span,
                    line,
                }));
            }
            Supply::Endpoints => {
                let cluster = entry.read(resolve_endpoints);
                fragment.endpoints.extend(cluster.map(|(cluster, sha256): (Cluster, _)| {
                    let value = ServiceEndpoints { name: name.clone(), endpoints: cluster.endpoints };
                    Resource { value: Arc::new(value), sha256, span, line }
                }));
            }
            Supply::Listeners => {
                let listener = entry.read(sockets::resolve_listener);
                fragment.parts.extend(listener.map(|(listener, sha256)| {
                    let mut part = entry.part(sha256, variables.take(), references);
                    part.listeners.push(Resource { value: Arc::new(listener), sha256, span, line });
                    part
                }));
            }
            Supply::Filters => {
                let filter = entry.read(|_, _, _, _| {});
                fragment.parts.extend(filter.map(|(filter, sha256)| {
                    let mut part = entry.part(sha256, variables.take(), references);
                    part.filters.push(Resource { value: Arc::new(filter), sha256, span, line });
                    part
                }));
            }
        }
        if !entry.wrong.is_empty() {
            // Not of `source`, which does not know the variables.
            let redactor = Redactor::of(&*variables.borrow());
            let errors = entry.wrong.iter().map(|wrong| {
                let at = source.position_from((span.start, at), wrong.span.unwrap_or(span).start);
                let help = wrong.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
                let mut message = format!("{}{help}", wrong.message);
                redactor.conceal(&mut message);
                (format!("{}:{}", at.line, at.column), message)
            });
            let sha256 = crate::digest::sha256(entry.json.to_string().as_bytes());
            fragment.refused.push(RefusedResource { kind, name, sha256, errors: errors.collect() });
        }
    }
}

/// An entry of a section.
struct Entry<'s> {
    /// A file that has only this entry.
    source: &'s Source,
    section: &'static str,
    json: serde_json::Value,
    /// Its errors.
    wrong: Vec<Diagnostic>,
}

impl Entry<'_> {
    /// Returns the model with its hash, unless there are errors. `finish` completes it.
    fn read<T: DeserializeOwned>(
        &mut self,
        finish: impl Fn(&Source, &mut T, &str, &mut Vec<Diagnostic>),
    ) -> Option<(T, [u8; 32])> {
        let pointer = format!("/{}/0", self.section);
        let complete = |value: &mut T, problems: &mut Vec<Diagnostic>| finish(self.source, value, &pointer, problems);
        let value = read_value(self.source, self.section, &pointer, &self.json, &mut self.wrong, complete);
        value.filter(|_| self.wrong.is_empty())
    }

    /// Returns a file for a listener or a filter.
    fn part(&self, sha256: [u8; 32], variables: Variables, references: Vec<(String, String)>) -> FileResources {
        let mut part = FileResources::of_source(sha256);
        part.outline = Outline::of(self.source, false);
        part.dependencies = paths::dependencies(self.source);
        (part.variables, part.references) = (variables, references);
        part.written = Some(self.json.clone());
        part
    }
}

/// Resolves the addresses of a service.
fn resolve_endpoints(source: &Source, cluster: &mut Cluster, pointer: &str, problems: &mut Vec<Diagnostic>) {
    sockets::resolve_cluster(source, cluster, pointer, problems);
    let is_named = |endpoint: &Endpoint| matches!(endpoint.address, Address::Host(..));
    if let Some(index) = cluster.endpoints.iter().position(is_named) {
        let message = "the addresses of a service cannot have host names";
        let help = "a cluster can: write the host name in its `endpoints`".to_owned();
        problems.push(source.diagnostic(&format!("{pointer}/endpoints/{index}/address"), message, Some(help)));
    }
}

fn removed(kinds: Vec<(Key, Node)>, fragment: &mut Fragment, problems: &mut Vec<Diagnostic>) {
    for (key, node) in kinds {
        let Some(kind) = Supply::of_section(&key.name) else {
            let message = format!("a source does not supply `{}`", clip(&key.name));
            problems.push(Diagnostic::error(key.span, message));
            continue;
        };
        for name in node.items() {
            match name.as_str() {
                Some(name) => fragment.removed.push((kind, name.to_owned())),
                None => problems.push(Diagnostic::error(name.span, "expected a name")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Supplied;

    fn read(text: &str) -> Result<Fragment, String> {
        let loader = Loader::default().env(|_| None);
        let dir = Path::new("/etc/tollgate");
        loader.fragment("http://plane", dir, text.to_owned(), Format::Yaml).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn resources_are_read_and_short_forms_expanded() {
        let fragment = read(
            "clusters: [{name: web, endpoints: ['10.0.0.1:80']}, {name: api, discovery: {source: plane, service: v1}}]\n\
             endpoints: [{name: v1, endpoints: [{address: '10.0.0.2:80', weight: 3}]}]\n\
             removed: {clusters: [old], endpoints: [older]}",
        )
        .unwrap();
        let names: Vec<_> =
            fragment.clusters.iter().map(|c| (&*c.value.name, c.value.endpoints.len(), c.line)).collect();
        assert_eq!(names, [("web", 1, 1), ("api", 0, 1)]);
        let service = &fragment.endpoints[0].value;
        assert_eq!((&*service.name, service.endpoints[0].weight, fragment.endpoints[0].line), ("v1", 3, 2));
        let gone = [(Supply::Clusters, "old".to_owned()), (Supply::Endpoints, "older".to_owned())];
        assert_eq!((fragment.removed, fragment.refused.len()), (gone.into(), 0));
        assert!(read("").is_ok_and(|fragment| fragment.clusters.is_empty()), "an empty state");
    }

    #[test]
    fn error_in_one_resource_does_not_affect_the_others() {
        let fragment = read(
            "clusters:\n- {name: bad, connect_timeout: soon}\n- {name: good}\n- {name: zero, endpoints: ['10.0.0.1:0']}\n\
             endpoints:\n- {name: odd, endpoints: [], retry: {}}\n- {name: secret, endpoints: ['${HOME}:80']}\n- {name: named, endpoints: ['a.test:80']}",
        )
        .unwrap();
        assert_eq!(fragment.clusters.iter().map(|c| &*c.value.name).collect::<Vec<_>>(), ["good"]);
        assert!(fragment.endpoints.is_empty());
        let refused: Vec<_> = fragment.refused.iter().map(|r| (r.kind.section(), &*r.name, &*r.errors[0].0)).collect();
        assert_eq!(
            refused,
            [
                ("clusters", "bad", "2:32"),
                ("clusters", "zero", "4:28"),
                ("endpoints", "odd", "6:30"),
                ("endpoints", "secret", "7:31"),
                ("endpoints", "named", "8:29")
            ]
        );
    }

    #[test]
    fn places_of_errors_are_those_in_the_whole_document() {
        let fragment = read(
            "clusters: [{name: ä, connect_timeout: x}, {name: b, connect_timeout: ü},\n {name: c, connect_timeout: y}]\n\
             endpoints: [{name: d, endpoints: x}]",
        );
        let refused = fragment.unwrap().refused;
        let places: Vec<_> = refused.iter().map(|refused| &*refused.errors[0].0).collect();
        assert_eq!(places, ["1:39", "1:70", "2:29", "3:34"]);
    }

    #[test]
    fn errors_name_variables_and_not_what_they_hold() {
        let loader = Loader::default().env(|_| Some("hunter2-hunter2".into()));
        let text = "clusters: [{name: c, endpoints: ['${TOKEN}']}]\nfilters: [{name: f, wasm: '${TOKEN}.wasm'}]\n\
                    listeners: [{name: l, address: '${TOKEN}'}, {name: m, address: '127.0.0.1'}]";
        let fragment = loader.fragment("d.yaml", Path::new("/"), text.to_owned(), Format::Yaml).unwrap();
        let errors: Vec<_> = fragment.refused.iter().map(|refused| &*refused.errors[0].1).collect();
        assert_eq!(errors.len(), 4);
        assert!(errors[..3].iter().all(|error| error.contains("${TOKEN}")), "{errors:?}");
        assert!(!format!("{errors:?}").contains("hunter2"), "{errors:?}");
        assert!(errors[3].contains("(the port is missing"), "with advice: {errors:?}");
    }

    #[test]
    fn file_of_endpoints_is_checked_like_those_of_a_cluster() {
        let read =
            |text: &str, format| Loader::default().endpoints(Path::new("/run/web.yaml"), text.to_owned(), format);
        let list =
            read("endpoints:\n- 10.0.0.1:80\n- {address: '10.0.0.2:80', weight: 3, priority: 1}\n", Format::Yaml);
        let list: Vec<_> = list.unwrap().iter().map(|e| (e.address.to_string(), e.weight, e.priority)).collect();
        assert_eq!(list, [("10.0.0.1:80".to_owned(), 1, 0), ("10.0.0.2:80".to_owned(), 3, 1)]);
        assert_eq!(read(r#"{"endpoints": []}"#, Format::Json), Ok(Vec::new()));
        for (text, wrong) in [
            ("", "web.yaml:1:1: error: the field `endpoints` is missing"),
            ("- 10.0.0.1:80", "web.yaml:1:1: error: the field `endpoints` is missing"),
            ("endpoints: [10.0.0.1:80", "web.yaml:1:"),
            ("endpoints: []\nretry: {}", "web.yaml:2:1: error: unknown field `retry` (the file has only `endpoints`)"),
            ("endpoints:\n- 10.0.0.1:80\n- nowhere", "web.yaml:3:3: "),
            ("endpoints:\n- {address: '10.0.0.1:80', wieght: 1}", "web.yaml:2:28: unknown field `wieght`"),
            ("endpoints: [api.internal:80]", "web.yaml:1:13: the addresses of a service cannot have host names"),
            ("endpoints: {}", "web.yaml:1:1: expected a list"),
        ] {
            let error = read(text, Format::Yaml).unwrap_err();
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }

    #[test]
    fn unusable_documents_are_explained() {
        for (text, message) in [
            ("clusters: [", "http://plane:1:12"),
            ("admin: {}", "a source does not supply `admin`"),
            ("clusters: {}", "`clusters` must be a list"),
            ("- a", "expected a map with `listeners`, `filters`, `clusters`, `endpoints` and `removed`"),
            ("clusters: [{endpoints: []}]", "an entry of `clusters` has no name"),
            ("removed: {clusters: [1]}", "expected a name"),
        ] {
            let wrong = read(text).unwrap_err();
            assert!(wrong.contains(message), "{text}: {wrong}");
        }
    }

    #[test]
    fn variables_in_listeners_and_filters_are_shown_as_written() {
        let loader = Loader::default().env(|name| Some(format!("value of {name}")));
        let files = loader.parse("c.json", r#"{"listeners": [{"name": "l", "address": "127.0.0.1:1"}]}"#, Format::Json);
        let files = files.unwrap();
        let text = "filters: [{name: f, wasm: 'builtin:router', config: {a: {b: '${TOKEN}'}}}]".to_owned();
        let mut fragment = loader.fragment("d.yaml", Path::new("/"), text, Format::Yaml).unwrap();
        let file = Arc::new(fragment.parts.remove(0));
        let effective = files.with(&[Supplied { file, is_accepted: true }], None).unwrap();
        assert_eq!(effective.config.filters[0].config.value()["a"]["b"], "value of TOKEN");
        let (shown, supplied) = effective.shown_apart(&files);
        assert_eq!((&shown["filters"], shown["listeners"][0]["name"].as_str()), (&serde_json::json!([]), Some("l")));
        assert_eq!(supplied["filters"][0]["config"]["a"]["b"], "${TOKEN}");
        assert_eq!(supplied["listeners"], serde_json::json!([]));
        // A filter that stays for its last listener.
        let text = "listeners: [{name: x, address: '127.0.0.1:2', chain: f}]".to_owned();
        let mut fragment = loader.fragment("d.yaml", Path::new("/"), text, Format::Yaml).unwrap();
        let file = Arc::new(fragment.parts.remove(0));
        let lingering = files.with(&[Supplied { file, is_accepted: true }], Some(&effective.source)).unwrap();
        assert_eq!(lingering.config.filters[0].config.value()["a"]["b"], "value of TOKEN");
        assert_eq!(lingering.shown_apart(&files).1["filters"][0]["config"]["a"]["b"], "${TOKEN}");
    }

    #[test]
    fn listeners_and_filters_are_files_with_one_resource() {
        let fragment = read(
            "listeners: [{name: web, address: 'unix:web.sock', chain: router}, {name: bad, address: nowhere}]\n\
             filters: [{name: router, wasm: 'builtin:router', config: {a: 1}}, {name: gone, wasm: none.wasm}]\n\
             removed: {listeners: [old], filters: [older]}",
        )
        .unwrap();
        let [listener, filter] = &fragment.parts[..] else { panic!("{:?}", fragment.parts) };
        let web = &listener.listeners[0].value;
        assert_eq!(
            (web.address.to_string(), &*web.chain),
            ("unix:/etc/tollgate/web.sock".to_owned(), &["router".to_owned()][..])
        );
        assert_eq!(filter.filters[0].value.config.value(), serde_json::json!({"a": 1}));
        let (_, written) = filter.supplied().unwrap();
        assert_eq!(written["wasm"], "builtin:router");
        let gone = [(Supply::Listeners, "old".to_owned()), (Supply::Filters, "older".to_owned())];
        assert_eq!(fragment.removed, gone);
        let refused: Vec<_> = fragment.refused.iter().map(|r| (&*r.name, &*r.errors[0].1)).collect();
        assert!(
            matches!(refused[..], [("bad", _), ("gone", "there is no file `/etc/tollgate/none.wasm`")]),
            "{refused:?}"
        );
    }
}
