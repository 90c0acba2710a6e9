//! The data plane and the process: everything that listens, dials, decides when, and ends.
//!
//! Read from the top: each module may use those above it. `request`, `http`, `hbone` and `upstream` never name
//! `xds_client` or `k8s`; only `state` and `app` do.

pub mod admin;
pub mod app;
pub mod config;
pub mod drain;
pub mod hbone;
pub mod http;
pub mod identity;
pub mod listen;
pub mod request;
pub mod runtime;
pub mod sniff;
pub mod state;
pub mod tcp;
pub mod tls;
pub mod upstream;
