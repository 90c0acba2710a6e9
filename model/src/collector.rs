//! Where telemetry that leaves the process goes: a collector of spans, log records or log entries, and how it is spoken to.
//!
//! Not for: what it is sent, or reaching it.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};

/// How a collector is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// By gRPC, whose path belongs to the service.
    Grpc,
    /// By `POST`s of HTTP/1.1 to this path.
    Http(PathAndQuery),
}

/// A collector, reached through a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Collector {
    /// The cluster.
    pub cluster: Arc<str>,
    /// `:authority` or `Host` of the calls.
    pub authority: Arc<str>,
    /// How it is called.
    pub call: Call,
    /// Headers of each call: metadata of gRPC, or those of HTTP; keys of collectors that ask for one.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long one call may take; none leaves it to the exporter.
    pub timeout: Option<Duration>,
}
