//! Rewrites of paths and hosts, and redirects.

use envoy_types::pb::envoy::config::route::v3 as proto;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use http::HeaderValue;
use model::rewrite::{HostRewrite, PathRewrite, Redirect, RedirectPath, Rewrites, Substitution};

use super::{Problem, Translated, matcher, required};

pub(super) fn rewrites(value: &proto::RouteAction, path: &str) -> Translated<Rewrites> {
    use proto::route_action::HostRewriteSpecifier;
    let host = match value.host_rewrite_specifier.as_ref() {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(text)) if text.is_empty() => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(text)) => Some(HostRewrite::Literal(literal_host(text, path)?)),
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            Some(HostRewrite::Header(matcher::header_name(&name.to_ascii_lowercase(), &format!("{path}.host_rewrite_header"))?))
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(regex)) => {
            Some(HostRewrite::Path(substitution(regex, &format!("{path}.host_rewrite_path_regex"))?))
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(automatic)) => {
            if automatic.value {
                return Err(Problem::new(format!("{path}.auto_host_rewrite"), "is not supported"));
            }
            None
        }
        Some(HostRewriteSpecifier::HostRewrite(_)) => {
            return Err(Problem::new(format!("{path}.host_rewrite"), "is not supported"));
        }
    };
    let regex = value.regex_rewrite.as_ref().map(|regex| substitution(regex, &format!("{path}.regex_rewrite"))).transpose()?;
    Ok(Rewrites { path: of_path(&value.prefix_rewrite, regex, path)?, host, keep_host: value.append_x_forwarded_host })
}

pub(super) fn redirect(value: &proto::RedirectAction, path: &str) -> Translated<Redirect> {
    use proto::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let status = match RedirectResponseCode::try_from(value.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => 301,
        Ok(RedirectResponseCode::Found) => 302,
        Ok(RedirectResponseCode::SeeOther) => 303,
        Ok(RedirectResponseCode::TemporaryRedirect) => 307,
        Ok(RedirectResponseCode::PermanentRedirect) => 308,
        Err(_) => return Err(Problem::new(path, format!("the response_code {} is not known", value.response_code))),
    };
    let scheme = match value.scheme_rewrite_specifier.as_ref() {
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.as_str()),
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https"),
        Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
    };
    let to_path = match value.path_rewrite_specifier.as_ref() {
        None => RedirectPath::Keep,
        Some(PathRewriteSpecifier::PathRedirect(text)) if text.is_empty() => RedirectPath::Keep,
        Some(PathRewriteSpecifier::PathRedirect(text)) => RedirectPath::Full { path: text.as_str().into(), has_query: text.contains('?') },
        Some(PathRewriteSpecifier::PrefixRewrite(text)) => of_path(text, None, path)?.map_or(RedirectPath::Keep, RedirectPath::Rewrite),
        Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
            RedirectPath::Rewrite(PathRewrite::Regex(substitution(regex, &format!("{path}.regex_rewrite"))?))
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => return Err(Problem::new(format!("{path}.path_rewrite"), "is not supported")),
    };
    let whole_path = if let RedirectPath::Full { path, .. } = &to_path { path } else { "" };
    for text in [scheme.unwrap_or_default(), &value.host_redirect, whole_path] {
        HeaderValue::from_bytes(text.as_bytes()).map_err(|_| Problem::new(path, format!("{text:?} cannot be part of a location")))?;
    }
    let port = u16::try_from(value.port_redirect).map_err(|_| Problem::new(path, format!("{} is no port", value.port_redirect)))?;
    let set = |text: &str| Some(text).filter(|text| !text.is_empty()).map(Box::from);
    Ok(Redirect {
        status,
        scheme: scheme.and_then(set),
        host: set(&value.host_redirect),
        port: Some(port).filter(|port| *port != 0),
        path: to_path,
        strip_query: value.strip_query,
    })
}

/// One rewrite of the path at most; an empty text is none.
fn of_path(matched: &str, regex: Option<Substitution>, path: &str) -> Translated<Option<PathRewrite>> {
    match (matched, regex) {
        ("", None) => Ok(None),
        ("", Some(regex)) => Ok(Some(PathRewrite::Regex(regex))),
        (text, None) => Ok(Some(PathRewrite::Matched(text.into()))),
        (_, Some(_)) => Err(Problem::new(path, "there are both a prefix_rewrite and a regex_rewrite")),
    }
}

pub(super) fn substitution(value: &RegexMatchAndSubstitute, path: &str) -> Translated<Substitution> {
    let pattern = required(value.pattern.as_ref(), &format!("{path}.pattern"))?;
    Substitution::new(&pattern.regex, &value.substitution)
        .map_err(|error| Problem::new(path, format!("the substitution cannot be used: {error}")))
}

/// A host as a header's value.
pub(super) fn literal_host(text: &str, path: &str) -> Translated<HeaderValue> {
    HeaderValue::from_str(text)
        .map_err(|_| Problem::new(format!("{path}.host_rewrite_literal"), format!("{text:?} cannot be a header's value")))
}
