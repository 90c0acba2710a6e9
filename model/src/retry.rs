//! When a failed try is tried again.
//!
//! Not for: deciding; `filters::retry` does. Source: Envoy's `RetryPolicy` and `x-envoy-retry-on`.

use std::time::Duration;

use http::HeaderName;

use crate::matcher::HeaderMatcher;

/// Tries whose results are retried. Each is one word of Envoy's `retry_on`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a set of independent words, each asked for by name")]
pub struct RetryOn {
    /// `5xx`: any 5xx, and no answer at all.
    pub server_error: bool,
    /// `gateway-error`: 502, 503, 504.
    pub gateway_error: bool,
    /// `reset`: no answer.
    pub reset: bool,
    /// `reset-before-request`: no answer, and the request had not been sent.
    pub reset_before_request: bool,
    /// `connect-failure`.
    pub connect_failure: bool,
    /// `refused-stream`: `RST_STREAM(REFUSED_STREAM)`.
    pub refused_stream: bool,
    /// `retriable-4xx`: 409.
    pub retriable_4xx: bool,
    /// `retriable-status-codes`: the codes listed beside.
    pub retriable_status_codes: bool,
    /// `retriable-headers`: answers with headers listed beside.
    pub retriable_headers: bool,
    /// `envoy-ratelimited`: answers with `x-envoy-ratelimited`, which are not retried otherwise.
    pub envoy_rate_limited: bool,
    /// `cancelled` (gRPC status 1 in the response headers).
    pub grpc_cancelled: bool,
    /// `deadline-exceeded` (gRPC status 4).
    pub grpc_deadline_exceeded: bool,
    /// `internal` (gRPC status 13).
    pub grpc_internal: bool,
    /// `resource-exhausted` (gRPC status 8).
    pub grpc_resource_exhausted: bool,
    /// `unavailable` (gRPC status 14).
    pub grpc_unavailable: bool,
}

impl RetryOn {
    /// Asks for the other's results as well.
    pub fn merge(&mut self, other: &Self) {
        self.server_error |= other.server_error;
        self.gateway_error |= other.gateway_error;
        self.reset |= other.reset;
        self.reset_before_request |= other.reset_before_request;
        self.connect_failure |= other.connect_failure;
        self.refused_stream |= other.refused_stream;
        self.retriable_4xx |= other.retriable_4xx;
        self.retriable_status_codes |= other.retriable_status_codes;
        self.retriable_headers |= other.retriable_headers;
        self.envoy_rate_limited |= other.envoy_rate_limited;
        self.grpc_cancelled |= other.grpc_cancelled;
        self.grpc_deadline_exceeded |= other.grpc_deadline_exceeded;
        self.grpc_internal |= other.grpc_internal;
        self.grpc_resource_exhausted |= other.grpc_resource_exhausted;
        self.grpc_unavailable |= other.grpc_unavailable;
    }

    /// Reads one word; false if it is not known.
    pub fn add(&mut self, word: &str) -> bool {
        let flag = match word {
            "5xx" => &mut self.server_error,
            "gateway-error" => &mut self.gateway_error,
            "reset" => &mut self.reset,
            "reset-before-request" => &mut self.reset_before_request,
            "connect-failure" => &mut self.connect_failure,
            "refused-stream" => &mut self.refused_stream,
            "retriable-4xx" => &mut self.retriable_4xx,
            "retriable-status-codes" => &mut self.retriable_status_codes,
            "envoy-ratelimited" => &mut self.envoy_rate_limited,
            "retriable-headers" => &mut self.retriable_headers,
            // Nothing to do: no upstream is spoken to in HTTP/3.
            "http3-post-connect-failure" => return true,
            "cancelled" => &mut self.grpc_cancelled,
            "deadline-exceeded" => &mut self.grpc_deadline_exceeded,
            "internal" => &mut self.grpc_internal,
            "resource-exhausted" => &mut self.grpc_resource_exhausted,
            "unavailable" => &mut self.grpc_unavailable,
            _ => return false,
        };
        *flag = true;
        true
    }
}

/// Envoy's back-off when a policy names none.
pub const BACK_OFF_BASE_DEFAULT: Duration = Duration::from_millis(25);

/// The longest back-off is so many of the first, if a policy does not say.
pub const BACK_OFF_FACTOR: u32 = 10;

/// How long what an answer says may be, if a policy does not say.
pub const RESET_LONGEST_DEFAULT: Duration = Duration::from_secs(300);

/// A header that says when to come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetHeader {
    /// Its name.
    pub name: HeaderName,
    /// What its number is.
    pub format: ResetFormat,
}

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetFormat {
    /// Seconds from now.
    Seconds,
    /// Seconds since 1970.
    UnixTime,
}

/// A route's retry policy.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Which results.
    pub on: RetryOn,
    /// Tries after the first, at most.
    pub retries_max: u32,
    /// Codes for `retriable-status-codes`.
    pub status_codes: Vec<u16>,
    /// For `retriable-headers`: answers that meet one of these.
    pub headers: Vec<HeaderMatcher>,
    /// Only requests that meet one of these are tried again, if there are any.
    pub request_headers: Vec<HeaderMatcher>,
    /// How long one try may take; none means as long as the request.
    pub per_try_timeout: Option<Duration>,
    /// How long a try may be silent; none is for ever.
    pub per_try_idle_timeout: Option<Duration>,
    /// First back-off; doubles, jittered.
    pub back_off_base: Duration,
    /// Longest back-off.
    pub back_off_max: Duration,
    /// Headers of an answer that say when to come again, before the back-off above; the first that can be read counts.
    pub reset_headers: Vec<ResetHeader>,
    /// What they say beyond this does not count.
    pub reset_max: Duration,
    /// `previous_hosts`: choose again, up to `host_attempts_max` times, when a tried endpoint comes up.
    pub avoid_previous_hosts: bool,
    /// `previous_priorities`: from every so many tries on, priorities that were tried get no more.
    pub avoid_previous_priorities_every: Option<u32>,
    /// Choices per try at most.
    pub host_attempts_max: u32,
}

impl Default for RetryPolicy {
    /// Envoy's, for no result.
    fn default() -> Self {
        Self {
            on: RetryOn::default(),
            retries_max: 1,
            status_codes: Vec::new(),
            headers: Vec::new(),
            request_headers: Vec::new(),
            per_try_timeout: None,
            per_try_idle_timeout: None,
            back_off_base: BACK_OFF_BASE_DEFAULT,
            back_off_max: BACK_OFF_BASE_DEFAULT * BACK_OFF_FACTOR,
            reset_headers: Vec::new(),
            reset_max: RESET_LONGEST_DEFAULT,
            avoid_previous_hosts: false,
            avoid_previous_priorities_every: None,
            host_attempts_max: 1,
        }
    }
}
