//! Extensions as they came by discovery: which may be used, and why others may not.
//!
//! Not for: what they do (`translate::extension`). Invariant: one that cannot be used leaves the one before in use.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpConnectionManager, HttpFilter, http_filter};
use envoy_types::pb::google::protobuf::Any;
use model::invalid::Invalid;
use prost::Message;

use super::policies;
use super::report::{Checked, check};
use crate::ads::Resource;
use crate::observer::Report;
use crate::translate::extension::Extensions;
use crate::translate::type_name;

/// In the names of filters of connections.
const NETWORK: &str = ".filters.network.";

/// Those that are held, and what is said of each.
#[derive(Default)]
pub(super) struct Held {
    pub(super) configs: Extensions,
    checked: BTreeMap<String, Checked>,
    /// Of those that were refused and may be policies: the policy that cannot be read.
    refused_policies: BTreeMap<String, String>,
}

impl Held {
    /// Takes one in; whether that changes what the chains that name it are: by what may be used, or by what they wait for.
    pub(super) fn hold(&mut self, resource: Resource, refused: &mut Vec<Invalid>) -> bool {
        let Resource { name, body, .. } = resource;
        let decoded = TypedExtensionConfig::decode(body).map_err(|error| format!("is not an extension: {error}"));
        let config = decoded.and_then(|value| value.typed_config.ok_or_else(|| "has no configuration".to_owned()));
        let (checked, config) = match config {
            Ok(config) => (check_as_filter(&name, &config), Some(config)),
            Err(reason) => (Checked { refused: vec![Invalid::new(&name, "", reason)], listed: Vec::new() }, None),
        };
        refused.extend(checked.refused.iter().cloned());
        self.refused_policies.remove(&name);
        let usable = config.as_ref().filter(|_| checked.refused.is_empty()).cloned();
        let changes = match usable {
            Some(config) => self.configs.hold(&name, config),
            None if config.as_ref().is_none_or(policies::is_of_policies) => {
                self.refused_policies.insert(name.clone(), policies::name_among(&checked.refused));
                !self.configs.holds(&name)
            }
            None => false,
        };
        self.checked.insert(name, checked);
        changes
    }

    /// The policy that cannot be read in an extension that nothing is known of but that it was refused.
    pub(super) fn refused_policy(&self, name: &str) -> Option<String> {
        self.refused_policies.get(name).filter(|_| !self.configs.holds(name)).cloned()
    }

    /// Forgets one; whether it was in use.
    pub(super) fn forget(&mut self, name: &str) -> bool {
        self.checked.remove(name);
        self.refused_policies.remove(name);
        self.configs.forget(name)
    }

    /// Forgets those that nobody names.
    pub(super) fn retain(&mut self, names: &BTreeSet<String>) {
        self.checked.retain(|name, _| names.contains(name));
        self.refused_policies.retain(|name, _| names.contains(name));
        self.configs.retain(names);
    }

    pub(super) fn add_to(&self, report: &mut Report) {
        for (name, checked) in &self.checked {
            checked.add_to(report, name);
        }
    }
}

/// Walks a configuration where a filter would have it.
fn check_as_filter(name: &str, config: &Any) -> Checked {
    let (type_name, bytes) = as_filter(name, config);
    let mut checked = check(type_name, &bytes, name, &[]);
    // A manager of its own would need routes, which nobody asks of an extension.
    checked.refused.retain(|invalid| type_name != MANAGER || invalid.path.starts_with("http_filters"));
    checked
}

/// What has a configuration as its only filter: the type, and its bytes.
pub(super) fn as_filter(name: &str, config: &Any) -> (&'static str, Vec<u8>) {
    if type_name(config).contains(NETWORK) {
        let filter = Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config.clone())) };
        let chain = FilterChain { filters: vec![filter], ..FilterChain::default() };
        return (super::listeners::FILTER_CHAIN, chain.encode_to_vec());
    }
    let config_type = Some(http_filter::ConfigType::TypedConfig(config.clone()));
    let filter = HttpFilter { name: name.to_owned(), config_type, ..HttpFilter::default() };
    let manager = HttpConnectionManager { http_filters: vec![filter], ..HttpConnectionManager::default() };
    (MANAGER, manager.encode_to_vec())
}

const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
