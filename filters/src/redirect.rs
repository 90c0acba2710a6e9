//! Where a redirect sends a client: the `location` of its answer.
//!
//! Not for: the rewrite of the path, which has been done before (`rewrite`). Source: Envoy's router.

use http::HeaderName;
use model::rewrite::{Redirect, RedirectPath};
use model::stream_view::RequestHead;

use crate::header_match::{query_only, split_port};

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The location for a request. Without a redirect it is where the request went: Envoy says so in direct responses with such a status.
#[must_use]
pub fn location(redirect: Option<&Redirect>, head: &RequestHead<'_>) -> String {
    let scheme = redirect.and_then(|to| to.scheme.as_deref()).unwrap_or(head.scheme);
    let port = redirect.and_then(|to| to.port);
    let host = redirect.and_then(|to| to.host.as_deref()).unwrap_or_else(|| own_host(head, scheme, port.is_some()));
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = path(redirect, head.path);
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{host}{port}{slash}{path}")
}

/// Whether an answer with this status says where to go.
#[must_use]
pub fn has_location(status: u16) -> bool {
    status == 201 || (300..400).contains(&status)
}

fn path(redirect: Option<&Redirect>, own: &str) -> String {
    let Some(redirect) = redirect else { return own.to_owned() };
    let own_query = query_only(own).filter(|_| !redirect.strip_query).map(|query| format!("?{query}")).unwrap_or_default();
    match &redirect.path {
        RedirectPath::Full { path, has_query: true } => path.to_string(),
        RedirectPath::Full { path, has_query: false } => format!("{path}{own_query}"),
        RedirectPath::Keep | RedirectPath::Rewrite(_) => {
            let path = own.split('?').next().unwrap_or(own);
            format!("{path}{own_query}")
        }
    }
}

/// The request's host. Its port is left out if there is another one, or if it is the default of the scheme that is left.
fn own_host<'a>(head: &RequestHead<'a>, scheme: &str, has_port: bool) -> &'a str {
    let host = head.authority.unwrap_or_default();
    let (name, port) = split_port(host);
    let forwarded = head.headers.get(X_FORWARDED_PROTO).map_or(&b""[..], |value| value.as_bytes());
    let leaves = |from: &[u8], default: &str| forwarded == from && scheme.as_bytes() != from && port == default;
    if has_port || leaves(b"https", ":443") || leaves(b"http", ":80") { name } else { host }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use http::HeaderMap;

    use super::*;

    const HTTPS: Redirect = Redirect { status: 301, scheme: None, host: None, port: None, path: RedirectPath::Keep, strip_query: false };

    fn to(redirect: Option<&Redirect>, authority: &str, path: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(X_FORWARDED_PROTO, "http".parse().unwrap());
        location(redirect, &RequestHead { method: "GET", path, authority: Some(authority), scheme: "http", headers: &headers })
    }

    fn https(redirect: Redirect) -> Redirect {
        Redirect { scheme: Some("https".into()), ..redirect }
    }

    #[test]
    fn a_port_goes_with_the_scheme_that_it_is_the_default_of() {
        let https = https(HTTPS);
        for (authority, expected) in [
            ("a:80", "https://a/x"),
            ("a:8080", "https://a:8080/x"),
            ("a:443", "https://a:443/x"),
            ("[::1]:80", "https://[::1]/x"),
            ("[::1]", "https://[::1]/x"),
            ("[::1]:8080", "https://[::1]:8080/x"),
        ] {
            assert_eq!(to(Some(&https), authority, "/x"), expected);
        }
        assert_eq!(to(Some(&HTTPS), "a:80", "/x"), "http://a:80/x");
        let with_port = Redirect { port: Some(8443), ..https };
        assert_eq!(to(Some(&with_port), "[::1]:80", "/x"), "https://[::1]:8443/x");
        let with_host = Redirect { host: Some("b:1".into()), ..HTTPS };
        assert_eq!(to(Some(&with_host), "a:80", "/x"), "http://b:1/x");
    }

    #[test]
    fn a_query_stays_unless_the_redirect_has_one_or_strips_it() {
        let full = |path: &str| RedirectPath::Full { path: path.into(), has_query: path.contains('?') };
        for (path, strip_query, expected) in [
            (RedirectPath::Keep, false, "http://a/x?y=1"),
            (RedirectPath::Keep, true, "http://a/x"),
            (full("/full"), false, "http://a/full?y=1"),
            (full("/full"), true, "http://a/full"),
            (full("full"), true, "http://a/full"),
            (full("/full?z=2"), false, "http://a/full?z=2"),
            (full("/full?z=2"), true, "http://a/full?z=2"),
        ] {
            let redirect = Redirect { path, strip_query, ..HTTPS };
            assert_eq!(to(Some(&redirect), "a", "/x?y=1"), expected);
        }
        assert_eq!(to(None, "a", "/x?y=1"), "http://a/x?y=1");
    }
}
