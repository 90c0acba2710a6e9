//! How long a request may take, as its route and its chain say.
//!
//! Not for: which of the limits counts for a request; `filters::timeout` decides that. Nothing here is ever zero: Envoy's zero is no limit.

use std::time::Duration;

/// Limits of a chain (HTTP connection manager).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainTimeouts {
    /// `stream_idle_timeout`: no byte in either direction for this long ends the stream.
    pub idle: Option<Duration>,
    /// `request_timeout`: from the head of a request to its last byte.
    pub upload: Option<Duration>,
    /// `max_stream_duration`: from the head of a request to the last byte of its answer.
    pub stream: Option<Duration>,
}

/// `max_grpc_timeout`: a gRPC client's `grpc-timeout` counts instead of the route's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrpcTimeout {
    /// The longest that it may say, and what counts when it says nothing; none is no bound.
    pub cap: Option<Duration>,
    /// Taken off what the client says, unless nothing would be left.
    pub offset: Duration,
}

/// `max_stream_duration` of a route. Its presence turns `timeout` and `max_grpc_timeout` off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamTimeout {
    /// From the head of a request to the last byte of its answer: the chain's, none, or this.
    pub max: Override,
    /// `grpc_timeout_header_max`: a client's `grpc-timeout` counts instead, up to the cap.
    pub grpc: Option<GrpcTimeout>,
}

/// What a route says of a limit that its chain has too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Override {
    /// Nothing: the chain's.
    #[default]
    Inherit,
    /// No limit.
    Unlimited,
    /// This one.
    Limit(Duration),
}

impl Override {
    /// The limit, given the chain's.
    #[must_use]
    pub fn or(self, chain: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Inherit => chain,
            Self::Unlimited => None,
            Self::Limit(limit) => Some(limit),
        }
    }
}

/// Limits of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// `timeout`: from the end of the request to the end of the answer; none is for ever.
    pub request: Option<Duration>,
    /// `max_grpc_timeout`.
    pub grpc: Option<GrpcTimeout>,
    /// `idle_timeout`.
    pub idle: Override,
    /// `max_stream_duration`.
    pub stream: Option<StreamTimeout>,
}
