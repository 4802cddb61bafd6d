//! The client of an API server: where it is, what it is asked, and what its answers mean.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};

use super::{
    namespace::{Ask, Failure, FailureKind},
    slice::{List, Status},
};
use crate::{
    config::{
        model::{ClusterTls, Kubernetes},
        url::HttpUrl,
    },
    control::source::encoded,
    outbound::{Body, Client, Dial, Error, Server, TokenFile, retry_after},
};

/// Where a pod has the token, the certificate authority and the namespace of its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The time for the head of an answer.
const HEAD_TIME: Duration = Duration::from_secs(15);

/// The time for a page of a list, with its head.
const LIST_TIME: Duration = Duration::from_secs(60);

/// The limit on a page of a list, in bytes. A list without pages may be large.
const MAX_PAGE: u64 = 128 << 20;

/// The limit on the description of an error, in bytes.
const MAX_STATUS: u64 = 64 << 10;

/// How a server is reached.
#[derive(Debug, PartialEq)]
pub(super) struct Access {
    pub(super) url: HttpUrl,
    token_file: Option<PathBuf>,
    tls: Option<ClusterTls>,
    /// The namespace of clusters that set none, or why it is unknown.
    pub(super) namespace: Result<String, String>,
}

impl Access {
    /// Returns the access that settings describe, with the process's environment.
    ///
    /// # Errors
    /// The server is unknown, or its URL is not valid.
    pub(super) fn of(settings: &Kubernetes) -> Result<Access, String> {
        Access::within(settings, |name| std::env::var(name).ok(), Path::new(ACCOUNT))
    }

    fn within(
        settings: &Kubernetes,
        variable: impl Fn(&str) -> Option<String>,
        account: &Path,
    ) -> Result<Access, String> {
        let Kubernetes { url, token_file, tls, .. } = settings.clone();
        if let Some(url) = url {
            return Ok(Access { url: url.parse()?, token_file, tls, namespace: Ok("default".to_owned()) });
        }
        let set = |name: &str| {
            let missing =
                || format!("the proxy is not in a Kubernetes cluster ({name} is not set): set `kubernetes.url`");
            variable(name).filter(|value| !value.is_empty()).ok_or_else(missing)
        };
        let (host, port) = (set("KUBERNETES_SERVICE_HOST")?, set("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let own = account.join("namespace");
        let namespace = fs::read_to_string(&own).map(|text| text.trim().to_owned());
        let unknown = |error| format!("the pod's namespace is unknown: {}: {error}; set `namespace`", own.display());
        Ok(Access {
            url: format!("https://{host}:{port}").parse()?,
            token_file: Some(token_file.unwrap_or_else(|| account.join("token"))),
            tls: Some(tls.unwrap_or_else(|| ClusterTls { ca: vec![account.join("ca.crt")], ..ClusterTls::default() })),
            namespace: namespace.map_err(unknown),
        })
    }

    /// Creates a client. Relative paths are relative to `dir`.
    pub(super) fn client(&self, dir: &Path) -> ApiServer {
        let token_file = self.token_file.as_deref().map(|file| dir.join(file));
        ApiServer::new(Server::new(self.url.clone(), self.tls.as_ref(), dir), token_file)
    }
}

/// The client of an API server.
pub(super) struct ApiServer<D: Dial = Server> {
    client: Client<D>,
    /// The path of the URL, without a slash at its end.
    base: String,
    token: Option<TokenFile>,
}

impl<D: Dial> ApiServer<D> {
    /// Creates a client with its own way to connect.
    pub(super) fn new(server: D, token_file: Option<PathBuf>) -> ApiServer<D> {
        let base = server.url().path.path().trim_end_matches('/').to_owned();
        ApiServer { client: Client::new(server), base, token: token_file.map(TokenFile::bearer) }
    }

    /// Closes the connection: the next one may lead to another server.
    pub(super) fn close(&mut self) {
        self.client.close();
    }

    /// Reads a page of a list.
    pub(super) async fn list(&mut self, namespace: &str, ask: &Ask) -> Result<List, Failure> {
        let body = self.get(&target(&self.base, namespace, ask, 0)).await?;
        let body = body.read(MAX_PAGE, LIST_TIME).await.map_err(|error| self.not_now(Error::from(error)))?;
        Ok(List::parse(&body)?)
    }

    /// Begins a watch that the server ends after this time.
    pub(super) async fn watch(&mut self, namespace: &str, ask: &Ask, time: Duration) -> Result<Body, Failure> {
        self.get(&target(&self.base, namespace, ask, time.as_secs())).await
    }

    async fn get(&mut self, target: &str) -> Result<Body, Failure> {
        let mut request = Request::get(target).header(header::ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(token) = &mut self.token {
            let token = token.value().map_err(|error| Failure::new(FailureKind::NotNow, error))?;
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(Bytes::new()).map_err(|error| Failure::new(FailureKind::NotNow, error))?;
        let sent = self.client.send(request, HEAD_TIME).await;
        let response = sent.map_err(|error| self.not_now(error))?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            _ => Err(self.refused(response).await),
        }
    }

    /// Describes that there is no answer, or only a part of one.
    pub(super) fn not_now(&self, error: impl ToString) -> Failure {
        Failure::new(FailureKind::NotNow, self.conceal(format!("API server: {}", error.to_string())))
    }

    /// Describes an answer with another status than 200.
    async fn refused(&self, response: Response<Body>) -> Failure {
        let (head, body) = response.into_parts();
        let body = body.read(MAX_STATUS, HEAD_TIME).await.unwrap_or_default();
        let said: Status = serde_json::from_slice(&body).unwrap_or_default();
        let why = match said.text() {
            none if none.is_empty() => String::from_utf8_lossy(&body).trim().chars().take(200).collect(),
            text => text,
        };
        let colon = if why.is_empty() { "" } else { ": " };
        Failure {
            kind: FailureKind::of_status(head.status.as_u16()),
            text: self.conceal(format!("the API server answered {}{colon}{why}", head.status)),
            retry_after: retry_after(&head.headers, SystemTime::now()).unwrap_or_default(),
        }
    }

    fn conceal(&self, text: String) -> String {
        match &self.token {
            Some(token) => token.conceal(text),
            None => text,
        }
    }
}

/// The target of a request. A watch ends after this number of seconds.
fn target(base: &str, namespace: &str, ask: &Ask, seconds: u64) -> String {
    let slices = format!("{base}/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", encoded(namespace));
    match ask {
        Ask::List { token, limit } => {
            let limit = limit.map(|limit| format!("limit={limit}"));
            let token = (!token.is_empty()).then(|| format!("continue={}", encoded(token)));
            let query = [limit, token].into_iter().flatten().collect::<Vec<_>>().join("&");
            if query.is_empty() { slices } else { format!("{slices}?{query}") }
        }
        Ask::Watch { version } => {
            let version = encoded(version);
            format!("{slices}?watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={seconds}")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn access_is_that_of_the_pod_unless_a_url_is_set() {
        let dir = tempfile::tempdir().unwrap();
        let variables = |host: &'static str| {
            move |name: &str| match name {
                "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
                "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
                _ => None,
            }
        };
        let of =
            |settings, host| Access::within(&serde_json::from_value(settings).unwrap(), variables(host), dir.path());
        let pod = of(json!({}), "10.96.0.1").unwrap();
        assert_eq!((&*pod.url.authority, pod.url.is_tls), ("10.96.0.1:443", true));
        assert_eq!(pod.token_file, Some(dir.path().join("token")));
        assert_eq!(pod.tls.unwrap().ca, [dir.path().join("ca.crt")]);
        assert!(pod.namespace.unwrap_err().contains("set `namespace`"));
        fs::write(dir.path().join("namespace"), "shop\n").unwrap();
        assert_eq!(of(json!({}), "fd00::1").unwrap().url.authority, "[fd00::1]:443");
        assert_eq!(of(json!({}), "fd00::1").unwrap().namespace.as_deref(), Ok("shop"));
        let own = of(json!({"token_file": "/t", "tls": {"ca": ["/c"]}}), "10.96.0.1").unwrap();
        assert_eq!((own.token_file, own.tls.unwrap().ca), (Some("/t".into()), vec!["/c".into()]));
        let other = of(json!({"url": "http://127.0.0.1:8001/prefix/"}), "10.96.0.1").unwrap();
        assert_eq!((other.token_file, other.tls, other.namespace.as_deref()), (None, None, Ok("default")));
        assert!(of(json!({}), "").unwrap_err().contains("KUBERNETES_SERVICE_HOST is not set"));
    }

    #[test]
    fn target_names_what_is_asked() {
        let slices = "/apis/discovery.k8s.io/v1/namespaces/my-shop/endpointslices";
        let list = |token: &str, limit| target("", "my-shop", &Ask::List { token: token.into(), limit }, 0);
        assert_eq!(list("", Some(200)), format!("{slices}?limit=200"));
        assert_eq!(list("a+b/c=", Some(200)), format!("{slices}?limit=200&continue=a%2Bb%2Fc%3D"));
        assert_eq!(list("", None), slices);
        let watch = target("/k8s", "my-shop", &Ask::Watch { version: "1234".into() }, 150);
        let query = "watch=true&allowWatchBookmarks=true&resourceVersion=1234&timeoutSeconds=150";
        assert_eq!(watch, format!("/k8s{slices}?{query}"));
    }
}
