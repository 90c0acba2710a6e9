//! The harness: a rootless network with every address of a mesh, a real Istio control plane in it, and waypoint pods.

pub mod istiod;
pub mod net;
pub mod pod;
pub mod wait;
