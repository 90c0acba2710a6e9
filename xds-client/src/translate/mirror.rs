//! Mirrors: clusters that get copies of requests.

use envoy_types::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use http::HeaderValue;
use model::fraction::Fraction;
use model::route::Mirror;

use super::{Problem, Translated, rewrite, route_filters};

pub(super) fn mirrors(policies: &[RequestMirrorPolicy], path: &str) -> Translated<Box<[Mirror]>> {
    policies.iter().enumerate().map(|(at, policy)| mirror(policy, &format!("{path}.request_mirror_policies[{at}]"))).collect()
}

fn mirror(value: &RequestMirrorPolicy, path: &str) -> Translated<Mirror> {
    if value.cluster.is_empty() || !value.cluster_header.is_empty() || !value.request_headers_mutations.is_empty() {
        return Err(Problem::new(path, "only a named cluster, a share and a host are supported"));
    }
    let host: Option<HeaderValue> = match value.host_rewrite_literal.as_str() {
        "" => None,
        text => Some(rewrite::literal_host(text, path)?),
    };
    Ok(Mirror {
        cluster: value.cluster.as_str().into(),
        share: value.runtime_fraction.as_ref().map_or(Fraction::ALL, route_filters::runtime_fraction),
        adds_suffix: host.is_none() && !value.disable_shadow_host_suffix_append,
        host,
        is_unsampled: value.trace_sampled.as_ref().is_some_and(|sampled| !sampled.value),
    })
}
