//! The data plane and the process: everything that listens, dials, decides when, and ends.
//!
//! Read from the top: each module may use those above it. `request`, `http`, `hbone` and `upstream` never name
//! `xds_client` or `k8s`; only `state`, `identity` and `app` do.

pub mod config;
pub mod runtime;
pub mod drain;
pub mod tls;
pub mod identity;
pub mod hbone;
pub mod sniff;
pub mod http;
pub mod state;
pub mod upstream;
pub mod worker;
pub mod call;
pub mod external;
pub mod policies;
pub mod request;
pub mod tcp;
pub mod tunnel;
pub mod listen;
pub mod admin;
pub mod app;
