//! Extensions: filters whose configuration comes by discovery (ECDS), and those that run code which is not run here.
//!
//! Not for: asking for them (`apply`). Invariants: a filter whose configuration has not come is never left out; what a chain has looked
//! up is known by name, so that it can be asked for and the chain be read again.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::core::v3::ExtensionConfigSource;
use envoy_types::pb::envoy::extensions::filters::http::wasm::v3::Wasm as HttpWasm;
use envoy_types::pb::envoy::extensions::filters::network::wasm::v3::Wasm as NetworkWasm;
use envoy_types::pb::envoy::extensions::wasm::v3::{FailurePolicy, PluginConfig};
use envoy_types::pb::google::protobuf::Any;

use super::{Problem, Translated, open, type_name};
use crate::ads::is_askable;

pub(crate) const HTTP_WASM: &str = "envoy.extensions.filters.http.wasm.v3.Wasm";
pub(crate) const NETWORK_WASM: &str = "envoy.extensions.filters.network.wasm.v3.Wasm";

/// The configurations that came by discovery, by name.
#[derive(Debug, Default)]
pub struct Extensions(BTreeMap<String, Any>);

impl Extensions {
    /// Holds one; whether that is another than before.
    pub(crate) fn hold(&mut self, name: &str, config: Any) -> bool {
        if self.0.get(name) == Some(&config) {
            return false;
        }
        self.0.insert(name.to_owned(), config);
        true
    }

    /// Whether there is one.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Forgets one; whether there was one.
    pub(crate) fn forget(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    /// Forgets those of other names.
    pub(crate) fn retain(&mut self, names: &BTreeSet<String>) {
        self.0.retain(|name, _| names.contains(name));
    }
}

/// What one chain looks up.
#[derive(Debug)]
pub struct Lookup<'a> {
    held: &'a Extensions,
    named: RefCell<BTreeSet<String>>,
    missing: RefCell<Option<Problem>>,
}

impl<'a> Lookup<'a> {
    /// In these.
    #[must_use]
    pub fn new(held: &'a Extensions) -> Self {
        Self { held, named: RefCell::default(), missing: RefCell::default() }
    }

    /// The configuration of a filter. None: it has not come, which is noted, and the chain cannot be used yet.
    pub(super) fn find<'s>(&self, name: &str, source: &'s ExtensionConfigSource, path: &str) -> Translated<Option<Cow<'s, Any>>>
    where
        'a: 's,
    {
        if !is_askable(name) {
            return Err(Problem::new(path, format!("a configuration named {name:?} cannot be asked for")));
        }
        self.named.borrow_mut().insert(name.to_owned());
        let found = match (self.held.0.get(name), &source.default_config) {
            (Some(config), _) | (None, Some(config)) => config,
            (None, None) => {
                let problem = Problem::new(path, format!("the configuration of {name:?}, which comes by discovery, has not come"));
                self.missing.borrow_mut().get_or_insert(problem);
                return Ok(None);
            }
        };
        if !source.type_urls.iter().any(|url| xds_proto::message_name(url) == type_name(found)) {
            return Err(Problem::new(path, format!("{name:?} came as {}, which is none of its type_urls", type_name(found))));
        }
        Ok(Some(Cow::Borrowed(found)))
    }

    /// The first that has not come.
    pub(super) fn missing(&self) -> Option<Problem> {
        self.missing.borrow().clone()
    }

    /// The first that has not come, and the names of all that was looked up.
    #[must_use]
    pub fn finish(self) -> (Option<Problem>, BTreeSet<String>) {
        (self.missing.into_inner(), self.named.into_inner())
    }
}

/// Whether requests pass an HTTP extension that does not run.
pub(super) fn http_passes(config: &Any, path: &str) -> Translated<bool> {
    passes(open::<HttpWasm>(config, path)?.config.as_ref(), path)
}

/// Whether connections pass a network extension that does not run.
pub(super) fn network_passes(config: &Any, path: &str) -> Translated<bool> {
    passes(open::<NetworkWasm>(config, path)?.config.as_ref(), path)
}

/// `failure_policy`, or its predecessor `fail_open`. What restarts where it can be restarted (FAIL_RELOAD) is closed otherwise (Envoy).
fn passes(config: Option<&PluginConfig>, path: &str) -> Translated<bool> {
    let Some(config) = config else { return Ok(false) };
    #[expect(deprecated, reason = "configurations may still set it")]
    let fail_open = config.fail_open;
    match FailurePolicy::try_from(config.failure_policy) {
        Ok(FailurePolicy::FailOpen) => Ok(true),
        Ok(FailurePolicy::Unspecified) => Ok(fail_open),
        Ok(FailurePolicy::FailClosed | FailurePolicy::FailReload) => Ok(false),
        Err(_) => Err(Problem::new(format!("{path}.config.failure_policy"), format!("{} is not known", config.failure_policy))),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn an_extension_passes_only_where_its_failure_policy_says_open() {
        for (config, expected) in [
            (json!({"failure_policy": "FAIL_OPEN"}), true),
            (json!({"failure_policy": "FAIL_CLOSED"}), false),
            (json!({"failure_policy": "FAIL_RELOAD"}), false),
            (json!({"fail_open": true}), true),
            (json!({}), false),
        ] {
            let value = xds_proto::message_from_json(HTTP_WASM, &json!({"config": config})).unwrap();
            let any = Any { type_url: format!("type.googleapis.com/{HTTP_WASM}"), value };
            assert_eq!(http_passes(&any, "here").ok(), Some(expected), "{config}");
        }
    }
}
