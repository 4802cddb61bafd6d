//! Sources and resources as `GET /resources` shows them.

use std::{sync::Arc, time::Duration};

use rustc_hash::FxHashMap;
use serde_json::{Value, json};

use super::{build::BuildLane, documents::Payload, running::Running};
use crate::{
    control::{
        discovery::Table,
        store::{Key, Kind, Origin, Status, Store},
    },
    digest::hex,
};

/// Describes all sources, sorted by name, and all resources, sorted by kind and name.
pub(super) fn all(
    store: &Store<Payload>,
    sources: &FxHashMap<Arc<str>, Running>,
    build: &BuildLane,
    lookups: &Table,
    now: Duration,
) -> Value {
    let mut running: Vec<_> = sources.values().collect();
    running.sort_by_key(|running| running.status.name());
    let sources = running.iter().map(|running| running.status.to_json());
    json!({ "sources": sources.collect::<Vec<_>>(), "resources": resources(store, build, lookups, now) })
}

fn resources(store: &Store<Payload>, build: &BuildLane, lookups: &Table, now: Duration) -> Value {
    let mut views: Vec<_> = store.views().collect();
    views.sort_by_key(|view| view.key);
    let source = |id| store.source_name(id).map(|name| name.to_string());
    let all = views.into_iter().map(|view| {
        // What is accepted, but cannot be in effect, is shown like a refused candidate.
        let broken = build.error(view.key).map(|why| Status::Refused(why));
        let refused = view.accepted.zip(broken.as_ref()).map(|((source, resource), status)| (source, resource, status));
        let accepted = view.accepted.filter(|_| broken.is_none()).map(|(id, resource)| {
            json!({
                "source": source(id),
                "version": &*resource.version,
                "sha256": hex(&resource.sha256),
                "origin": origin(&resource.origin),
            })
        });
        let offered = view.candidates.iter().map(|candidate| (candidate.source, candidate.resource, &candidate.status));
        let candidates = offered.chain(refused).map(|(id, resource, status)| {
            json!({
                "source": source(id),
                "version": &*resource.version,
                "origin": origin(&resource.origin),
                "state": state(status),
                "error": error(status),
            })
        });
        let mut shown = json!({
            "kind": view.key.kind.as_str(),
            "name": &*view.key.name,
            "state": state(broken.as_ref().unwrap_or(&view.status)),
            "accepted": accepted,
            "candidates": candidates.collect::<Vec<_>>(),
            "references": view.references,
            "changed_seconds_ago": now.saturating_sub(view.changed).as_secs(),
        });
        if let Key { kind: Kind::Endpoints, name } = view.key
            && let Some(lookup) = lookups.get(name)
        {
            shown["discovery"] = lookup.to_json(name);
        }
        shown
    });
    all.collect()
}

fn state(status: &Status<'_>) -> &'static str {
    match status {
        Status::Accepted => "accepted",
        Status::Warming => "warming",
        Status::Building => "building",
        Status::Refused(_) => "refused",
        Status::Requested => "requested",
        Status::DoesNotExist => "does_not_exist",
        Status::TimedOut => "timed_out",
    }
}

fn error(status: &Status<'_>) -> Option<String> {
    match status {
        Status::Refused(why) => Some(why.to_string()),
        _ => None,
    }
}

fn origin(origin: &Origin) -> Value {
    match origin {
        Origin::File { file, span } => json!({ "file": file.display().to_string(), "offset": span.start }),
        Origin::Source { source, field, .. } => json!({ "source": &**source, "place": &**field }),
    }
}
