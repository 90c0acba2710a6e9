//! The rest of a mesh, for demos, tests and measurements: its certificates, and workloads that speak HBONE.
//!
//! Not here: a control plane. Nothing in it knows the proxy.

pub mod app;
mod app_body;
pub mod pki;
#[cfg(test)]
pub mod testing;
pub mod workload;
