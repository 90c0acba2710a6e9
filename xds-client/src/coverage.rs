//! Which fields of a resource are obeyed: the walk that lets nothing be ignored in silence.
//!
//! Every field that is set in what istiod sent is looked up in one table ([`mod@table`]). It is *honoured*; or *listed*: accepted without
//! effect and counted, since it only concerns observability or tuning; or *refused*: the object that carries it is not used. In messages
//! that steer routing or security, everything the table does not name is refused: other fields, numbers that the descriptors do not
//! know, required oneofs with nothing known in them, enum values and extensions that are not known, values that Envoy's own files forbid. So a condition that a later Istio adds
//! to a policy refuses the policy; it never vanishes. In messages of observability and tuning the same is listed.
//!
//! Not here: what a refusal does to a chain, a cluster or an endpoint (`apply`), and translation.
//!
//! Invariants: a resource without refused findings means nothing beyond what the table says is honoured. The walk ends: depth and
//! number of findings are bounded.
mod check;
mod demands;
mod document;
mod rule;
mod table;
#[cfg(test)]
mod tests;
mod walk;

use std::fmt;

use prost_reflect::DynamicMessage;
use xds_proto::{descriptors, message_name};

pub use document::document;

/// To walk a listener without its chains, which are walked one by one, so that a bad chain does not take the others down.
pub const FILTER_CHAINS: &str = "envoy.config.listener.v3.Listener.filter_chains";
/// To walk a load assignment without its endpoints, which are walked one by one.
pub const LB_ENDPOINTS: &str = "envoy.config.endpoint.v3.LocalityLbEndpoints.lb_endpoints";
/// Listeners and clusters of double HBONE, which istiod sends from 1.29 on whether any endpoint needs them or not.
pub const DOUBLE_HBONE: [&str; 2] = ["inner_connect_originate", "outer_connect_originate"];
/// Messages inside each other that a walk follows; what lies deeper is not looked at and so not accepted. istiod's own nesting stays
/// below 40.
pub const DEPTH_MAX: usize = 128;
/// Findings of a kind that one walk keeps; more are only counted.
pub const FINDINGS_MAX: usize = 1024;

/// One field, or one extension, that is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where, from the resource on: `filter_chains[direct-http].filters[1].typed_config.http_filters[3]`. Empty for the resource itself.
    pub path: String,
    /// The message that has the field, or the extension's own type.
    pub type_name: String,
    /// The field; a number if only that is known.
    pub field: String,
    /// What is missing, or what would have been different.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.reason)
    }
}

/// What a walk found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Of routing or security, and not obeyed: the object must not be used.
    pub refused: Vec<Finding>,
    /// Of observability or tuning, and without effect.
    pub listed: Vec<Finding>,
    /// How many more there were of either kind, beyond [`FINDINGS_MAX`].
    pub omitted: usize,
}

/// Why a walk could not be done.
#[derive(Debug, thiserror::Error)]
pub enum CoverageError {
    /// Nobody here knows this type, so no field of it either.
    #[error("unknown type {0}")]
    UnknownType(String),
    /// The bytes are not a message of the type.
    #[error("the bytes are not a {type_name}")]
    Malformed {
        /// The type that they should have been.
        type_name: String,
        /// What is wrong with them.
        source: prost::DecodeError,
    },
}

/// What stands for the field where a filter is left out because an operator has named it; the type is the filter's own.
pub const SKIPPED_FIELD: &str = "skipped";
/// What is missing then.
const SKIPPED: &str = "the filter is left out, as WAYPOINT_SKIP_FILTERS says";

/// What is missing where a field is listed, or an extension of this type; none if it is not.
#[must_use]
pub fn missing(type_name: &str, field: &str) -> Option<&'static str> {
    table::missing(type_name, field).or_else(|| (field == SKIPPED_FIELD).then_some(SKIPPED))
}

/// Whether filters with configurations of this type are known, and obeyed or without effect as the table says.
#[must_use]
pub fn is_obeyed_filter(type_name: &str) -> bool {
    table::is_obeyed_filter(type_name)
}

/// Walks a resource, or any message that the table has: a filter chain, an endpoint.
pub fn walk(resource: &DynamicMessage) -> Findings {
    walk_without(resource, &[])
}

/// As [`walk`], but passes over the fields with these full names ([`FILTER_CHAINS`], [`LB_ENDPOINTS`]) wherever they are.
pub fn walk_without(resource: &DynamicMessage, skip: &[&str]) -> Findings {
    walk::walk(resource, skip)
}

/// As [`walk`], of an encoded message.
///
/// # Errors
/// The type is unknown, or the bytes are not such a message.
pub fn walk_bytes(type_url: &str, bytes: &[u8]) -> Result<Findings, CoverageError> {
    walk_bytes_without(type_url, bytes, &[])
}

/// As [`walk_without`], of an encoded message.
///
/// # Errors
/// As [`walk_bytes`].
pub fn walk_bytes_without(type_url: &str, bytes: &[u8], skip: &[&str]) -> Result<Findings, CoverageError> {
    let type_name = message_name(type_url);
    let descriptor = descriptors().get_message_by_name(type_name).ok_or_else(|| CoverageError::UnknownType(type_name.to_owned()))?;
    let message =
        DynamicMessage::decode(descriptor, bytes).map_err(|source| CoverageError::Malformed { type_name: type_name.to_owned(), source })?;
    Ok(walk_without(&message, skip))
}
