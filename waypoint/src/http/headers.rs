//! Header names that are used often and that the `http` crate does not name.

use http::HeaderName;

/// Hop-by-hop, older than its registration (RFC 9110 §7.6.1).
pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Hop-by-hop, never registered, still sent (RFC 9110 §7.6.1).
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// Part of an `Upgrade: h2c`, which is never honoured (RFC 9113 §3.1).
pub const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
