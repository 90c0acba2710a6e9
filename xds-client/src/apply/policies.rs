//! Whether it is a policy that cannot be read in a chain that is refused, and which.
//!
//! Invariant: where it cannot be told, it is one: what decides by this refuses more then, never less.

use envoy_types::pb::envoy::config::listener::v3::{FilterChain, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpConnectionManager, http_filter};
use envoy_types::pb::google::protobuf::Any;
use model::invalid::Invalid;
use prost::Message;

use crate::translate::type_name;

/// The name of a policy where its own is not known.
pub(super) const UNREADABLE: &str = "unreadable-policy";
const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
/// Filters that decide who may do what, by the packages of their configurations.
const POLICIES: [&str; 5] = [
    "envoy.extensions.filters.http.rbac.",
    "envoy.extensions.filters.http.jwt_authn.",
    "envoy.extensions.filters.http.ext_authz.",
    "envoy.extensions.filters.network.rbac.",
    "envoy.extensions.filters.network.ext_authz.",
];

/// The name of the first policy among the reasons, `unreadable-policy` if it has none; nothing if no reason is one.
pub(super) fn unreadable(chain: Option<&FilterChain>, reasons: &[Invalid]) -> Option<String> {
    let Some(chain) = chain else { return Some(UNREADABLE.to_owned()) };
    let reason = reasons.iter().find(|reason| is_policy(chain, &reason.path))?;
    Some(name(&reason.path).unwrap_or_else(|| UNREADABLE.to_owned()))
}

/// The name of the first policy that a reason names.
pub(super) fn name_among(reasons: &[Invalid]) -> String {
    reasons.iter().find_map(|reason| name(&reason.path)).unwrap_or_else(|| UNREADABLE.to_owned())
}

/// Whether a path leads into a filter of policies: `filters[0].typed_config.http_filters[2].…`, or without `typed_config`.
fn is_policy(chain: &FilterChain, path: &str) -> bool {
    let Some((at, rest)) = member(path, "filters") else { return false };
    let Some(filter::ConfigType::TypedConfig(config)) = chain.filters.get(at).and_then(|filter| filter.config_type.as_ref()) else {
        return true;
    };
    if type_name(config) != HCM {
        return is_of_policies(config);
    }
    let rest = rest.strip_prefix(".typed_config").unwrap_or(rest).trim_start_matches('.');
    let by_place = member(rest, "http_filters").map(|(inner, _)| inner);
    // What a route says of a filter stands under the filter's name.
    let by_name = rest.split_once("typed_per_filter_config[").map(|(_, rest)| rest.split(']').next().unwrap_or_default());
    if by_place.is_none() && by_name.is_none() {
        return false;
    }
    let Ok(manager) = HttpConnectionManager::decode(&config.value[..]) else { return true };
    let filter = match by_place {
        Some(inner) => manager.http_filters.get(inner),
        None => manager.http_filters.iter().find(|filter| by_name == Some(filter.name.as_str())),
    };
    match filter.and_then(|filter| filter.config_type.as_ref()) {
        Some(http_filter::ConfigType::TypedConfig(config)) => is_of_policies(config),
        // What comes by discovery, or cannot be found, may be anything.
        _ => true,
    }
}

/// Whether a filter of this configuration decides who may do what.
pub(super) fn is_of_policies(config: &Any) -> bool {
    POLICIES.iter().any(|package| type_name(config).starts_with(package))
}

/// `list[3].rest` as 3 and `.rest`.
fn member<'a>(path: &'a str, list: &str) -> Option<(usize, &'a str)> {
    let (at, rest) = path.strip_prefix(list)?.strip_prefix('[')?.split_once(']')?;
    Some((at.parse().ok()?, rest))
}

/// `…policies[ns[shop]-policy[web]-rule[0]].permissions…` as the policy's name, its brackets balanced.
fn name(path: &str) -> Option<String> {
    let (_, rest) = path.split_once("policies[")?;
    let mut depth = 0_usize;
    for (at, letter) in rest.char_indices() {
        match letter {
            '[' => depth += 1,
            ']' if depth == 0 => return Some(rest[..at].to_owned()),
            ']' => depth -= 1,
            _ => {}
        }
    }
    None
}
