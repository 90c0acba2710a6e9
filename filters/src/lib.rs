//! Decisions about one request or connection. Time, randomness and answers of others are arguments.
//!
//! Not for: I/O, logging, counting, waiting; a filter decides, `waypoint` acts, `telemetry` records.
//! Read from the top: each module may use those above it.

pub mod header_match;
pub mod headers;
pub mod route;
pub mod rewrite;
pub mod parameters;
pub mod grpc_web;
pub mod redirect;
pub mod cors;
pub mod fault;
pub mod rbac;
pub mod explain;
pub mod ext_authz;
pub mod jwt;
pub mod hash;
pub mod rate_limit;
pub mod retry;
pub mod internal;
pub mod timeout;
pub mod chain;
