//! Which time limits a request has by now, and what its upstream is told of them.
//!
//! Not for: deciding (`filters::timeout`), or keeping them (`limits`).

use std::time::Duration;

use filters::internal;
use filters::timeout::{self, Asked, GrpcRequest, TimeLimits};
use http::header::HeaderValue;
use http::{HeaderMap, HeaderName, request};
use model::timeout::Override;

use super::attempt::Forwarding;
use super::{Run, X_ENVOY_EXPECTED_TIMEOUT};
use crate::http::normalize::UpgradeRequested;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The time limits of a request.
fn time_limits(parts: &request::Parts, to: &Forwarding<'_>, asked: Option<&internal::Asked>, is_grpc: bool) -> TimeLimits {
    let grpc = is_grpc.then(|| GrpcRequest { timeout: parts.headers.get(GRPC_TIMEOUT).and_then(timeout::read_grpc_timeout) });
    let per_try = to.forward.retry.as_ref().and_then(|policy| policy.per_try_timeout);
    let asked = match asked {
        None => Asked { request: Override::Inherit, per_try },
        Some(asked) => Asked { request: asked.request, per_try: asked.per_try.or(per_try) },
    };
    timeout::limits(&to.forward.timeouts, &to.http.options.timeouts, asked, grpc)
}

/// The limits of a request as they are now.
pub(super) fn limits_left(run: &mut Run, parts: &request::Parts, to: &Forwarding<'_>) -> TimeLimits {
    let record = run.recording.record();
    let limits = time_limits(parts, to, run.asked.as_deref(), record.is_grpc);
    // They began with the request, whatever was asked of others since.
    let elapsed = record.stream.start.elapsed();
    let left = |limit: Option<Duration>| limit.map(|limit| limit.saturating_sub(elapsed));
    TimeLimits { stream: left(limits.stream), upload: left(limits.upload), ..limits }
}

/// The limits of a request, of which the upstream is told what concerns it.
pub(super) fn limits_told(run: &mut Run, parts: &mut request::Parts, to: &Forwarding<'_>) -> TimeLimits {
    let is_grpc = run.recording.record().is_grpc;
    let mut limits = limits_left(run, parts, to);
    tell_limits(&mut parts.headers, &limits, (Duration::ZERO, !to.http.options.suppresses_envoy_headers));
    if is_grpc && parts.headers.contains_key(GRPC_TIMEOUT) {
        // Lines and spans have what the upstream is told.
        run.recording.record().capture_request(&parts.headers);
    }
    if parts.extensions.get::<UpgradeRequested>().is_some() {
        // Its client says no end, after which they would count (Envoy).
        limits = TimeLimits { request: None, per_try: None, upload: None, ..limits };
    }
    limits
}

/// Tells the upstream how long it has.
pub(super) fn tell_limits(headers: &mut HeaderMap, limits: &TimeLimits, (elapsed, tells): (Duration, bool)) {
    if tells && let Some(milliseconds) = limits.expected(elapsed).and_then(|expected| u64::try_from(expected.as_millis()).ok()) {
        headers.insert(X_ENVOY_EXPECTED_TIMEOUT, HeaderValue::from(milliseconds));
    }
    if let Some(timeout) = limits.grpc_header(elapsed) {
        headers.insert(GRPC_TIMEOUT, timeout);
    }
}
