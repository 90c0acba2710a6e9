//! What a route makes of a request before it goes upstream: header edits, then its host, then its path.
//!
//! Not for: responses. Invariant: what is recorded as the request's head is what goes upstream.

use http::header::{self, HeaderName, HeaderValue};
use http::request;
use http::uri::{self, PathAndQuery, Uri};
use model::headers::HeaderEdits;
use model::rewrite::Rewrites;
use model::route::{PathMatcher, WeightedCluster};

use super::Run;
use super::attempt::Forwarding;
use crate::http::normalize::is_host;

const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const X_ENVOY_ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");

/// What a route made of a path is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoPath;

/// All of it; edits of the most specific level first, as Envoy does them.
pub(super) fn edit(run: &mut Run, parts: &mut request::Parts, to: &Forwarding<'_>, share: Option<&WeightedCluster>) -> Result<(), NoPath> {
    let mut is_edited = false;
    if let Some(share) = share {
        is_edited |= apply(run, parts, &share.request_headers);
        if let Some(host) = &share.host {
            parts.headers.insert(header::HOST, host.clone());
            is_edited = true;
        }
    }
    for edits in [&to.route.request_headers, &to.host.request_headers, &to.http.routes.request_headers] {
        is_edited |= apply(run, parts, edits);
    }
    is_edited |= rewrite(parts, &to.forward.rewrites, &to.route.matches.path)?;
    if is_edited {
        note(run, parts);
    }
    Ok(())
}

/// One level of edits; whether there were any.
fn apply(run: &mut Run, parts: &mut request::Parts, edits: &HeaderEdits) -> bool {
    if !edits.is_empty() {
        filters::headers::apply(edits, &mut parts.headers, run.recording.record());
    }
    !edits.is_empty()
}

fn rewrite(parts: &mut request::Parts, rewrites: &Rewrites, matched: &PathMatcher) -> Result<bool, NoPath> {
    let mut is_rewritten = false;
    if let Some(rewrite) = &rewrites.host
        && let Some(host) = filters::rewrite::host(rewrite, &parts.headers, path_of(parts)).map(std::borrow::Cow::into_owned)
    {
        // It may be what the caller wrote; no other host than a caller may send goes upstream.
        if !is_host(host.as_bytes()) {
            return Err(NoPath);
        }
        if let Some(old) = parts.headers.insert(header::HOST, host) {
            if rewrites.keep_host {
                filters::rewrite::keep_host(&old, &mut parts.headers);
            }
            parts.headers.insert(X_ENVOY_ORIGINAL_HOST, old);
        }
        is_rewritten = true;
    }
    if let Some(rewrite) = &rewrites.path {
        rewrite_path(parts, rewrite, matched)?;
        is_rewritten = true;
    }
    Ok(is_rewritten)
}

/// The path's rewrite alone; the one before it is kept in `x-envoy-original-path`.
pub(super) fn rewrite_path(parts: &mut request::Parts, rewrite: &model::rewrite::PathRewrite, matched: &PathMatcher) -> Result<(), NoPath> {
    let old = path_of(parts);
    let new = filters::rewrite::path(rewrite, matched, old);
    let old = HeaderValue::from_str(old).map_err(|_| NoPath)?;
    set_path(parts, &new)?;
    parts.headers.insert(X_ENVOY_ORIGINAL_PATH, old);
    Ok(())
}

/// Notes the request as it is now, for lines and spans.
pub(super) fn note(run: &mut Run, parts: &request::Parts) {
    let record = run.recording.record();
    record.capture_request(&parts.headers);
    if let Some(head) = &mut record.head {
        head.path = parts.uri.path_and_query().cloned();
        head.authority = parts.headers.get(header::HOST).cloned();
    }
}

fn path_of(parts: &request::Parts) -> &str {
    parts.uri.path_and_query().map_or("", PathAndQuery::as_str)
}

fn set_path(parts: &mut request::Parts, path: &[u8]) -> Result<(), NoPath> {
    if !path.starts_with(b"/") {
        return Err(NoPath);
    }
    let mut uri = uri::Parts::default();
    uri.path_and_query = Some(PathAndQuery::try_from(path).map_err(|_| NoPath)?);
    parts.uri = Uri::from_parts(uri).map_err(|_| NoPath)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_set_only_if_it_is_one() {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        for path in ["", "x", "/a b", "/\u{7f}", "*"] {
            assert_eq!(set_path(&mut parts, path.as_bytes()), Err(NoPath), "{path:?}");
        }
        assert_eq!((set_path(&mut parts, b"//x?y=z"), path_of(&parts)), (Ok(()), "//x?y=z"));
    }
}
