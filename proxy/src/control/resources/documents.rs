//! What sources supply, as the store takes it.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::{
    config::{
        ConfigSource, FileResources, Fragment,
        model::{self, Supply},
    },
    control::store::{
        Batch, Change, FieldError, Key, Kind, Kinds, Origin, Policy, Reference, Resource, SourceId, Strength,
    },
    digest::{hex, sha256},
};

/// The payload of a resource.
#[derive(Debug)]
pub(super) enum Payload {
    /// A cluster.
    Cluster(Arc<model::Cluster>),
    /// The endpoints of a service.
    Endpoints(Vec<model::Endpoint>),
    /// A listener or a filter of a source.
    Part(Arc<FileResources>),
    /// A listener or a filter of the configuration's files, which are built before they are offered.
    Built,
    /// A resource with errors.
    Wrong(Vec<FieldError>),
}

/// The kinds that a source of each sort may remove by not listing them.
const FILE: Kinds = Kinds::NONE.with(Kind::Listener).with(Kind::Filter).with(Kind::Cluster);
const DOCUMENT: Kinds = FILE.with(Kind::Endpoints);

/// The resources of the configuration's files. With the files that were applied `before`, only what they have not: most
/// included files stay the same.
pub(super) fn of_files(
    files: &ConfigSource,
    before: Option<&ConfigSource>,
    version: &Arc<str>,
    (source, discovery): (SourceId, SourceId),
) -> Batch<Payload> {
    let mut changes = Vec::new();
    let changed = files.files().iter().filter(|file| before.is_none_or(|before| !has_file(before, file)));
    for file in changed {
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
            let references = references(&cluster.value, Strength::Soft, discovery);
            let payload = Payload::Cluster(cluster.value.clone());
            add(Kind::Cluster, &cluster.value.name, cluster.sha256, cluster.span, payload, references);
        }
    }
    if let Some(before) = before {
        let set: FxHashSet<Key> = changes.iter().map(Change::key).cloned().collect();
        let gone = before.files().iter().filter(|file| !has_file(files, file)).flat_map(keys);
        changes.extend(gone.filter(|key| !set.contains(key)).map(Change::Remove));
    }
    let full = if before.is_some() { Kinds::NONE } else { FILE };
    Batch { source, full, policy: Policy::AllOrNothing, changes }
}

/// Whether these are files of a configuration. A file that has not changed is not read again.
fn has_file(files: &ConfigSource, file: &Arc<FileResources>) -> bool {
    files.files().iter().any(|one| Arc::ptr_eq(one, file))
}

/// The keys of a file's resources.
fn keys(file: &Arc<FileResources>) -> impl Iterator<Item = Key> {
    let listeners = file.listeners.iter().map(|one| Key::new(Kind::Listener, one.value.name.as_str()));
    let filters = file.filters.iter().map(|one| Key::new(Kind::Filter, one.value.name.as_str()));
    let clusters = file.clusters.iter().map(|one| Key::new(Kind::Cluster, one.value.name.as_str()));
    listeners.chain(filters).chain(clusters)
}

/// The state of a source that supplies nothing.
pub(super) fn nothing(source: SourceId) -> Batch<Payload> {
    nothing_but(source, &[])
}

/// The state of a source that no longer supplies anything but resources of these kinds, about which it says nothing.
pub(super) fn nothing_but(source: SourceId, supplies: &[Supply]) -> Batch<Payload> {
    let gone = Supply::ALL.into_iter().filter(|supply| !supplies.contains(supply));
    let full = gone.fold(Kinds::NONE, |gone, supply| gone.with(kind(supply)));
    Batch { source, full, policy: Policy::PerResource, changes: Vec::new() }
}

/// A resource that was refused, offered again.
pub(super) fn again(source: SourceId, refused: &Resource<Payload>) -> Batch<Payload> {
    let Resource { key, version, sha256, origin, payload, references, ttl } = refused;
    let (key, version, origin) = (key.clone(), version.clone(), origin.clone());
    let (payload, references) = (payload.clone(), references.clone());
    let again = Resource { key, version, sha256: *sha256, origin, payload, references, ttl: *ttl };
    Batch { source, full: Kinds::NONE, policy: Policy::PerResource, changes: vec![Change::Set(again)] }
}

/// The key of a resource in a document of a source.
fn key(source: &str, supply: Supply, name: &str) -> Key {
    match supply {
        Supply::Endpoints => Key::new(Kind::Endpoints, model::service(source, name)),
        other => Key::new(kind(other), name),
    }
}

/// The name that a resource has in documents of its source.
pub(super) fn name_in_document<'k>(source: &str, key: &'k Key) -> &'k str {
    match key.kind {
        Kind::Endpoints => key.name.strip_prefix(source).and_then(|name| name.strip_prefix('/')).unwrap_or(&key.name),
        _ => &key.name,
    }
}

/// The kind of a document's resource.
fn kind(supply: Supply) -> Kind {
    match supply {
        Supply::Listeners => Kind::Listener,
        Supply::Filters => Kind::Filter,
        Supply::Clusters => Kind::Cluster,
        Supply::Endpoints => Kind::Endpoints,
    }
}

/// The resources of a source's document. `supplies`: the kinds that the source may supply. `is_delta`: the document has
/// only what has changed.
pub(super) fn of_document(
    fragment: Fragment,
    origin: (SourceId, &Arc<str>),
    discovery: SourceId,
    version: &Arc<str>,
    supplies: &[Supply],
    is_delta: bool,
) -> Batch<Payload> {
    let (source, name) = origin;
    let mut changes = Vec::new();
    let mut add = |supply: Supply, resource: &str, sha256, place: String, payload, references| {
        let (payload, references) = match supplies.contains(&supply) {
            true => (payload, references),
            // It waits for nothing.
            false => {
                let section = supply.section();
                let message = format!("source `{name}` does not supply {section}: add `{section}` to its `supplies`");
                (Payload::Wrong(vec![FieldError { field: place.clone(), message }]), Box::default())
            }
        };
        let origin = Origin::Source {
            source: name.clone(),
            type_name: kind(supply).as_str().into(),
            name: resource.into(),
            field: place.into(),
        };
        let (key, version, payload) = (key(name, supply, resource), version.clone(), Arc::new(payload));
        changes.push(Change::Set(Resource { key, version, sha256, origin, payload, references, ttl: None }));
    };
    for part in fragment.parts {
        let (listener, filter) = (part.listeners.first(), part.filters.first());
        let (kind, named, sha256, line) = match (listener, filter) {
            (Some(listener), _) => (Supply::Listeners, &listener.value.name, listener.sha256, listener.line),
            (None, Some(filter)) => (Supply::Filters, &filter.value.name, filter.sha256, filter.line),
            (None, None) => continue,
        };
        let named = named.clone();
        let mut filters: Vec<&String> = listener.iter().flat_map(|listener| &listener.value.chain).collect();
        filters.sort_unstable();
        filters.dedup();
        let filters = filters.into_iter().map(|filter| Key::new(Kind::Filter, filter.as_str()));
        let references = filters.map(|key| Reference { key, strength: Strength::Hard, source: None }).collect();
        let payload = Payload::Part(Arc::new(part.supplied_by(name)));
        add(kind, &named, sha256, format!("line {line}"), payload, references);
    }
    for cluster in fragment.clusters {
        let references = references(&cluster.value, Strength::Hard, discovery);
        let (name, line) = (cluster.value.name.clone(), format!("line {}", cluster.line));
        add(Supply::Clusters, &name, cluster.sha256, line, Payload::Cluster(cluster.value), references);
    }
    for service in fragment.endpoints {
        let (name, line) = (service.value.name.clone(), format!("line {}", service.line));
        let endpoints = Arc::into_inner(service.value).map_or_else(Vec::new, |service| service.endpoints);
        add(Supply::Endpoints, &name, service.sha256, line, Payload::Endpoints(endpoints), Box::default());
    }
    for refused in fragment.refused {
        let errors = refused.errors.into_iter().map(|(field, message)| FieldError { field, message });
        let payload = Payload::Wrong(errors.collect());
        add(refused.kind, &refused.name, refused.sha256, String::new(), payload, Box::default());
    }
    for (kind, removed) in fragment.removed {
        changes.push(Change::Remove(key(name, kind, &removed)));
    }
    Batch { source, full: if is_delta { Kinds::NONE } else { DOCUMENT }, policy: Policy::PerResource, changes }
}

/// The endpoints of a service that were found.
pub(super) fn of_discovery(service: &Arc<str>, endpoints: Vec<model::Endpoint>, source: SourceId) -> Batch<Payload> {
    // The addresses of a host are not a part of its JSON.
    let resolved: Vec<_> = endpoints.iter().filter_map(|endpoint| endpoint.resolved.as_ref()).collect();
    let sha256 = sha256(format!("{}{resolved:?}", serde_json::to_string(&endpoints).unwrap_or_default()).as_bytes());
    let origin = Origin::Source {
        source: service.split(':').next().unwrap_or_default().into(),
        type_name: Kind::Endpoints.as_str().into(),
        name: service.clone(),
        field: "".into(),
    };
    let resource = Resource {
        key: Key::new(Kind::Endpoints, service.clone()),
        version: hex(&sha256)[..16].into(),
        sha256,
        origin,
        payload: Arc::new(Payload::Endpoints(endpoints)),
        references: Box::default(),
        ttl: None,
    };
    Batch { source, full: Kinds::NONE, policy: Policy::PerResource, changes: vec![Change::Set(resource)] }
}

/// The references of a cluster: to the endpoints of its service, if it has one.
fn references(cluster: &model::Cluster, strength: Strength, discovery: SourceId) -> Box<[Reference]> {
    let source = cluster.query().map(|_| discovery);
    let service = cluster.service().map(|service| Key::new(Kind::Endpoints, service));
    service.into_iter().map(|key| Reference { key, strength, source }).collect()
}
