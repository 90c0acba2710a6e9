//! The descriptor pool: which messages there are, with their fields and oneofs.
use std::sync::{Mutex, PoisonError};

use prost_reflect::DescriptorPool;

static ENCODED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));
static POOL: Mutex<Option<DescriptorPool>> = Mutex::new(None);

/// Descriptors of every message that istiod can send to a waypoint, and of the services it offers. Decoded when they are first
/// asked for, and after [`release_descriptors`] (about 10 ms); shared meanwhile.
pub fn descriptors() -> DescriptorPool {
    // A holder that panicked left either no pool or a whole one.
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    pool.get_or_insert_with(|| DescriptorPool::decode(ENCODED).expect("build.rs wrote a valid descriptor set")).clone()
}

/// Lets go of the descriptors, some 10 MB, until they are asked for again: a mesh that is at rest needs none.
pub fn release_descriptors() {
    *POOL.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// The full message name in a type URL: what follows the last slash. A bare message name is returned as it is.
pub fn message_name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn own_and_shipped_messages_are_in_one_pool() {
        for name in [
            "envoy.config.listener.v3.Listener",
            "envoy.config.cluster.v3.Cluster",
            "envoy.config.endpoint.v3.ClusterLoadAssignment",
            "envoy.service.discovery.v3.DeltaDiscoveryResponse",
            "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "istio.workload.Workload",
            "istio.v1.auth.IstioCertificateRequest",
            "stats.PluginConfig",
            "udpa.type.v1.TypedStruct",
            "xds.type.matcher.v3.IPMatcher",
            "io.istio.http.peer_metadata.Config",
            "envoy.tcp.metadataexchange.config.MetadataExchange",
        ] {
            assert!(descriptors().get_message_by_name(name).is_some(), "{name} has no descriptor");
        }
    }

    #[test]
    fn options_that_are_extensions_are_kept() {
        let required = descriptors().get_extension_by_name("validate.required").unwrap();
        let principal = descriptors().get_message_by_name("envoy.config.rbac.v3.Principal").unwrap();
        let identifier = principal.oneofs().next().unwrap();
        assert_eq!(identifier.options().get_extension(&required).as_bool(), Some(true));
    }

    #[test]
    fn a_message_name_is_what_follows_the_last_slash() {
        assert_eq!(message_name("type.googleapis.com/stats.PluginConfig"), "stats.PluginConfig");
        assert_eq!(message_name("stats.PluginConfig"), "stats.PluginConfig");
    }
}
