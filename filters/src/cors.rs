//! Answers preflights, and tells browsers whether a page may read an answer.
//!
//! Source: Envoy's CORS filter. It keeps nobody from calling: it is browsers that obey.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use model::cors::{CorsList, CorsPolicy};

use crate::header_match::joined;

const PRIVATE_NETWORK_ASKED: HeaderName = HeaderName::from_static("access-control-request-private-network");
const PRIVATE_NETWORK_ALLOWED: HeaderName = HeaderName::from_static("access-control-allow-private-network");
static NOTHING: HeaderValue = HeaderValue::from_static("");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOutcome {
    /// It is none of a page of another origin, or there is no policy for it.
    Pass,
    /// It goes on; these headers are set on its answer.
    Tell(HeaderMap),
    /// It is a preflight: 200 with these headers.
    Preflight(HeaderMap),
}

/// Judges a request; `draw` is 64 random bits.
#[must_use]
pub fn decide(policy: &CorsPolicy, method: &http::Method, headers: &HeaderMap, draw: u64) -> CorsOutcome {
    let origin = joined(headers, &header::ORIGIN).filter(|origin| !origin.is_empty());
    let Some(origin) = origin.filter(|_| policy.enabled.includes(draw)) else { return CorsOutcome::Pass };
    let origin = Some(origin).filter(|origin| policy.allows(origin)).and_then(|origin| HeaderValue::from_bytes(&origin).ok());
    let asked = |name: HeaderName| headers.get(name).filter(|value| !value.is_empty());
    let is_preflight = method == http::Method::OPTIONS && asked(header::ACCESS_CONTROL_REQUEST_METHOD).is_some();
    let mut told = HeaderMap::new();
    if let Some(origin) = &origin {
        told.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if let Some(exposed) = &policy.exposed {
            told.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
    }
    // Envoy says so in any preflight that it answers.
    if policy.credentials && (origin.is_some() || is_preflight) {
        told.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
    }
    if !is_preflight || (origin.is_none() && policy.forwards_others) {
        return if origin.is_some() { CorsOutcome::Tell(told) } else { CorsOutcome::Pass };
    }
    let lists = [
        (&policy.methods, header::ACCESS_CONTROL_ALLOW_METHODS, header::ACCESS_CONTROL_REQUEST_METHOD),
        (&policy.headers, header::ACCESS_CONTROL_ALLOW_HEADERS, header::ACCESS_CONTROL_REQUEST_HEADERS),
    ];
    for (list, name, of) in lists {
        let value = match list {
            None => None,
            // An empty one if nothing was asked for, as Envoy sends it.
            Some(CorsList::Asked) => Some(headers.get(of).unwrap_or(&NOTHING)),
            Some(CorsList::These(these)) => Some(these),
        };
        if let Some(value) = value {
            told.insert(name, value.clone());
        }
    }
    if let Some(age) = &policy.max_age {
        told.insert(header::ACCESS_CONTROL_MAX_AGE, age.clone());
    }
    if policy.private_network && asked(PRIVATE_NETWORK_ASKED) == Some(&TRUE) {
        told.insert(PRIVATE_NETWORK_ALLOWED, TRUE);
    }
    CorsOutcome::Preflight(told)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use http::Method;
    use model::fraction::Fraction;
    use model::matcher::StringMatcher;

    use super::*;

    fn policy() -> CorsPolicy {
        CorsPolicy {
            enabled: Fraction::ALL,
            origins: vec![StringMatcher::Exact((*b"https://a.example").into())],
            methods: Some(CorsList::These(HeaderValue::from_static("GET,POST"))),
            headers: Some(CorsList::Asked),
            exposed: Some(HeaderValue::from_static("x-c")),
            max_age: Some(HeaderValue::from_static("60")),
            credentials: true,
            private_network: false,
            forwards_others: false,
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn judged(policy: &CorsPolicy, method: Method, pairs: &[(&'static str, &'static str)]) -> CorsOutcome {
        decide(policy, &method, &headers(pairs), 50)
    }

    const ALLOWED: (&str, &str) = ("origin", "https://a.example");
    const OTHER: (&str, &str) = ("origin", "https://b.example");
    const ASKS: (&str, &str) = ("access-control-request-method", "PUT");

    #[test]
    fn a_preflight_is_answered_with_what_the_policy_allows() {
        let asks_headers = ("access-control-request-headers", "x-a");
        let expected = headers(&[
            ("access-control-allow-origin", "https://a.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "x-c"),
            ("access-control-allow-methods", "GET,POST"),
            ("access-control-allow-headers", "x-a"),
            ("access-control-max-age", "60"),
        ]);
        assert_eq!(judged(&policy(), Method::OPTIONS, &[ALLOWED, ASKS, asks_headers]), CorsOutcome::Preflight(expected));
    }

    #[test]
    fn another_origin_is_answered_or_passes_as_the_policy_says() {
        let CorsOutcome::Preflight(told) = judged(&policy(), Method::OPTIONS, &[OTHER, ASKS]) else { panic!("answered") };
        assert!(!told.contains_key("access-control-allow-origin"));
        let forwards = CorsPolicy { forwards_others: true, ..policy() };
        assert_eq!(judged(&forwards, Method::OPTIONS, &[OTHER, ASKS]), CorsOutcome::Pass);
        assert_eq!(judged(&policy(), Method::GET, &[OTHER]), CorsOutcome::Pass);
    }

    #[test]
    fn answers_tell_allowed_origins_only_and_other_requests_pass() {
        let expected = headers(&[
            ("access-control-allow-origin", "https://a.example"),
            ("access-control-expose-headers", "x-c"),
            ("access-control-allow-credentials", "true"),
        ]);
        assert_eq!(judged(&policy(), Method::GET, &[ALLOWED]), CorsOutcome::Tell(expected.clone()));
        assert_eq!(judged(&policy(), Method::OPTIONS, &[ALLOWED]), CorsOutcome::Tell(expected));
        assert_eq!(judged(&policy(), Method::OPTIONS, &[ASKS]), CorsOutcome::Pass);
        let off = CorsPolicy { enabled: Fraction { numerator: 50, denominator: 100 }, ..policy() };
        assert_eq!(judged(&off, Method::GET, &[ALLOWED]), CorsOutcome::Pass);
        let any = CorsPolicy { origins: vec![StringMatcher::regex(".*").unwrap()], ..policy() };
        assert!(matches!(judged(&any, Method::GET, &[OTHER]), CorsOutcome::Tell(_)));
    }
}
