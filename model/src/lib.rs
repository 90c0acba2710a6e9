//! What a waypoint can be told to do, validated and immutable; and the vocabulary of one request that all others share.
//!
//! Not for: protobuf, sockets, clocks. Nothing here is async, and nothing reads the environment.
//! Read from the top: each module may use those above it.

pub mod access_log;
pub mod authority;
pub mod chain;
pub mod cluster;
pub mod dispatch;
pub mod endpoint;
pub mod flags;
pub mod format;
pub mod headers;
pub mod identity;
pub mod invalid;
pub mod listener;
pub mod matcher;
pub mod metrics;
pub mod rbac;
pub mod retry;
pub mod route;
pub mod service;
pub mod stream_view;
pub mod tracing;
pub mod workload;
