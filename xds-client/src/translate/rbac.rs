//! Authorization policies: Envoy's RBAC as istiod generates it.
//!
//! Invariant: what cannot be read is a problem of the whole chain; a policy never loses a condition.

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::rbac::v3 as proto;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use model::claims::ClaimMatcher;
use model::matcher::UriTemplate;
use model::rbac::{Permission, Policy, Principal, Rbac, RbacAction};

use super::{Problem, Translated, cidr, matcher, open, port, required, type_name};

/// The filter state in which Istio keeps the identity of the HBONE client.
const PEER_PRINCIPAL: &str = "io.istio.peer_principal";
/// Nesting that is followed; istiod's own stays below 10.
const DEPTH_MAX: usize = 64;
const URI_TEMPLATE: &str = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";

/// Reads the rules of an RBAC filter.
pub(super) fn rules(value: &proto::Rbac, path: &str) -> Translated<Rbac> {
    let action = match proto::rbac::Action::try_from(value.action) {
        Ok(proto::rbac::Action::Allow) => RbacAction::Allow,
        Ok(proto::rbac::Action::Deny) => RbacAction::Deny,
        Ok(proto::rbac::Action::Log) => RbacAction::Log,
        Err(_) => return Err(Problem::new(path, format!("the action {} is not known", value.action))),
    };
    let mut named: Vec<_> = value.policies.iter().collect();
    named.sort_unstable_by_key(|(name, _)| *name);
    let policies = all(&named, |_, (name, policy)| translate_policy(name, policy, &format!("{path}.policies[{name}]")))?;
    Ok(Rbac::new(action, policies))
}

/// Each of some, in room for no more: there are as many chains as services, and most lists of conditions have one.
fn all<A, B>(values: &[A], mut one: impl FnMut(usize, &A) -> Translated<B>) -> Translated<Vec<B>> {
    let mut found = Vec::with_capacity(values.len());
    for (at, value) in values.iter().enumerate() {
        found.push(one(at, value)?);
    }
    Ok(found)
}

fn translate_policy(name: &str, value: &proto::Policy, path: &str) -> Translated<Policy> {
    if value.condition.is_some() || value.checked_condition.is_some() {
        return Err(Problem::new(path, "CEL conditions are not supported"));
    }
    let permissions = all(&value.permissions, |at, one| permission(one, &format!("{path}.permissions[{at}]"), 0))?;
    let principals = all(&value.principals, |at, one| principal(one, &format!("{path}.principals[{at}]"), 0))?;
    Ok(Policy::new(name, permissions, principals))
}

fn too_deep(path: &str) -> Problem {
    Problem::new(path, "is nested too deeply")
}

fn permission(value: &proto::Permission, path: &str, depth: usize) -> Translated<Permission> {
    use proto::permission::Rule;
    if depth > DEPTH_MAX {
        return Err(too_deep(path));
    }
    let all = |set: &proto::permission::Set| all(&set.rules, |at, one| permission(one, &format!("{path}[{at}]"), depth + 1));
    #[expect(deprecated, reason = "older releases of istiod use metadata")]
    Ok(match required(value.rule.as_ref(), path)? {
        Rule::AndRules(set) => Permission::And(all(set)?),
        Rule::OrRules(set) => Permission::Or(all(set)?),
        // `any: false` would be a condition that never holds.
        Rule::Any(true) => Permission::Any,
        Rule::Any(false) => Permission::Or(Vec::new()),
        Rule::NotRule(one) => Permission::Not(Box::new(permission(one, &format!("{path}.not"), depth + 1)?)),
        Rule::Header(one) => Permission::Header(matcher::header(one, path)?),
        Rule::UrlPath(one) => Permission::UrlPath(matcher::path(one, path)?),
        Rule::DestinationIp(range) => Permission::DestinationIp(cidr(range, path)?),
        Rule::DestinationPort(number) => Permission::DestinationPort(port(*number, path)?),
        Rule::RequestedServerName(name) => Permission::ServerName(matcher::string(name, path)?),
        Rule::DestinationPortRange(range) => Permission::DestinationPortRange(range.start..range.end),
        Rule::Metadata(one) => Permission::Claim(matcher::claim(one, path)?),
        Rule::SourcedMetadata(one) => Permission::Claim(sourced(one, path)?),
        Rule::Matcher(_) => return Err(unsupported(path, "matcher")),
        Rule::UriTemplate(extension) => Permission::UriTemplate(uri_template(extension, path)?),
    })
}

fn sourced(value: &proto::SourcedMetadata, path: &str) -> Translated<ClaimMatcher> {
    if proto::MetadataSource::try_from(value.metadata_source) != Ok(proto::MetadataSource::Dynamic) {
        return Err(unsupported(path, "metadata of routes"));
    }
    matcher::claim(required(value.metadata_matcher.as_ref(), path)?, path)
}

fn uri_template(value: &TypedExtensionConfig, path: &str) -> Translated<UriTemplate> {
    let config = required(value.typed_config.as_ref(), path)?;
    if type_name(config) != URI_TEMPLATE {
        return Err(Problem::new(path, format!("the path matcher {:?} ({}) is not known", value.name, type_name(config))));
    }
    let template = open::<UriTemplateMatchConfig>(config, path)?.path_template;
    UriTemplate::new(&template).map_err(|error| Problem::new(path, format!("the path template {template:?} {error}")))
}

fn unsupported(path: &str, what: &str) -> Problem {
    Problem::new(path, format!("{what} is not supported"))
}

fn principal(value: &proto::Principal, path: &str, depth: usize) -> Translated<Principal> {
    use proto::principal::Identifier;
    if depth > DEPTH_MAX {
        return Err(too_deep(path));
    }
    let all = |set: &proto::principal::Set| all(&set.ids, |at, one| principal(one, &format!("{path}[{at}]"), depth + 1));
    #[expect(deprecated, reason = "source_ip is named to be refused, and older releases of istiod use metadata")]
    Ok(match required(value.identifier.as_ref(), path)? {
        Identifier::AndIds(set) => Principal::And(all(set)?),
        Identifier::OrIds(set) => Principal::Or(all(set)?),
        Identifier::Any(true) => Principal::Any,
        Identifier::Any(false) => Principal::Or(Vec::new()),
        Identifier::NotId(one) => Principal::Not(Box::new(principal(one, &format!("{path}.not"), depth + 1)?)),
        Identifier::DirectRemoteIp(range) => Principal::DirectRemoteIp(cidr(range, path)?),
        Identifier::RemoteIp(range) => Principal::RemoteIp(cidr(range, path)?),
        Identifier::Header(one) => Principal::Header(matcher::header(one, path)?),
        Identifier::UrlPath(one) => Principal::UrlPath(matcher::path(one, path)?),
        Identifier::FilterState(state) => match matcher::filter_state(state, path)? {
            (PEER_PRINCIPAL, test) => Principal::PeerPrincipal(test),
            (key, _) => return Err(Problem::new(path, format!("the filter state {key:?} is not known"))),
        },
        Identifier::Authenticated(_) => return Err(unsupported(path, "authenticated")),
        Identifier::SourceIp(_) => return Err(unsupported(path, "source_ip")),
        Identifier::Metadata(one) => Principal::Claim(matcher::claim(one, path)?),
        Identifier::SourcedMetadata(one) => Principal::Claim(sourced(one, path)?),
        Identifier::Custom(_) => return Err(unsupported(path, "custom")),
    })
}

#[cfg(test)]
mod tests;
