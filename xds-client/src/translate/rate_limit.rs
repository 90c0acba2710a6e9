//! Limits on the rate of requests, of a chain and of routes.

use envoy_types::pb::envoy::extensions::common::ratelimit::v3::XRateLimitHeadersRfcVersion;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use model::fraction::Fraction;
use model::rate_limit::{RateLimit, TokenBucket};

use super::{Problem, Translated, duration, required, route, route_filters};

/// Envoy's answer where a limit names none, or none of an error.
const TOO_MANY_REQUESTS: u16 = 429;
const RESOURCE_EXHAUSTED: u32 = 8;

/// A limit; none without tokens, which a chain may have for its routes' sake.
pub(super) fn rate_limit(value: &LocalRateLimit, path: &str) -> Translated<Option<RateLimit>> {
    if !value.descriptors.is_empty() || value.local_rate_limit_per_downstream_connection || value.local_cluster_rate_limit.is_some() {
        return Err(Problem::new(path, "descriptors, limits by connection and limits of the cluster are not supported"));
    }
    let Some(bucket) = &value.token_bucket else { return Ok(None) };
    let at = format!("{path}.token_bucket");
    let interval = duration(required(bucket.fill_interval.as_ref(), &format!("{at}.fill_interval"))?, &format!("{at}.fill_interval"))?;
    if interval < TokenBucket::FILL_INTERVAL_MIN {
        return Err(Problem::new(format!("{at}.fill_interval"), "is below 50 ms"));
    }
    let per_fill = bucket.tokens_per_fill.as_ref().map_or(1, |tokens| tokens.value);
    let bucket =
        TokenBucket::new(bucket.max_tokens, per_fill, interval).ok_or_else(|| Problem::new(at, "would never hold or get a token"))?;
    let share = |value: Option<&_>| value.map_or(Fraction::NONE, route_filters::runtime_fraction);
    let status = value.status.as_ref().and_then(|status| u16::try_from(status.code).ok()).filter(|code| (400..600).contains(code));
    Ok(Some(RateLimit {
        bucket,
        enabled: share(value.filter_enabled.as_ref()),
        enforced: share(value.filter_enforced.as_ref()),
        status: status.unwrap_or(TOO_MANY_REQUESTS),
        grpc_status: value.rate_limited_as_resource_exhausted.then_some(RESOURCE_EXHAUSTED),
        refusal_headers: route::edits(&value.response_headers_to_add, &[], path)?,
        request_headers: route::edits(&value.request_headers_to_add_when_not_enforced, &[], path)?,
        tells: value.enable_x_ratelimit_headers == i32::from(XRateLimitHeadersRfcVersion::DraftVersion03),
    }))
}
