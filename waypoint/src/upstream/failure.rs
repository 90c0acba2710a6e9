//! Why a request got no answer from its upstream: one variant per thing somebody would do differently.
//!
//! Each has the status and text for the client, the flag, details and reason for the operator, and what the retry policy is
//! asked; all total functions. Source of texts and flags: Envoy's, as `docs/contracts.md` lists them.

use std::borrow::Cow;

use filters::retry::TryResult;
use h2::Reason;
use model::flags::ResponseFlag;

use crate::http::body::BodyError;
use crate::http::client::SendErrorKind;
use crate::state::breaker::Overflow;
use crate::state::by_host::NoHost;
use crate::state::health::Verdict;
use crate::upstream::pool::NoSession;

/// What Envoy's codec says of a stream that its client has reset.
pub const CLIENT_RESET: &str = "http2.remote_reset";

/// Why a try, or the request as a whole, failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamFailure {
    /// The route names a cluster that does not exist.
    ClusterNotFound,
    /// The cluster's configuration was refused.
    ClusterRejected,
    /// No endpoint can be chosen.
    NoEndpoint,
    /// The host that the request names has no address; and why.
    Unresolved(Cow<'static, str>),
    /// As many hosts that requests name are known as may be.
    TooManyHosts,
    /// As many requests wait for the address of a host as may.
    TooManyLookups,
    /// A circuit breaker is open.
    Overflow,
    /// No connection to the endpoint; with the true cause.
    Connect(Cow<'static, str>),
    /// The connection ended before an answer.
    Closed {
        /// Whether any part of the request may have arrived.
        request_sent: bool,
    },
    /// The endpoint reset the stream before an answer.
    Reset(Reason),
    /// The endpoint did not look at the request and said so.
    Refused,
    /// What the endpoint answered is not HTTP.
    Protocol,
    /// The time for one try passed.
    TryTimeout,
    /// Nothing was heard of a try for its idle time.
    TryIdle,
    /// The route's time passed.
    RequestTimeout,
    /// Nothing was heard from either side for the stream's idle time.
    StreamIdle {
        /// Whether all of the request has come.
        request_ended: bool,
    },
    /// The stream's time passed.
    StreamTimeout {
        /// Whether all of the request has come.
        request_ended: bool,
    },
    /// The request did not come to its end in its time.
    UploadTimeout,
    /// The client's body failed before there was an answer.
    RequestBody(BodyError),
    /// The request cannot be said in the upstream's protocol.
    Unsupported,
}

const NOT_CONNECTED: &str = "remote connection failure";

impl UpstreamFailure {
    /// What a failed send means.
    #[must_use]
    pub fn from_send(kind: SendErrorKind, nothing_sent: bool) -> Self {
        match kind {
            SendErrorKind::ConnectionClosedBeforeResponse | SendErrorKind::Io(_) => Self::Closed { request_sent: !nothing_sent },
            SendErrorKind::Reset(reason) => Self::Reset(reason),
            SendErrorKind::RefusedStream => Self::Refused,
            SendErrorKind::Malformed(_) | SendErrorKind::Protocol(_) => Self::Protocol,
            SendErrorKind::RequestBody(error) => Self::RequestBody(error),
            SendErrorKind::Unsupported => Self::Unsupported,
        }
    }

    /// The status for the client.
    #[must_use]
    pub fn status(&self, cluster_not_found: u16) -> u16 {
        match self {
            Self::ClusterNotFound => cluster_not_found,
            Self::Protocol | Self::Unsupported => 502,
            Self::StreamIdle { request_ended: false } | Self::StreamTimeout { request_ended: false } | Self::UploadTimeout => 408,
            Self::TryTimeout
            | Self::TryIdle
            | Self::RequestTimeout
            | Self::StreamIdle { request_ended: true }
            | Self::StreamTimeout { request_ended: true } => 504,
            Self::RequestBody(_) => 400,
            Self::ClusterRejected
            | Self::NoEndpoint
            | Self::Unresolved(_)
            | Self::TooManyHosts
            | Self::TooManyLookups
            | Self::Overflow
            | Self::Connect(_)
            | Self::Closed { .. }
            | Self::Reset(_)
            | Self::Refused => 503,
        }
    }

    /// Whether a limit of the route on its upstream has passed.
    #[must_use]
    pub fn is_upstream_timeout(&self) -> bool {
        matches!(self, Self::TryTimeout | Self::TryIdle | Self::RequestTimeout)
    }

    /// The response flag.
    #[must_use]
    pub fn flag(&self) -> Option<ResponseFlag> {
        Some(match self {
            Self::ClusterNotFound => ResponseFlag::NoClusterFound,
            Self::NoEndpoint => ResponseFlag::NoHealthyUpstream,
            Self::Overflow => ResponseFlag::UpstreamOverflow,
            Self::Connect(_) => ResponseFlag::UpstreamConnectionFailure,
            Self::Closed { .. } => ResponseFlag::UpstreamConnectionTermination,
            Self::Reset(_) | Self::Refused => ResponseFlag::UpstreamRemoteReset,
            Self::Protocol | Self::Unsupported => ResponseFlag::UpstreamProtocolError,
            Self::TryTimeout | Self::TryIdle | Self::RequestTimeout => ResponseFlag::UpstreamRequestTimeout,
            Self::StreamIdle { .. } => ResponseFlag::StreamIdleTimeout,
            Self::RequestBody(BodyError::Malformed) => ResponseFlag::DownstreamProtocolError,
            Self::RequestBody(BodyError::Reset(_)) => ResponseFlag::DownstreamRemoteReset,
            Self::RequestBody(_) => ResponseFlag::DownstreamConnectionTermination,
            Self::Unresolved(_) => ResponseFlag::DnsResolutionFailed,
            Self::ClusterRejected | Self::TooManyHosts | Self::TooManyLookups | Self::UploadTimeout | Self::StreamTimeout { .. } => {
                return None;
            }
        })
    }

    /// `%RESPONSE_CODE_DETAILS%`.
    #[must_use]
    pub fn details(&self) -> Cow<'static, str> {
        const BEFORE: &str = "upstream_reset_before_response_started";
        match self {
            Self::ClusterNotFound => "cluster_not_found".into(),
            Self::ClusterRejected => "config_rejected".into(),
            Self::NoEndpoint => "no_healthy_upstream".into(),
            Self::Unresolved(reason) => format!("dns_resolution_failure{{{}}}", reason.replace(' ', "_")).into(),
            Self::TooManyHosts => "dns_cache_overflow".into(),
            Self::TooManyLookups => "dynamic_forward_proxy_pending_request_overflow".into(),
            Self::Connect(reason) => format!("{BEFORE}{{remote_connection_failure|{}}}", reason.replace(' ', "_")).into(),
            Self::Overflow => format!("{BEFORE}{{overflow}}").into(),
            Self::Closed { .. } => format!("{BEFORE}{{connection_termination}}").into(),
            Self::Reset(_) => format!("{BEFORE}{{remote_reset}}").into(),
            Self::Refused => format!("{BEFORE}{{remote_refused_stream_reset}}").into(),
            Self::Protocol => format!("{BEFORE}{{protocol_error}}").into(),
            Self::TryTimeout => "upstream_per_try_timeout".into(),
            Self::TryIdle => "upstream_per_try_idle_timeout".into(),
            Self::RequestTimeout => "response_timeout".into(),
            Self::StreamIdle { .. } => "stream_idle_timeout".into(),
            Self::StreamTimeout { .. } => "max_duration_timeout".into(),
            Self::UploadTimeout => "request_overall_timeout".into(),
            Self::RequestBody(BodyError::Malformed) => "http1.codec_error".into(),
            Self::RequestBody(BodyError::Reset(_)) => CLIENT_RESET.into(),
            Self::RequestBody(_) => "downstream_remote_disconnect".into(),
            Self::Unsupported => "upgrade_failed".into(),
        }
    }

    /// The text for the client. `was_retried`: this is the last of several tries.
    #[must_use]
    pub fn client_text(&self, was_retried: bool) -> Cow<'static, str> {
        let reason = match self {
            Self::ClusterNotFound | Self::RequestBody(_) => return "".into(),
            Self::ClusterRejected => return "configuration of the upstream was rejected".into(),
            Self::NoEndpoint => return "no healthy upstream".into(),
            Self::Unresolved(_) => return "DNS resolution failure".into(),
            Self::TooManyHosts => return "DNS cache overflow".into(),
            Self::TooManyLookups => return "Dynamic forward proxy pending request overflow".into(),
            Self::TryTimeout | Self::TryIdle | Self::RequestTimeout => return "upstream request timeout".into(),
            Self::StreamIdle { .. } => return "stream timeout".into(),
            Self::StreamTimeout { .. } => return "downstream duration timeout".into(),
            Self::UploadTimeout => return "request timeout".into(),
            Self::Unsupported => return "the upstream's protocol cannot carry this request".into(),
            Self::Overflow => "overflow",
            Self::Connect(_) => NOT_CONNECTED,
            Self::Closed { .. } => "connection termination",
            Self::Reset(_) => "remote reset",
            Self::Refused => "remote refused stream reset",
            Self::Protocol => "protocol error",
        };
        let what = if was_retried { "retried and the latest reset reason" } else { "reset reason" };
        format!("upstream connect error or disconnect/reset before headers. {what}: {reason}").into()
    }

    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    #[must_use]
    pub fn transport_reason(&self) -> Option<&Cow<'static, str>> {
        match self {
            Self::Connect(reason) => Some(reason),
            _ => None,
        }
    }

    /// What it says about the endpoint; none if it is not the endpoint's.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::Connect(_) | Self::Closed { .. } | Self::Reset(_) | Self::Refused | Self::Protocol => Some(Verdict::NoAnswer),
            Self::TryTimeout | Self::TryIdle | Self::RequestTimeout => Some(Verdict::TimedOut),
            Self::ClusterNotFound
            | Self::ClusterRejected
            | Self::NoEndpoint
            | Self::Unresolved(_)
            | Self::TooManyHosts
            | Self::TooManyLookups
            | Self::Overflow
            | Self::StreamIdle { .. }
            | Self::StreamTimeout { .. }
            | Self::UploadTimeout
            | Self::RequestBody(_)
            | Self::Unsupported => None,
        }
    }

    /// What the retry policy is asked; none if there is nothing to try again.
    #[must_use]
    pub fn try_result(&self) -> Option<TryResult> {
        match self {
            Self::Connect(_) => Some(TryResult::NoConnection),
            Self::Refused => Some(TryResult::Refused),
            Self::Closed { request_sent } => Some(TryResult::Reset { request_sent: *request_sent }),
            Self::Reset(_) | Self::Protocol => Some(TryResult::Reset { request_sent: true }),
            Self::TryTimeout | Self::TryIdle => Some(TryResult::TryTimeout),
            Self::ClusterNotFound
            | Self::ClusterRejected
            | Self::NoEndpoint
            | Self::Unresolved(_)
            | Self::TooManyHosts
            | Self::TooManyLookups
            | Self::Overflow
            | Self::RequestTimeout
            | Self::StreamIdle { .. }
            | Self::StreamTimeout { .. }
            | Self::UploadTimeout
            | Self::RequestBody(_)
            | Self::Unsupported => None,
        }
    }
}

impl From<NoSession> for UpstreamFailure {
    fn from(none: NoSession) -> Self {
        match none {
            NoSession::Overflow => Self::Overflow,
            NoSession::Connect(failure) => Self::Connect(failure.reason),
        }
    }
}

impl From<NoHost> for UpstreamFailure {
    fn from(none: NoHost) -> Self {
        match none {
            NoHost::Unresolved(reason) => Self::Unresolved(reason),
            NoHost::TooMany => Self::TooManyHosts,
            NoHost::TooManyWaiting => Self::TooManyLookups,
        }
    }
}

impl From<Overflow> for UpstreamFailure {
    fn from(_: Overflow) -> Self {
        Self::Overflow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_read_what_envoy_writes() {
        // Body sizes as measured on Envoy 1.40.
        for (failure, was_retried, bytes) in [
            (UpstreamFailure::Closed { request_sent: true }, false, 95),
            (UpstreamFailure::Protocol, false, 87),
            (UpstreamFailure::Connect("delayed connect error: Connection refused".into()), false, 98),
            (UpstreamFailure::Connect("delayed connect error: Connection refused".into()), true, 121),
            (UpstreamFailure::RequestTimeout, false, 24),
            (UpstreamFailure::NoEndpoint, false, 19),
            (UpstreamFailure::Overflow, false, 81),
            (UpstreamFailure::ClusterNotFound, false, 0),
        ] {
            assert_eq!(failure.client_text(was_retried).len(), bytes, "{failure:?}");
        }
    }

    #[test]
    fn operators_read_the_true_cause() {
        let failure = UpstreamFailure::Connect("delayed connect error: Connection refused".into());
        assert_eq!(
            failure.details(),
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"
        );
        assert_eq!(failure.flag(), Some(ResponseFlag::UpstreamConnectionFailure));
        assert_eq!(failure.status(503), 503);
    }
}
