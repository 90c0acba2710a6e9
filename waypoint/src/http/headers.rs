//! Header names that are used often and that the `http` crate does not name, and those that no caller may use.

use http::HeaderValue;
use http::header::{self, HeaderMap, HeaderName};

/// Hop-by-hop, older than its registration (RFC 9110 §7.6.1).
pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Hop-by-hop, never registered, still sent (RFC 9110 §7.6.1).
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// Part of an `Upgrade: h2c`, which is never honoured (RFC 9113 §3.1).
pub const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");

/// By these a caller steers Envoy: time limits, retries, tracing. Only internal callers may, of which there are none without an
/// `internal_address_config`; from requests of others Envoy removes them, and so do we.
const INTERNAL: [HeaderName; 15] = [
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-force-trace"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
    HeaderName::from_static("x-envoy-internal"),
    HeaderName::from_static("x-envoy-ip-tags"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-original-url"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
];

/// Removes from a request what only an internal caller may say, or says that it is internal; and removes a `referer` that is no URL, as
/// Envoy's connection manager does.
pub fn remove_internal(headers: &mut HeaderMap, is_internal: bool) {
    // One look at the names, which nearly always finds none, is cheaper than a look-up for each that there may be.
    if is_internal {
        headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    } else if headers.keys().any(|name| name.as_str().starts_with("x-envoy-")) {
        for name in INTERNAL {
            headers.remove(name);
        }
    }
    if headers.get(header::REFERER).is_some_and(|referer| !is_absolute_url(referer)) {
        headers.remove(header::REFERER);
    }
}

/// A scheme and a host, and no blank: what Envoy's parser asks for.
fn is_absolute_url(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let Some(colon) = bytes.iter().position(|byte| *byte == b':') else { return false };
    let (scheme, rest) = bytes.split_at(colon);
    let has_scheme = !scheme.is_empty() && scheme.iter().all(u8::is_ascii_alphabetic);
    let has_host = rest.strip_prefix(b"://").and_then(<[u8]>::first).is_some_and(|byte| !b"/?#".contains(byte));
    has_scheme && has_host && bytes.iter().all(|byte| !byte.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_cannot_say_what_only_a_proxy_may() {
        let mut headers = HeaderMap::new();
        for name in INTERNAL {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        // A caller's own, which Envoy leaves too.
        for name in ["x-envoy-attempt-count", "x-envoy-original-path", "x-envoy-external-address", "x-envoy-peer-metadata"] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        remove_internal(&mut headers, false);
        assert_eq!(headers.len(), 4, "{headers:?}");
        headers.insert("x-envoy-max-retries", HeaderValue::from_static("1"));
        remove_internal(&mut headers, true);
        assert!(headers.len() == 6 && headers[X_ENVOY_INTERNAL] == "true", "{headers:?}");
    }

    #[test]
    fn a_referer_is_a_url_or_none() {
        for (value, stays) in [
            ("http://a.example/x", true),
            ("https://a", true),
            ("not a url", false),
            ("/x", false),
            ("http:///x", false),
            ("http://a/b c", false),
        ] {
            let mut headers = HeaderMap::from_iter([(header::REFERER, HeaderValue::from_static(value))]);
            remove_internal(&mut headers, false);
            assert_eq!(headers.contains_key(header::REFERER), stays, "{value}");
        }
    }
}
