//! Where fields are accepted without effect: which object has them, and where in it.
//!
//! Not for: the proxy, which only counts them and keeps no places; this walks a resource anew, for whoever asks. Invariant: as many as the
//! report counts of the same resources.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use model::chain::SkippedFilters;
use prost::Message;

use super::CLUSTER;
use super::extensions::as_filter;
use super::listeners::{FILTER_CHAIN, LISTENER};
use super::report::{ASSIGNMENT, walked};
use super::secrets::SECRET;
use super::skipped::without;
use crate::ads::{Resource, ResourceType};
use crate::coverage::SKIPPED_FIELD;
use crate::translate::cluster::PLUMBING;
use crate::translate::listener::{MAIN_INTERNAL, take_apart};

/// One place where a field is accepted without effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The name of the chain of `main_internal`, or else of the resource.
    pub object: String,
    /// Where, from the object on.
    pub path: String,
    /// The message type that has the field.
    pub type_name: String,
    /// The field.
    pub field: String,
}

/// All places of a resource. What cannot be read has none: that it is refused is in the report.
pub(super) fn places(of: ResourceType, resource: &Resource, skipped: &SkippedFilters) -> Vec<Place> {
    let Resource { name, body, .. } = resource;
    match of {
        ResourceType::Cluster if PLUMBING.contains(&name.as_str()) => Vec::new(),
        ResourceType::Cluster => in_object(CLUSTER, body, name),
        ResourceType::Endpoint => in_object(ASSIGNMENT, body, name),
        ResourceType::Secret => in_object(SECRET, body, name),
        ResourceType::Listener if name == MAIN_INTERNAL => in_main(body, skipped),
        ResourceType::Listener => in_rest(LISTENER, body, name, skipped),
        ResourceType::Extension => {
            let config = TypedExtensionConfig::decode(&body[..]).ok().and_then(|value| value.typed_config);
            config.map_or_else(Vec::new, |config| {
                let (type_name, bytes) = as_filter(name, &config);
                in_object(type_name, &bytes, name)
            })
        }
        ResourceType::Workload => Vec::new(),
    }
}

/// Chain by chain, as they are applied.
fn in_main(body: &Bytes, skipped: &SkippedFilters) -> Vec<Place> {
    let Ok(cut) = take_apart(body) else { return Vec::new() };
    let mut all = in_object(LISTENER, &cut.shell, MAIN_INTERNAL);
    all.extend(cut.chains.iter().flat_map(|(name, chain)| in_rest(FILTER_CHAIN, chain, name, skipped)));
    all
}

/// Also those filters that are left out.
fn in_rest(type_name: &str, bytes: &Bytes, object: &str, skipped: &SkippedFilters) -> Vec<Place> {
    let Some(rest) = without(skipped, type_name, bytes) else { return in_object(type_name, bytes, object) };
    let mut all = in_object(type_name, &rest.bytes, object);
    let place = |(path, type_name)| Place { object: object.to_owned(), path, type_name, field: SKIPPED_FIELD.to_owned() };
    all.extend(rest.left_out.into_iter().map(place));
    all
}

fn in_object(type_name: &str, bytes: &[u8], object: &str) -> Vec<Place> {
    let Ok(findings) = walked(type_name, bytes, &[]) else { return Vec::new() };
    let place = |finding: crate::coverage::Finding| Place {
        object: object.to_owned(),
        path: finding.path,
        type_name: finding.type_name,
        field: finding.field,
    };
    findings.listed.into_iter().map(place).collect()
}
