//! The queries: `GET /v1/health/service/NAME`. What is the same in each is encoded once.

use std::{fmt::Write, path::Path, time::Duration};

use bytes::Bytes;
use http::{HeaderName, Request, Uri};

use super::index::Index;
use crate::{
    config::{
        model::{Consul, ConsulConsistency, ConsulDiscovery},
        url::HttpUrl,
    },
    control::source::encoded,
    outbound::TokenFile,
};

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

/// Builds the queries about a service.
pub(super) struct Requests {
    /// The path with all parameters but those of a blocking query.
    path: String,
    token: Option<TokenFile>,
}

impl Requests {
    /// The queries for a service of the server at `url`. Relative paths are relative to `dir`.
    pub(super) fn new(url: &HttpUrl, settings: &Consul, query: &ConsulDiscovery, dir: &Path) -> Requests {
        let prefix = url.path.path().trim_end_matches('/');
        let mut path = format!("{prefix}/v1/health/service/{}?", encoded(&query.service));
        path.push_str(match query.consistency {
            ConsulConsistency::Default => "",
            ConsulConsistency::Stale => "stale&",
            ConsulConsistency::Consistent => "consistent&",
        });
        let given = [
            ("dc", &query.datacenter),
            ("ns", &query.namespace),
            ("partition", &query.partition),
            ("filter", &query.filter),
        ];
        let given = given.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        for (name, value) in given.chain(query.tags.iter().map(|tag| ("tag", tag.as_str()))) {
            let _ = write!(path, "{name}={}&", encoded(value));
        }
        Requests { path, token: settings.token_file.as_deref().map(|file| TokenFile::plain(dir.join(file))) }
    }

    /// Builds a query. If it can be held, it is for up to `wait`.
    ///
    /// # Errors The token is not available.
    pub(super) fn next(&mut self, index: Index, wait: Duration) -> Result<Request<Bytes>, String> {
        let target = match index.held_by() {
            Some(index) => format!("{}index={index}&wait={}ms", self.path, wait.as_millis()),
            None => self.path.trim_end_matches(['&', '?']).to_owned(),
        };
        let target: Uri = target.parse().map_err(|_| "the name or the filter is too long".to_owned())?;
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = target;
        if let Some(token) = &mut self.token {
            request.headers_mut().insert(TOKEN, token.value()?);
        }
        Ok(request)
    }

    /// Removes the token from a message.
    pub(super) fn conceal(&self, message: String) -> String {
        match &self.token {
            Some(token) => token.conceal(message),
            None => message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(url: &str, query: &ConsulDiscovery) -> [String; 2] {
        let mut requests = Requests::new(&url.parse().unwrap(), &Consul::default(), query, Path::new("/"));
        let wait = Duration::from_secs(300);
        [Index::default(), Index::default().after(Some("7"))]
            .map(|index| requests.next(index, wait).unwrap().uri().to_string())
    }

    #[test]
    fn query_has_an_index_only_if_it_is_to_be_held() {
        let expected = ["/v1/health/service/web", "/v1/health/service/web?index=7&wait=300000ms"];
        assert_eq!(targets("http://127.0.0.1:8500", &ConsulDiscovery::new("web")), expected);
    }

    #[test]
    fn parameters_are_encoded_and_the_path_is_below_that_of_the_url() {
        let query = ConsulDiscovery {
            tags: vec!["a&b".to_owned(), "v1".to_owned()],
            datacenter: Some("dc2".to_owned()),
            namespace: Some("n".to_owned()),
            partition: Some("p".to_owned()),
            filter: Some("Service.Meta.version == \"2\"".to_owned()),
            consistency: ConsulConsistency::Stale,
            ..ConsulDiscovery::new("a/../b?c")
        };
        let [first, _] = targets("https://gateway.test/consul/", &query);
        assert_eq!(
            first,
            "/consul/v1/health/service/a%2F..%2Fb%3Fc?stale&dc=dc2&ns=n&partition=p&\
             filter=Service.Meta.version%20%3D%3D%20%222%22&tag=a%26b&tag=v1"
        );
        let query = ConsulDiscovery { consistency: ConsulConsistency::Consistent, ..ConsulDiscovery::new("web") };
        assert_eq!(targets("http://c", &query)[0], "/v1/health/service/web?consistent");
    }
}
