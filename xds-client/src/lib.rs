//! What istiod says, read: delta ADS, workload discovery and the CA; protobuf in, `model` out.

pub mod auth;
pub mod dial;

pub mod ads;
pub mod apply;
pub mod ca;
pub mod coverage;
pub mod jwks;
pub mod observer;
pub mod translate;

#[cfg(test)]
mod testing;
