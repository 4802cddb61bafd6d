//! The TLS settings of a server. The files are read for each connection, since certificates are replaced while the proxy
//! runs, and connections are rare.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::task::spawn_blocking;

use super::error::ConnectError;
use crate::{
    config::model::ClusterTls,
    tls::{ClientTls, FieldError, Loader},
};

/// A `tls` section, and what was last built from it.
pub(super) struct TlsFiles {
    section: ClusterTls,
    /// The name to verify and to send, unless the section has one.
    host: String,
    /// The directory of relative paths.
    dir: PathBuf,
    last: RefCell<Option<Arc<ClientTls>>>,
}

impl TlsFiles {
    pub(super) fn new(section: ClusterTls, host: String, dir: &Path) -> TlsFiles {
        TlsFiles { section, host, dir: dir.to_owned(), last: RefCell::default() }
    }

    /// Returns the settings with the current content of the files. While that is not valid, for example because the key
    /// has been replaced and the certificate has not yet, it returns the previous settings.
    pub(super) async fn load(&self, alpn: &'static [&'static [u8]]) -> Result<Arc<ClientTls>, ConnectError> {
        let (section, host, dir) = (self.section.clone(), self.host.clone(), self.dir.clone());
        let previous = self.last.borrow().clone();
        let before = previous.clone();
        let loading = spawn_blocking(move || {
            let resolve = |path: &Path| dir.join(path);
            ClientTls::load(&section, &host, alpn, &mut Loader::new(&resolve), before.as_ref())
        });
        match (loading.await, previous) {
            (Ok(Ok(tls)), _) => {
                *self.last.borrow_mut() = Some(tls.clone());
                Ok(tls)
            }
            (_, Some(previous)) => Ok(previous),
            (Ok(Err(errors)), None) => Err(ConnectError::Tls(describe(&errors))),
            (Err(error), None) => Err(ConnectError::Tls(error.to_string())),
        }
    }
}

fn describe(errors: &[FieldError]) -> String {
    let one = |FieldError { field, error }: &FieldError| match field.is_empty() {
        true => error.to_string(),
        false => format!("{field}: {error}"),
    };
    errors.iter().map(one).collect::<Vec<_>>().join("; ")
}
