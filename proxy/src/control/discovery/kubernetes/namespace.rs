//! What is known of the slices of a namespace, and what its API server is asked next: a list, page by page, then watches
//! that continue from its version. It has no clock and no connection: the caller passes what the server has answered, and
//! waits.
//!
//! The rules are those of [Kubernetes API Concepts](https://kubernetes.io/docs/reference/using-api/api-concepts/),
//! "Efficient detection of changes" and "Retrieving large results sets in chunks". Versions are opaque. What is known stays
//! until a list is complete. What a list does not change goes no further than the endpoints, which are compared later.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rustc_hash::FxHashMap;

use super::{
    lines::TooLong,
    slice::{Event, List, Malformed, Slice},
};

/// The limit on the endpoints of a namespace. Each takes about 200 bytes.
const MAX_ENDPOINTS: usize = 1 << 20;

/// The number of slices that a page of a list has. A slice has 100 endpoints by default, of 400 bytes each, so a page has
/// up to 8 MiB.
const PAGE: u32 = 200;

/// The longest first wait after a failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// The longest first wait before a list after a version has expired: that happens to many clients at the same time.
const FIRST_RELIST: Duration = Duration::from_secs(1);

/// The longest wait after a failure, unless the server requests a longer one.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// After how many errors of the server (5xx) without an event between them a watch is given up for a list: the server may never know its version,
/// for example because its data was restored from a backup.
const WATCH_ERRORS: u32 = 3;

/// The longest description of something unusable, in characters.
const MAX_TEXT: usize = 300;

/// A watch that ends sooner without any event counts as failed.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// The slices of a service by name.
type Slices = BTreeMap<Arc<str>, Slice>;

/// The state of a namespace.
#[derive(Debug, Default)]
pub(super) struct Namespace {
    known: Known,
    phase: Phase,
    /// Whether a list was ever complete.
    pub(super) is_known: bool,
    /// Failures since the last watch with an event, from which waits are computed.
    setbacks: u32,
    /// Whether the last request has failed.
    has_failed: bool,
    /// The last error.
    pub(super) error: Option<Arc<str>>,
}

/// The slices that have a service.
#[derive(Debug, Default)]
struct Known {
    services: FxHashMap<Arc<str>, Slices>,
    /// The service of each slice.
    owners: FxHashMap<Arc<str>, Arc<str>>,
    endpoints: usize,
}

#[derive(Debug)]
enum Phase {
    /// A list is being read. `token` asks for its next page, and is empty for the first one.
    Listing { read: Known, token: Box<str>, is_paged: bool },
    /// The slices are those of this version. `errors` of the server (5xx) followed since the last event.
    Watching { version: Box<str>, errors: u32 },
}

impl Default for Phase {
    fn default() -> Self {
        Phase::listing(true)
    }
}

/// A request to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// A page of a list. Without a limit, the page is the whole list.
    List { token: Box<str>, limit: Option<u32> },
    /// All changes after a version.
    Watch { version: Box<str> },
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    pub(super) text: String,
    /// The wait that the server requests.
    pub(super) retry_after: Duration,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The version, or the token for the next page, is too old (410).
    Gone,
    /// There is no answer, or the server does not let the proxy ask, at least now (401, 403, 429).
    NotNow,
    /// An error of the server (5xx).
    Server,
    /// The answer cannot be used, or the server does not understand the request.
    Invalid,
}

impl Failure {
    pub(super) fn new(kind: FailureKind, text: impl ToString) -> Failure {
        Failure { kind, text: text.to_string(), retry_after: Duration::ZERO }
    }
}

impl FailureKind {
    /// The kind of an HTTP status, or of an event's error, which has the same codes.
    pub(super) fn of_status(code: u16) -> FailureKind {
        match code {
            410 => FailureKind::Gone,
            401 | 403 | 429 => FailureKind::NotNow,
            500.. => FailureKind::Server,
            _ => FailureKind::Invalid,
        }
    }
}

impl From<Malformed> for Failure {
    fn from(wrong: Malformed) -> Failure {
        // The server may have sent long texts.
        let text: String = format!("the API server sent {wrong}").chars().take(MAX_TEXT).collect();
        Failure::new(FailureKind::Invalid, text)
    }
}

impl From<TooLong> for Failure {
    fn from(wrong: TooLong) -> Failure {
        Failure::new(FailureKind::Invalid, format_args!("the API server sent {wrong}"))
    }
}

impl Phase {
    fn listing(is_paged: bool) -> Phase {
        Phase::Listing { read: Known::default(), token: "".into(), is_paged }
    }

    fn watching(version: Box<str>) -> Phase {
        Phase::Watching { version, errors: 0 }
    }
}

impl Known {
    /// Adds or replaces a slice. Notes the services whose slices change.
    fn set(&mut self, name: &Arc<str>, slice: Slice, changed: &mut BTreeSet<Arc<str>>) -> Result<(), Failure> {
        let is_moved = self.owners.get(name).is_some_and(|owner| Some(owner) != slice.service.as_ref());
        if is_moved {
            self.remove(name, changed);
        }
        let Some(service) = slice.service.clone() else { return Ok(()) };
        let slices = self.services.entry(service.clone()).or_default();
        let before = slices.get(name);
        let endpoints = self.endpoints - before.map_or(0, |before| before.endpoints.len()) + slice.endpoints.len();
        if endpoints > MAX_ENDPOINTS {
            let text = format!("the namespace has more than {MAX_ENDPOINTS} endpoints");
            return Err(Failure::new(FailureKind::Invalid, text));
        }
        self.endpoints = endpoints;
        if before != Some(&slice) {
            slices.insert(name.clone(), slice);
            self.owners.insert(name.clone(), service.clone());
            changed.insert(service);
        }
        Ok(())
    }

    fn remove(&mut self, name: &str, changed: &mut BTreeSet<Arc<str>>) {
        let Some(service) = self.owners.remove(name) else { return };
        if let Some(slices) = self.services.get_mut(&service) {
            self.endpoints -= slices.remove(name).map_or(0, |slice| slice.endpoints.len());
            if slices.is_empty() {
                self.services.remove(&service);
            }
        }
        changed.insert(service);
    }
}

impl Namespace {
    /// The next request.
    pub(super) fn next(&self) -> Ask {
        match &self.phase {
            Phase::Listing { token, is_paged, .. } => {
                Ask::List { token: token.clone(), limit: is_paged.then_some(PAGE) }
            }
            Phase::Watching { version, .. } => Ask::Watch { version: version.clone() },
        }
    }

    /// Whether the last request has succeeded so far.
    pub(super) fn is_working(&self) -> bool {
        !self.has_failed
    }

    /// Whether the users of the namespace have to know that requests fail. A watch that breaks once is normal, for example
    /// when the server is restarted or its version has expired.
    pub(super) fn is_failing(&self) -> bool {
        self.has_failed && self.setbacks > u32::from(self.is_known)
    }

    /// The slices of a service.
    pub(super) fn slices(&self, service: &str) -> impl Iterator<Item = &Slice> + Clone {
        self.known.services.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// The last version; `None` while a list is read.
    pub(super) fn version(&self) -> Option<&str> {
        match &self.phase {
            Phase::Listing { .. } => None,
            Phase::Watching { version, .. } => Some(version),
        }
    }

    /// All endpoints by service, and their number.
    pub(super) fn all(&self) -> (impl Iterator<Item = (&Arc<str>, &Slices)>, usize) {
        (self.known.services.iter(), self.known.endpoints)
    }

    /// Takes a page of a list. Once the list is complete, it replaces what was known.
    ///
    /// # Errors
    /// It cannot be used. The caller passes the failure to [`Namespace::failed`].
    pub(super) fn listed(&mut self, page: List) -> Result<(), Failure> {
        let Phase::Listing { read, token, .. } = &mut self.phase else { return Ok(()) };
        let mut ignored = BTreeSet::new();
        for item in page.items {
            let (name, slice) = item.into_slice()?;
            read.set(&name, slice, &mut ignored)?;
        }
        if !page.metadata.token.is_empty() {
            if *token == page.metadata.token {
                return Err(Failure::new(FailureKind::Invalid, "the API server sent the same page of a list again"));
            }
            *token = page.metadata.token;
            return Ok(());
        }
        self.known = std::mem::take(read);
        self.phase = Phase::watching(page.metadata.resource_version);
        self.is_known = true;
        self.has_failed = false;
        Ok(())
    }

    /// Takes an event of a watch. Notes the services whose slices change.
    ///
    /// # Errors
    /// The watch has failed. The caller passes the failure to [`Namespace::failed`].
    pub(super) fn event(&mut self, event: Event, changed: &mut BTreeSet<Arc<str>>) -> Result<(), Failure> {
        let version = match event {
            Event::Set { name, version, slice } => {
                self.known.set(&name, slice, changed)?;
                version
            }
            Event::Removed { name, version } => {
                self.known.remove(&name, changed);
                version
            }
            Event::Bookmark { version } => version,
            Event::Error(status) => {
                let kind = FailureKind::of_status(status.code);
                let text = format!("the API server ended the watch: {}", status.text());
                return Err(Failure { kind, text, retry_after: status.retry_after() });
            }
        };
        self.phase = Phase::watching(version);
        self.setbacks = 0;
        self.has_failed = false;
        Ok(())
    }

    /// The server has accepted a watch, so it knows the version.
    pub(super) fn accepted(&mut self) {
        self.has_failed = false;
    }

    /// A watch has ended as watches do, after this time, with or without an event.
    ///
    /// # Errors
    /// It was so short that the next one has to wait. The caller passes the failure to [`Namespace::failed`].
    pub(super) fn ended(&mut self, lasted: Duration, had_events: bool) -> Result<(), Failure> {
        if lasted < SHORTEST_WATCH && !had_events {
            return Err(Failure::new(FailureKind::NotNow, "the API server ended the watch immediately"));
        }
        self.setbacks = 0;
        self.has_failed = false;
        Ok(())
    }

    /// Records a failure. Returns the time until the next request; `random` is from 0 to 1, and spreads the requests of many
    /// clients.
    pub(super) fn failed(&mut self, failure: &Failure, random: f64) -> Duration {
        self.setbacks = self.setbacks.saturating_add(1);
        self.has_failed = true;
        self.error = Some(failure.text.as_str().into());
        let lists_again = match (&mut self.phase, failure.kind) {
            // The state in etcd that the token refers to was compacted. Without pages, that cannot happen again.
            (Phase::Listing { token, .. }, FailureKind::Gone) if !token.is_empty() => Some(false),
            (Phase::Listing { is_paged, .. }, _) => Some(*is_paged),
            (Phase::Watching { .. }, FailureKind::Gone | FailureKind::Invalid) => Some(true),
            (Phase::Watching { errors, .. }, FailureKind::Server) => {
                *errors += 1;
                (*errors >= WATCH_ERRORS).then_some(true)
            }
            (Phase::Watching { .. }, FailureKind::NotNow) => None,
        };
        if let Some(is_paged) = lists_again {
            self.phase = Phase::listing(is_paged);
        }
        let doubled = |first: Duration| first.saturating_mul(1 << (self.setbacks - 1).min(10)).min(LONGEST_RETRY);
        let wait = match failure.kind {
            FailureKind::Gone => doubled(FIRST_RELIST).mul_f64(random),
            _ => doubled(FIRST_RETRY).mul_f64(0.5 + random / 2.0),
        };
        wait.max(failure.retry_after)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A slice of a service with one endpoint.
    fn object(name: &str, service: &str, address: &str, version: &str) -> Value {
        json!({
            "metadata": {"name": name, "resourceVersion": version, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": [{"addresses": [address]}],
        })
    }

    fn page(items: &[Value], version: &str, token: &str) -> List {
        let page = json!({
            "kind": "EndpointSliceList", "metadata": {"resourceVersion": version, "continue": token}, "items": items,
        });
        List::parse(page.to_string().as_bytes()).unwrap()
    }

    fn event(kind: &str, object: Value) -> Event {
        Event::parse(json!({"type": kind, "object": object}).to_string().as_bytes()).unwrap()
    }

    fn bookmark(version: &str) -> Event {
        event("BOOKMARK", json!({"kind": "EndpointSlice", "metadata": {"resourceVersion": version}}))
    }

    fn list(token: &str) -> Ask {
        Ask::List { token: token.into(), limit: Some(PAGE) }
    }

    fn watch(version: &str) -> Ask {
        Ask::Watch { version: version.into() }
    }

    #[derive(Default)]
    struct Fixture {
        namespace: Namespace,
    }

    impl Fixture {
        fn page(&mut self, page: List) {
            self.namespace.listed(page).unwrap();
        }

        /// Passes an event on, and returns the changed services.
        fn event(&mut self, event: Event) -> Vec<String> {
            let mut changed = BTreeSet::new();
            self.namespace.event(event, &mut changed).unwrap();
            changed.iter().map(ToString::to_string).collect()
        }

        /// Lets a request fail, and returns the wait in milliseconds, without the random part.
        fn fail(&mut self, kind: FailureKind) -> u128 {
            self.namespace.failed(&Failure::new(kind, "out of order"), 1.0).as_millis()
        }

        fn addresses(&self, service: &str) -> String {
            let all = self.namespace.slices(service).flat_map(|slice| &slice.endpoints);
            all.map(|endpoint| endpoint.ip.to_string()).collect::<Vec<_>>().join(" ")
        }

        /// A namespace of version 10 with the services `web` and `api`.
        fn watching() -> Fixture {
            let mut fixture = Fixture::default();
            fixture.page(page(&[object("w", "web", "10.0.0.1", "3"), object("a", "api", "10.0.0.2", "4")], "10", ""));
            fixture
        }
    }

    #[test]
    fn list_is_read_page_by_page_and_then_watched() {
        let mut fixture = Fixture::default();
        assert_eq!(fixture.namespace.next(), list(""));
        fixture.page(page(&[object("w1", "web", "10.0.0.1", "3")], "10", "more"));
        assert_eq!((fixture.namespace.next(), fixture.addresses("web")), (list("more"), String::new()));
        assert!(!fixture.namespace.is_known, "a part is not used");
        fixture.page(page(&[object("w2", "web", "10.0.0.2", "4")], "10", ""));
        assert_eq!((fixture.namespace.next(), fixture.addresses("web")), (watch("10"), "10.0.0.1 10.0.0.2".into()));
        assert!(fixture.namespace.is_known);
    }

    #[test]
    fn watch_continues_from_the_last_version() {
        let mut fixture = Fixture::watching();
        assert_eq!(fixture.event(event("MODIFIED", object("w", "web", "10.0.0.9", "11"))), ["web"]);
        assert_eq!((fixture.namespace.next(), fixture.addresses("web")), (watch("11"), "10.0.0.9".into()));
        assert!(fixture.event(event("MODIFIED", object("w", "web", "10.0.0.9", "12"))).is_empty(), "only a label");
        assert_eq!(fixture.event(event("ADDED", object("w2", "web", "10.0.0.3", "13"))), ["web"]);
        assert!(fixture.event(bookmark("40")).is_empty());
        assert_eq!(fixture.namespace.next(), watch("40"));
        assert_eq!(fixture.event(event("DELETED", object("w", "web", "10.0.0.9", "41"))), ["web"]);
        assert!(fixture.event(event("DELETED", object("w", "web", "10.0.0.9", "42"))).is_empty(), "already gone");
        assert_eq!((fixture.addresses("web"), fixture.addresses("api")), ("10.0.0.3".into(), "10.0.0.2".into()));
        fixture.event(event("DELETED", object("w2", "web", "10.0.0.3", "43")));
        assert_eq!(fixture.addresses("web"), "");
        assert_eq!(fixture.namespace.known.endpoints, 1);
    }

    #[test]
    fn slice_that_moves_to_another_service_changes_both() {
        let mut fixture = Fixture::watching();
        assert_eq!(fixture.event(event("MODIFIED", object("w", "api", "10.0.0.1", "11"))), ["api", "web"]);
        assert_eq!((fixture.addresses("web"), fixture.addresses("api")), (String::new(), "10.0.0.2 10.0.0.1".into()));
        assert_eq!(
            fixture.event(event("MODIFIED", json!({"metadata": {"name": "w", "resourceVersion": "12"}}))),
            ["api"]
        );
        assert_eq!(fixture.addresses("api"), "10.0.0.2");
    }

    #[test]
    fn expired_version_leads_to_a_list_until_which_everything_stays() {
        let mut fixture = Fixture::watching();
        let gone = json!({"kind": "Status", "message": "too old resource version", "code": 410});
        let failure = fixture.namespace.event(event("ERROR", gone), &mut BTreeSet::new()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Gone);
        assert!(failure.text.contains("too old resource version"), "{}", failure.text);
        assert_eq!(fixture.namespace.failed(&failure, 0.25).as_millis(), 250, "spread over a second");
        assert_eq!((fixture.namespace.next(), fixture.addresses("web")), (list(""), "10.0.0.1".into()));
        let items = [object("w", "web", "10.0.0.1", "20"), object("n", "new", "10.0.0.3", "21")];
        fixture.page(page(&items, "30", ""));
        assert_eq!((fixture.namespace.next(), fixture.addresses("api")), (watch("30"), String::new()));
        assert_eq!((fixture.addresses("web"), fixture.addresses("new")), ("10.0.0.1".into(), "10.0.0.3".into()));
    }

    #[test]
    fn expired_token_leads_to_a_list_without_pages() {
        let mut fixture = Fixture::default();
        fixture.page(page(&[object("w", "web", "10.0.0.1", "3")], "10", "more"));
        fixture.fail(FailureKind::Gone);
        let whole = Ask::List { token: "".into(), limit: None };
        assert_eq!(fixture.namespace.next(), whole);
        fixture.fail(FailureKind::Server);
        assert_eq!(fixture.namespace.next(), whole, "until it succeeds");
        fixture.page(page(&[object("v", "web", "10.0.0.2", "3")], "12", ""));
        assert_eq!(fixture.addresses("web"), "10.0.0.2", "the pages before are dropped");
        fixture.fail(FailureKind::Gone);
        assert_eq!(fixture.namespace.next(), list(""), "the next list has pages");
        // An interrupted list begins again.
        fixture.page(page(&[], "20", "more"));
        fixture.fail(FailureKind::NotNow);
        assert_eq!(fixture.namespace.next(), list(""));
        let token = |fixture: &mut Fixture| fixture.namespace.listed(page(&[], "20", "same"));
        assert!(token(&mut fixture).is_ok() && token(&mut fixture).is_err(), "a list without an end");
    }

    #[test]
    fn failures_keep_what_is_known_and_are_retried_less_and_less() {
        let mut fixture = Fixture::watching();
        let waits: Vec<_> = (0..9).map(|_| fixture.fail(FailureKind::NotNow)).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        assert!(fixture.namespace.is_failing());
        assert_eq!((fixture.namespace.next(), fixture.addresses("web")), (watch("10"), "10.0.0.1".into()));
        fixture.namespace.accepted();
        assert!(!fixture.namespace.is_failing());
        assert_eq!(fixture.fail(FailureKind::NotNow), 30_000, "an accepted watch alone does not end the waits");
        assert!(fixture.namespace.is_failing());
        fixture.event(bookmark("11"));
        assert_eq!(fixture.fail(FailureKind::NotNow), 500);
        assert!(!fixture.namespace.is_failing(), "a watch that breaks once");
        let slow = Failure { retry_after: Duration::from_secs(77), ..Failure::new(FailureKind::NotNow, "429") };
        assert_eq!(fixture.namespace.failed(&slow, 0.0).as_secs(), 77);
        for _ in 0..100 {
            fixture.fail(FailureKind::Server);
        }
        assert_eq!(fixture.fail(FailureKind::Gone), 30_000);
    }

    #[test]
    fn useless_watch_is_given_up_for_a_list() {
        for (kind, expected) in [
            (FailureKind::Invalid, [list(""), list(""), list("")]),
            (FailureKind::Server, [watch("10"), watch("10"), list("")]),
            (FailureKind::NotNow, [watch("10"), watch("10"), watch("10")]),
        ] {
            let mut fixture = Fixture::watching();
            for expected in expected {
                fixture.fail(kind);
                assert_eq!(fixture.namespace.next(), expected, "{kind:?}");
                assert_eq!(fixture.addresses("web"), "10.0.0.1");
            }
        }
        for (code, kind) in [
            (400, FailureKind::Invalid),
            (401, FailureKind::NotNow),
            (403, FailureKind::NotNow),
            (404, FailureKind::Invalid),
            (410, FailureKind::Gone),
            (429, FailureKind::NotNow),
            (500, FailureKind::Server),
            (504, FailureKind::Server),
        ] {
            assert_eq!(FailureKind::of_status(code), kind, "{code}");
        }
    }

    #[test]
    fn watch_that_ends_is_continued_unless_it_was_useless() {
        let mut fixture = Fixture::watching();
        fixture.namespace.ended(Duration::from_secs(300), false).unwrap();
        fixture.namespace.ended(Duration::ZERO, true).unwrap();
        let failure = fixture.namespace.ended(Duration::from_millis(999), false).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NotNow);
    }

    #[test]
    fn namespace_is_bounded() {
        let endpoints: Vec<_> =
            (0..40_000u32).map(|n| json!({"addresses": [std::net::Ipv4Addr::from(n + 1).to_string()]})).collect();
        let items: Vec<_> = (0..27)
            .map(|n| {
                let mut object = object(&format!("s{n}"), "web", "10.0.0.1", "1");
                object["endpoints"] = endpoints.clone().into();
                object
            })
            .collect();
        let mut fixture = Fixture::watching();
        fixture.fail(FailureKind::Gone);
        let read = fixture.namespace.listed(page(&items, "11", ""));
        assert!(read.unwrap_err().text.contains("more than 1048576 endpoints"));
        assert_eq!(fixture.addresses("web"), "10.0.0.1");
    }
}
