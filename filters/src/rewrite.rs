//! Does what routes ask for with a request's path and host.
//!
//! Not for: changes that need no rule of their own (`headers`). Source: Envoy's router: header edits come first, then the host,
//! then the path; a query stays as it came.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use model::rewrite::{HostRewrite, PathRewrite};
use model::route::PathMatcher;

use crate::header_match::{joined, path_only};

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The path and query that become of `path`, which `matched` chose; bytes, since an expression may cut a letter in two.
#[must_use]
pub fn path(rewrite: &PathRewrite, matched: &PathMatcher, path: &str) -> Vec<u8> {
    let whole = path_only(path).len();
    match rewrite {
        PathRewrite::Regex(substitution) => {
            let mut new = substitution.replace_all(&path.as_bytes()[..whole]);
            new.extend_from_slice(&path.as_bytes()[whole..]);
            new
        }
        PathRewrite::Matched(with) => {
            let replaced = match matched {
                // The path begins with what was matched, letters of either case alike: as many bytes of it.
                PathMatcher::Prefix(text) | PathMatcher::SeparatedPrefix(text) | PathMatcher::Exact(text) => text.len().min(path.len()),
                PathMatcher::Regex(_) => whole,
            };
            [with.as_bytes(), &path.as_bytes()[replaced..]].concat()
        }
    }
}

/// The host that a request gets; none if it keeps its own.
#[must_use]
pub fn host<'a>(rewrite: &'a HostRewrite, headers: &'a HeaderMap, path: &str) -> Option<Cow<'a, HeaderValue>> {
    let host = match rewrite {
        HostRewrite::Literal(host) => Cow::Borrowed(host),
        HostRewrite::Header(name) => Cow::Borrowed(headers.get(name)?),
        HostRewrite::Path(substitution) => Cow::Owned(HeaderValue::try_from(substitution.replace_all(path_only(path).as_bytes())).ok()?),
    };
    Some(host).filter(|host| !host.is_empty())
}

/// Adds a host that is about to be replaced to `x-forwarded-host`, unless it is its last entry.
pub fn keep_host(host: &HeaderValue, headers: &mut HeaderMap) {
    let value = match joined(headers, &X_FORWARDED_HOST) {
        Some(known) if !known.is_empty() => {
            if known.rsplit(|byte| *byte == b',').next() == Some(host.as_bytes()) {
                return;
            }
            [&known, &b","[..], host.as_bytes()].concat()
        }
        _ => host.as_bytes().to_vec(),
    };
    // Parts of field values, joined by a comma, are one.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(X_FORWARDED_HOST, value);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use model::matcher::StringMatcher;
    use model::rewrite::Substitution;

    use super::*;

    fn rewritten(rewrite: &PathRewrite, matched: &PathMatcher, from: &str) -> String {
        String::from_utf8(path(rewrite, matched, from)).unwrap()
    }

    #[test]
    fn what_was_matched_is_replaced_and_the_rest_with_its_query_stays() {
        let to = |text: &str| PathRewrite::Matched(text.into());
        let prefix = PathMatcher::Prefix("/old".into());
        let separated = PathMatcher::SeparatedPrefix("/old".into());
        assert_eq!(rewritten(&to("/new"), &prefix, "/older/x?y=/old"), "/newer/x?y=/old");
        assert_eq!(rewritten(&to("/new"), &separated, "/OLD/x"), "/new/x");
        assert_eq!(rewritten(&to("/new"), &separated, "/old?q"), "/new?q");
        // As Envoy does: nothing puts a slash in, or takes one out.
        assert_eq!(rewritten(&to("/"), &separated, "/old/x"), "//x");
        assert_eq!(rewritten(&to("/new"), &PathMatcher::Exact("/old".into()), "/old?a=1"), "/new?a=1");
        let regex = PathMatcher::Regex(StringMatcher::regex("/o.*").unwrap());
        assert_eq!(rewritten(&to("/new"), &regex, "/older/x?y"), "/new?y");
    }

    #[test]
    fn an_expression_sees_the_path_without_its_query() {
        let rewrite = PathRewrite::Regex(Substitution::new("/.*", "/all").unwrap());
        assert_eq!(rewritten(&rewrite, &PathMatcher::Exact("/full".into()), "/full?a=/b"), "/all?a=/b");
    }

    #[test]
    fn a_host_comes_from_a_text_a_header_or_the_path_and_never_becomes_empty() {
        let mut headers = HeaderMap::new();
        let of_header = HostRewrite::Header(HeaderName::from_static("x-to"));
        assert_eq!(host(&of_header, &headers, "/"), None);
        headers.insert("x-to", HeaderValue::from_static("a.example"));
        assert_eq!(host(&of_header, &headers, "/").unwrap().as_bytes(), b"a.example");
        let of_path = HostRewrite::Path(Substitution::new("^/([^/]*).*", "\\1").unwrap());
        assert_eq!(host(&of_path, &headers, "/b.example/x?y").unwrap().as_bytes(), b"b.example");
        assert_eq!(host(&of_path, &headers, "/"), None);
    }

    #[test]
    fn a_replaced_host_is_kept_once() {
        let (mut headers, host) = (HeaderMap::new(), HeaderValue::from_static("web.shop"));
        for expected in ["web.shop", "web.shop"] {
            keep_host(&host, &mut headers);
            assert_eq!(headers[X_FORWARDED_HOST], expected);
        }
        keep_host(&HeaderValue::from_static("b"), &mut headers);
        assert_eq!(headers[X_FORWARDED_HOST], "web.shop,b");
    }
}
