//! What a waypoint can be told to do, validated and immutable; and the vocabulary of one request that all others share.
//!
//! Not for: protobuf, sockets, clocks. Nothing here is async, and nothing reads the environment.
//! Read from the top: each module may use those above it.

pub mod invalid;
pub mod authority;
pub mod identity;
pub mod workload;
pub mod baggage;
pub mod service;
pub mod flags;
pub mod refusal;
pub mod fraction;
pub mod turns;
pub mod text;
mod prefixes;
pub mod matcher;
pub mod claims;
pub mod stream_view;
pub mod format;
pub mod metrics;
pub mod collector;
pub mod access_log;
pub mod tracing;
pub mod headers;
pub mod retry;
pub mod timeout;
pub mod rewrite;
pub mod hash;
pub mod cors;
pub mod ext_authz;
pub mod rate_limit;
pub mod upgrade;
pub mod subset;
pub mod route;
pub mod route_table;
pub mod rbac;
pub mod jwt;
pub mod transport;
pub mod endpoint;
pub mod dns;
pub mod outlier;
pub mod cluster;
pub mod chain;
pub mod dispatch;
pub mod listener;
