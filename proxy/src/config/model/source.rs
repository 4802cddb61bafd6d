//! The `sources` section: where resources come from, other than the configuration's files.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::units::{Address, Duration},
    ClusterTls,
};

/// A source of resources that are not in the configuration's files. Each resource is accepted or refused
/// alone, and what is accepted stays when the source fails. On a clash of names, the files win.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A unique name, by which clusters refer to the source.
    #[schemars(length(min = 1))]
    pub name: String,
    /// A server that answers with resources in the form of a configuration file. Either this or `directory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// A directory whose files have the form of a configuration file. They may come and go; each is accepted or refused
    /// alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<DirectorySource>,
    /// The kinds of resources that the source may supply; others are refused. Listeners open sockets of this machine, and
    /// filters load its files, so these two have to be listed explicitly. If any source supplies clusters, filters and
    /// listeners may name clusters that do not exist yet: requests for them get 503.
    #[serde(default = "default::supplies")]
    pub supplies: Vec<Supply>,
}

/// A kind of resource that a source may supply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Supply {
    /// Listeners.
    Listeners,
    /// Filters.
    Filters,
    /// Clusters.
    Clusters,
    /// The endpoints of clusters.
    Endpoints,
}

impl Supply {
    /// All kinds.
    pub const ALL: [Supply; 4] = [Supply::Listeners, Supply::Filters, Supply::Clusters, Supply::Endpoints];

    /// Returns the section of a document that contains resources of this kind.
    pub fn section(self) -> &'static str {
        match self {
            Supply::Listeners => "listeners",
            Supply::Filters => "filters",
            Supply::Clusters => "clusters",
            Supply::Endpoints => "endpoints",
        }
    }

    /// Returns the kind of a section's resources.
    pub fn of_section(section: &str) -> Option<Supply> {
        Supply::ALL.into_iter().find(|kind| kind.section() == section)
    }
}

/// A server that answers with resources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpSource {
    /// The URL: `http://` or `https://`, with a host name or an address.
    #[schemars(pattern(r"^https?://[^/?#]+"))]
    pub url: String,
    /// The address to connect to, instead of the URL's host: `unix:/run/control.sock`, `10.0.0.1:8080`. The URL still
    /// names the host that requests and the certificate are for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// How long the server may hold a request until something changes (long poll).
    #[serde(default = "default::wait")]
    pub wait: Duration,
    /// The time between requests to a server that answers immediately although nothing has changed.
    #[serde(default = "default::interval")]
    pub interval: Duration,
    /// A file with a token that requests carry: `Authorization: Bearer TOKEN`. It is read for every request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// TLS settings for `https://`. Default: the system's certificate authorities are trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClusterTls>,
    /// Whether the last accepted resources are stored in `cache_dir`, and used after a restart until the server answers.
    #[serde(default)]
    pub keep: bool,
}

/// A directory of files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DirectorySource {
    /// The directory. Its files with the extensions `.yaml`, `.yml`, `.json` and `.toml` are read, except hidden ones.
    pub path: PathBuf,
}

mod default {
    use super::{Duration, Supply};

    pub(super) fn supplies() -> Vec<Supply> {
        vec![Supply::Clusters, Supply::Endpoints]
    }
    pub(super) fn wait() -> Duration {
        Duration::secs(30)
    }
    pub(super) fn interval() -> Duration {
        Duration::secs(5)
    }
}
