//! Header and path conditions, shared by routes and policies.
//!
//! Source: Envoy's `HeaderMatcher`: lines of one name are looked at each for itself (since 1.39), a missing header matches no text
//! condition, inverted or not, unless it counts as empty.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};
use model::route::{HeaderMatcher, HeaderTest, MatchedHeader};
use model::stream_view::RequestHead;
use model::text::readable;

/// The path of a request without query and fragment.
#[must_use]
pub fn path_only(path: &str) -> &str {
    path.find(['?', '#']).map_or(path, |end| &path[..end])
}

/// The query of a request, without its question mark and without a fragment.
#[must_use]
pub fn query_only(path: &str) -> Option<&str> {
    let path = path.split('#').next().unwrap_or(path);
    path.split_once('?').map(|(_, query)| query)
}

/// A host and its port with the colon, which is empty if there is none; colons of an IPv6 address are not taken for it.
#[must_use]
pub fn split_port(host: &str) -> (&str, &str) {
    let at = if host.starts_with('[') { host.rfind("]:").map(|at| at + 1) } else { host.rfind(':') };
    at.map_or((host, ""), |at| host.split_at(at))
}

/// All lines of a header joined by commas.
#[must_use]
pub fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?.as_bytes();
    let Some(second) = lines.next() else { return Some(Cow::Borrowed(first)) };
    let mut all = first.to_vec();
    for line in std::iter::once(second).chain(lines) {
        all.push(b',');
        all.extend_from_slice(line.as_bytes());
    }
    Some(Cow::Owned(all))
}

/// The value of a header or pseudo-header.
#[must_use]
pub fn value<'a>(head: &RequestHead<'a>, name: &MatchedHeader) -> Option<Cow<'a, [u8]>> {
    match name {
        MatchedHeader::Method => Some(Cow::Borrowed(head.method.as_bytes())),
        MatchedHeader::Authority => head.authority.map(|text| Cow::Borrowed(text.as_bytes())),
        MatchedHeader::Path => Some(Cow::Borrowed(head.path.as_bytes())),
        MatchedHeader::Scheme => Some(Cow::Borrowed(head.scheme.as_bytes())),
        MatchedHeader::Name(name) => joined(head.headers, name),
    }
}

/// Whether the request meets the condition: some line of the header does, or none where it is inverted.
#[must_use]
pub fn matches(matcher: &HeaderMatcher, head: &RequestHead<'_>) -> bool {
    let (HeaderTest::Text(test), MatchedHeader::Name(name)) = (&matcher.test, &matcher.name) else { return matches_joined(matcher, head) };
    let mut lines = head.headers.get_all(name).iter();
    let Some(first) = lines.next() else { return matches_joined(matcher, head) };
    std::iter::once(first).chain(lines).any(|line| test.matches(line.as_bytes())) != matcher.invert
}

/// Whether the request meets the condition, lines of one name taken together.
#[must_use]
pub fn matches_joined(matcher: &HeaderMatcher, head: &RequestHead<'_>) -> bool {
    let value = value(head, &matcher.name);
    match (&matcher.test, value) {
        (HeaderTest::Present(wanted), found) => (found.is_some() == *wanted) != matcher.invert,
        (HeaderTest::Text(test), Some(found)) => test.matches(&found) != matcher.invert,
        (HeaderTest::Text(test), None) => matcher.missing_as_empty && test.matches(b"") != matcher.invert,
    }
}
/// Percent-encoded bytes decoded; what is no encoding stays, and what is no text becomes what no name or token has.
pub(crate) fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text.as_bytes();
    while let Some((first, rest)) = left.split_first() {
        let encoded = match (first, rest) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)),
            _ => None,
        };
        bytes.push(encoded.map_or(*first, |(high, low)| high << 4 | low));
        left = if encoded.is_some() { &rest[2..] } else { rest };
    }
    Cow::Owned(String::from_utf8(bytes).unwrap_or_else(|error| readable(error.as_bytes()).into_owned()))
}
