//! Which time limits a request has.
//!
//! Not for: keeping them. Source: Envoy's `FilterUtility::finalTimeout` and its connection manager; and gRPC over HTTP/2 for `grpc-timeout`.

use std::time::Duration;

use http::HeaderValue;
use model::timeout::{ChainTimeouts, GrpcTimeout, Override, RouteTimeouts};

/// Limits of one request; none is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeLimits {
    /// From the end of the request to the end of the answer.
    pub request: Option<Duration>,
    /// The same for one try; less than `request`.
    pub per_try: Option<Duration>,
    /// From the head of the request to the end of the answer.
    pub stream: Option<Duration>,
    /// Silence in both directions.
    pub idle: Option<Duration>,
    /// From the head of the request to its end.
    pub upload: Option<Duration>,
    /// Whether the upstream's `grpc-timeout` is to say what is left.
    pub tells_grpc: bool,
}

/// What a gRPC client asks for; none of requests that are not gRPC, or whose `grpc-timeout` cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcRequest {
    /// Its `grpc-timeout`.
    pub timeout: Option<Duration>,
}

/// What counts instead of a route's `timeout`, however it came about, and the limit of one try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Instead of the route's.
    pub request: Override,
    /// Of the retry policy, or instead of it.
    pub per_try: Option<Duration>,
}

/// The limits of a request. `grpc`: if it is gRPC.
#[must_use]
pub fn limits(route: &RouteTimeouts, chain: &ChainTimeouts, asked_for: Asked, grpc: Option<GrpcRequest>) -> TimeLimits {
    let asked = grpc.map(|grpc| grpc.timeout);
    let (request, tells_grpc) = match (route.stream, asked, route.grpc) {
        (Some(_), ..) => (None, false),
        (None, Some(asked), Some(rule)) => (with_cap(asked, &rule), true),
        (None, ..) => (route.request, false),
    };
    let stream = match route.stream {
        None => chain.stream,
        Some(stream) => match (asked.flatten(), stream.grpc) {
            (Some(asked), Some(rule)) => with_cap(Some(asked), &rule),
            _ => stream.max.or(chain.stream),
        },
    };
    let tells_grpc = tells_grpc || (route.stream.is_some() && asked.flatten().is_some());
    let request = asked_for.request.or(request);
    let per_try = asked_for.per_try.filter(|limit| request.is_none_or(|request| *limit < request));
    TimeLimits { request, per_try, stream, idle: route.idle.or(chain.idle), upload: chain.upload, tells_grpc }
}

/// What a client asks for, less the offset, up to the cap; the cap if it asks for nothing.
fn with_cap(asked: Option<Duration>, rule: &GrpcTimeout) -> Option<Duration> {
    let asked = asked.filter(|asked| !asked.is_zero()).map(|asked| if rule.offset < asked { asked - rule.offset } else { asked });
    match (asked, rule.cap) {
        (Some(asked), Some(cap)) => Some(asked.min(cap)),
        (asked, cap) => asked.or(cap),
    }
}

impl TimeLimits {
    /// What the upstream is told to expect, `elapsed` after the request began: `x-envoy-expected-rq-timeout-ms`, at least 1.
    #[must_use]
    pub fn expected(&self, elapsed: Duration) -> Option<Duration> {
        let left = self.request.map(|request| request.saturating_sub(elapsed).max(Duration::from_millis(1)));
        match (self.per_try, left) {
            (Some(per_try), Some(left)) => Some(per_try.min(left)),
            (per_try, left) => per_try.or(left),
        }
    }

    /// The `grpc-timeout` for the upstream, if it is to have one.
    #[must_use]
    pub fn grpc_header(&self, elapsed: Duration) -> Option<HeaderValue> {
        let timeout = self.expected(elapsed).or(self.stream).filter(|_| self.tells_grpc)?;
        Some(write_grpc_timeout(timeout))
    }
}

/// The longest number of a `grpc-timeout`: eight digits.
const GRPC_COUNT_MAX: u128 = 99_999_999;

/// Milliseconds, or the next coarser unit that the number fits in, as Envoy writes it.
#[must_use]
pub fn write_grpc_timeout(timeout: Duration) -> HeaderValue {
    let (mut count, mut unit) = (timeout.as_millis(), "m");
    for (coarser, per) in [("S", 1000), ("M", 60), ("H", 60)] {
        if count > GRPC_COUNT_MAX {
            (count, unit) = (count / per, coarser);
        }
    }
    let text = format!("{}{unit}", count.min(GRPC_COUNT_MAX));
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).expect("digits and a letter are a value")
}

/// Reads `grpc-timeout`: at most eight digits and a unit. What cannot be read counts as not there, as for Envoy.
#[must_use]
pub fn read_grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use model::timeout::StreamTimeout;

    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn grpc(timeout: Option<u64>) -> Option<GrpcRequest> {
        Some(GrpcRequest { timeout: timeout.map(seconds) })
    }

    const NO_CHAIN: ChainTimeouts = ChainTimeouts { idle: None, upload: None, stream: None };

    fn of_try(limit: u64) -> Asked {
        Asked { per_try: Some(seconds(limit)), ..Asked::default() }
    }

    #[test]
    fn what_an_internal_caller_asks_for_counts_instead_of_the_route_s() {
        let route = RouteTimeouts { request: Some(seconds(9)), ..RouteTimeouts::default() };
        let asked = |request| limits(&route, &NO_CHAIN, Asked { request, ..of_try(3) }, None);
        assert_eq!(asked(Override::Inherit).request, Some(seconds(9)));
        assert_eq!(asked(Override::Unlimited).request, None);
        let shorter = asked(Override::Limit(seconds(2)));
        assert_eq!((shorter.request, shorter.per_try), (Some(seconds(2)), None), "a try has no limit that is not shorter");
    }

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        let read = |text: &'static str| read_grpc_timeout(&HeaderValue::from_static(text));
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!((read("2S"), read("1H")), (Some(seconds(2)), Some(seconds(3600))));
        for text in ["", "S", "1", "123456789S", "-1S", "1x"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_grpc_client_s_timeout_counts_up_to_the_cap_where_the_route_lets_it() {
        let route = |cap: Option<u64>, offset| RouteTimeouts {
            request: Some(seconds(9)),
            grpc: Some(GrpcTimeout { cap: cap.map(seconds), offset: seconds(offset) }),
            ..RouteTimeouts::default()
        };
        for (route, request, expected) in [
            (route(Some(5), 0), grpc(Some(3)), Some(3)),
            (route(Some(5), 0), grpc(Some(7)), Some(5)),
            (route(Some(5), 0), grpc(None), Some(5)),
            (route(None, 0), grpc(Some(7)), Some(7)),
            (route(None, 0), grpc(None), None),
            (route(None, 2), grpc(Some(7)), Some(5)),
            (route(None, 7), grpc(Some(7)), Some(7)),
            (route(Some(5), 0), None, Some(9)),
            (RouteTimeouts { request: Some(seconds(9)), ..RouteTimeouts::default() }, grpc(Some(3)), Some(9)),
        ] {
            assert_eq!(limits(&route, &NO_CHAIN, Asked::default(), request).request, expected.map(seconds), "{route:?} {request:?}");
        }
    }

    #[test]
    fn a_try_s_limit_counts_only_if_it_is_shorter_than_the_request_s() {
        let route = RouteTimeouts { request: Some(seconds(9)), ..RouteTimeouts::default() };
        let per_try = |limit| limits(&route, &NO_CHAIN, of_try(limit), None).per_try;
        assert_eq!((per_try(3), per_try(9), per_try(10)), (Some(seconds(3)), None, None));
        assert_eq!(limits(&RouteTimeouts::default(), &NO_CHAIN, of_try(10), None).per_try, Some(seconds(10)));
    }

    #[test]
    fn a_stream_s_limit_replaces_the_request_s() {
        let chain = ChainTimeouts { stream: Some(seconds(30)), idle: Some(seconds(4)), upload: None };
        let route = |max, grpc| RouteTimeouts {
            request: Some(seconds(9)),
            grpc: Some(GrpcTimeout::default()),
            idle: Override::Unlimited,
            stream: Some(StreamTimeout { max, grpc }),
        };
        let cap = Some(GrpcTimeout { cap: Some(seconds(5)), offset: Duration::ZERO });
        for (route, request, expected) in [
            (route(Override::Inherit, None), None, Some(30)),
            (route(Override::Unlimited, None), None, None),
            (route(Override::Limit(seconds(8)), None), grpc(Some(3)), Some(8)),
            (route(Override::Limit(seconds(8)), cap), grpc(Some(3)), Some(3)),
            (route(Override::Limit(seconds(8)), cap), grpc(Some(6)), Some(5)),
            (route(Override::Limit(seconds(8)), cap), grpc(None), Some(8)),
        ] {
            let limits = limits(&route, &chain, Asked::default(), request);
            assert_eq!((limits.stream, limits.request, limits.idle), (expected.map(seconds), None, None), "{route:?} {request:?}");
        }
        let inherited = limits(&RouteTimeouts::default(), &chain, Asked::default(), None);
        assert_eq!((inherited.stream, inherited.idle), (chain.stream, chain.idle));
    }

    #[test]
    fn the_upstream_is_told_what_is_left() {
        let told = TimeLimits { request: Some(seconds(9)), per_try: Some(seconds(4)), tells_grpc: true, ..TimeLimits::default() };
        for (elapsed, expected) in [(0, 4000), (6, 3000), (9, 1), (20, 1)] {
            assert_eq!(told.expected(seconds(elapsed)), Some(Duration::from_millis(expected)), "after {elapsed} s");
        }
        assert_eq!(told.grpc_header(seconds(6)).as_ref().map(HeaderValue::as_bytes), Some(&b"3000m"[..]));
        assert_eq!(TimeLimits { tells_grpc: false, ..told }.grpc_header(seconds(6)), None);
        assert_eq!(TimeLimits::default().expected(seconds(1)), None);
        assert_eq!(write_grpc_timeout(seconds(100_000)), "100000S");
        assert_eq!(write_grpc_timeout(seconds(99_999)), "99999000m");
    }
}
