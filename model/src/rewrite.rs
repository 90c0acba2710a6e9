//! Rewrites and redirects: what becomes of a request's path and host, compiled.
//!
//! Not for: when they are done; `filters::{rewrite, redirect}` do them. Invariant: a substitution names no group that its expression
//! does not have, so that a rewrite cannot fail for its configuration.

use std::fmt;

use http::{HeaderName, HeaderValue};
use regex::bytes::Regex;

use crate::matcher::part_regex;

/// A piece of the text that a match is replaced with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(Box<[u8]>),
    Group(usize),
}

/// An expression and what each of its matches becomes (`RegexMatchAndSubstitute`): RE2's global replacement.
#[derive(Clone)]
pub struct Substitution {
    regex: Regex,
    pieces: Vec<Piece>,
}

impl Substitution {
    /// Compiles an RE2 expression, which may match anywhere, and RE2's substitution: `\0` to `\9` are groups, `\\` is a backslash.
    ///
    /// # Errors
    /// The expression does not parse or is too large; the substitution has another escape or names a group that is not there.
    pub fn new(expression: &str, substitution: &str) -> Result<Self, String> {
        let regex = part_regex(expression)?;
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut bytes = substitution.bytes();
        while let Some(byte) = bytes.next() {
            if byte != b'\\' {
                literal.push(byte);
                continue;
            }
            match bytes.next() {
                Some(b'\\') => literal.push(b'\\'),
                Some(digit @ b'0'..=b'9') => {
                    let group = usize::from(digit - b'0');
                    if group >= regex.captures_len() {
                        return Err(format!("the substitution names group {group}, the expression has {}", regex.captures_len() - 1));
                    }
                    if !literal.is_empty() {
                        pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
                    }
                    pieces.push(Piece::Group(group));
                }
                _ => return Err("a backslash in the substitution stands before neither a digit nor a backslash".to_owned()),
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal.into()));
        }
        Ok(Self { regex, pieces })
    }

    /// `text` with every match replaced.
    #[must_use]
    pub fn replace_all(&self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        let mut copied = 0;
        for captures in self.regex.captures_iter(text) {
            let Some(whole) = captures.get(0) else { continue };
            out.extend_from_slice(&text[copied..whole.start()]);
            for piece in &self.pieces {
                match piece {
                    Piece::Literal(literal) => out.extend_from_slice(literal),
                    // A group that took no part in the match is empty (RE2).
                    Piece::Group(group) => out.extend_from_slice(captures.get(*group).map_or(&[][..], |found| found.as_bytes())),
                }
            }
            copied = whole.end();
        }
        out.extend_from_slice(&text[copied..]);
        out
    }
}

impl fmt::Debug for Substitution {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Substitution").field("regex", &self.regex.as_str()).field("pieces", &self.pieces).finish()
    }
}

/// What becomes of a path; its query stays.
#[derive(Clone, Debug)]
pub enum PathRewrite {
    /// `prefix_rewrite`: what the route matched is replaced, which is the whole path where it matched exactly or by expression.
    Matched(Box<str>),
    /// `regex_rewrite`: matches anywhere in the path, whatever the route matched.
    Regex(Substitution),
}

/// What becomes of the host. One that turns out empty stays as it was.
#[derive(Clone, Debug)]
pub enum HostRewrite {
    /// `host_rewrite_literal`.
    Literal(HeaderValue),
    /// `host_rewrite_header`: what this header says.
    Header(HeaderName),
    /// `host_rewrite_path_regex`: made of the path.
    Path(Substitution),
}

/// Both of a route.
#[derive(Clone, Debug, Default)]
pub struct Rewrites {
    /// Of the path.
    pub path: Option<PathRewrite>,
    /// Of the host.
    pub host: Option<HostRewrite>,
    /// `append_x_forwarded_host`: the host before its rewrite is kept in `x-forwarded-host`, too.
    pub keep_host: bool,
}

/// What a redirect makes of the path.
#[derive(Clone, Debug)]
pub enum RedirectPath {
    /// Nothing.
    Keep,
    /// `path_redirect`. With a query of its own, the request's is dropped.
    Full {
        /// Path, and query if there is one.
        path: Box<str>,
        /// Whether there is one.
        has_query: bool,
    },
    /// `prefix_rewrite`, `regex_rewrite`.
    Rewrite(PathRewrite),
}

/// An answer that sends the client elsewhere.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// Its status.
    pub status: u16,
    /// `scheme_redirect`, or `https` by `https_redirect`.
    pub scheme: Option<Box<str>>,
    /// `host_redirect`.
    pub host: Option<Box<str>>,
    /// `port_redirect`.
    pub port: Option<u16>,
    /// The path.
    pub path: RedirectPath,
    /// Whether the request's query is left out.
    pub strip_query: bool,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn replaced(expression: &str, substitution: &str, text: &str) -> String {
        String::from_utf8(Substitution::new(expression, substitution).unwrap().replace_all(text.as_bytes())).unwrap()
    }

    #[test]
    fn groups_are_put_where_the_substitution_says() {
        // Envoy's documentation of `regex_rewrite`.
        assert_eq!(replaced("^/service/([^/]+)(/.*)$", "\\2/instance/\\1", "/service/foo/v1/api"), "/v1/api/instance/foo");
        assert_eq!(replaced("one", "two", "/xxx/one/yyy/one/zzz"), "/xxx/two/yyy/two/zzz");
        assert_eq!(replaced("^(.*?)one(.*)$", "\\1two\\2", "/xxx/one/yyy/one/zzz"), "/xxx/two/yyy/one/zzz");
        assert_eq!(replaced("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb"), "/aaa/yyy/bbb");
        assert_eq!(replaced("a(b)?", "<\\1\\\\\\0>", "/abc/a"), "/<b\\ab>c/<\\a>");
        assert_eq!(replaced("nowhere", "x", "/abc"), "/abc");
    }

    #[test]
    fn empty_matches_are_replaced_as_re2_does() {
        assert_eq!(replaced("a*", "x", "baac"), "xbxcx");
    }

    #[test]
    fn what_istiod_makes_of_a_prefix_replaced_by_a_slash_leaves_one_slash() {
        for (path, expected) in [("/old", "/"), ("/old/", "/"), ("/old/a/b", "/a/b")] {
            assert_eq!(replaced("^/old(/?)(.*)", "/\\2", path), expected);
        }
    }

    #[test]
    fn a_substitution_that_could_never_be_done_is_refused() {
        for (expression, substitution) in [("(a)", "\\2"), ("a", "\\x"), ("a", "a\\"), ("(a", "b")] {
            assert!(Substitution::new(expression, substitution).is_err(), "{expression} {substitution}");
        }
    }
}
