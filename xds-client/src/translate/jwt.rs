//! `envoy.filters.http.jwt_authn` as istiod writes it for RequestAuthentication.
//!
//! Not for: key sets ([`crate::jwks`]). Invariant: a requirement is read whole or the chain is refused; none is dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as proto;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Uri};
use model::jwt::{
    Audiences, CLOCK_SKEW_SECONDS_DEFAULT, ClaimHeader, FetchRetries, JwtAuthn, KeySource, Provider, RemoteKeys, Requirement, Rule,
    TokenPlace,
};

use super::{Problem, Translated, duration, matcher, positive_duration, required, route};
use crate::jwks;

/// Nesting of requirements that is followed; istiod's own is 3.
const REQUIREMENT_DEPTH_MAX: usize = 16;

/// How long fetched keys are good where nothing is said, as in Envoy.
const CACHE_DURATION_DEFAULT: Duration = Duration::from_secs(600);
/// How soon keys are asked for again after a failure where nothing is said, as in Envoy.
const FAILED_PAUSE_DEFAULT: Duration = Duration::from_secs(1);
/// Pause before the first repetition of a failed request for keys where nothing is said, as in Envoy.
const BACK_OFF_DEFAULT: Duration = Duration::from_secs(1);
/// How much longer than the first the longest pause is, as in Envoy.
const BACK_OFF_GROWTH: u32 = 10;

/// Reads the filter.
pub(super) fn jwt_authn(value: &proto::JwtAuthentication, path: &str) -> Translated<JwtAuthn> {
    if value.filter_state_rules.is_some() || value.strip_failure_response {
        return Err(Problem::new(path, "filter_state_rules and strip_failure_response are not supported"));
    }
    let mut named: Vec<_> = value.providers.iter().collect();
    named.sort_unstable_by_key(|(name, _)| *name);
    let index: HashMap<&str, usize> = named.iter().enumerate().map(|(at, (name, _))| (name.as_str(), at)).collect();
    let providers = named.into_iter().map(|(name, value)| provider(name, value, &format!("{path}.providers[{name}]")));
    let providers = providers.collect::<Translated<Vec<_>>>()?;
    let rules = value.rules.iter().enumerate().map(|(at, value)| rule(value, &index, &format!("{path}.rules[{at}]")));
    let own = |provider: &Provider| {
        let payload = provider.payload_header.iter().map(|(name, _)| name.clone());
        payload.chain(provider.claim_headers.iter().map(|header| header.name.clone())).collect::<Vec<_>>()
    };
    Ok(JwtAuthn {
        rules: rules.collect::<Translated<_>>()?,
        bypass_cors_preflight: value.bypass_cors_preflight,
        own_headers: providers.iter().flat_map(own).collect(),
        providers,
    })
}

fn provider(name: &str, value: &proto::JwtProvider, path: &str) -> Translated<Provider> {
    let is_set = [
        ("subjects", value.subjects.is_some()),
        ("require_expiration", value.require_expiration),
        ("max_lifetime", value.max_lifetime.is_some()),
        ("header_in_metadata", !value.header_in_metadata.is_empty()),
        ("failed_status_in_metadata", !value.failed_status_in_metadata.is_empty()),
    ];
    if let Some((field, _)) = is_set.into_iter().find(|(_, is_set)| *is_set) {
        return Err(Problem::new(format!("{path}.{field}"), "is not supported"));
    }
    let payload_header = (!value.forward_payload_header.is_empty()).then(|| matcher::header_name(&value.forward_payload_header, path));
    let claim_headers = value.claim_to_headers.iter().map(|one| claim_header(one, path));
    Ok(Provider {
        name: name.into(),
        issuer: (!value.issuer.is_empty()).then(|| value.issuer.as_str().into()),
        audiences: Audiences::new(value.audiences.iter().map(String::as_str)),
        places: places(value, path)?,
        keys: key_source(value, path)?,
        clock_skew_seconds: match value.clock_skew_seconds {
            0 => CLOCK_SKEW_SECONDS_DEFAULT,
            seconds => u64::from(seconds),
        },
        forward: value.forward,
        payload_header: payload_header.transpose()?.map(|name| (name, value.pad_forward_payload_header)),
        claim_headers: claim_headers.collect::<Translated<_>>()?,
        metadata_name: (!value.payload_in_metadata.is_empty()).then(|| value.payload_in_metadata.as_str().into()),
        list_claims: value
            .normalize_payload_in_metadata
            .iter()
            .flat_map(|normalize| normalize.space_delimited_claims.iter().map(|claim| claim.as_str().into()))
            .collect(),
        clear_route_cache: value.clear_route_cache,
    })
}

fn key_source(value: &proto::JwtProvider, path: &str) -> Translated<KeySource> {
    use proto::jwt_provider::JwksSourceSpecifier;
    match required(value.jwks_source_specifier.as_ref(), &format!("{path}.local_jwks"))? {
        JwksSourceSpecifier::RemoteJwks(remote) => Ok(KeySource::Fetched(Arc::new(remote_keys(remote, &format!("{path}.remote_jwks"))?))),
        JwksSourceSpecifier::LocalJwks(source) => {
            let path = format!("{path}.local_jwks");
            let text = match required(source.specifier.as_ref(), &path)? {
                core::data_source::Specifier::InlineString(text) => text.as_bytes(),
                core::data_source::Specifier::InlineBytes(bytes) => &bytes[..],
                _ => return Err(Problem::new(path, "keys have to be inline")),
            };
            let keys = jwks::key_set(text).map_err(|reason| Problem::new(path, reason))?;
            Ok(KeySource::Given(Arc::new(keys)))
        }
    }
}

fn remote_keys(value: &proto::RemoteJwks, path: &str) -> Translated<RemoteKeys> {
    let http_uri = required(value.http_uri.as_ref(), &format!("{path}.http_uri"))?;
    let path = |field: &str| format!("{path}.{field}");
    let Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) = &http_uri.http_upstream_type else {
        return Err(Problem::new(path("http_uri.cluster"), "is not set"));
    };
    let (host, target) = host_and_path(&http_uri.uri).ok_or_else(|| Problem::new(path("http_uri.uri"), "is no URL"))?;
    let timeout = duration(required(http_uri.timeout.as_ref(), &path("http_uri.timeout"))?, &path("http_uri.timeout"))?;
    let cache_duration = positive_duration(value.cache_duration.as_ref(), &path("cache_duration"))?;
    let failed = value.async_fetch.as_ref().and_then(|fetch| fetch.failed_refetch_duration.as_ref());
    let failed = positive_duration(failed, &path("async_fetch.failed_refetch_duration"))?;
    Ok(RemoteKeys {
        name: shown(&http_uri.uri, &host, &target),
        cluster: cluster.as_str().into(),
        host,
        path: target,
        timeout: Some(timeout).filter(|timeout| !timeout.is_zero()),
        cache_duration: cache_duration.unwrap_or(CACHE_DURATION_DEFAULT),
        failed_pause: failed.unwrap_or(FAILED_PAUSE_DEFAULT),
        retries: value.retry_policy.as_ref().map(|policy| retries(policy, &path("retry_policy"))).transpose()?,
    })
}

/// `https://issuer.example/keys`: what is asked whom. Without a path it is `/`, without a scheme a host all the same, as in Envoy.
pub(super) fn host_and_path(text: &str) -> Option<(HeaderValue, PathAndQuery)> {
    let uri: Uri = if text.contains("://") { text.parse().ok()? } else { format!("http://{text}").parse().ok()? };
    // Whom to log in as is no part of a host.
    let authority = uri.authority()?.as_str();
    let host = HeaderValue::from_str(authority.rsplit('@').next().unwrap_or(authority)).ok()?;
    Some((host, uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))))
}

/// The URL without user and query.
fn shown(uri: &str, host: &HeaderValue, target: &PathAndQuery) -> Arc<str> {
    let scheme = uri.split_once("://").map_or("http", |(scheme, _)| scheme);
    format!("{scheme}://{}{}", String::from_utf8_lossy(host.as_bytes()), target.path()).into()
}

fn retries(value: &core::RetryPolicy, path: &str) -> Translated<FetchRetries> {
    let back_off = value.retry_back_off.as_ref();
    let base = positive_duration(back_off.and_then(|back_off| back_off.base_interval.as_ref()), &format!("{path}.base_interval"))?;
    let base = base.unwrap_or(BACK_OFF_DEFAULT);
    let max = positive_duration(back_off.and_then(|back_off| back_off.max_interval.as_ref()), &format!("{path}.max_interval"))?;
    Ok(FetchRetries {
        count: value.num_retries.as_ref().map_or(1, |count| count.value),
        pause_first: base,
        pause_max: max.unwrap_or_else(|| base.saturating_mul(BACK_OFF_GROWTH)),
    })
}

/// In Envoy's order: headers by name and prefix, parameters by name, cookies by name; each once.
fn places(value: &proto::JwtProvider, path: &str) -> Translated<Vec<TokenPlace>> {
    let mut headers = value.from_headers.iter().map(|header| Ok((matcher::header_name(&header.name, path)?, &*header.value_prefix)));
    let mut headers = headers.by_ref().collect::<Translated<Vec<(HeaderName, &str)>>>()?;
    let mut parameters: Vec<&str> = value.from_params.iter().map(String::as_str).collect();
    let mut cookies: Vec<&str> = value.from_cookies.iter().map(String::as_str).collect();
    if headers.is_empty() && parameters.is_empty() && cookies.is_empty() {
        headers.push((http::header::AUTHORIZATION, "Bearer "));
        parameters.push("access_token");
    }
    headers.sort_by_key(|(name, prefix)| format!("{name}{prefix}"));
    headers.dedup();
    for names in [&mut parameters, &mut cookies] {
        names.sort_unstable();
        names.dedup();
    }
    let headers = headers.into_iter().map(|(name, prefix)| TokenPlace::Header { name, prefix: prefix.into() });
    let parameters = parameters.into_iter().map(|name| TokenPlace::Parameter(name.into()));
    Ok(headers.chain(parameters).chain(cookies.into_iter().map(|name| TokenPlace::Cookie(name.into()))).collect())
}

fn claim_header(value: &proto::JwtClaimToHeader, path: &str) -> Translated<ClaimHeader> {
    let path = format!("{path}.claim_to_headers[{}]", value.header_name);
    if !value.claim_path.is_empty() {
        return Err(Problem::new(path, "claim_path is not supported"));
    }
    Ok(ClaimHeader { name: matcher::header_name(&value.header_name, &path)?, claim: value.claim_name.split('.').map(Box::from).collect() })
}

fn rule(value: &proto::RequirementRule, providers: &HashMap<&str, usize>, path: &str) -> Translated<Rule> {
    use proto::requirement_rule::RequirementType;
    let matches = route::route_match(required(value.r#match.as_ref(), path)?, &format!("{path}.match"))?;
    let requires = match &value.requirement_type {
        None => None,
        Some(RequirementType::Requires(requires)) => Some(requirement(requires, providers, &format!("{path}.requires"), 0)?),
        Some(RequirementType::RequirementName(_)) => return Err(Problem::new(path, "requirement_name is not supported")),
    };
    Ok(Rule { matches, requires })
}

fn requirement(value: &proto::JwtRequirement, providers: &HashMap<&str, usize>, path: &str, depth: usize) -> Translated<Requirement> {
    use proto::jwt_requirement::RequiresType;
    if depth > REQUIREMENT_DEPTH_MAX {
        return Err(Problem::new(path, "is nested too deeply"));
    }
    let index = |name: &str| providers.get(name).copied().ok_or_else(|| Problem::new(path, format!("there is no provider {name:?}")));
    let inner = |at: usize, one: &proto::JwtRequirement| requirement(one, providers, &format!("{path}[{at}]"), depth + 1);
    match required(value.requires_type.as_ref(), path)? {
        RequiresType::ProviderName(name) => Ok(Requirement::Provider { provider: index(name)?, audiences: None }),
        RequiresType::ProviderAndAudiences(both) => {
            let audiences = Audiences::new(both.audiences.iter().map(String::as_str));
            let audiences = (!both.audiences.is_empty()).then_some(audiences);
            Ok(Requirement::Provider { provider: index(&both.provider_name)?, audiences })
        }
        RequiresType::RequiresAny(any) => {
            let is_bypass = |one: &proto::JwtRequirement| matches!(one.requires_type, Some(RequiresType::AllowMissing(_)));
            let regular = any.requirements.iter().enumerate().filter(|(_, one)| !is_bypass(one));
            let of = regular.map(|(at, one)| inner(at, one)).collect::<Translated<Vec<_>>>()?;
            if of.is_empty() {
                return Err(Problem::new(path, "names no provider"));
            }
            Ok(Requirement::Any { of, allow_missing: any.requirements.iter().any(is_bypass) })
        }
        RequiresType::RequiresAll(all) if all.requirements.is_empty() => Err(Problem::new(path, "names no provider")),
        RequiresType::RequiresAll(all) => {
            let of = all.requirements.iter().enumerate().map(|(at, one)| inner(at, one));
            Ok(Requirement::All(of.collect::<Translated<_>>()?))
        }
        RequiresType::AllowMissing(_) => Err(Problem::new(path, "allow_missing alone is not supported")),
        RequiresType::AllowMissingOrFailed(_) => Err(Problem::new(path, "allow_missing_or_failed is not supported")),
        RequiresType::ExtractOnlyWithoutValidation(_) => Err(Problem::new(path, "extract_only_without_validation is not supported")),
    }
}

#[cfg(test)]
mod tests;
