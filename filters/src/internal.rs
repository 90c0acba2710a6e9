//! Callers that count as a part of the mesh's proxies, and what is asked of this one in `x-envoy-` headers: by them, or by filters and routes.
//!
//! Not for: removing from requests of others what they may not say; `waypoint` does that first. Invariant: what is asked of this proxy is
//! taken from the request, what others are told stays. Source: Envoy's `ConnectionManagerUtility`, `FilterUtility` and `RetryStateImpl`.

use std::borrow::Cow;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName};
use ipnet::IpNet;
use model::matcher::{HeaderMatcher, HeaderTest, MatchedHeader};
use model::retry::{RetryOn, RetryPolicy};
use model::timeout::Override;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const ALT_RESPONSE: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response");
const ALT_STAT_NAME: HeaderName = HeaderName::from_static("x-envoy-upstream-alt-stat-name");
const HEDGE: HeaderName = HeaderName::from_static("x-envoy-hedge-on-per-try-timeout");
const MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");
const PER_TRY_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
const RETRIABLE_HEADERS: HeaderName = HeaderName::from_static("x-envoy-retriable-header-names");
const RETRIABLE_STATUS: HeaderName = HeaderName::from_static("x-envoy-retriable-status-codes");
const RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");

/// The words of [`RETRY_GRPC_ON`]; the others are those of [`RETRY_ON`].
const GRPC_WORDS: [&str; 5] = ["cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"];

/// Whether a request comes from within: `x-forwarded-for` names one client only, and in one of these ranges.
#[must_use]
pub fn is_internal(headers: &HeaderMap, ranges: &[IpNet]) -> bool {
    if ranges.is_empty() {
        return false;
    }
    // Of two clients, in one line or in several, no address is read.
    let address = joined(headers, &X_FORWARDED_FOR).and_then(|text| text.trim().parse::<IpAddr>().ok());
    address.is_some_and(|address| ranges.iter().any(|range| range.contains(&address)))
}

/// What a request asks of the proxy that forwards it: an internal caller, or whatever on its way added such headers.
#[derive(Debug, Default)]
pub struct Asked {
    /// `x-envoy-upstream-rq-timeout-ms`, instead of the route's.
    pub request: Override,
    /// `x-envoy-upstream-rq-per-try-timeout-ms`, instead of the policy's.
    pub per_try: Override,
    /// `x-envoy-upstream-rq-timeout-alt-response`: 204 instead of 504.
    pub no_content: bool,
    on: RetryOn,
    names_results: bool,
    retries_max: Option<u32>,
    status_codes: Vec<u16>,
    headers: Vec<HeaderMatcher>,
}

/// Whether a request may say anything to a proxy.
#[must_use]
pub fn may_ask(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("x-envoy-"))
}

impl Asked {
    /// Takes the time limits from a request; none of one that names none. Before the route's edits of headers, as Envoy's router does.
    #[must_use]
    pub fn take_limits(headers: &mut HeaderMap) -> Option<Self> {
        if ![TIMEOUT, PER_TRY_TIMEOUT, ALT_RESPONSE].iter().any(|name| headers.contains_key(name)) {
            return None;
        }
        let (request, per_try) = (limit(headers, &TIMEOUT), limit(headers, &PER_TRY_TIMEOUT));
        Some(Self { request, per_try, no_content: headers.remove(ALT_RESPONSE).is_some(), ..Self::default() })
    }

    /// Takes what is asked of tries, and adds it to what was taken before. After the route's edits, which may ask as well, as in Envoy.
    /// Returns whether there was anything.
    pub fn take_tries(asked: &mut Option<Box<Self>>, headers: &mut HeaderMap) -> bool {
        const OF_TRIES: [HeaderName; 7] = [RETRY_ON, RETRY_GRPC_ON, MAX_RETRIES, RETRIABLE_STATUS, RETRIABLE_HEADERS, ALT_STAT_NAME, HEDGE];
        if !OF_TRIES.iter().any(|name| headers.contains_key(name)) {
            return false;
        }
        let asked = asked.get_or_insert_default();
        for (name, is_grpc) in [(&RETRY_ON, false), (&RETRY_GRPC_ON, true)] {
            asked.names_results |= headers.contains_key(name);
            for word in words(headers, name).filter(|word| GRPC_WORDS.contains(word) == is_grpc) {
                // Words that nobody knows are none, to Envoy as well.
                let _known = asked.on.add(word);
            }
        }
        asked.retries_max = joined(headers, &MAX_RETRIES).and_then(|count| count.trim().parse().ok());
        asked.status_codes = words(headers, &RETRIABLE_STATUS).filter_map(|code| code.parse().ok()).collect();
        asked.headers = words(headers, &RETRIABLE_HEADERS).filter_map(there).collect();
        for name in OF_TRIES {
            headers.remove(name);
        }
        true
    }

    /// The policy of a route with this added; none if it is the route's as it is.
    #[must_use]
    pub fn policy(&self, route: Option<&RetryPolicy>) -> Option<RetryPolicy> {
        let adds = self.names_results || self.retries_max.is_some() || !self.status_codes.is_empty() || !self.headers.is_empty();
        if !adds || !(self.names_results || route.is_some()) {
            return None;
        }
        let mut policy = route.cloned().unwrap_or_default();
        policy.on.merge(&self.on);
        policy.retries_max = self.retries_max.unwrap_or(policy.retries_max);
        policy.status_codes.extend(&self.status_codes);
        policy.headers.extend(self.headers.iter().cloned());
        Some(policy)
    }
}

/// A limit in milliseconds; zero is none. What is no number says nothing.
fn limit(headers: &mut HeaderMap, name: &HeaderName) -> Override {
    let asked = joined(headers, name).and_then(|text| u64::from_str(text.trim()).ok());
    headers.remove(name);
    match asked {
        None => Override::Inherit,
        Some(0) => Override::Unlimited,
        Some(milliseconds) => Override::Limit(Duration::from_millis(milliseconds)),
    }
}

/// The lines of a header as one, in which those without text are none: Envoy reads a repeated header so.
fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut lines = headers.get_all(name).iter().filter(|line| !line.is_empty());
    let first = Cow::Borrowed(lines.next()?.to_str().ok()?);
    lines.try_fold(first, |joined, line| Some(Cow::Owned(format!("{joined},{}", line.to_str().ok()?))))
}

fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn there(name: &str) -> Option<HeaderMatcher> {
    let name = MatchedHeader::Name(HeaderName::from_str(name).ok()?);
    Some(HeaderMatcher { name, test: HeaderTest::Present(true), invert: false, missing_as_empty: false })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_caller_is_internal_if_it_is_the_only_one_named_and_in_a_range() {
        let ranges = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for (value, internal) in [
            ("10.1.2.3", true),
            (" 10.1.2.3 ", true),
            ("fd00::1", true),
            // As Envoy, for which it is of the other family.
            ("::ffff:10.1.2.3", false),
            ("11.1.2.3", false),
            ("10.1.2.3, 10.1.2.4", false),
            ("10.1.2.3:80", false),
            ("", false),
            ("x", false),
        ] {
            assert_eq!(is_internal(&headers(&[("x-forwarded-for", value)]), &ranges), internal, "{value}");
        }
        assert!(!is_internal(&HeaderMap::new(), &ranges));
        let mut two = headers(&[("x-forwarded-for", "10.1.2.3")]);
        two.append(X_FORWARDED_FOR, HeaderValue::from_static("10.1.2.3"));
        assert!(!is_internal(&two, &ranges));
        let mut empty = headers(&[("x-forwarded-for", "10.1.2.3")]);
        empty.append(X_FORWARDED_FOR, HeaderValue::from_static(""));
        assert!(is_internal(&empty, &ranges), "a line without text names nobody");
        assert!(!is_internal(&headers(&[("x-forwarded-for", "10.1.2.3")]), &[]));
    }

    fn take(headers: &mut HeaderMap) -> Option<Box<Asked>> {
        let mut asked = Asked::take_limits(headers).map(Box::new);
        let _some = Asked::take_tries(&mut asked, headers);
        asked
    }

    #[test]
    fn a_repeated_number_is_none_and_lists_are_one() {
        let mut headers = HeaderMap::new();
        for (name, lines) in
            [(TIMEOUT, ["0", "100"]), (PER_TRY_TIMEOUT, ["", "100"]), (MAX_RETRIES, ["9", "1"]), (RETRY_ON, ["5xx", "reset"])]
        {
            for line in lines {
                headers.append(name.clone(), HeaderValue::from_static(line));
            }
        }
        let asked = take(&mut headers).unwrap();
        assert_eq!((asked.request, asked.per_try), (Override::Inherit, Override::Limit(Duration::from_millis(100))));
        let policy = asked.policy(None).unwrap();
        assert_eq!(
            (policy.on, policy.retries_max),
            (RetryOn { server_error: true, reset: true, ..RetryOn::default() }, RetryPolicy::default().retries_max)
        );
        assert!(headers.is_empty());
    }

    #[test]
    fn what_is_asked_of_the_proxy_is_taken_and_the_rest_stays() {
        let mut headers = headers(&[
            ("x-envoy-upstream-rq-timeout-ms", "250"),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "0"),
            ("x-envoy-retry-on", "5xx, unavailable,nothing"),
            ("x-envoy-retry-grpc-on", "cancelled,5xx"),
            ("x-envoy-max-retries", "7"),
            ("x-envoy-retriable-status-codes", "404,x,418"),
            ("x-envoy-upstream-rq-timeout-alt-response", "1"),
            ("x-envoy-internal", "true"),
            ("x-envoy-ip-tags", "a"),
        ]);
        let asked = take(&mut headers).unwrap();
        assert_eq!(headers.len(), 2, "{headers:?}");
        assert!(take(&mut HeaderMap::new()).is_none());
        assert_eq!((asked.request, asked.per_try), (Override::Limit(Duration::from_millis(250)), Override::Unlimited));
        assert!(asked.no_content);
        let policy = asked.policy(None).unwrap();
        let on = RetryOn { server_error: true, grpc_cancelled: true, ..RetryOn::default() };
        assert_eq!((policy.on, policy.retries_max, policy.status_codes), (on, 7, vec![404, 418]));
    }

    #[test]
    fn what_is_no_number_changes_nothing_and_a_policy_is_made_only_of_results() {
        let mut headers = headers(&[("x-envoy-upstream-rq-timeout-ms", "soon"), ("x-envoy-max-retries", "3")]);
        let asked = take(&mut headers).unwrap();
        assert_eq!(asked.request, Override::Inherit);
        assert!(asked.policy(None).is_none());
        let route = RetryPolicy { on: RetryOn { reset: true, ..RetryOn::default() }, ..RetryPolicy::default() };
        let policy = asked.policy(Some(&route)).unwrap();
        assert_eq!((policy.on, policy.retries_max), (route.on, 3));
        assert!(Asked::default().policy(Some(&route)).is_none());
    }
}
