//! The messages of Istio that `envoy-types` lacks, and the descriptors of everything istiod can send: for JSON, and for walking a
//! resource field by field. Compiled once, since it is slow to compile.
//!
//! Not here: Envoy's own messages as Rust types (`envoy_types::pb`), connections, and any meaning of a field.
//!
//! Invariant: [`descriptors`] knows every message that the types here and the resources of a waypoint consist of, so that what is
//! unknown to it is unknown to us.
mod certificate;
mod descriptors;
mod json;

pub use certificate::{CREATE_CERTIFICATE_PATH, CertificateClient};
pub use descriptors::{descriptors, message_name, release_descriptors};
pub use json::{JsonError, dynamic_from_json, dynamic_to_json, message_from_json, message_to_json};

/// Istio's messages.
pub mod istio {
    /// `istio.v1.auth`: the certificate signing service.
    pub mod auth {
        include!(concat!(env!("OUT_DIR"), "/istio.v1.auth.rs"));
    }
    /// `stats`: configuration of the `istio.stats` filter.
    pub mod stats {
        include!(concat!(env!("OUT_DIR"), "/stats.rs"));
    }
    /// `istio.workload`: workload discovery.
    pub mod workload {
        include!(concat!(env!("OUT_DIR"), "/istio.workload.rs"));
    }
}

/// `udpa.type.v1`: a message in JSON form.
pub mod udpa {
    include!(concat!(env!("OUT_DIR"), "/udpa.r#type.v1.rs"));
}

/// Messages of `envoy-types` under a path without `r#type`, which prost-build cannot write.
mod imported {
    pub use envoy_types::pb::xds::r#type::matcher::v3 as matcher;
}

/// `xds.type.matcher.v3`: the part that `envoy-types` lacks.
pub mod matcher {
    include!(concat!(env!("OUT_DIR"), "/xds.r#type.matcher.v3.rs"));
}
