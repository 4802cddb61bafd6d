//! Kubernetes: the section `kubernetes`, and clusters whose endpoints are those of a service.

use std::{fmt, path::PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{AddressFamilies, ClusterTls, OnEmpty};

/// The API server that is asked for EndpointSlices. The defaults are for a proxy that runs in the cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// The URL of the API server. Default: that of the Kubernetes cluster in which the proxy runs, from the environment
    /// variables `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`, with the token and the certificate authority of
    /// the pod's service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^https?://[^/?#]+"))]
    pub url: Option<String>,
    /// A file with a token that requests carry: `Authorization: Bearer TOKEN`. It is read for every request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// TLS settings for `https://`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClusterTls>,
    /// The region of all endpoints, since EndpointSlices have only zones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub region: Option<String>,
}

/// A service whose endpoints are a cluster's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesDiscovery {
    /// The name of the service.
    #[schemars(pattern(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub service: String,
    /// Its namespace. Default: that of the proxy's pod, or `default` with `kubernetes.url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub namespace: Option<String>,
    /// The port: the name that it has in the service, or the number that the pods listen on (`targetPort`). Default: the
    /// only TCP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<ServicePort>,
    /// Which addresses are used. A service with two families has each pod in both.
    #[serde(default = "default::families")]
    pub families: AddressFamilies,
    /// What happens when the service has no ready endpoints any more.
    #[serde(default)]
    pub on_empty: OnEmpty,
    /// Whether endpoints that Kubernetes allocates to other zones than the proxy's (`node.zone`) have priority 1.
    #[serde(default)]
    pub hints: bool,
}

/// A port by name or number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ServicePort {
    /// A number from 1.
    Number(u16),
    /// A name.
    Name(String),
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServicePort::Number(number) => number.fmt(f),
            ServicePort::Name(name) => write!(f, "`{name}`"),
        }
    }
}

impl JsonSchema for ServicePort {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ServicePort".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A port by name or number.",
            "type": ["integer", "string"],
            "minimum": 1,
            "maximum": 65535,
            "pattern": "^[-a-z0-9]*[a-z][-a-z0-9]*$",
        })
    }
}

mod default {
    use super::AddressFamilies;

    pub(super) fn families() -> AddressFamilies {
        AddressFamilies::PreferIpv4
    }
}
