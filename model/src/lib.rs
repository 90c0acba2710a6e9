//! What a waypoint can be told to do, validated and immutable; and the vocabulary of one request that all others share.
//!
//! Not for: protobuf, sockets, clocks. Nothing here is async, and nothing reads the environment.
//! Read from the top: each module may use those above it.

pub mod access_log;
pub mod authority;
pub mod flags;
pub mod format;
pub mod identity;
pub mod invalid;
pub mod matcher;
pub mod metrics;
pub mod service;
pub mod stream_view;
pub mod tracing;
pub mod workload;
