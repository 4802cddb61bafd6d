//! Loads a configuration file, and opens the compiler with the cache that it specifies.

use std::path::{Path, PathBuf};

use crate::{
    config::{ConfigSource, Dependencies, Diagnostic, Diagnostics, ExternalChecks, Loaded, Loader, Severity},
    observe::{access_log::Format, log},
    wasm::engine::compiler::{Cache, Compiler},
};

/// Loads a configuration, with all checks that need no filter.
pub fn load(path: &Path) -> Result<Loaded, Diagnostics> {
    loader().load(path)
}

/// Loads a configuration again; see [`Loader::reload`].
pub fn reload(path: &Path, previous: Option<&ConfigSource>) -> (Dependencies, Result<Loaded, Diagnostics>) {
    loader().reload(path, previous)
}

/// Returns a loader with all checks that need no filter.
pub fn loader() -> Loader<'static> {
    Loader::default().foreign(ExternalChecks {
        access_log: |format| Format::parse(format).map(|_| ()).map_err(|e| (e.to_string(), None)),
        log_level: |level| log::check(level).map_err(|e| (e.to_string(), e.help())),
    })
}

/// Returns the directory that caches compiled filters.
pub fn cache_dir(loaded: &Loaded) -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = loaded.config.cache_dir.clone().map(|dir| loaded.source.resolve(dir));
    let dir = dir.or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("tollgate")));
    let dir = dir.or_else(|| var("HOME").map(|d| d.join(".cache/tollgate")))?;
    // The cache needs a path that does not depend on the working directory.
    std::path::absolute(dir).ok()
}

/// Creates the compiler with its cache. If the cache cannot be used, the diagnostic is an error if the configuration
/// sets the directory and others could have put code there, and a warning otherwise.
///
/// # Errors No file descriptors are left.
pub fn compiler(loaded: &Loaded) -> std::io::Result<(Compiler, Option<Diagnostic>)> {
    let (cache, wrong) = match cache_dir(loaded).map(|dir| Cache::open(&dir)).transpose() {
        Ok(cache) => (cache, None),
        Err(e) => {
            let message = format!("cannot cache compiled filters: {e}");
            let said = loaded.source.diagnostic("/cache_dir", message, e.help());
            let severity = match loaded.config.cache_dir.is_some() && e.is_unsafe() {
                true => Severity::Error,
                false => Severity::Warning,
            };
            // The field may not exist in the file.
            let span = said.span.filter(|_| loaded.config.cache_dir.is_some());
            (None, Some(Diagnostic { severity, span, ..said }))
        }
    };
    Ok((Compiler::in_child(cache)?, wrong))
}
