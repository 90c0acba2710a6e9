//! Paths: normalising twice is normalising once, and a request that is accepted has no dot segment that a server could resolve.
//!
//! The first byte says how far paths are normalised, all others are the request's target.

use http::Request;
use model::chain::EscapedSlashes;
use waypoint::http::normalize::{HeadOptions, normalize_path, request_in};
use waypoint::http::session::Protocol;

/// # Panics
/// Something does not hold.
pub fn path(data: &[u8]) {
    let Some((how, target)) = data.split_first() else { return };
    let escaped_slashes = if how & 4 == 0 { EscapedSlashes::Kept } else { EscapedSlashes::Unescaped };
    let options = HeadOptions { normalize: how & 1 == 0, merge_slashes: how & 2 != 0, escaped_slashes, ..HeadOptions::default() };
    let protocol = if how & 8 == 0 { Protocol::Http1 } else { Protocol::Http2 };
    let Ok(target) = std::str::from_utf8(target) else { return };
    if options.normalize && target.starts_with('/') && !target.contains(['?', '#']) {
        let once = normalize_path(target, &options).map(|normal| normal.unwrap_or_else(|| target.to_owned()));
        if let Ok(once) = once {
            assert_eq!(normalize_path(&once, &options), Ok(None), "{target:?} became {once:?}");
        }
    }
    let Ok(request) = Request::builder().uri(target).header("host", "a").body(()) else { return };
    let mut parts = request.into_parts().0;
    if protocol == Protocol::Http2 && parts.uri.scheme().is_none() {
        let Some(target) = parts.uri.path_and_query() else { return };
        let Ok(uri) = format!("http://a{target}").parse() else { return };
        parts.uri = uri;
    }
    if request_in(&mut parts, protocol, &options).is_err() {
        return;
    }
    let path = parts.uri.path();
    if options.normalize && path.starts_with('/') {
        let is_dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
        let decoded = path.replace("%2e", ".").replace("%2E", ".").replace('\\', "/");
        assert!(!decoded.split('/').any(is_dots), "{target:?} became {path:?}");
        assert!(!options.merge_slashes || !path.contains("//"), "{target:?} became {path:?}");
    }
}
