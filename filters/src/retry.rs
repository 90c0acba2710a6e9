//! Whether a failed try is tried again, and when.
//!
//! Not for: whether the body can be sent again; the request loop knows that. Source: Envoy's `retry_on` words.

use std::time::Duration;

use http::HeaderMap;
use model::retry::{ResetFormat, RetryPolicy};
use model::stream_view::RequestHead;

use crate::header_match;

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryResult {
    /// With an answer.
    Answer {
        /// Its status.
        status: u16,
        /// `grpc-status` of its headers, if it has one.
        grpc_status: Option<u32>,
        /// Whether a proxy behind it says that it was limited: `x-envoy-ratelimited`.
        is_rate_limited: bool,
        /// Whether it has a header that the policy names.
        has_header: bool,
    },
    /// No connection: nothing was sent.
    NoConnection,
    /// The stream was refused before it was looked at: HTTP/2 `REFUSED_STREAM`, or a connection that was going away.
    Refused,
    /// The connection or stream ended without an answer.
    Reset {
        /// Whether any part of the request may have arrived.
        request_sent: bool,
    },
    /// The time for one try passed.
    TryTimeout,
}

/// Whether the policy wants another try. Limits on their number are the caller's.
#[must_use]
pub fn wants_retry(policy: &RetryPolicy, result: TryResult) -> bool {
    let on = &policy.on;
    let any_reset = on.server_error || on.gateway_error || on.reset;
    match result {
        // Asking again what was limited makes it worse, unless the policy says so.
        TryResult::Answer { is_rate_limited: true, .. } => on.envoy_rate_limited,
        TryResult::Answer { status, grpc_status, has_header, .. } => {
            (has_header && on.retriable_headers) || status_wants_retry(policy, status) || grpc_wants_retry(policy, grpc_status)
        }
        TryResult::NoConnection => on.connect_failure || on.reset_before_request || any_reset,
        // Its head had been sent, so that `reset-before-request` does not mean it (Envoy).
        TryResult::Refused => on.refused_stream || any_reset,
        TryResult::Reset { request_sent } => any_reset || (on.reset_before_request && !request_sent),
        TryResult::TryTimeout => any_reset,
    }
}

fn status_wants_retry(policy: &RetryPolicy, status: u16) -> bool {
    let on = &policy.on;
    (on.server_error && (500..600).contains(&status))
        || (on.gateway_error && (502..=504).contains(&status))
        || (on.retriable_4xx && status == 409)
        || (on.retriable_status_codes && policy.status_codes.contains(&status))
}

fn grpc_wants_retry(policy: &RetryPolicy, grpc_status: Option<u32>) -> bool {
    let on = &policy.on;
    match grpc_status {
        Some(1) => on.grpc_cancelled,
        Some(4) => on.grpc_deadline_exceeded,
        Some(8) => on.grpc_resource_exhausted,
        Some(13) => on.grpc_internal,
        Some(14) => on.grpc_unavailable,
        _ => false,
    }
}

/// Whether the policy is for such a request.
#[must_use]
pub fn is_meant(policy: &RetryPolicy, head: &RequestHead<'_>) -> bool {
    policy.request_headers.is_empty() || policy.request_headers.iter().any(|wanted| header_match::matches(wanted, head))
}

/// Whether an answer has a header that the policy names.
#[must_use]
pub fn has_header(policy: &RetryPolicy, answer: &HeaderMap) -> bool {
    let head = RequestHead { method: "", path: "", authority: None, scheme: "", headers: answer };
    policy.headers.iter().any(|wanted| header_match::matches(wanted, &head))
}

/// How long an answer asks to wait, and up to half of it more, as Envoy does; none if it does not, or asks for too much. `now`: since 1970.
#[must_use]
pub fn told_back_off(policy: &RetryPolicy, answer: &HeaderMap, now: Duration, draw: u64) -> Option<Duration> {
    let told = policy.reset_headers.iter().find_map(|header| {
        let seconds = answer.get(&header.name)?.to_str().ok()?.parse::<u64>().ok()?;
        let told = match header.format {
            ResetFormat::Seconds => Duration::from_secs(seconds),
            ResetFormat::UnixTime => Duration::from_secs(seconds).checked_sub(Duration::from_secs(now.as_secs()))?,
        };
        Some(told).filter(|told| !told.is_zero() && *told <= policy.reset_max)
    })?;
    let millis = u64::try_from(told.as_millis() / 2).unwrap_or(u64::MAX).max(1);
    Some(told + Duration::from_millis(draw % millis))
}

/// How long to wait before retry number `retry` (from 1): full jitter over a doubling interval, as Envoy's.
#[must_use]
pub fn back_off(policy: &RetryPolicy, retry: u32, draw: u64) -> Duration {
    let doubled = policy.back_off_base.saturating_mul(1_u32.checked_shl(retry.min(16)).unwrap_or(u32::MAX).saturating_sub(1));
    let ceiling = doubled.min(policy.back_off_max);
    let millis = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(draw % millis)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use model::retry::{BACK_OFF_BASE_DEFAULT, RESET_LONGEST_DEFAULT, ResetHeader, RetryOn};

    use super::*;

    fn policy(words: &str) -> RetryPolicy {
        let mut on = RetryOn::default();
        for word in words.split(',').filter(|word| !word.is_empty()) {
            assert!(on.add(word), "{word}");
        }
        RetryPolicy {
            on,
            retries_max: 2,
            status_codes: vec![500],
            headers: Vec::new(),
            request_headers: Vec::new(),
            per_try_timeout: None,
            per_try_idle_timeout: None,
            back_off_base: BACK_OFF_BASE_DEFAULT,
            back_off_max: BACK_OFF_BASE_DEFAULT * 10,
            reset_headers: Vec::new(),
            reset_max: RESET_LONGEST_DEFAULT,
            avoid_previous_hosts: true,
            avoid_previous_priorities_every: None,
            host_attempts_max: 5,
        }
    }

    const SENT: TryResult = TryResult::Reset { request_sent: true };
    const UNSENT: TryResult = TryResult::Reset { request_sent: false };

    #[test]
    fn istios_default_policy_never_repeats_a_request_that_may_have_arrived() {
        let policy = policy("connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes");
        assert!(wants_retry(&policy, TryResult::NoConnection) && wants_retry(&policy, TryResult::Refused));
        assert!(!wants_retry(&policy, SENT) && !wants_retry(&policy, TryResult::TryTimeout));
        assert!(wants_retry(&policy, TryResult::Answer { status: 200, grpc_status: Some(14), is_rate_limited: false, has_header: false }));
        assert!(!wants_retry(&policy, TryResult::Answer { status: 503, grpc_status: None, is_rate_limited: false, has_header: false }));
        assert!(wants_retry(&policy, TryResult::Answer { status: 500, grpc_status: None, is_rate_limited: false, has_header: false }));
    }

    #[test]
    fn reset_before_request_repeats_only_what_was_not_sent() {
        let policy = policy("reset-before-request");
        assert!(wants_retry(&policy, UNSENT) && wants_retry(&policy, TryResult::NoConnection));
        assert!(!wants_retry(&policy, SENT));
    }

    #[test]
    fn server_errors_include_answers_that_never_came() {
        for (words, status, wanted) in [
            ("5xx", 500, true),
            ("5xx", 404, false),
            ("gateway-error", 503, true),
            ("gateway-error", 500, false),
            ("retriable-4xx", 409, true),
        ] {
            let answer = TryResult::Answer { status, grpc_status: None, is_rate_limited: false, has_header: false };
            assert_eq!(wants_retry(&policy(words), answer), wanted, "{words} {status}");
        }
        assert!(wants_retry(&policy("5xx"), SENT) && wants_retry(&policy("gateway-error"), TryResult::TryTimeout));
        assert!(!wants_retry(&policy(""), SENT));
    }

    #[test]
    fn what_was_rate_limited_is_retried_only_by_its_own_word() {
        let limited = TryResult::Answer { status: 503, grpc_status: Some(14), is_rate_limited: true, has_header: true };
        assert!(!wants_retry(&policy("5xx,unavailable"), limited));
        assert!(wants_retry(&policy("envoy-ratelimited"), limited));
    }

    #[test]
    fn back_off_doubles_up_to_its_maximum() {
        let policy = policy("5xx");
        let longest = |retry| (0..1000).map(|draw| back_off(&policy, retry, draw)).max();
        let millis = |value| Some(Duration::from_millis(value));
        assert_eq!((longest(1), longest(2), longest(9)), (millis(24), millis(74), millis(249)));
    }

    #[test]
    fn an_answer_says_when_to_come_again_within_a_bound() {
        let (after, at) = (HeaderName::from_static("retry-after"), HeaderName::from_static("x-reset"));
        let policy = RetryPolicy {
            reset_headers: vec![
                ResetHeader { name: after, format: ResetFormat::Seconds },
                ResetHeader { name: at, format: ResetFormat::UnixTime },
            ],
            ..policy("5xx")
        };
        let told = |name, value| {
            let answer = HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]);
            told_back_off(&policy, &answer, Duration::from_millis(1_000_900), 999)
        };
        let millis = |millis| Some(Duration::from_millis(millis));
        assert_eq!(
            [told("retry-after", "2"), told("retry-after", "300"), told("x-reset", "1002")],
            [millis(2999), millis(300_999), millis(2999)]
        );
        for (name, value) in [("retry-after", "0"), ("retry-after", "301"), ("retry-after", "soon"), ("x-reset", "999"), ("x-other", "1")] {
            assert_eq!(told(name, value), None, "{name}: {value}");
        }
    }
}
