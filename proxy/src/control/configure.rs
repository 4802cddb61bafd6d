//! Creates the first instance of each VM template, and collects all errors that its filters report about their
//! configurations, although most filters stop at the first one.

use std::sync::Arc;

use crate::{
    config::{Answer, Diagnostic, Loaded, Reported, model},
    wasm::{Instance, InstantiateError, Plugin, VmTemplate},
};

/// Creates a template's first instance, or returns all errors that its filters report about their configurations.
///
/// Where a filter expects a number or a boolean and an environment variable provided text, the value is converted: the
/// plugin is replaced, in the template and in `plugins`, by one with the converted configuration.
pub(super) fn configured(
    loaded: &Loaded,
    template: &mut Arc<VmTemplate>,
    plugins: &mut [Arc<Plugin>],
) -> Result<Instance, Vec<Diagnostic>> {
    // Each of its filters may be replaced once.
    for _ in 0..=template.plugins().len() {
        let failed = match template.instantiate() {
            Ok(instance) => return Ok(instance),
            Err(failed) => failed,
        };
        let filter = &template.plugins()[failed.filter];
        match ask(loaded, filter, failed.error) {
            Ok(replaced) => {
                let old = filter.clone();
                let new =
                    |plugin: &Arc<Plugin>| if Arc::ptr_eq(plugin, &old) { replaced.clone() } else { plugin.clone() };
                plugins.iter_mut().for_each(|plugin| *plugin = new(plugin));
                *template = template.converted(template.plugins().iter().map(new).collect());
            }
            Err(mut mistakes) => {
                // The filters after it have not been configured yet.
                for other in &template.plugins()[failed.filter + 1..] {
                    if let Err(failed) = VmTemplate::of(other.clone()).instantiate()
                        && let Err(more) = ask(loaded, other, failed.error)
                    {
                        mistakes.extend(more);
                    }
                }
                return Err(mistakes);
            }
        }
    }
    Err(vec![Diagnostic::error(None, format!("filters {} cannot be set up", template.names()))])
}

/// Asks a failed filter for all errors. Returns the filter with a converted configuration if that resolves them.
fn ask(loaded: &Loaded, plugin: &Arc<Plugin>, error: InstantiateError) -> Result<Arc<Plugin>, Vec<Diagnostic>> {
    let name = &plugin.info.name;
    let index = loaded.config.filters.iter().position(|filter| filter.name == *name).unwrap_or_default();
    let pointer = format!("/filters/{index}");
    let said: Reported = match error {
        InstantiateError::Config(said) => said,
        error => {
            let message = format!("filter `{name}` cannot be set up: {error}");
            let place = if plugin.info.config.is_empty() { "wasm" } else { "config" };
            return Err(vec![loaded.source.diagnostic(&format!("{pointer}/{place}"), message, None)]);
        }
    };
    let with = |config: &serde_json::Value| {
        let changed = model::Filter { config: config.clone(), ..(*loaded.config.filters[index]).clone() };
        plugin.configured_as(&changed).map(Arc::new)
    };
    let again = |config: &serde_json::Value| {
        let Ok(plugin) = with(config) else { return Err(None) };
        match VmTemplate::of(plugin).instantiate().map_err(|failed| failed.error) {
            Ok(_) => Ok(()),
            Err(InstantiateError::Config(said)) => Err(Some(said)),
            Err(_) => Err(None),
        }
    };
    let who = format!("filter `{name}`");
    match loaded.source.all_mistakes(&format!("{pointer}/config"), &who, said, again) {
        Answer::Mistakes(mistakes) => Err(mistakes),
        Answer::Typed(config) => with(&config).map_err(|e| vec![Diagnostic::error(None, e.to_string())]),
    }
}
