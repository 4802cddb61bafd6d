//! The names and addresses that a file defines, and the names that it refers to. The checks across the files of a
//! configuration need nothing else, so files that have not changed are not parsed for them.
//!
//! An outline is made of a tree of any shape, so these checks also work on a file that has other errors.

use std::collections::HashMap;

use rustc_hash::FxHashMap;

use super::{
    diagnostic::Diagnostic,
    explain::{clip, did_you_mean, list},
    model::Admin,
    node::{Node, Span, Value},
    sockets,
    source::Source,
    sources,
    units::Address,
};

/// Unknown names beyond this number get no suggestion: each is compared with every known name.
const MOST_SUGGESTIONS: usize = 20;

/// The kind of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Listener,
    Filter,
    Cluster,
    Source,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Listener, Kind::Filter, Kind::Cluster, Kind::Source];

    fn as_str(self) -> &'static str {
        match self {
            Kind::Listener => "listener",
            Kind::Filter => "filter",
            Kind::Cluster => "cluster",
            Kind::Source => "source",
        }
    }
}

/// The outline of a file.
#[derive(Debug, Default)]
pub(super) struct Outline {
    /// The names of the resources, by kind.
    names: [Vec<(Box<str>, Span)>; 4],
    /// Whether some resource of a kind has no name. That is reported elsewhere, and an unknown name may be the missing
    /// one.
    incomplete: [bool; 4],
    references: Vec<(Kind, Box<str>, Span)>,
    /// The clusters that listeners send only TCP connections to.
    tcp_clusters: Vec<(Box<str>, Span)>,
    /// The clusters with `adaptive_concurrency`, and its place.
    adaptive: Vec<(Box<str>, Span)>,
    /// The addresses to listen on, with their place (`None` for a default) and their owner.
    addresses: Vec<(Address, Option<Span>, &'static str)>,
    /// The error for the case that no file has a listener; `None` if there is one here, or need not be.
    no_listener: Option<Diagnostic>,
}

impl Outline {
    /// The outline of a file that cannot be parsed.
    pub(super) fn unknown() -> Outline {
        Outline { incomplete: [true; 4], ..Outline::default() }
    }

    /// The outline of a single filter.
    pub(super) fn of_filter(name: &str) -> Outline {
        let mut outline = Outline::default();
        outline.names[Kind::Filter as usize].push((name.into(), Span::default()));
        outline
    }

    /// Returns the outline of a main file, or of an included one.
    pub(super) fn of(source: &Source, is_main: bool) -> Outline {
        let root = source.root();
        let section = |name: &str| root.get(name).map_or(&[][..], Node::items);
        let listeners = section("listeners");
        let mut outline = Outline::default();
        let clusters = section("clusters");
        for (kind, entries) in Kind::ALL.into_iter().zip([listeners, section("filters"), clusters, section("sources")])
        {
            outline.define(kind, entries);
        }
        listeners.iter().for_each(|listener| outline.refer(listener));
        for cluster in clusters {
            let section = cluster.entry("adaptive_concurrency").map(|(key, _)| key.span);
            let name = cluster.get("name").and_then(Node::as_str);
            outline.adaptive.extend(name.zip(section).map(|(name, span)| (name.into(), span)));
        }
        let discoveries = clusters.iter().filter_map(|cluster| cluster.get("discovery")?.get("source"));
        for node in discoveries {
            outline.references.extend(node.as_str().map(|name| (Kind::Source, name.into(), node.span)));
        }
        if is_main {
            // Names of clusters that may come later are not unknown.
            outline.incomplete[Kind::Cluster as usize] |= sources::supply(root, "clusters");
            outline.admin_addresses(source);
            outline.no_listener = no_listener(source);
        }
        for listener in listeners {
            let more = listener.get("addresses").map_or(&[][..], Node::items);
            for (span, address) in
                listener.get("address").into_iter().chain(more).filter_map(|node| address(source, node))
            {
                outline.addresses.push((address, Some(span), "another listener"));
            }
        }
        outline
    }

    fn define(&mut self, kind: Kind, entries: &[Node]) {
        for entry in entries {
            match entry.get("name").and_then(|node| Some((node.as_str()?, node.span))) {
                Some((name, span)) => self.names[kind as usize].push((name.into(), span)),
                None => self.incomplete[kind as usize] = true,
            }
        }
    }

    /// Records the names that a listener refers to.
    fn refer(&mut self, listener: &Node) {
        let tcp = |name: &str| listener.get("tcp").and_then(|tcp| tcp.get(name)).map_or(&[][..], Node::items);
        let routes = tcp("clusters").iter().chain(tcp("sni")).filter_map(|route| route.get("cluster"));
        let filters = listener.get("chain").map_or(&[][..], Node::items).iter().map(|filter| (Kind::Filter, filter));
        let clusters = listener.get("cluster").into_iter().chain(routes).map(|cluster| (Kind::Cluster, cluster));
        let is_tcp = listener.get("protocol").and_then(Node::as_str) == Some("tcp");
        for (kind, node) in filters.chain(clusters) {
            self.references.extend(node.as_str().map(|name| (kind, name.into(), node.span)));
            if is_tcp && kind == Kind::Cluster {
                self.tcp_clusters.extend(node.as_str().map(|name| (name.into(), node.span)));
            }
        }
    }

    fn admin_addresses(&mut self, source: &Source) {
        let admin = source.root().get("admin");
        let enabled = admin.is_none_or(is_enabled);
        let written = admin.and_then(|admin| admin.get("address"));
        match (written.and_then(|node| address(source, node)), written) {
            (Some((span, address)), _) if enabled => self.addresses.push((address, Some(span), "the admin listener")),
            (None, None) if enabled => self.addresses.push((Admin::default().address, None, "the admin listener")),
            _ => {}
        }
        let probes = admin.and_then(|admin| admin.get("probes")).and_then(|probes| probes.get("address"));
        if let Some((span, address)) = probes.and_then(|node| address(source, node)) {
            self.addresses.push((address, Some(span), "the listener for probes"));
        }
    }
}

fn is_enabled(admin: &Node) -> bool {
    admin.get("enabled").is_none_or(|enabled| enabled.to_json() != false)
}

fn address(source: &Source, node: &Node) -> Option<(Span, Address)> {
    Some((node.span, sockets::resolved(source, node.as_str()?.parse().ok()?)))
}

/// Returns the error for a configuration without listeners, if the main file has none. Such a configuration is useful
/// only for a certificate authority on the admin listener, or if a source supplies listeners.
fn no_listener(source: &Source) -> Option<Diagnostic> {
    let root = source.root();
    let Value::Map(_) = &root.value else { return None };
    if root.get("admin").is_some_and(|admin| admin.get("ca").is_some() && is_enabled(admin))
        || sources::supply(root, "listeners")
    {
        return None;
    }
    let error = match root.entry("listeners") {
        None => Diagnostic::error(source.first_line(root.span), "missing field `listeners`"),
        Some((key, list)) if matches!(&list.value, Value::Seq(items) if items.is_empty()) => {
            Diagnostic::error(key.span, "the list must not be empty")
        }
        Some(_) => return None,
    };
    let help = "define at least one: `listeners: [{name: web, address: 127.0.0.1:8080, cluster: NAME}]`".to_owned();
    Some(error.help(help))
}

/// Checks the files of a configuration together, each with its index. The first one is the main file. If two files clash,
/// the later one has the error.
pub(super) fn check(outlines: &[(usize, &Outline)], problems: &mut Vec<Diagnostic>) {
    let names = Kind::ALL.map(|kind| Names::of(kind, outlines, problems));
    for (file, outline) in outlines {
        for (kind, name, span) in &outline.references {
            names[*kind as usize].require(name, *file, *span, problems);
        }
    }
    only_requests(outlines, problems);
    let mut taken = BoundAddresses::default();
    for (file, outline) in outlines {
        for (address, span, owner) in &outline.addresses {
            taken.add(BoundAddress { address, file: *file, span: *span, owner }, problems);
        }
    }
    let has_listener = |(_, outline): &(usize, &Outline)| !outline.names[0].is_empty() || outline.incomplete[0];
    if !outlines.iter().any(has_listener) {
        problems.extend(outlines.first().and_then(|(_, main)| main.no_listener.clone()));
    }
}

/// Reports clusters that limit requests by latency, and get TCP connections instead.
fn only_requests(outlines: &[(usize, &Outline)], problems: &mut Vec<Diagnostic>) {
    let each = |(file, outline): &(usize, &'_ Outline)| {
        outline.adaptive.iter().map(|(name, span)| (name.clone(), (*file, *span))).collect::<Vec<_>>()
    };
    let adaptive: HashMap<_, _> = outlines.iter().flat_map(each).collect();
    for (file, outline) in outlines {
        for (name, span) in &outline.tcp_clusters {
            if let Some((other, place)) = adaptive.get(name) {
                let message = format!("cluster `{}` limits requests, and gets TCP connections here", clip(name));
                let help =
                    "`limits` of the cluster apply to TCP connections; for requests, use another cluster".to_owned();
                let error = Diagnostic::error(*span, message).in_file(*file).help(help);
                problems.push(error.note_in(*other, *place, "it has no effect on TCP connections"));
            }
        }
    }
}

/// All names of one kind.
struct Names<'n> {
    kind: Kind,
    /// Each name with the file and the place of its first definition.
    first: FxHashMap<&'n str, (usize, Span)>,
    complete: bool,
    files: usize,
    suggestions: std::cell::Cell<usize>,
}

impl<'n> Names<'n> {
    fn of(kind: Kind, outlines: &[(usize, &'n Outline)], problems: &mut Vec<Diagnostic>) -> Names<'n> {
        let all = || outlines.iter().map(|(file, outline)| (*file, &outline.names[kind as usize]));
        let mut first: FxHashMap<&str, (usize, Span)> = FxHashMap::default();
        first.reserve(all().map(|(_, names)| names.len()).sum());
        for (file, defined) in all() {
            for (name, span) in defined {
                match first.get(&**name) {
                    Some((other, place)) => {
                        let twice = format!("there are two {}s named `{}`", kind.as_str(), clip(name));
                        let twice = Diagnostic::error(*span, twice).in_file(file);
                        problems.push(twice.note_in(*other, *place, "the first one"));
                    }
                    None => _ = first.insert(name, (file, *span)),
                }
            }
        }
        let complete = !outlines.iter().any(|(_, outline)| outline.incomplete[kind as usize]);
        Names { kind, first, complete, files: outlines.len(), suggestions: MOST_SUGGESTIONS.into() }
    }

    /// Reports a name that is not one of these.
    fn require(&self, name: &str, file: usize, span: Span, problems: &mut Vec<Diagnostic>) {
        if !self.complete || self.first.contains_key(name) {
            return;
        }
        let kind = self.kind.as_str();
        let error = Diagnostic::error(span, format!("there is no {kind} named `{}`", clip(name))).in_file(file);
        let left = self.suggestions.get();
        self.suggestions.set(left.saturating_sub(1));
        let mut known: Vec<&str> = if left == 0 { Vec::new() } else { self.first.keys().copied().collect() };
        known.sort_unstable();
        let help = match did_you_mean(name, &known) {
            Some(help) => help,
            None if self.first.is_empty() && self.files == 1 => format!("there are no {kind}s in this file"),
            None if self.first.is_empty() => format!("there are no {kind}s in these files"),
            None if known.len() == 1 => format!("the only {kind} is {}", list(&known)),
            None if known.is_empty() || known.len() > 20 => format!("add it to `{kind}s`"),
            None => format!("the {kind}s are {}", list(&known)),
        };
        problems.push(error.help(help));
    }
}

/// An address in use.
struct BoundAddress<'o> {
    address: &'o Address,
    file: usize,
    /// The place in the file; `None` for a default.
    span: Option<Span>,
    owner: &'static str,
}

/// The addresses in use, by port (`None` for unix sockets): only addresses with the same port can overlap.
#[derive(Default)]
struct BoundAddresses<'o>(HashMap<Option<u16>, Vec<BoundAddress<'o>>>);

impl<'o> BoundAddresses<'o> {
    /// Adds an address; reports it if it is used already, or overlaps with one that is.
    fn add(&mut self, new: BoundAddress<'o>, problems: &mut Vec<Diagnostic>) {
        let port = new.address.inet().map(|address| address.port());
        // Port 0 selects a different free port each time.
        if port == Some(0) {
            return;
        }
        let all = self.0.entry(port).or_default();
        let can_share =
            |other: &BoundAddress<'_>| other.owner == new.owner && are_both_families(other.address, new.address);
        let is_taken = |other: &BoundAddress<'_>| {
            other.address == new.address || overlap(other.address, new.address) && !can_share(other)
        };
        let Some(other) = all.iter().find(|other| is_taken(other)) else { return all.push(new) };
        let (address, owner) = (new.address, other.owner);
        let twice = match other.address == address {
            true => format!("`{address}` is already the address of {owner}"),
            false => format!("`{address}` overlaps with `{}`, the address of {owner}", other.address),
        };
        let twice = Diagnostic::error(new.span, twice).in_file(new.file);
        problems.push(match other.span {
            Some(first) => twice.note_in(other.file, first, "here"),
            None => twice.help(
                "this is the admin listener's default address: change it, or disable the admin listener".to_owned(),
            ),
        });
    }
}

/// Whether two different addresses cannot both be listened on: one is the wildcard address with the other's port, or
/// one is the IPv4-mapped IPv6 form of the other.
fn overlap(one: &Address, other: &Address) -> bool {
    let (Some(one), Some(other)) = (one.inet(), other.inet()) else { return false };
    let canonical =
        |address: std::net::SocketAddr| std::net::SocketAddr::new(address.ip().to_canonical(), address.port());
    let (one, other) = (canonical(one), canonical(other));
    // An IPv6 wildcard socket also accepts IPv4 connections, unless the kernel is configured otherwise.
    let dual = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None);
        socket.and_then(|socket| socket.only_v6()).is_ok_and(|only| !only)
    };
    let covers = |all: std::net::SocketAddr, one: std::net::SocketAddr| {
        all.ip().is_unspecified() && (all.is_ipv4() == one.is_ipv4() || all.is_ipv6() && dual())
    };
    one.port() == other.port() && (one == other || covers(one, other) || covers(other, one))
}

/// Whether one is the IPv4 wildcard and the other the IPv6 wildcard. The kernel delivers IPv4 connections to the IPv4
/// sockets if there are any, so listeners can have both.
fn are_both_families(one: &Address, other: &Address) -> bool {
    let all = |address: &Address| address.inet().filter(|address| address.ip().is_unspecified());
    all(one).zip(all(other)).is_some_and(|(one, other)| one.is_ipv4() != other.is_ipv4())
}
