//! Limits on the rate of requests, of a chain and of routes, and what makes the descriptors by which some have limits of their own.

use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as route_proto;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::{ActionSpecifier, HeaderValueMatch, QueryParameterValueMatch};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::{
    LocalRateLimitDescriptor, VhRateLimitsOptions, XRateLimitHeadersRfcVersion,
};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::r#type::v3 as type_proto;
use model::fraction::Fraction;
use model::rate_limit::descriptors::{Absent, Action, DescriptorLimit, Rule, WantedEntry};
use model::rate_limit::{RateLimit, TokenBucket};

use super::{Problem, Translated, duration, is_on, matcher, required, route, route_filters};

/// Envoy's answer where a limit names none, or none of an error.
const TOO_MANY_REQUESTS: u16 = 429;
const RESOURCE_EXHAUSTED: u32 = 8;
/// How many values of a descriptor that leaves one open have buckets, where a limit does not say; Envoy's default.
pub const OPEN_VALUES_DEFAULT: u32 = 20;
/// How many values a limit may say.
pub const OPEN_VALUES_MAX: u32 = 4096;

/// A limit, and how its descriptors are made.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    limit: Arc<RateLimit>,
    /// Those of its own, which count instead of all others.
    own: Arc<[route_proto::RateLimit]>,
    stage: u32,
    of_host: VhRateLimitsOptions,
}

/// What a route that forwards says of descriptors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    pub(super) route: &'a [route_proto::RateLimit],
    pub(super) host: &'a [route_proto::RateLimit],
    /// Those of the host as well.
    pub(super) includes_host: bool,
    /// Its only cluster.
    pub(super) cluster: Option<&'a str>,
}

/// A limit; none without tokens, which a chain may have for its routes' sake.
pub(super) fn limit(value: &LocalRateLimit, path: &str) -> Translated<Option<Limit>> {
    let of_host = VhRateLimitsOptions::try_from(value.vh_rate_limits)
        .map_err(|_| Problem::new(format!("{path}.vh_rate_limits"), format!("{} is not known", value.vh_rate_limits)))?;
    let limit = rate_limit(value, path)?.map(Arc::new);
    Ok(limit.map(|limit| Limit { limit, own: value.rate_limits.clone().into(), stage: value.stage, of_host }))
}

impl Limit {
    /// The limit itself.
    pub(super) fn limit(&self) -> Arc<RateLimit> {
        Arc::clone(&self.limit)
    }

    /// What makes descriptors of requests on a route, or of those without one.
    pub(super) fn rules(&self, said: Option<Said<'_>>, path: &str) -> Translated<Arc<[Rule]>> {
        let cluster = said.map(|said| said.cluster);
        let mut rules = Vec::new();
        if self.limit.descriptors.is_empty() {
            return Ok(rules.into());
        }
        if !self.own.is_empty() {
            let path = format!("{path}.rate_limits");
            return self.own.iter().map(|one| rule(one, cluster, &path)).collect();
        }
        let Some(said) = said else { return Ok(rules.into()) };
        let takes_host = match self.of_host {
            _ if said.includes_host => true,
            VhRateLimitsOptions::Include => true,
            VhRateLimitsOptions::Override => said.route.is_empty(),
            VhRateLimitsOptions::Ignore => false,
        };
        let host = if takes_host { said.host } else { &[] };
        for one in said.route.iter().chain(host) {
            let stage = one.stage.as_ref().map_or(0, |stage| stage.value);
            // There is no runtime that could have the key; Envoy leaves such out.
            if stage == self.stage && one.disable_key.is_empty() {
                rules.push(rule(one, cluster, &format!("{path}.rate_limits"))?);
            }
        }
        Ok(rules.into())
    }
}

fn rate_limit(value: &LocalRateLimit, path: &str) -> Translated<Option<RateLimit>> {
    if value.local_rate_limit_per_downstream_connection || value.local_cluster_rate_limit.is_some() {
        return Err(Problem::new(path, "limits by connection and limits of the cluster are not supported"));
    }
    let Some(tokens) = &value.token_bucket else {
        if value.descriptors.is_empty() {
            return Ok(None);
        }
        return Err(Problem::new(format!("{path}.token_bucket"), "is not set, and there are descriptors"));
    };
    let share = |value: Option<&_>| value.map_or(Fraction::NONE, route_filters::runtime_fraction);
    let status = value.status.as_ref().and_then(|status| u16::try_from(status.code).ok()).filter(|code| (400..600).contains(code));
    Ok(Some(RateLimit {
        bucket: bucket(tokens, &format!("{path}.token_bucket"))?,
        descriptors: descriptors(value, path)?,
        always_asks_for_all: is_on(value.always_consume_default_token_bucket.as_ref()),
        enabled: share(value.filter_enabled.as_ref()),
        enforced: share(value.filter_enforced.as_ref()),
        status: status.unwrap_or(TOO_MANY_REQUESTS),
        grpc_status: value.rate_limited_as_resource_exhausted.then_some(RESOURCE_EXHAUSTED),
        refusal_headers: route::edits(&value.response_headers_to_add, &[], path)?,
        request_headers: route::edits(&value.request_headers_to_add_when_not_enforced, &[], path)?,
        tells: value.enable_x_ratelimit_headers == i32::from(XRateLimitHeadersRfcVersion::DraftVersion03),
    }))
}

fn bucket(value: &type_proto::TokenBucket, path: &str) -> Translated<TokenBucket> {
    let at = format!("{path}.fill_interval");
    let interval = duration(required(value.fill_interval.as_ref(), &at)?, &at)?;
    if interval < TokenBucket::FILL_INTERVAL_MIN {
        return Err(Problem::new(at, "is below 50 ms"));
    }
    let per_fill = value.tokens_per_fill.as_ref().map_or(1, |tokens| tokens.value);
    TokenBucket::new(value.max_tokens, per_fill, interval).ok_or_else(|| Problem::new(path, "would never hold or get a token"))
}

fn descriptors(value: &LocalRateLimit, path: &str) -> Translated<Box<[DescriptorLimit]>> {
    let values_max = value.max_dynamic_descriptors.as_ref().map_or(OPEN_VALUES_DEFAULT, |max| max.value);
    if values_max > OPEN_VALUES_MAX {
        return Err(Problem::new(format!("{path}.max_dynamic_descriptors"), format!("is above {OPEN_VALUES_MAX}")));
    }
    let values_max = usize::try_from(values_max).expect("32 bits fit");
    let mut all: Vec<DescriptorLimit> = Vec::new();
    for (at, one) in value.descriptors.iter().enumerate() {
        let path = format!("{path}.descriptors[{at}]");
        let limit = descriptor(one, values_max, &path)?;
        if all.iter().any(|known| known.is_for_the_same_as(&limit)) {
            return Err(Problem::new(path, "has the same entries as another"));
        }
        all.push(limit);
    }
    Ok(all.into())
}

fn descriptor(value: &LocalRateLimitDescriptor, values_max: usize, path: &str) -> Translated<DescriptorLimit> {
    let entries = value
        .entries
        .iter()
        .map(|entry| WantedEntry { key: entry.key.as_str().into(), value: (!entry.value.is_empty()).then(|| entry.value.as_str().into()) });
    let at = format!("{path}.token_bucket");
    let bucket = bucket(required(value.token_bucket.as_ref(), &at)?, &at)?;
    Ok(DescriptorLimit::new(entries.collect(), bucket, values_max))
}

/// `cluster`: none without a route, and none of one that has several.
fn rule(value: &route_proto::RateLimit, cluster: Option<Option<&str>>, path: &str) -> Translated<Rule> {
    let actions = value.actions.iter().enumerate().map(|(at, one)| {
        let path = format!("{path}.actions[{at}]");
        action(required(one.action_specifier.as_ref(), &path)?, cluster, &path)
    });
    Ok(Rule(actions.collect::<Translated<_>>()?))
}

fn action(value: &ActionSpecifier, cluster: Option<Option<&str>>, path: &str) -> Translated<Action> {
    let absent = |is_skipped: bool| if is_skipped { Absent::IsSkipped } else { Absent::Fails };
    let key = |text: &str, default: &str| if text.is_empty() { default.into() } else { text.into() };
    Ok(match value {
        ActionSpecifier::DestinationCluster(_) => match cluster {
            Some(Some(name)) => Action::Fixed("destination_cluster".into(), name.into()),
            None => Action::Nothing,
            Some(None) => return Err(Problem::new(path, "which of several clusters it will be is not known yet")),
        },
        ActionSpecifier::RequestHeaders(one) => {
            Action::Header(one.descriptor_key.as_str().into(), matcher::matched_header(&one.header_name, path)?, absent(one.skip_if_absent))
        }
        ActionSpecifier::QueryParameters(one) => {
            Action::Query(one.descriptor_key.as_str().into(), one.query_parameter_name.as_str().into(), absent(one.skip_if_absent))
        }
        ActionSpecifier::RemoteAddress(_) => Action::RemoteAddress,
        ActionSpecifier::MaskedRemoteAddress(one) => {
            let bits = |value: Option<u32>, max: u8| {
                let bits = u8::try_from(value.unwrap_or(max.into())).ok().filter(|bits| *bits <= max);
                bits.ok_or_else(|| Problem::new(path, format!("masks more than {max} bits")))
            };
            let (v4, v6) = (one.v4_prefix_mask_len.as_ref(), one.v6_prefix_mask_len.as_ref());
            Action::MaskedAddress(bits(v4.map(|bits| bits.value), 32)?, bits(v6.map(|bits| bits.value), 128)?)
        }
        ActionSpecifier::GenericKey(one) => Action::Fixed(key(&one.descriptor_key, "generic_key"), one.descriptor_value.as_str().into()),
        ActionSpecifier::HeaderValueMatch(one) => header_match(one, key(&one.descriptor_key, "header_match"), path)?,
        ActionSpecifier::QueryParameterValueMatch(one) => query_match(one, key(&one.descriptor_key, "query_match"), path)?,
        _ => return Err(Problem::new(path, "this kind of action is not supported")),
    })
}

fn header_match(value: &HeaderValueMatch, key: Box<str>, path: &str) -> Translated<Action> {
    let headers = value.headers.iter().enumerate().map(|(at, one)| matcher::header(one, &format!("{path}.headers[{at}]")));
    let headers = headers.collect::<Translated<_>>()?;
    Ok(Action::HeaderMatch(key, value.descriptor_value.as_str().into(), is_on(value.expect_match.as_ref()), headers))
}

fn query_match(value: &QueryParameterValueMatch, key: Box<str>, path: &str) -> Translated<Action> {
    let parameters = value.query_parameters.iter().map(|one| route::query(one, &format!("{path}.query_parameters[{}]", one.name)));
    let parameters = parameters.collect::<Translated<_>>()?;
    Ok(Action::QueryMatch(key, value.descriptor_value.as_str().into(), is_on(value.expect_match.as_ref()), parameters))
}
