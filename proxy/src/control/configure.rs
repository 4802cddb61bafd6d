//! Creates the first instance of each VM template, and collects all errors that its filters report about their
//! configurations, although most filters stop at the first one.

use std::{collections::BTreeMap, sync::Arc};

use super::selections::escaped;
use crate::{
    config::{
        Answer, Diagnostic, Loaded, Reported,
        model::{self, JsonText},
    },
    observe::MetricError,
    wasm::{Instance, InstantiateError, Plugin, Sharing, TemplateRoot, VmTemplate},
};

/// Creates a template's first instance, or returns all errors that its filters report about their configurations and
/// variants.
///
/// Where a filter expects a number or a boolean and an environment variable provided text, the value is converted: the
/// plugin is replaced, in the template and in `plugins`, by one with the converted configuration. Of filters that share a
/// root context, only the first one is asked, and the others take its configuration.
pub(super) fn configured(
    loaded: &Loaded,
    template: &mut Arc<VmTemplate>,
    plugins: &mut [Arc<Plugin>],
) -> Result<Instance, Vec<Diagnostic>> {
    let named = |plugin: &Arc<Plugin>| loaded.config.filters.iter().find(|filter| filter.name == plugin.info.name);
    let mut members = template.plugins();
    let configured = template.configured(&members);
    let mut filters: Vec<_> = configured.iter().filter_map(named).map(|filter| (**filter).clone()).collect();
    // Each configuration may be replaced once.
    for _ in 0..=template.roots(&members).count() {
        let failed = match template.instantiate() {
            Ok(instance) => return Ok(instance),
            Err(failed) => failed,
        };
        let part = Part { loaded, plugin: &members[failed.filter], variant: failed.variant.as_deref() };
        match part.ask(failed.error) {
            Ok(typed) => {
                let (filter, old) = (&mut filters[failed.filter], part.plugin.clone());
                match &failed.variant {
                    Some(name) => _ = filter.variants.insert(name.clone(), (&typed).into()),
                    None => filter.config = (&typed).into(),
                }
                let replaced = old.configured_as(filter).map_err(|e| vec![Diagnostic::error(None, e.to_string())])?;
                let replaced = Arc::new(replaced);
                let new = |plugin: &Arc<Plugin>| match template.sharing() {
                    _ if Arc::ptr_eq(plugin, &old) => replaced.clone(),
                    Sharing::Vm => plugin.clone(),
                    Sharing::RootContext => Arc::new(plugin.configured_like(&replaced)),
                };
                let converted: Vec<_> = members.iter().map(new).collect();
                for (before, now) in members.iter().zip(&converted) {
                    plugins.iter_mut().filter(|plugin| Arc::ptr_eq(plugin, before)).for_each(|p| *p = now.clone());
                }
                *template = template.converted(converted);
                members = template.plugins();
            }
            Err(mut mistakes) => {
                // The ones after it have not been configured yet.
                let is_failed =
                    |root: &TemplateRoot<'_>| root.filter == failed.filter && root.variant == failed.variant.as_deref();
                for root in template.roots(&members).skip_while(|root| !is_failed(root)).skip(1) {
                    let part = Part { loaded, plugin: root.plugin, variant: root.variant };
                    let config = part.config();
                    if let Ok(alone) = part.alone(config)
                        && let Err(failed) = VmTemplate::of(alone).instantiate()
                        && let Err(more) = part.ask(failed.error)
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

/// A configuration of a filter: its own, or a variant's.
struct Part<'p> {
    loaded: &'p Loaded,
    plugin: &'p Arc<Plugin>,
    variant: Option<&'p str>,
}

impl Part<'_> {
    /// The index of the filter in the file.
    fn index(&self) -> usize {
        let name = &self.plugin.info.name;
        self.loaded.config.filters.iter().position(|filter| filter.name == *name).unwrap_or_default()
    }

    /// The configuration as it is in the file.
    fn config(&self) -> &JsonText {
        let filter = &self.loaded.config.filters[self.index()];
        self.variant.and_then(|name| filter.variants.get(name)).unwrap_or(&filter.config)
    }

    /// The filter with only this configuration.
    fn alone(&self, config: &JsonText) -> Result<Arc<Plugin>, MetricError> {
        let filter = model::Filter::clone(&self.loaded.config.filters[self.index()]);
        let alone = model::Filter { config: config.clone(), variants: BTreeMap::new(), ..filter };
        self.plugin.configured_as(&alone).map(Arc::new)
    }

    /// Asks the filter, which rejected the configuration, for all errors. Returns a converted configuration if that
    /// resolves them.
    fn ask(&self, error: InstantiateError) -> Result<serde_json::Value, Vec<Diagnostic>> {
        let Part { loaded, plugin, variant } = self;
        let name = &plugin.info.name;
        let who = match variant {
            Some(variant) => format!("filter `{name}`, variant `{variant}`,"),
            None => format!("filter `{name}`"),
        };
        let filter = format!("/filters/{}", self.index());
        let pointer = match variant {
            Some(variant) => format!("{filter}/variants/{}", escaped(variant)),
            None => format!("{filter}/config"),
        };
        let said: Reported = match error {
            InstantiateError::Config(said) => said,
            error => {
                let message = format!("{who} cannot be set up: {error}");
                let has_config = variant.is_some() || !plugin.info.config.is_empty();
                let pointer = if has_config { pointer } else { format!("{filter}/wasm") };
                return Err(vec![loaded.source.diagnostic(&pointer, message, None)]);
            }
        };
        let again = |config: &serde_json::Value| {
            let Ok(plugin) = self.alone(&config.into()) else { return Err(None) };
            match VmTemplate::of(plugin).instantiate().map_err(|failed| failed.error) {
                Ok(_) => Ok(()),
                Err(InstantiateError::Config(said)) => Err(Some(said)),
                Err(_) => Err(None),
            }
        };
        match loaded.source.all_mistakes(&pointer, &format!("filter `{name}`"), said, again) {
            Answer::Mistakes(mistakes) => Err(mistakes),
            Answer::Typed(config) => Ok(config),
        }
    }
}
