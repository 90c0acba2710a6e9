//! What a route makes of a request before it goes upstream: header edits, then its host, then its path. What it asks of this proxy
//! is taken out on the way.
//!
//! Not for: responses. Invariant: what is recorded as the request's head is what goes upstream.

use filters::headers::rendered;
use filters::internal::{self, Asked};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request;
use http::uri::{self, PathAndQuery, Uri};
use model::headers::{HeaderEdits, Mutations};
use model::rewrite::{PathRewrite, Rewrites};
use model::route::{PathMatcher, WeightedCluster};
use telemetry::record::RequestRecord;

use super::Run;
use super::attempt::Forwarding;
use crate::http::normalize::is_host;

const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const X_ENVOY_ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");

/// What a route made of a path is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPath;

/// All of it.
pub(super) fn edit(run: &mut Run, parts: &mut request::Parts, to: &Forwarding<'_>, share: Option<&WeightedCluster>) -> Result<(), NoPath> {
    let tells = !to.http.options.suppresses_envoy_headers;
    // Callers from outside have nothing left to ask by; filters and routes may ask as well.
    let may_ask = internal::may_ask(&parts.headers);
    run.asked = if may_ask { Asked::take_limits(&mut parts.headers).map(Box::new) } else { None };
    let edits = share.map_or(&to.route.request_headers, |share| &share.request_headers);
    let mut is_edited = run.asked.is_some() || !edits.is_empty();
    for edits in edits {
        edit_request(run.recording.record(), edits, &mut parts.headers);
    }
    if let Some(host) = share.and_then(|share| share.host.as_ref()) {
        parts.headers.insert(header::HOST, host.clone());
        is_edited = true;
    }
    is_edited |= rewrite(parts, (&to.forward.rewrites, tells), &to.route.matches.path)?;
    if may_ask || is_edited {
        is_edited |= Asked::take_tries(&mut run.asked, &mut parts.headers);
    }
    if is_edited {
        note(run, parts);
    }
    Ok(())
}

/// A filter's changes to a request.
///
/// # Errors
/// What it makes of the path is none.
pub fn change_request(record: &mut RequestRecord, mutations: &Mutations, parts: &mut request::Parts) -> Result<(), NoPath> {
    filters::headers::change(&mutations.request, &mut parts.headers, &|format, headers| rendered(format, &record.seeing_request(headers)));
    if !mutations.parameters.is_empty() {
        let path = filters::parameters::change(&mutations.parameters, path_of(parts), |format| {
            let mut value = Vec::new();
            format.render(&record.seeing_request(&parts.headers), &mut value);
            value
        });
        set_path(parts, path.as_bytes())?;
    }
    Ok(())
}

/// One level of edits to a request.
pub(super) fn edit_request(record: &RequestRecord, edits: &HeaderEdits, headers: &mut HeaderMap) {
    filters::headers::apply(edits, headers, &|format, headers| rendered(format, &record.seeing_request(headers)));
}

/// One level of edits to an answer.
pub(super) fn edit_answer(record: &RequestRecord, edits: &HeaderEdits, headers: &mut HeaderMap) {
    filters::headers::apply(edits, headers, &|format, headers| rendered(format, &record.seeing_response(headers)));
}

fn rewrite(parts: &mut request::Parts, (rewrites, tells): (&Rewrites, bool), matched: &PathMatcher) -> Result<bool, NoPath> {
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
            if tells {
                parts.headers.insert(X_ENVOY_ORIGINAL_HOST, old);
            }
        }
        is_rewritten = true;
    }
    if let Some(rewrite) = &rewrites.path {
        rewrite_path(parts, (rewrite, tells), matched)?;
        is_rewritten = true;
    }
    Ok(is_rewritten)
}

/// The path's rewrite alone; the one before it is kept in `x-envoy-original-path`.
pub(super) fn rewrite_path(
    parts: &mut request::Parts,
    (rewrite, tells): (&PathRewrite, bool),
    matched: &PathMatcher,
) -> Result<(), NoPath> {
    let old = path_of(parts);
    let new = filters::rewrite::path(rewrite, matched, old);
    let old = HeaderValue::from_str(old).map_err(|_| NoPath)?;
    set_path(parts, &new)?;
    if tells {
        parts.headers.insert(X_ENVOY_ORIGINAL_PATH, old);
    }
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
