//! What of a request is hashed.

use envoy_types::pb::envoy::config::route::v3::route_action as proto;
use http::header;
use model::hash::{HashPolicy, HashSource, NewCookie};

use super::{Problem, Translated, duration, matcher, required, rewrite};

pub(super) fn policies(values: &[proto::HashPolicy], path: &str) -> Translated<Vec<HashPolicy>> {
    let mut policies = Vec::new();
    for (at, value) in values.iter().enumerate() {
        let path = format!("{path}.hash_policy[{at}]");
        if let Some(source) = source(value, &path)? {
            policies.push(HashPolicy { source, is_terminal: value.terminal });
        }
    }
    Ok(policies)
}

/// None: a policy that hashes nothing.
fn source(value: &proto::HashPolicy, path: &str) -> Translated<Option<HashSource>> {
    use proto::hash_policy::PolicySpecifier;
    Ok(Some(match required(value.policy_specifier.as_ref(), path)? {
        PolicySpecifier::Header(value) => {
            let name = match value.header_name.to_ascii_lowercase().as_str() {
                // A uniform request has its authority there.
                ":authority" => header::HOST,
                name => matcher::header_name(name, &format!("{path}.header"))?,
            };
            let rewrite = value.regex_rewrite.as_ref().map(|one| rewrite::substitution(one, &format!("{path}.header.regex_rewrite")));
            HashSource::Header(name, rewrite.transpose()?)
        }
        PolicySpecifier::Cookie(value) => {
            let path = format!("{path}.cookie");
            HashSource::Cookie(cookie_text(&value.name, &path)?, new_cookie(value, &path)?)
        }
        PolicySpecifier::ConnectionProperties(properties) if properties.source_ip => HashSource::SourceAddress,
        PolicySpecifier::ConnectionProperties(_) => return Ok(None),
        PolicySpecifier::QueryParameter(value) => HashSource::Query(value.name.as_str().into()),
        PolicySpecifier::FilterState(_) => return Err(Problem::new(format!("{path}.filter_state"), "is not supported")),
    }))
}

fn new_cookie(value: &proto::hash_policy::Cookie, path: &str) -> Translated<Option<NewCookie>> {
    let Some(ttl) = &value.ttl else { return Ok(None) };
    let attributes = value.attributes.iter().map(|one| {
        let value = Some(cookie_text(&one.value, path)?).filter(|value| !value.is_empty());
        Ok((cookie_text(&one.name, path)?, value))
    });
    Ok(Some(NewCookie {
        seconds: duration(ttl, &format!("{path}.ttl"))?.as_secs(),
        path: Some(cookie_text(&value.path, path)?).filter(|path| !path.is_empty()),
        attributes: attributes.collect::<Translated<_>>()?,
    }))
}

/// What may stand in `set-cookie` without ending its attribute.
fn cookie_text(text: &str, path: &str) -> Translated<Box<str>> {
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b';') {
        return Ok(text.into());
    }
    Err(Problem::new(path, format!("{text:?} cannot stand in a cookie")))
}
