//! A document of a source: clusters and endpoints in the form of a configuration file, each checked by itself, so that an
//! error in one does not affect the others.

use std::{path::Path, sync::Arc};

use super::{
    check::read_value,
    diagnostic::{Diagnostic, Diagnostics},
    env,
    explain::{clip, list},
    load::Loader,
    model::{Cluster, Endpoint},
    node::{Key, Node, Value},
    normalize,
    parse::{Format, tree},
    resources::Resource,
    semantics, sockets,
    source::Source,
    tree::ParseResult,
};

/// What a document may contain.
const SECTIONS: [&str; 3] = ["clusters", "endpoints", "removed"];

/// The resources of a document.
#[derive(Debug, Default)]
pub struct Fragment {
    /// Clusters.
    pub clusters: Vec<Resource<Cluster>>,
    /// Endpoints, by the name of a service.
    pub endpoints: Vec<Resource<ServiceEndpoints>>,
    /// Resources that are gone. Only a document that contains nothing but changes may say so.
    pub removed: Vec<(FragmentKind, String)>,
    /// Resources with errors.
    pub refused: Vec<RefusedResource>,
}

/// A kind of resource in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FragmentKind {
    /// A cluster.
    Cluster,
    /// Endpoints.
    Endpoints,
}

impl FragmentKind {
    /// The section that contains resources of this kind.
    pub fn section(self) -> &'static str {
        match self {
            FragmentKind::Cluster => "clusters",
            FragmentKind::Endpoints => "endpoints",
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
    pub kind: FragmentKind,
    /// Its name.
    pub name: String,
    /// A hash of what was written.
    pub sha256: [u8; 32],
    /// The errors: the place (line and column), and the message.
    pub errors: Vec<(String, String)>,
}

impl Loader<'_> {
    /// Reads a document. `name` is for messages.
    ///
    /// # Errors The document is unusable as a whole: it has another syntax, other sections, or a resource without a name.
    pub fn fragment(&self, name: &str, text: String, format: Format) -> Result<Fragment, Diagnostics> {
        let mut source = Source::new(Path::new(name), text);
        let mut problems = Vec::new();
        let root = match tree(source.text(), format) {
            Ok(ParseResult { node, problems: mut found }) => {
                problems.append(&mut found);
                node
            }
            Err(errors) => return Err(Diagnostics::new(&Arc::new(source), errors)),
        };
        let mut fragment = Fragment::default();
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
            match (key.name.as_str(), node.value) {
                (_, Value::Null) => {}
                ("clusters", Value::Seq(items)) => {
                    items.into_iter().for_each(|item| {
                        self.entry(&mut source, FragmentKind::Cluster, item, &mut fragment, &mut problems);
                    });
                }
                ("endpoints", Value::Seq(items)) => {
                    items.into_iter().for_each(|item| {
                        self.entry(&mut source, FragmentKind::Endpoints, item, &mut fragment, &mut problems);
                    });
                }
                ("removed", Value::Map(kinds)) => removed(kinds, &mut fragment, &mut problems),
                (name, _) if SECTIONS.contains(&name) => {
                    let expected = if name == "removed" { "a map of lists" } else { "a list" };
                    problems.push(Diagnostic::error(key.span, format!("`{name}` must be {expected}")));
                }
                (name, _) => {
                    let message = format!("a source does not supply `{}`", clip(name));
                    let help = format!("a source's document has {}", list(&SECTIONS));
                    problems.push(Diagnostic::error(key.span, message).help(help));
                }
            }
        }
        if problems.is_empty() { Ok(fragment) } else { Err(Diagnostics::new(&Arc::new(source), problems)) }
    }

    /// Reads an entry of a section. Endpoints are checked as a cluster that has nothing else.
    fn entry(
        &self,
        source: &mut Source,
        kind: FragmentKind,
        node: Node,
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
        if kind == FragmentKind::Endpoints
            && let Value::Map(entries) = &node.value
        {
            let others = entries.iter().map(|(key, _)| key).filter(|key| !matches!(&*key.name, "name" | "endpoints"));
            wrong.extend(others.map(|key| {
                let message = format!("unknown field `{}`", clip(&key.name));
                Diagnostic::error(key.span, message).help("endpoints have `name` and `endpoints`".to_owned())
            }));
        }
        let key = Key { name: "clusters".to_owned(), span };
        let mut root = Node { span, value: Value::Map(vec![(key, Node { span, value: Value::Seq(vec![node]) })]) };
        env::substitute(&mut root, source.text(), &self.env, &mut wrong);
        normalize::fit(&mut root);
        source.set_root(root);
        semantics::check(source, &self.foreign, &mut wrong);
        let json = source.root().get("clusters").and_then(|list| list.items().first()).map(Node::to_json);
        let json = json.unwrap_or_default();
        let pointer = "/clusters/0";
        let value = read_value::<Cluster>(source, "clusters", pointer, &json, &mut wrong, |cluster, wrong| {
            sockets::resolve_cluster(source, cluster, pointer, wrong);
        });
        let line = source.position(span.start).line;
        match value.filter(|_| wrong.is_empty()) {
            Some((cluster, sha256)) => match kind {
                FragmentKind::Cluster => {
                    fragment.clusters.push(Resource { value: Arc::new(cluster), sha256, span, line });
                }
                FragmentKind::Endpoints => {
                    let value = Arc::new(ServiceEndpoints { name, endpoints: cluster.endpoints });
                    fragment.endpoints.push(Resource { value, sha256, span, line });
                }
            },
            None => {
                let errors = wrong.iter().map(|wrong| {
                    let place = wrong.span.map_or(span, |span| span);
                    let at = source.position(place.start);
                    (format!("{}:{}", at.line, at.column), wrong.message.clone())
                });
                let sha256 = crate::digest::sha256(json.to_string().as_bytes());
                fragment.refused.push(RefusedResource { kind, name, sha256, errors: errors.collect() });
            }
        }
    }
}

fn removed(kinds: Vec<(Key, Node)>, fragment: &mut Fragment, problems: &mut Vec<Diagnostic>) {
    for (key, node) in kinds {
        let kind = match key.name.as_str() {
            "clusters" => FragmentKind::Cluster,
            "endpoints" => FragmentKind::Endpoints,
            other => {
                let message = format!("a source does not supply `{}`", clip(other));
                problems.push(Diagnostic::error(key.span, message));
                continue;
            }
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

    fn read(text: &str) -> Result<Fragment, String> {
        let loader = Loader::default().env(|_| None);
        loader.fragment("http://plane", text.to_owned(), Format::Yaml).map_err(|wrong| wrong.to_string())
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
        let gone = [(FragmentKind::Cluster, "old".to_owned()), (FragmentKind::Endpoints, "older".to_owned())];
        assert_eq!((fragment.removed, fragment.refused.len()), (gone.into(), 0));
        assert!(read("").is_ok_and(|fragment| fragment.clusters.is_empty()), "an empty state");
    }

    #[test]
    fn error_in_one_resource_does_not_affect_the_others() {
        let fragment = read(
            "clusters:\n- {name: bad, connect_timeout: soon}\n- {name: good}\n- {name: zero, endpoints: ['10.0.0.1:0']}\n\
             endpoints:\n- {name: odd, endpoints: [], retry: {}}\n- {name: secret, endpoints: ['${HOME}:80']}",
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
                ("endpoints", "secret", "7:31")
            ]
        );
    }

    #[test]
    fn unusable_documents_are_explained() {
        for (text, message) in [
            ("clusters: [", "http://plane:1:12"),
            ("listeners: []", "a source does not supply `listeners`"),
            ("clusters: {}", "`clusters` must be a list"),
            ("- a", "expected a map with `clusters`, `endpoints` and `removed`"),
            ("clusters: [{endpoints: []}]", "an entry of `clusters` has no name"),
            ("removed: {clusters: [1]}", "expected a name"),
        ] {
            let wrong = read(text).unwrap_err();
            assert!(wrong.contains(message), "{text}: {wrong}");
        }
    }
}
