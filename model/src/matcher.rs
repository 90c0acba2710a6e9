//! Matching of single texts and of headers: what `envoy.type.matcher.v3.StringMatcher` means, compiled once.
//!
//! Not for: which text is matched; routes and policies decide that.
//! Invariant: a regular expression matches the whole text (RE2 full match) and means what RE2 means by it; its compiled size is bounded.

mod beginning;
mod glob;
mod re2;
mod uri_template;

use http::HeaderName;
use regex::bytes::{Regex, RegexBuilder};

pub use self::glob::{Globs, Identities};
pub use self::uri_template::UriTemplate;

/// Compiled size above which an expression is refused: bounds memory and time for hostile configuration.
pub const REGEX_BYTES_MAX: usize = 1 << 20;

/// A text and how it is to be found.
#[derive(Clone, Debug)]
pub enum StringMatcher {
    /// The whole text.
    Exact(Box<[u8]>),
    /// Its beginning.
    Prefix(Box<[u8]>),
    /// Its end.
    Suffix(Box<[u8]>),
    /// Anywhere in it.
    Contains(Box<[u8]>),
    /// The whole text, letters of either case alike (ASCII).
    ExactIgnoreCase(Box<[u8]>),
    /// Its beginning, letters of either case alike.
    PrefixIgnoreCase(Box<[u8]>),
    /// Its end, letters of either case alike.
    SuffixIgnoreCase(Box<[u8]>),
    /// Anywhere in it, letters of either case alike. Kept in lower case.
    ContainsIgnoreCase(Box<[u8]>),
    /// The whole text matches an expression that is text with gaps.
    Globs(Globs),
    /// The whole text matches the expression.
    Regex(Regex),
}

impl PartialEq for StringMatcher {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(one), Self::Exact(other))
            | (Self::Prefix(one), Self::Prefix(other))
            | (Self::Suffix(one), Self::Suffix(other))
            | (Self::Contains(one), Self::Contains(other))
            | (Self::ExactIgnoreCase(one), Self::ExactIgnoreCase(other))
            | (Self::PrefixIgnoreCase(one), Self::PrefixIgnoreCase(other))
            | (Self::SuffixIgnoreCase(one), Self::SuffixIgnoreCase(other))
            | (Self::ContainsIgnoreCase(one), Self::ContainsIgnoreCase(other)) => one == other,
            (Self::Globs(one), Self::Globs(other)) => one == other,
            (Self::Regex(one), Self::Regex(other)) => one.as_str() == other.as_str(),
            _ => false,
        }
    }
}

impl Eq for StringMatcher {}

impl StringMatcher {
    /// Compiles an RE2 expression that must match the whole text.
    ///
    /// # Errors
    /// The expression does not parse or is larger than [`REGEX_BYTES_MAX`]; the text says which.
    pub fn regex(expression: &str) -> Result<Self, String> {
        Globs::of(expression).map_or_else(|| full_regex(expression).map(Self::Regex), |globs| Ok(Self::Globs(globs)))
    }

    /// Whether `text` matches.
    #[must_use]
    pub fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *text,
            Self::Prefix(wanted) => text.starts_with(wanted),
            Self::Suffix(wanted) => text.ends_with(wanted),
            Self::Contains(wanted) => contains(text, wanted, |a, b| a == b),
            Self::ExactIgnoreCase(wanted) => text.eq_ignore_ascii_case(wanted),
            Self::PrefixIgnoreCase(wanted) => text.get(..wanted.len()).is_some_and(|head| head.eq_ignore_ascii_case(wanted)),
            Self::SuffixIgnoreCase(wanted) => {
                text.len().checked_sub(wanted.len()).is_some_and(|at| text[at..].eq_ignore_ascii_case(wanted))
            }
            Self::ContainsIgnoreCase(wanted) => contains(text, wanted, |a, b| a.eq_ignore_ascii_case(b)),
            Self::Globs(globs) => globs.matches(text),
            Self::Regex(regex) => regex.is_match(text),
        }
    }

    /// What every text that matches begins with; empty if nothing is known to be. Not for the hot path.
    #[must_use]
    pub fn beginning(&self) -> Vec<u8> {
        match self {
            Self::Exact(text) | Self::Prefix(text) => text.to_vec(),
            Self::Globs(globs) => globs.beginning(),
            Self::Regex(regex) => beginning::of(regex.as_str()),
            Self::Suffix(_)
            | Self::Contains(_)
            | Self::ExactIgnoreCase(_)
            | Self::PrefixIgnoreCase(_)
            | Self::SuffixIgnoreCase(_)
            | Self::ContainsIgnoreCase(_) => Vec::new(),
        }
    }
}

/// Compiles an RE2 expression for full matches.
///
/// # Errors
/// As [`StringMatcher::regex`].
pub fn full_regex(expression: &str) -> Result<Regex, String> {
    // Translated alone first, so that an unbalanced parenthesis cannot escape the anchors.
    built(&format!("^(?:{})$", re2::translated(expression)?))
}

/// Compiles an RE2 expression that may match anywhere in a text.
///
/// # Errors
/// As [`StringMatcher::regex`].
pub fn part_regex(expression: &str) -> Result<Regex, String> {
    built(&re2::translated(expression)?)
}

fn built(translated: &str) -> Result<Regex, String> {
    let builder = RegexBuilder::new(translated).size_limit(REGEX_BYTES_MAX).dfa_size_limit(REGEX_BYTES_MAX).build();
    builder.map_err(|error| error.to_string())
}

fn contains(text: &[u8], wanted: &[u8], equal: impl Fn(&[u8], &[u8]) -> bool) -> bool {
    wanted.is_empty() || text.windows(wanted.len()).any(|window| equal(window, wanted))
}

/// What a header or pseudo-header must look like.
#[derive(Clone, Debug)]
pub enum HeaderTest {
    /// It is there (or, false, it is not).
    Present(bool),
    /// Its value matches; several lines are joined by commas, as Envoy does.
    Text(StringMatcher),
}

/// A header's name in a match, pseudo-headers included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MatchedHeader {
    /// `:method`.
    Method,
    /// `:authority`, or `host`.
    Authority,
    /// `:path`.
    Path,
    /// `:scheme`.
    Scheme,
    /// Any other.
    Name(HeaderName),
}

/// One header condition.
#[derive(Clone, Debug)]
pub struct HeaderMatcher {
    /// Which header.
    pub name: MatchedHeader,
    /// The condition.
    pub test: HeaderTest,
    /// The opposite of it.
    pub invert: bool,
    /// A missing header counts as an empty one.
    pub missing_as_empty: bool,
}

/// One query parameter condition; the first of equal names counts.
#[derive(Clone, Debug)]
pub struct QueryMatcher {
    /// The parameter.
    pub name: Box<str>,
    /// Its value; none means that it only has to be there.
    pub value: Option<StringMatcher>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matches_of_an_expression_begin_with_is_known_and_never_too_much() {
        for (expression, beginning) in [
            ("/api/v1/[0-9]+", "/api/v1/"),
            ("/api/(v1|v2)/x", "/api/v"),
            ("/a(/b)(?:/c)d?", "/a/b/c"),
            ("/literal", "/literal"),
            ("/text.*", "/text"),
            ("/text(/.+)?", "/text"),
            ("/a\\.b.+/c", "/a.b"),
            ("^/a/[a-z]$", "/a/"),
            ("(?i)/api/x", "/"),
            ("/a|/b", "/"),
            ("/ab?c", "/a"),
            ("(/a)*", ""),
            (".*/x", ""),
            ("a|b", ""),
            ("", ""),
        ] {
            let found = StringMatcher::regex(expression).expect("parses").beginning();
            assert!(beginning.as_bytes().starts_with(&found), "{expression}: {}", String::from_utf8_lossy(&found));
            assert_eq!(String::from_utf8_lossy(&found), beginning, "{expression}");
        }
    }

    #[test]
    fn an_expression_must_match_the_whole_text() {
        let matcher = StringMatcher::regex("beta-[0-9]+|gamma").expect("parses");
        assert!(matcher.matches(b"beta-7") && matcher.matches(b"gamma"));
        assert!(!matcher.matches(b"beta-7x") && !matcher.matches(b"xgamma") && !matcher.matches(b"gamma\n"));
    }

    #[test]
    fn an_expression_that_leaves_its_group_or_is_too_large_is_refused() {
        assert!(StringMatcher::regex("a)(b").is_err());
        assert!(StringMatcher::regex("((a{200}){200}){20}").is_err());
    }

    #[test]
    fn case_is_ignored_only_where_asked() {
        assert!(StringMatcher::ExactIgnoreCase((*b"Web").into()).matches(b"wEB"));
        assert!(!StringMatcher::Exact((*b"Web").into()).matches(b"web"));
        assert!(StringMatcher::SuffixIgnoreCase((*b".Example").into()).matches(b"a.eXample"));
        assert!(!StringMatcher::SuffixIgnoreCase((*b".Example").into()).matches(b"e"));
        assert!(StringMatcher::ContainsIgnoreCase((*b"bc").into()).matches(b"aBCd"));
        assert!(StringMatcher::PrefixIgnoreCase((*b"ab").into()).matches(b"ABc"));
    }
}
