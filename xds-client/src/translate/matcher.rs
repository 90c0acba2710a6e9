//! Envoy's text, path and header matchers.

use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use http::HeaderName;
use model::claims::{ClaimMatcher, ClaimTest};
use model::matcher::StringMatcher;
use model::route::{HeaderMatcher, HeaderTest, MatchedHeader};

use super::{Problem, Translated, required};

/// Where the filter that verifies tokens keeps what they say.
const TOKEN_METADATA: &str = "envoy.filters.http.jwt_authn";
/// Nesting of a condition on a claim; istiod's own is 3.
const CLAIM_DEPTH_MAX: usize = 16;

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

pub(super) fn matched_header(text: &str, path: &str) -> Translated<MatchedHeader> {
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

/// A condition on what verified tokens say.
pub(super) fn claim(value: &matcher::MetadataMatcher, path: &str) -> Translated<ClaimMatcher> {
    use matcher::metadata_matcher::path_segment::Segment;
    if value.filter != TOKEN_METADATA {
        return Err(Problem::new(path, format!("metadata of {:?} is not known", value.filter)));
    }
    let names = value.path.iter().map(|segment| match &segment.segment {
        Some(Segment::Key(name)) => Ok(Box::from(name.as_str())),
        None => Err(Problem::new(path, "has a part of its path that is not known")),
    });
    let test = claim_test(required(value.value.as_ref(), path)?, path, 0)?;
    Ok(ClaimMatcher { path: names.collect::<Translated<_>>()?, test, invert: value.invert })
}

fn claim_test(value: &matcher::ValueMatcher, path: &str, depth: usize) -> Translated<ClaimTest> {
    use matcher::double_matcher::MatchPattern as Number;
    use matcher::value_matcher::MatchPattern;
    if depth > CLAIM_DEPTH_MAX {
        return Err(Problem::new(path, "is nested too deeply"));
    }
    Ok(match required(value.match_pattern.as_ref(), path)? {
        MatchPattern::NullMatch(_) => ClaimTest::Null,
        MatchPattern::DoubleMatch(number) => match required(number.match_pattern.as_ref(), path)? {
            Number::Exact(number) => ClaimTest::Number(*number),
            Number::Range(range) => ClaimTest::NumberIn(range.start..range.end),
        },
        MatchPattern::StringMatch(text) => ClaimTest::Text(string(text, path)?),
        MatchPattern::BoolMatch(value) => ClaimTest::Bool(*value),
        MatchPattern::PresentMatch(true) => ClaimTest::Present,
        MatchPattern::PresentMatch(false) => ClaimTest::Never,
        MatchPattern::ListMatch(list) => {
            let matcher::list_matcher::MatchPattern::OneOf(one) = required(list.match_pattern.as_ref(), path)?;
            ClaimTest::OneOf(Box::new(claim_test(one, path, depth + 1)?))
        }
        MatchPattern::OrMatch(any) => {
            let tests = any.value_matchers.iter().map(|one| claim_test(one, path, depth + 1));
            ClaimTest::Or(tests.collect::<Translated<_>>()?)
        }
    })
}
