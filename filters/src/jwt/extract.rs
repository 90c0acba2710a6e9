//! Where tokens are in a request, and what is left of the request without them.
//!
//! Source: Envoy's extractor: headers, then parameters, then cookies, each kind by name; what comes last is verified first.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use model::jwt::TokenPlace;
use model::stream_view::RequestHead;
use model::text::readable;

use crate::header_match::{decoded, joined, query_only};

/// A token's text and where it was.
pub(super) type Found<'a, 'p> = (Cow<'a, str>, &'p TokenPlace);

/// All tokens in these places, the one that is verified first at the end. Bytes that are no text stay in them as what no token has, so that
/// a bad token is never taken for none.
pub(super) fn tokens<'a, 'p>(head: &RequestHead<'a>, places: &'p [TokenPlace]) -> Vec<Found<'a, 'p>> {
    let mut found = Vec::new();
    for place in places {
        match place {
            // Envoy joins the lines of this one header, so that two tokens in it are none.
            TokenPlace::Header { name, prefix } if name == AUTHORIZATION => {
                found.extend(joined(head.headers, name).and_then(|line| token_of(line, prefix)).map(|text| (text, place)));
            }
            TokenPlace::Header { name, prefix } => {
                let lines = head.headers.get_all(name).iter();
                found.extend(lines.filter_map(|line| Some((token_of(line.as_bytes().into(), prefix)?, place))));
            }
            TokenPlace::Parameter(name) => found.extend(parameter(head.path, name).map(|text| (text, place))),
            TokenPlace::Cookie(name) => found.extend(cookie(head.headers, name).map(|text| (text, place))),
        }
    }
    found
}

/// A line's text behind the prefix.
fn token_of<'a>(line: Cow<'a, [u8]>, prefix: &str) -> Option<Cow<'a, str>> {
    let line = match line {
        Cow::Borrowed(line) => readable(line),
        Cow::Owned(line) => Cow::Owned(readable(&line).into_owned()),
    };
    match line {
        Cow::Borrowed(line) => behind(line, prefix).map(Cow::Borrowed),
        Cow::Owned(line) => behind(&line, prefix).map(|text| Cow::Owned(text.to_owned())),
    }
}

/// What follows the prefix, wherever in the line it is, from the first character on that a token may have; none without the prefix.
fn behind<'a>(line: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() {
        return Some(line);
    }
    let at = line.find(prefix)? + prefix.len();
    let is_of_token = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    Some(line[at..].find(is_of_token).map_or(line, |start| &line[at + start..]))
}

fn parameter<'a>(path: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let pairs = query_only(path)?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(known, _)| decoded(known) == name).map(|(_, value)| decoded(value))
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, str>> {
    headers.get_all(COOKIE).iter().find_map(|line| match readable(line.as_bytes()) {
        Cow::Borrowed(line) => cookie_of(line, name).map(Cow::Borrowed),
        Cow::Owned(line) => cookie_of(&line, name).map(|value| Cow::Owned(value.to_owned())),
    })
}

fn cookie_of<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = line.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(known, _)| known.trim() == name)?;
    let value = value.trim();
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// A path and query without the parameters of a name; none if it has none.
#[must_use]
pub fn without_parameter(path: &str, name: &str) -> Option<String> {
    let (before, query) = path.split_once('?')?;
    let is_other = |pair: &&str| decoded(pair.split('=').next().unwrap_or_default()) != name;
    let kept: Vec<_> = query.split('&').filter(is_other).collect();
    if kept.len() == query.split('&').count() {
        return None;
    }
    Some(if kept.is_empty() { before.to_owned() } else { format!("{before}?{}", kept.join("&")) })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use http::HeaderValue;

    use super::*;

    fn found(path: &str, lines: &[(&'static str, &str)], places: &[TokenPlace]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        let head = RequestHead { method: "GET", path, authority: None, scheme: "http", headers: &headers };
        tokens(&head, places).into_iter().map(|(text, _)| text.into_owned()).collect()
    }

    #[test]
    fn each_line_of_a_header_with_the_prefix_has_a_token() {
        let place = [TokenPlace::Header { name: "x-token".parse().unwrap(), prefix: "Bearer ".into() }];
        let lines = [("x-token", "Bearer a.b.c"), ("x-token", "Basic x"), ("x-token", "x Bearer  \"d.e.f")];
        assert_eq!(found("/", &lines, &place), ["a.b.c", "d.e.f"]);
        assert_eq!(found("/", &[("x-token", "bearer a.b.c")], &place), [""; 0]);
        assert_eq!(found("/", &[("x-token", "Bearer \"")], &place), ["Bearer \""]);
        let plain = [TokenPlace::Header { name: "x-jwt".parse().unwrap(), prefix: "".into() }];
        assert_eq!(found("/", &[("x-jwt", "a.b.c")], &plain), ["a.b.c"]);
    }

    #[test]
    fn a_token_with_bytes_that_are_no_text_is_a_bad_one_and_not_none() {
        let bad = HeaderValue::from_bytes(b"Bearer a.b.c\xff").unwrap();
        let cookie = HeaderValue::from_bytes(b"session=a.b.c\xff").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, bad.clone());
        headers.insert("x-token", bad);
        headers.insert(COOKIE, cookie);
        let places = [
            TokenPlace::Header { name: AUTHORIZATION, prefix: "Bearer ".into() },
            TokenPlace::Header { name: "x-token".parse().unwrap(), prefix: "Bearer ".into() },
            TokenPlace::Cookie("session".into()),
            TokenPlace::Parameter("token".into()),
        ];
        let head = RequestHead { method: "GET", path: "/?token=a.b.c%FF", authority: None, scheme: "http", headers: &headers };
        let found = tokens(&head, &places);
        assert_eq!(found.len(), 4, "{found:?}");
        for (text, place) in found {
            assert!(super::super::token::Token::parse(&text).is_err(), "{text:?} in {place:?}");
        }
    }

    #[test]
    fn two_lines_of_authorization_are_one_that_is_no_token() {
        let place = [TokenPlace::Header { name: AUTHORIZATION, prefix: "Bearer ".into() }];
        assert_eq!(found("/", &[("authorization", "Bearer a.b.c")], &place), ["a.b.c"]);
        let two = [("authorization", "Bearer a.b.c"), ("authorization", "Bearer d.e.f")];
        assert_eq!(found("/", &two, &place), ["a.b.c,Bearer d.e.f"]);
    }

    #[test]
    fn parameters_and_cookies_are_the_first_of_their_name() {
        let parameter = [TokenPlace::Parameter("access_token".into())];
        assert_eq!(found("/?x=1&access_token=a%2Eb.c&access_token=d", &[], &parameter), ["a.b.c"]);
        assert_eq!(found("/?access_token", &[], &parameter), [""]);
        assert_eq!(found("/?access_tokens=a#?access_token=b", &[], &parameter), [""; 0]);
        let cookie = [TokenPlace::Cookie("session".into())];
        let lines = [("cookie", "a=b; session=\"t.o.k\"; session=x"), ("cookie", "session=y")];
        assert_eq!(found("/", &lines, &cookie), ["t.o.k"]);
    }

    #[test]
    fn a_parameter_is_taken_out_and_the_others_stay_as_they_are() {
        assert_eq!(without_parameter("/a?x=%41&t=1&y&t=2", "t").as_deref(), Some("/a?x=%41&y"));
        assert_eq!(without_parameter("/a?t=1", "t").as_deref(), Some("/a"));
        assert_eq!(without_parameter("/a?ta=1", "t"), None);
    }
}
