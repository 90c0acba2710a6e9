//! Inline routes: matches, clusters, time limits, retries, header changes.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as proto;
use envoy_types::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use http::{HeaderName, HeaderValue};
use model::format::TextFormat;
use model::headers::{AppendAction, HeaderAdd, HeaderEdits};
use model::matcher::StringMatcher;
use model::retry::{BACK_OFF_BASE_DEFAULT, BACK_OFF_FACTOR, RESET_LONGEST_DEFAULT, ResetFormat, ResetHeader, RetryOn, RetryPolicy};
use model::route::{
    ClusterChoice, DirectResponse, Forward, Operation, PathMatcher, Priority, QueryMatcher, Route, RouteAction, RouteMatch, WeightedCluster,
};
use model::route_table::{Domain, RouteTable, VirtualHost};
use model::subset::Labels;
use model::upgrade::Upgrades;

use super::rate_limit::Said;
use super::route_filters::{Configs, Slots};
use super::{Problem, Translated, hash, is_on, matcher, mirror, positive_duration, required, rewrite, subset, timeout, turns};

/// What routes inherit from those that hold them, nearest first.
struct Outer<'a> {
    slots: &'a Slots,
    configs: Vec<&'a Configs>,
    mirrors: [&'a [RequestMirrorPolicy]; 2],
    retry: Option<&'a proto::RetryPolicy>,
    limits: &'a [proto::RateLimit],
    headers: Levels,
}

/// Changes to requests and answers, of what is nearest first.
#[derive(Clone, Debug, Default)]
struct Levels {
    request: Vec<Arc<HeaderEdits>>,
    response: Vec<Arc<HeaderEdits>>,
    /// `most_specific_header_mutations_wins`: what is nearest is changed last.
    nearest_last: bool,
}

type Edits = Box<[Arc<HeaderEdits>]>;

impl Levels {
    /// What stands within what these are of.
    fn within(&self, request: HeaderEdits, response: HeaderEdits) -> Self {
        let before = |own: HeaderEdits, outer: &[Arc<HeaderEdits>]| {
            let own = Some(own).filter(|own| !own.is_empty()).map(Arc::new);
            own.into_iter().chain(outer.iter().cloned()).collect()
        };
        Self { request: before(request, &self.request), response: before(response, &self.response), nearest_last: self.nearest_last }
    }

    /// In the order in which they are made.
    fn finish(self) -> (Edits, Edits) {
        let ordered = |mut levels: Vec<Arc<HeaderEdits>>| {
            if self.nearest_last {
                levels.reverse();
            }
            levels.into()
        };
        (ordered(self.request), ordered(self.response))
    }
}

pub(super) fn table(value: &proto::RouteConfiguration, slots: &Slots, path: &str) -> Translated<RouteTable> {
    let all = Levels { nearest_last: value.most_specific_header_mutations_wins, ..Levels::default() }.within(
        edits(&value.request_headers_to_add, &value.request_headers_to_remove, path)?,
        edits(&value.response_headers_to_add, &value.response_headers_to_remove, path)?,
    );
    let hosts = value.virtual_hosts.iter().map(|host| {
        let path = format!("{path}.virtual_hosts[{}]", host.name);
        let configs = vec![&host.typed_per_filter_config, &value.typed_per_filter_config];
        let headers = all.within(
            edits(&host.request_headers_to_add, &host.request_headers_to_remove, &path)?,
            edits(&host.response_headers_to_add, &host.response_headers_to_remove, &path)?,
        );
        let mirrors: [&[_]; 2] = [&host.request_mirror_policies, &value.request_mirror_policies];
        let outer = Outer { slots, configs, mirrors, retry: host.retry_policy.as_ref(), limits: &host.rate_limits, headers };
        virtual_host(host, &outer, &path)
    });
    Ok(RouteTable { name: value.name.as_str().into(), virtual_hosts: hosts.collect::<Translated<_>>()? })
}

fn virtual_host(value: &proto::VirtualHost, outer: &Outer<'_>, path: &str) -> Translated<VirtualHost> {
    let routes = value.routes.iter().enumerate().map(|(at, one)| {
        let name = if one.name.is_empty() { at.to_string() } else { one.name.clone() };
        route(one, outer, &format!("{path}.routes[{name}]")).map(Arc::new)
    });
    Ok(VirtualHost {
        name: value.name.as_str().into(),
        domains: value.domains.iter().map(|text| domain(text)).collect(),
        routes: routes.collect::<Translated<_>>()?,
    })
}

fn domain(text: &str) -> Domain {
    let text = text.to_ascii_lowercase();
    match (text.as_str(), text.strip_prefix('*'), text.strip_suffix('*')) {
        ("*", ..) => Domain::Any,
        (_, Some(suffix), _) => Domain::Suffix(suffix.into()),
        (_, None, Some(prefix)) => Domain::Prefix(prefix.into()),
        (exact, None, None) => Domain::Exact(exact.into()),
    }
}

fn route(value: &proto::Route, outer: &Outer<'_>, path: &str) -> Translated<Route> {
    use proto::route::Action;
    let headers = outer.headers.within(
        edits(&value.request_headers_to_add, &value.request_headers_to_remove, path)?,
        edits(&value.response_headers_to_add, &value.response_headers_to_remove, path)?,
    );
    let action = match required(value.action.as_ref(), &format!("{path}.action"))? {
        Action::Route(action) => RouteAction::Forward(Box::new(forward(action, (outer, &headers), path)?)),
        Action::DirectResponse(direct) => RouteAction::Direct(direct_response(direct, path)?),
        Action::Redirect(redirect) => RouteAction::Redirect(Box::new(rewrite::redirect(redirect, &format!("{path}.redirect"))?)),
        Action::FilterAction(_) | Action::NonForwardingAction(_) => return Err(Problem::new(path, "this kind of action is not supported")),
    };
    let levels: Vec<_> = std::iter::once(&value.typed_per_filter_config).chain(outer.configs.iter().copied()).collect();
    let said = match (&value.action, &action) {
        (Some(Action::Route(of)), RouteAction::Forward(forward)) => Some(Said {
            route: &of.rate_limits,
            host: outer.limits,
            includes_host: includes_host(of),
            cluster: match &forward.clusters {
                ClusterChoice::One(name) => Some(name),
                ClusterChoice::Weighted(..) => None,
            },
        }),
        _ => None,
    };
    let (first_filters, filters) = outer.slots.filters(&levels, said, path)?;
    let (request_headers, response_headers) = headers.finish();
    Ok(Route {
        name: Some(value.name.as_str()).filter(|name| !name.is_empty()).map(Arc::from),
        matches: route_match(required(value.r#match.as_ref(), &format!("{path}.match"))?, &format!("{path}.match"))?,
        external: outer.slots.external(&levels, path)?,
        first_filters,
        filters,
        action,
        request_headers,
        response_headers,
        operation: value.decorator.as_ref().map(|decorator| operation(decorator, path)).transpose()?.flatten(),
    })
}

fn includes_host(action: &proto::RouteAction) -> bool {
    #[expect(deprecated, reason = "configurations may still set it")]
    let includes = action.include_vh_rate_limits.as_ref();
    includes.is_some_and(|includes| includes.value)
}

fn operation(value: &proto::Decorator, path: &str) -> Translated<Option<Operation>> {
    if value.operation.is_empty() {
        return Ok(None);
    }
    let header = HeaderValue::from_str(&value.operation)
        .map_err(|_| Problem::new(format!("{path}.decorator"), format!("{:?} cannot be a header's value", value.operation)))?;
    Ok(Some(Operation { name: value.operation.as_str().into(), header }))
}

fn direct_response(value: &proto::DirectResponseAction, path: &str) -> Translated<DirectResponse> {
    use core::data_source::Specifier;
    let status = u16::try_from(value.status).ok().filter(|status| (200..600).contains(status));
    let status = status.ok_or_else(|| Problem::new(path, format!("{} is no status", value.status)))?;
    let body = match value.body.as_ref().and_then(|body| body.specifier.as_ref()) {
        None => Vec::new(),
        Some(Specifier::InlineString(text)) => text.clone().into_bytes(),
        Some(Specifier::InlineBytes(bytes)) => bytes.clone(),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => return Err(Problem::new(path, "the body has to be inline")),
    };
    Ok(DirectResponse { status, body: body.into() })
}

pub(super) fn route_match(value: &proto::RouteMatch, path: &str) -> Translated<RouteMatch> {
    use proto::route_match::PathSpecifier;
    let matched = match required(value.path_specifier.as_ref(), path)? {
        PathSpecifier::Prefix(text) => PathMatcher::Prefix(text.as_str().into()),
        PathSpecifier::Path(text) => PathMatcher::Exact(text.as_str().into()),
        PathSpecifier::PathSeparatedPrefix(text) => PathMatcher::SeparatedPrefix(text.as_str().into()),
        PathSpecifier::SafeRegex(expression) => PathMatcher::Regex(matcher::regex(expression, path)?),
        PathSpecifier::ConnectMatcher(_) => return Err(Problem::new(path, "connect_matcher is not supported here")),
        PathSpecifier::PathMatchPolicy(_) => return Err(Problem::new(path, "path_match_policy is not supported")),
    };
    let headers = value.headers.iter().enumerate().map(|(at, one)| matcher::header(one, &format!("{path}.headers[{at}]")));
    let claims = value.dynamic_metadata.iter().enumerate().map(|(at, one)| matcher::claim(one, &format!("{path}.dynamic_metadata[{at}]")));
    let query = value.query_parameters.iter().map(|one| query(one, &format!("{path}.query_parameters[{}]", one.name)));
    Ok(RouteMatch {
        path: matched,
        case_sensitive: value.case_sensitive.as_ref().is_none_or(|sensitive| sensitive.value),
        headers: headers.collect::<Translated<_>>()?,
        query: query.collect::<Translated<_>>()?,
        grpc_only: value.grpc.is_some(),
        claims: claims.collect::<Translated<_>>()?,
    })
}

pub(super) fn query(value: &proto::QueryParameterMatcher, path: &str) -> Translated<QueryMatcher> {
    use proto::query_parameter_matcher::QueryParameterMatchSpecifier;
    let test: Option<StringMatcher> = match value.query_parameter_match_specifier.as_ref() {
        None | Some(QueryParameterMatchSpecifier::PresentMatch(true)) => None,
        Some(QueryParameterMatchSpecifier::StringMatch(text)) => Some(matcher::string(text, path)?),
        Some(QueryParameterMatchSpecifier::PresentMatch(false)) => return Err(Problem::new(path, "present_match: false is not supported")),
    };
    Ok(QueryMatcher { name: value.name.as_str().into(), value: test })
}

fn forward(value: &proto::RouteAction, (outer, headers): (&Outer<'_>, &Levels), path: &str) -> Translated<Forward> {
    use proto::route_action::{ClusterNotFoundResponseCode, ClusterSpecifier};
    let subset = subset::labels_in(value.metadata_match.as_ref());
    let clusters = match required(value.cluster_specifier.as_ref(), &format!("{path}.route"))? {
        ClusterSpecifier::Cluster(name) => ClusterChoice::One(name.as_str().into()),
        ClusterSpecifier::WeightedClusters(weighted) => {
            weighted_clusters(weighted, (headers, &subset), &format!("{path}.weighted_clusters"))?
        }
        _ => return Err(Problem::new(format!("{path}.route"), "only cluster and weighted_clusters are supported")),
    };
    let status = match ClusterNotFoundResponseCode::try_from(value.cluster_not_found_response_code) {
        Ok(ClusterNotFoundResponseCode::ServiceUnavailable) => 503,
        Ok(ClusterNotFoundResponseCode::NotFound) => 404,
        Ok(ClusterNotFoundResponseCode::InternalServerError) => 500,
        Err(_) => return Err(Problem::new(path, "the cluster_not_found_response_code is not known")),
    };
    let retry = value.retry_policy.as_ref().or(outer.retry);
    let retry = retry.map(|policy| retry_policy(policy, &format!("{path}.retry_policy"))).transpose()?;
    // The nearest level that has any counts (Envoy).
    let mirrors = std::iter::once(&value.request_mirror_policies[..]).chain(outer.mirrors).find(|policies| !policies.is_empty());
    let mirrors = mirror::mirrors(mirrors.unwrap_or_default(), path)?;
    let (timeouts, rewrites) = (timeout::route(value, path)?, rewrite::rewrites(value, path)?);
    let priority = match core::RoutingPriority::try_from(value.priority) {
        Ok(core::RoutingPriority::Default) => Priority::Default,
        Ok(core::RoutingPriority::High) => Priority::High,
        Err(_) => return Err(Problem::new(format!("{path}.priority"), format!("{} is not known", value.priority))),
    };
    let hash = hash::policies(&value.hash_policy, path)?;
    let upgrades = Upgrades::new(value.upgrade_configs.iter().map(|one| (one.upgrade_type.as_str().into(), is_on(one.enabled.as_ref()))));
    Ok(Forward { clusters, subset, cluster_not_found_status: status, timeouts, retry, rewrites, priority, mirrors, hash, upgrades })
}

fn weighted_clusters(value: &proto::WeightedCluster, (route, subset): (&Levels, &Labels), path: &str) -> Translated<ClusterChoice> {
    use proto::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    let shares = value.clusters.iter().map(|one| {
        let path = format!("{path}[{}]", one.name);
        if one.name.is_empty() || !one.typed_per_filter_config.is_empty() {
            return Err(Problem::new(path, "only a name, a weight, a host and header changes are supported"));
        }
        let host = match &one.host_rewrite_specifier {
            None => None,
            Some(HostRewriteSpecifier::HostRewriteLiteral(text)) => Some(rewrite::literal_host(text, &path)?),
        };
        // A share's are made before all others, whichever of these are made last (Envoy).
        let own = Levels::default().within(
            edits(&one.request_headers_to_add, &one.request_headers_to_remove, &path)?,
            edits(&one.response_headers_to_add, &one.response_headers_to_remove, &path)?,
        );
        let (outer_request, outer_response) = route.clone().finish();
        let before = |own: Vec<Arc<HeaderEdits>>, outer: Edits| own.into_iter().chain(outer).collect();
        let (request_headers, response_headers) = (before(own.request, outer_request), before(own.response, outer_response));
        Ok(WeightedCluster {
            name: one.name.as_str().into(),
            weight: one.weight.as_ref().map_or(0, |weight| weight.value),
            subset: model::subset::merged(subset, subset::labels_in(one.metadata_match.as_ref())),
            host,
            request_headers,
            response_headers,
        })
    });
    let shares: Vec<_> = shares.collect::<Translated<_>>()?;
    let turns = turns(shares.iter().map(|share| share.weight), path)?;
    Ok(ClusterChoice::Weighted(shares, turns))
}

fn retry_priority(value: &proto::retry_policy::RetryPriority, path: &str) -> Translated<u32> {
    let path = format!("{path}.retry_priority");
    let config = value.config_type.as_ref().map(|proto::retry_policy::retry_priority::ConfigType::TypedConfig(config)| config);
    let config: PreviousPrioritiesConfig = super::open(required(config, &path)?, &path)?;
    u32::try_from(config.update_frequency)
        .ok()
        .filter(|every| *every > 0)
        .ok_or_else(|| Problem::new(format!("{path}.update_frequency"), "has to be positive"))
}

fn reset_headers(value: Option<&proto::retry_policy::RateLimitedRetryBackOff>, path: &str) -> Translated<(Vec<ResetHeader>, Duration)> {
    let Some(value) = value else { return Ok((Vec::new(), RESET_LONGEST_DEFAULT)) };
    let path = format!("{path}.rate_limited_retry_back_off");
    let headers = value.reset_headers.iter().map(|header| {
        let format = match proto::retry_policy::ResetHeaderFormat::try_from(header.format) {
            Ok(proto::retry_policy::ResetHeaderFormat::Seconds) => ResetFormat::Seconds,
            Ok(proto::retry_policy::ResetHeaderFormat::UnixTimestamp) => ResetFormat::UnixTime,
            Err(_) => return Err(Problem::new(format!("{path}.reset_headers"), format!("the format {} is not known", header.format))),
        };
        Ok(ResetHeader { name: matcher::header_name(&header.name.to_ascii_lowercase(), &format!("{path}.reset_headers"))?, format })
    });
    let longest = positive_duration(value.max_interval.as_ref(), &format!("{path}.max_interval"))?;
    Ok((headers.collect::<Translated<_>>()?, longest.unwrap_or(RESET_LONGEST_DEFAULT)))
}

fn retry_policy(value: &proto::RetryPolicy, path: &str) -> Translated<RetryPolicy> {
    let mut on = RetryOn::default();
    for word in value.retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if !on.add(word) {
            return Err(Problem::new(format!("{path}.retry_on"), format!("{word:?} is not known")));
        }
    }
    let codes = value.retriable_status_codes.iter().map(|code| {
        u16::try_from(*code).map_err(|_| Problem::new(format!("{path}.retriable_status_codes"), format!("{code} is no status")))
    });
    let base = value.retry_back_off.as_ref().and_then(|back_off| back_off.base_interval.as_ref());
    let base = positive_duration(base, &format!("{path}.retry_back_off"))?.unwrap_or(BACK_OFF_BASE_DEFAULT);
    let longest = value.retry_back_off.as_ref().and_then(|back_off| back_off.max_interval.as_ref());
    let longest = positive_duration(longest, &format!("{path}.retry_back_off"))?.unwrap_or(base.saturating_mul(BACK_OFF_FACTOR));
    if longest < base {
        return Err(Problem::new(format!("{path}.retry_back_off.max_interval"), "is below base_interval"));
    }
    let attempts = u32::try_from(value.host_selection_retry_max_attempts.max(1)).unwrap_or(u32::MAX);
    let headers = |list: &[proto::HeaderMatcher], name: &str| {
        let read = list.iter().enumerate().map(|(at, one)| matcher::header(one, &format!("{path}.{name}[{at}]")));
        read.collect::<Translated<Vec<_>>>()
    };
    let (reset_headers, reset_max) = reset_headers(value.rate_limited_retry_back_off.as_ref(), path)?;
    Ok(RetryPolicy {
        on,
        headers: headers(&value.retriable_headers, "retriable_headers")?,
        request_headers: headers(&value.retriable_request_headers, "retriable_request_headers")?,
        per_try_idle_timeout: positive_duration(value.per_try_idle_timeout.as_ref(), &format!("{path}.per_try_idle_timeout"))?,
        reset_headers,
        reset_max,
        retries_max: value.num_retries.as_ref().map_or(1, |retries| retries.value),
        status_codes: codes.collect::<Translated<_>>()?,
        per_try_timeout: positive_duration(value.per_try_timeout.as_ref(), &format!("{path}.per_try_timeout"))?,
        back_off_base: base,
        back_off_max: longest,
        avoid_previous_hosts: !value.retry_host_predicate.is_empty(),
        avoid_previous_priorities_every: value.retry_priority.as_ref().map(|one| retry_priority(one, path)).transpose()?,
        host_attempts_max: attempts,
    })
}

/// Additions, and removals before them.
pub(super) fn edits(add: &[core::HeaderValueOption], remove: &[String], path: &str) -> Translated<HeaderEdits> {
    let add = add.iter().enumerate().map(|(at, one)| header_add(one, &format!("{path}.headers_to_add[{at}]")));
    let remove = remove.iter().map(|name| edited_name(name, &format!("{path}.headers_to_remove")));
    Ok(HeaderEdits { add: add.collect::<Translated<_>>()?, remove: remove.collect::<Translated<_>>()? })
}

/// A header that may be edited: Envoy refuses pseudo-headers and `host`, which are rewritten by fields of their own.
pub(super) fn edited_name(text: &str, path: &str) -> Translated<HeaderName> {
    let name = text.to_ascii_lowercase();
    if name.starts_with(':') || name == "host" {
        return Err(Problem::new(path, format!("{text:?} may not be edited; paths and hosts have rewrites")));
    }
    matcher::header_name(&name, path)
}

/// One addition.
pub(super) fn header_add(value: &core::HeaderValueOption, path: &str) -> Translated<HeaderAdd> {
    use core::header_value_option::HeaderAppendAction;
    let header = required(value.header.as_ref(), path)?;
    #[expect(deprecated, reason = "istiod's older releases set append")]
    let append = value.append.as_ref().map(|append| append.value);
    let action = match (append, HeaderAppendAction::try_from(value.append_action)) {
        (Some(true), _) | (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => AppendAction::Append,
        (Some(false), _) | (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => AppendAction::Overwrite,
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => AppendAction::AddIfAbsent,
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => AppendAction::OverwriteIfExists,
        (None, Err(_)) => return Err(Problem::new(path, format!("the append_action {} is not known", value.append_action))),
    };
    let name = edited_name(&header.key, path)?;
    let text = if header.value.is_empty() { String::from_utf8(header.raw_value.clone()) } else { Ok(header.value.clone()) };
    let text = text.map_err(|_| Problem::new(path, "the value is no text"))?;
    let mut unknown = Vec::new();
    let format = TextFormat::parse(&text, &mut unknown).omitting_missing();
    if let Some(operator) = unknown.first() {
        return Err(Problem::new(path, operator.to_string()));
    }
    Ok(HeaderAdd { name, value: format, action, keep_empty_value: value.keep_empty_value })
}
