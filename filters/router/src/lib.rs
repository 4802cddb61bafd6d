//! The standard router: selects a request's action by its host, path, method, headers and query.
//!
//! [`config`] is the configuration. When the filter is configured, `hosts` and `table` compile it to lookups whose cost
//! does not grow with the number of routes, and each route is defined in the host. For a request, the filter finds the
//! first matching rule and runs its `action`, which usually only passes a route's id to the host.

mod action;
pub mod config;
mod hash;
mod head;
mod headers;
mod hosts;
mod literal;
mod matcher;
mod place;
mod redirect;
mod retry;
mod rewrite;
mod table;

use std::cell::RefCell;

use rustc_hash::FxHashSet;
use tollgate_sdk::prelude::*;

use crate::{
    config::{Config, VirtualHost},
    head::{Head, HeaderCache, HeaderNames, Target},
    hosts::Hosts,
    place::Place,
    table::Table,
};

/// The filter.
pub struct Router {
    authority: Name,
    path: Name,
    method: Name,
    scheme: Name,
    hosts: Hosts,
    tables: Vec<Table>,
    cache: RefCell<HeaderCache>,
}

impl Filter for Router {
    type Config = Config;
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS;

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let mistakes = Mistakes::default();
        let place = Place::root(&mistakes);
        // Routes without virtual hosts belong to one for all hosts, but keep their own paths in the configuration.
        let place_of_hosts = config.virtual_hosts.is_some().then(|| place.field("virtual_hosts"));
        let virtual_hosts: Box<[VirtualHost]> = match (config.virtual_hosts, config.routes) {
            (Some(hosts), None) => {
                if hosts.is_empty() {
                    place.field("virtual_hosts").wrong("is empty");
                }
                hosts
            }
            (None, Some(routes)) => Box::new([VirtualHost { name: None, domains: Box::new(["*".into()]), routes }]),
            (given, _) => {
                place.wrong(match given {
                    Some(_) => "give only one of `virtual_hosts`, `routes`",
                    None => "give `routes`, or `virtual_hosts` if they differ by host",
                });
                Default::default()
            }
        };
        let (mut hosts, mut names, mut known) = (Hosts::default(), HeaderNames::default(), FxHashSet::default());
        let mut tables = Vec::with_capacity(virtual_hosts.len());
        // Each virtual host is dropped once it is compiled: linear memory never shrinks, so the peak counts.
        for (i, host) in virtual_hosts.into_iter().enumerate() {
            let place = place_of_hosts.as_ref().map_or_else(|| Place::root(&mistakes), |hosts| hosts.item(i));
            if host.name.as_ref().is_some_and(String::is_empty) {
                place.field("name").wrong("is empty");
            } else if !host.name().is_empty() && !known.insert(Box::<str>::from(host.name())) {
                place.field("name").wrong(format!("two virtual hosts are named `{}`", host.name()));
            }
            let domains = place.field("domains");
            if host.domains.is_empty() {
                domains.wrong("a virtual host needs a domain; write `*` for all hosts");
            }
            host.domains.iter().enumerate().for_each(|(d, domain)| hosts.add(domain, i as u32, &domains.item(d)));
            tables.push(Table::compile(host, &place, &mut names, setup));
        }
        mistakes.finish()?;
        Ok(Router {
            authority: setup.name(":authority"),
            path: setup.name(":path"),
            method: setup.name(":method"),
            scheme: setup.name(":scheme"),
            hosts,
            tables,
            cache: RefCell::new(names.into_cache()),
        })
    }

    fn on_request(&self, request: &Request, _: &mut ()) -> Flow {
        let mut buffer = Buffer::new();
        let [authority, target, method] = request.headers([self.authority, self.path, self.method], &mut buffer);
        let target = Target::of(target.unwrap_or_default());
        let mut head = Head::new(request, [authority, method], &target, self.cache.borrow_mut());
        let usual = || {
            let mut buffer = Buffer::new();
            if request.header(self.scheme, &mut buffer) == Some(b"https") { "443" } else { "80" }
        };
        let table = self.hosts.find(head.authority, usual).and_then(|host| self.tables.get(host as usize));
        match table.and_then(|table| table.find(&mut head)) {
            Some(action) => action.run(&mut head, self.path),
            None => {
                request.flag(flag::NO_ROUTE);
                Reply::new(404).header("content-type", "text/plain").body("Not Found").details("route_not_found").into()
            }
        }
    }
}

tollgate_sdk::export!(Router);
