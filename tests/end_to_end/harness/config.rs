//! Builds the configuration of most tests: a listener with a chain of filters, further listeners, and clusters. Tests
//! that need another shape write the YAML themselves.

use std::fmt::{Display, Write};

/// A configuration with the listener `main`, which logs to `access.log`.
///
/// Options are YAML, in block or flow style, with any common indentation.
#[derive(Default, Clone)]
pub struct Config {
    top: String,
    listener: String,
    log: Option<String>,
    others: String,
    chain: Vec<String>,
    filters: String,
    clusters: String,
    modules: Vec<(String, Vec<u8>)>,
}

/// The text of a configuration, and the files next to it.
#[derive(Clone)]
pub struct Setup {
    pub text: String,
    pub files: Vec<(String, Vec<u8>)>,
}

impl From<&str> for Setup {
    fn from(text: &str) -> Setup {
        text.to_owned().into()
    }
}

impl From<String> for Setup {
    fn from(text: String) -> Setup {
        Setup { text, files: Vec::new() }
    }
}

impl From<Config> for Setup {
    fn from(mut config: Config) -> Setup {
        let files = std::mem::take(&mut config.modules);
        Setup { text: config.into(), files }
    }
}

impl Config {
    /// Creates a configuration without filters and clusters.
    pub fn new() -> Config {
        Config::default()
    }

    /// Creates a configuration that sends everything to one cluster `web` with one endpoint.
    pub fn to(endpoint: impl Display) -> Config {
        Config::to_with(endpoint, "")
    }

    /// The same, with options of the cluster.
    pub fn to_with(endpoint: impl Display, options: &str) -> Config {
        Config::new().listener("cluster: web").cluster("web", &[endpoint], options)
    }

    /// Adds top-level keys.
    pub fn top(mut self, options: &str) -> Config {
        self.top += &indented(options, 0);
        self
    }

    /// Adds options of the listener.
    pub fn listener(mut self, options: &str) -> Config {
        self.listener += &indented(options, 4);
        self
    }

    /// Sets the listener's `access_log`.
    pub fn log(mut self, options: &str) -> Config {
        self.log = Some(options.to_owned());
        self
    }

    /// Adds a listener with these options, by default at the address that `@NAME@` stands for.
    pub fn beside(mut self, name: &str, options: &str) -> Config {
        let _ = writeln!(self.others, "  - name: {name}");
        if !options.contains("address:") {
            let _ = writeln!(self.others, "    address: '@{name}@'");
        }
        self.others += &indented(options, 4);
        self
    }

    /// Adds a listener with the current options of `main`, and these in addition.
    pub fn again(self, name: &str, options: &str) -> Config {
        let same = format!(
            "access_log: {}\nchain: [{}]\n{}{}",
            self.access_log(),
            self.chain.join(", "),
            indented(&self.listener, 0),
            indented(options, 0)
        );
        self.beside(name, &same)
    }

    /// Adds a filter to the end of the chain of `main`. `options` are those other than `name` and `wasm`, such as
    /// `config:`.
    pub fn filter(mut self, name: &str, wasm: &str, options: &str) -> Config {
        self.chain.push(name.to_owned());
        self.unchained(name, wasm, options)
    }

    /// The same for a filter with this module.
    pub fn module(mut self, name: &str, module: &[u8], options: &str) -> Config {
        let file = format!("{name}.wasm");
        self.modules.push((file.clone(), module.to_vec()));
        self.filter(name, &file, options)
    }

    /// Adds a router with these routes for all hosts, in flow style.
    pub fn routes(self, routes: &str) -> Config {
        self.filter("routes", "builtin:router", &format!("config: {{routes: [{routes}]}}"))
    }

    /// Adds a filter for the chains of other listeners.
    pub fn unchained(mut self, name: &str, wasm: &str, options: &str) -> Config {
        let _ = write!(self.filters, "  - name: {name}\n    wasm: {wasm}\n{}", indented(options, 4));
        self
    }

    /// Adds a cluster. `options` are those other than `name` and `endpoints`; if `endpoints` is empty, the options can
    /// contain them.
    pub fn cluster(mut self, name: &str, endpoints: &[impl Display], options: &str) -> Config {
        let _ = writeln!(self.clusters, "  - name: {name}");
        if !endpoints.is_empty() {
            let endpoints: Vec<_> = endpoints.iter().map(|address| format!("{{address: \"{address}\"}}")).collect();
            let _ = writeln!(self.clusters, "    endpoints: [{}]", endpoints.join(", "));
        }
        self.clusters += &indented(options, 4);
        self
    }
}

impl Config {
    fn access_log(&self) -> &str {
        self.log.as_deref().unwrap_or("{to: access.log}")
    }
}

impl From<Config> for String {
    fn from(config: Config) -> String {
        assert!(config.modules.is_empty(), "a text has no files");
        let main = format!("  - name: main\n    address: '@main@'\n    access_log: {}\n", config.access_log());
        let Config { top, listener, others, chain, filters, clusters, .. } = config;
        let section = |name: &str, items: String| match items.is_empty() {
            true => String::new(),
            false => format!("{name}:\n{items}"),
        };
        let listeners = format!("{main}    chain: [{}]\n{listener}{others}", chain.join(", "));
        [top, section("listeners", listeners), section("filters", filters), section("clusters", clusters)].concat()
    }
}

/// The lines of a text, with this many spaces instead of their common indentation.
fn indented(text: &str, spaces: usize) -> String {
    let lines = || text.lines().filter(|line| !line.trim().is_empty());
    let common = lines().map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
    lines().map(|line| format!("{:spaces$}{}\n", "", &line[common..])).collect()
}
