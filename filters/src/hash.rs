//! The hash of a request, by which its endpoint is chosen.
//!
//! Not for: which endpoint follows. Source: Envoy's `HashPolicyImpl`: xxHash64, several hashes combined by rotation.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderName, HeaderValue};
use model::hash::{HashPolicy, HashSource, NewCookie};
use model::rewrite::Substitution;
use model::stream_view::RequestHead;
use smallvec::SmallVec;
use twox_hash::XxHash64;

use crate::header_match::query_only;

/// A hash, and what the client has to be told so that its next request has the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hashed {
    /// None: nothing that is hashed is there.
    pub hash: Option<u64>,
    /// Values of `set-cookie`.
    pub cookies: SmallVec<[HeaderValue; 1]>,
}

/// Hashes a text; `seed` is the hash before, or zero.
#[must_use]
pub fn of_bytes(bytes: &[u8], seed: u64) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

/// Hashes an address as Envoy prints it, without its port.
#[must_use]
pub fn of_address(address: IpAddr) -> u64 {
    of_bytes(address.to_canonical().to_string().as_bytes(), 0)
}

/// Hashes a request. `new_cookie` is the value of a cookie to be made.
#[must_use]
pub fn of_request(policies: &[HashPolicy], head: &RequestHead<'_>, source: IpAddr, new_cookie: u64) -> Hashed {
    let mut hashed = Hashed::default();
    for policy in policies {
        let hash = match &policy.source {
            HashSource::Header(name, rewrite) => of_header(head, name, rewrite.as_ref()),
            HashSource::Cookie(name, new) => of_cookie(head, name, new.as_ref(), (new_cookie, &mut hashed.cookies)),
            HashSource::SourceAddress => Some(of_address(source)),
            HashSource::Query(name) => of_query(head, name),
        };
        if let Some(hash) = hash {
            // Rotated, so that two equal hashes do not cancel each other out.
            hashed.hash = Some(hashed.hash.unwrap_or(0).rotate_left(1) ^ hash);
        }
        if policy.is_terminal && hashed.hash.is_some() {
            break;
        }
    }
    hashed
}

/// Lines of one name are hashed in their sorted order, so that theirs on the wire does not matter.
fn of_header(head: &RequestHead<'_>, name: &HeaderName, rewrite: Option<&Substitution>) -> Option<u64> {
    let lines = head.headers.get_all(name).iter().map(|line| line.as_bytes());
    let mut lines: SmallVec<[Cow<'_, [u8]>; 1]> =
        lines.map(|line| rewrite.map_or(Cow::Borrowed(line), |rewrite| Cow::Owned(rewrite.replace_all(line)))).collect();
    lines.sort();
    (!lines.is_empty()).then(|| lines.iter().fold(0, |seed, line| of_bytes(line, seed)))
}

fn of_query(head: &RequestHead<'_>, name: &str) -> Option<u64> {
    let pairs = query_only(head.path)?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| of_bytes(value.as_bytes(), 0))
}

fn of_cookie(
    head: &RequestHead<'_>,
    name: &str,
    new: Option<&NewCookie>,
    (new_value, cookies): (u64, &mut SmallVec<[HeaderValue; 1]>),
) -> Option<u64> {
    if let Some(value) = cookie(head, name).filter(|value| !value.is_empty()) {
        return Some(of_bytes(value, 0));
    }
    let new = new?;
    let value = format!("{new_value:016x}");
    cookies.push(set_cookie(name, &value, new));
    Some(of_bytes(value.as_bytes(), 0))
}

fn cookie<'a>(head: &RequestHead<'a>, name: &str) -> Option<&'a [u8]> {
    let lines = head.headers.get_all(http::header::COOKIE).iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.into_iter().find_map(|pair| {
        let pair = pair.trim_ascii();
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&pair[..at], &pair[at + 1..]);
        let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        (key == name.as_bytes()).then(|| unquoted.unwrap_or(value))
    })
}

fn set_cookie(name: &str, value: &str, new: &NewCookie) -> HeaderValue {
    let mut text = format!("{name}=\"{value}\"");
    if new.seconds > 0 {
        text.push_str(&format!("; Max-Age={}", new.seconds));
    }
    if let Some(path) = &new.path {
        text.push_str(&format!("; Path={path}"));
    }
    for (key, value) in &new.attributes {
        match value {
            Some(value) => text.push_str(&format!("; {key}={value}")),
            None => text.push_str(&format!("; {key}")),
        }
    }
    text.push_str("; HttpOnly");
    HeaderValue::try_from(text).expect("its texts are checked when they are configured, its value is hexadecimal")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use http::{HeaderMap, HeaderValue};

    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 5));

    fn request<'a>(headers: &'a HeaderMap, path: &'a str) -> RequestHead<'a> {
        RequestHead { method: "GET", path, authority: Some("web"), scheme: "http", headers }
    }

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn header(name: &'static str) -> HashSource {
        HashSource::Header(HeaderName::from_static(name), None)
    }

    fn hashed(sources: Vec<HashSource>, lines: &[(&'static str, &'static str)], path: &str) -> Hashed {
        let policies: Vec<_> = sources.into_iter().map(|source| HashPolicy { source, is_terminal: false }).collect();
        of_request(&policies, &request(&headers(lines), path), SOURCE, 0xabc)
    }

    #[test]
    fn the_hash_is_xxhash64() {
        // Of xxHash's own test vectors.
        assert_eq!(of_bytes(b"", 0), 0xef46_db37_51d8_e999);
        assert_eq!(of_bytes(b"abc", 0), 0x44bc_2cf5_ad77_0999);
        assert_eq!(hashed(vec![header("x-user")], &[("x-user", "abc")], "/").hash, Some(0x44bc_2cf5_ad77_0999));
    }

    #[test]
    fn what_is_not_there_has_no_hash() {
        assert_eq!(hashed(vec![header("x-user")], &[], "/"), Hashed::default());
        assert_eq!(hashed(vec![HashSource::Query("id".into())], &[], "/?other=1"), Hashed::default());
        assert_eq!(hashed(vec![HashSource::Cookie("session".into(), None)], &[("cookie", "other=1")], "/"), Hashed::default());
    }

    #[test]
    fn lines_of_a_header_count_in_any_order() {
        let hash = |lines: &[(&'static str, &'static str)]| hashed(vec![header("x-user")], lines, "/").hash;
        assert_eq!(hash(&[("x-user", "foo"), ("x-user", "bar")]), hash(&[("x-user", "bar"), ("x-user", "foo")]));
        assert_eq!(hash(&[("x-user", "foo"), ("x-user", "bar")]), Some(of_bytes(b"foo", of_bytes(b"bar", 0))));
    }

    #[test]
    fn a_header_is_rewritten_before_it_is_hashed() {
        let rewrite = Substitution::new("^([^-]*)-.*$", "\\1").unwrap();
        let source = HashSource::Header(HeaderName::from_static("x-user"), Some(rewrite));
        assert_eq!(hashed(vec![source], &[("x-user", "abc-1")], "/").hash, Some(of_bytes(b"abc", 0)));
    }

    #[test]
    fn hashes_are_combined_by_rotation_until_a_terminal_one() {
        let (user, address) = (of_bytes(b"abc", 0), of_bytes(b"10.244.1.5", 0));
        let both = hashed(vec![header("x-user"), HashSource::SourceAddress], &[("x-user", "abc")], "/");
        assert_eq!(both.hash, Some(user.rotate_left(1) ^ address));
        let policies = [
            HashPolicy { source: header("x-user"), is_terminal: true },
            HashPolicy { source: HashSource::SourceAddress, is_terminal: false },
        ];
        let hash = |lines: &[_]| of_request(&policies, &request(&headers(lines), "/"), SOURCE, 0).hash;
        assert_eq!((hash(&[("x-user", "abc")]), hash(&[])), (Some(user), Some(address)));
    }

    #[test]
    fn a_cookie_is_read_from_every_line_and_without_its_quotes() {
        let source = || vec![HashSource::Cookie("session".into(), None)];
        for lines in [&[("cookie", "a=b; session=abc")][..], &[("cookie", "a=b"), ("cookie", "session=\"abc\";c=d")]] {
            assert_eq!(hashed(source(), lines, "/").hash, Some(of_bytes(b"abc", 0)));
        }
    }

    #[test]
    fn a_missing_cookie_is_made_and_told() {
        let attributes = vec![("SameSite".into(), Some("Strict".into())), ("Secure".into(), None)];
        let new = NewCookie { seconds: 10, path: Some("/".into()), attributes };
        let made = hashed(vec![HashSource::Cookie("session".into(), Some(new.clone()))], &[], "/");
        assert_eq!(made.hash, Some(of_bytes(b"0000000000000abc", 0)));
        // As Envoy writes it.
        assert_eq!(made.cookies[..], ["session=\"0000000000000abc\"; Max-Age=10; Path=/; SameSite=Strict; Secure; HttpOnly"]);
        let known = hashed(vec![HashSource::Cookie("session".into(), Some(new))], &[("cookie", "session=0000000000000abc")], "/");
        assert_eq!((known.hash, known.cookies.len()), (made.hash, 0));
    }

    #[test]
    fn the_first_of_equal_parameters_counts() {
        assert_eq!(hashed(vec![HashSource::Query("id".into())], &[], "/a?x=1&id=abc&id=2#f").hash, Some(of_bytes(b"abc", 0)));
    }
}
