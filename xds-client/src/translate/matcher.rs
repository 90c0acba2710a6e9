//! Envoy's text, path and header matchers.

use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use http::HeaderName;
use model::matcher::StringMatcher;
use model::route::{HeaderMatcher, HeaderTest, MatchedHeader};

use super::{Problem, Translated, required};

pub(super) fn string(value: &matcher::StringMatcher, path: &str) -> Translated<StringMatcher> {
    use matcher::string_matcher::MatchPattern;
    let bytes = |text: &str| text.as_bytes().into();
    Ok(match (value.match_pattern.as_ref(), value.ignore_case) {
        (Some(MatchPattern::Exact(text)), false) => StringMatcher::Exact(bytes(text)),
        (Some(MatchPattern::Exact(text)), true) => StringMatcher::ExactIgnoreCase(bytes(text)),
        (Some(MatchPattern::Prefix(text)), false) => StringMatcher::Prefix(bytes(text)),
        (Some(MatchPattern::Prefix(text)), true) => StringMatcher::PrefixIgnoreCase(bytes(text)),
        (Some(MatchPattern::Suffix(text)), false) => StringMatcher::Suffix(bytes(text)),
        (Some(MatchPattern::Suffix(text)), true) => StringMatcher::SuffixIgnoreCase(bytes(text)),
        (Some(MatchPattern::Contains(text)), false) => StringMatcher::Contains(bytes(text)),
        (Some(MatchPattern::Contains(text)), true) => StringMatcher::ContainsIgnoreCase(bytes(text)),
        (Some(MatchPattern::SafeRegex(expression)), _) => regex(expression, path)?,
        (Some(MatchPattern::Custom(extension)), _) => {
            return Err(Problem::new(path, format!("the custom matcher {:?} is not known", extension.name)));
        }
        (None, _) => return Err(Problem::new(path, "has no pattern that is known")),
    })
}

pub(super) fn regex(value: &matcher::RegexMatcher, path: &str) -> Translated<StringMatcher> {
    StringMatcher::regex(&value.regex).map_err(|error| Problem::new(path, format!("the regular expression cannot be used: {error}")))
}

/// A path matcher of a policy.
pub(super) fn path(value: &matcher::PathMatcher, at: &str) -> Translated<StringMatcher> {
    match &value.rule {
        Some(matcher::path_matcher::Rule::Path(text)) => string(text, at),
        None => Err(Problem::new(at, "has no rule that is known")),
    }
}

pub(super) fn header_name(text: &str, path: &str) -> Translated<HeaderName> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| Problem::new(path, format!("{text:?} is no header name")))
}

fn matched_header(text: &str, path: &str) -> Translated<MatchedHeader> {
    Ok(match text.to_ascii_lowercase().as_str() {
        ":method" => MatchedHeader::Method,
        ":authority" | "host" => MatchedHeader::Authority,
        ":path" => MatchedHeader::Path,
        ":scheme" => MatchedHeader::Scheme,
        name => MatchedHeader::Name(header_name(name, path)?),
    })
}

#[expect(deprecated, reason = "istiod's older releases may still use the forms that StringMatch replaced")]
pub(super) fn header(value: &route::HeaderMatcher, path: &str) -> Translated<HeaderMatcher> {
    let text = |text: &str| text.as_bytes().into();
    let test = match value.header_match_specifier.as_ref() {
        // An empty condition means that the header is there (Envoy).
        None => HeaderTest::Present(true),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => HeaderTest::Present(*present),
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => HeaderTest::Text(string(matcher, path)?),
        Some(HeaderMatchSpecifier::ExactMatch(exact)) => HeaderTest::Text(StringMatcher::Exact(text(exact))),
        Some(HeaderMatchSpecifier::PrefixMatch(prefix)) => HeaderTest::Text(StringMatcher::Prefix(text(prefix))),
        Some(HeaderMatchSpecifier::SuffixMatch(suffix)) => HeaderTest::Text(StringMatcher::Suffix(text(suffix))),
        Some(HeaderMatchSpecifier::ContainsMatch(part)) => HeaderTest::Text(StringMatcher::Contains(text(part))),
        Some(HeaderMatchSpecifier::SafeRegexMatch(expression)) => HeaderTest::Text(regex(expression, path)?),
        Some(HeaderMatchSpecifier::RangeMatch(_)) => return Err(Problem::new(path, "range_match is not supported")),
    };
    Ok(HeaderMatcher {
        name: matched_header(&value.name, path)?,
        test,
        invert: value.invert_match,
        missing_as_empty: value.treat_missing_header_as_empty,
    })
}

/// A filter state matcher with a text condition.
pub(super) fn filter_state<'a>(value: &'a matcher::FilterStateMatcher, path: &str) -> Translated<(&'a str, StringMatcher)> {
    match required(value.matcher.as_ref(), path)? {
        matcher::filter_state_matcher::Matcher::StringMatch(text) => Ok((&value.key, string(text, path)?)),
        matcher::filter_state_matcher::Matcher::AddressMatch(_) => Err(Problem::new(path, "address_match is not supported")),
    }
}
