//! What sources supply, as the store takes it.

use std::sync::Arc;

use crate::{
    config::{ConfigSource, Fragment, FragmentKind, model},
    control::store::{
        Batch, Change, FieldError, Key, Kind, Kinds, Origin, Policy, Reference, Resource, SourceId, Strength,
    },
};

/// The payload of a resource.
#[derive(Debug)]
pub(super) enum Payload {
    /// A cluster.
    Cluster(Arc<model::Cluster>),
    /// The endpoints of a service.
    Endpoints(Vec<model::Endpoint>),
    /// A listener or a filter of the configuration's files, which are built elsewhere.
    Built,
    /// A resource with errors.
    Wrong(Vec<FieldError>),
}

/// The kinds that a source of each sort may remove by not listing them.
const FILE: Kinds = Kinds::NONE.with(Kind::Listener).with(Kind::Filter).with(Kind::Cluster);
const DOCUMENT: Kinds = Kinds::NONE.with(Kind::Cluster).with(Kind::Endpoints);

/// All resources of the configuration's files.
pub(super) fn of_files(files: &ConfigSource, version: &Arc<str>, source: SourceId) -> Batch<Payload> {
    let mut changes = Vec::new();
    for file in files.files() {
        let path: Arc<std::path::Path> = std::path::Path::new(file.name()).into();
        let mut add = |kind, name: &str, sha256, span, payload, references: Box<[Reference]>| {
            let origin = Origin::File { file: path.clone(), span };
            let (key, version, payload) = (Key::new(kind, name), version.clone(), Arc::new(payload));
            changes.push(Change::Set(Resource { key, version, sha256, origin, payload, references, ttl: None }));
        };
        for listener in &file.listeners {
            add(Kind::Listener, &listener.value.name, listener.sha256, listener.span, Payload::Built, Box::default());
        }
        for filter in &file.filters {
            add(Kind::Filter, &filter.value.name, filter.sha256, filter.span, Payload::Built, Box::default());
        }
        for cluster in &file.clusters {
            // Soft: the files are applied whether a source has answered or not.
            let references = references(&cluster.value, Strength::Soft);
            let payload = Payload::Cluster(cluster.value.clone());
            add(Kind::Cluster, &cluster.value.name, cluster.sha256, cluster.span, payload, references);
        }
    }
    Batch { source, full: FILE, policy: Policy::AllOrNothing, changes }
}

/// The state of a source that supplies nothing.
pub(super) fn nothing(source: SourceId) -> Batch<Payload> {
    Batch { source, full: DOCUMENT, policy: Policy::PerResource, changes: Vec::new() }
}

/// The resources of a source's document. `supplies`: the kinds that the source may supply. `is_delta`: the document has
/// only what has changed.
pub(super) fn of_document(
    fragment: Fragment,
    origin: (SourceId, &Arc<str>),
    version: &Arc<str>,
    supplies: &[model::Supply],
    is_delta: bool,
) -> Batch<Payload> {
    let (source, name) = origin;
    let mut changes = Vec::new();
    let mut add = |kind: FragmentKind, resource: &str, sha256, place: String, payload, references| {
        let (of, supply) = match kind {
            FragmentKind::Cluster => (Kind::Cluster, model::Supply::Clusters),
            FragmentKind::Endpoints => (Kind::Endpoints, model::Supply::Endpoints),
        };
        let payload = match supplies.contains(&supply) {
            true => payload,
            false => {
                let message = format!("the source does not supply {} (`supplies`)", kind.section());
                Payload::Wrong(vec![FieldError { field: place.clone(), message }])
            }
        };
        let origin = Origin::Source {
            source: name.clone(),
            type_name: of.as_str().into(),
            name: resource.into(),
            field: place.into(),
        };
        let (key, version, payload) = (Key::new(of, resource), version.clone(), Arc::new(payload));
        changes.push(Change::Set(Resource { key, version, sha256, origin, payload, references, ttl: None }));
    };
    for cluster in fragment.clusters {
        let references = references(&cluster.value, Strength::Hard);
        let (name, line) = (cluster.value.name.clone(), format!("line {}", cluster.line));
        add(FragmentKind::Cluster, &name, cluster.sha256, line, Payload::Cluster(cluster.value), references);
    }
    for service in fragment.endpoints {
        let (name, line) = (service.value.name.clone(), format!("line {}", service.line));
        let endpoints = Arc::into_inner(service.value).map_or_else(Vec::new, |service| service.endpoints);
        add(FragmentKind::Endpoints, &name, service.sha256, line, Payload::Endpoints(endpoints), Box::default());
    }
    for refused in fragment.refused {
        let errors = refused.errors.into_iter().map(|(field, message)| FieldError { field, message });
        let payload = Payload::Wrong(errors.collect());
        add(refused.kind, &refused.name, refused.sha256, String::new(), payload, Box::default());
    }
    for (kind, name) in fragment.removed {
        let kind = if kind == FragmentKind::Cluster { Kind::Cluster } else { Kind::Endpoints };
        changes.push(Change::Remove(Key::new(kind, name)));
    }
    Batch { source, full: if is_delta { Kinds::NONE } else { DOCUMENT }, policy: Policy::PerResource, changes }
}

/// The references of a cluster: to the endpoints of its service, if it has one.
fn references(cluster: &model::Cluster, strength: Strength) -> Box<[Reference]> {
    let service = cluster.service().map(|service| Key::new(Kind::Endpoints, service));
    service.into_iter().map(|key| Reference { key, strength, source: None }).collect()
}
