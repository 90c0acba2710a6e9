//! Endpoints: HBONE ones by Envoy's internal addresses, plain ones by socket address. One that cannot be obeyed is left out.

use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as proto;
use model::endpoint::{Endpoint, EndpointAddress, EndpointSet, HBONE_PORT, Health, OVERPROVISIONING_PERCENT_DEFAULT};
use model::invalid::Invalid;
use model::transport::SocketLabels;

use super::{Problem, Translated, required, socket_address, text_of, transport};

const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";
const TRANSPORT_SOCKET_MATCH: &str = "envoy.transport_socket_match";
/// Envoy's highest priority.
const PRIORITY_MAX: u32 = 128;
const CONNECT_ORIGINATE: &str = "connect_originate";

/// Translates all endpoints of a cluster; those that cannot be obeyed are in [`EndpointSet::refused`]. `walked` says what else is not
/// obeyed of the endpoint at these positions of its locality and in it.
#[must_use]
pub fn assignment(value: &proto::ClusterLoadAssignment, walked: impl Fn(usize, usize) -> Vec<Invalid>) -> EndpointSet {
    let policy = value.policy.as_ref();
    let overprovisioning = policy.and_then(|policy| policy.overprovisioning_factor.as_ref());
    let mut set = EndpointSet {
        locality_weights: value.endpoints.iter().map(|one| one.load_balancing_weight.as_ref().map_or(0, |weight| weight.value)).collect(),
        overprovisioning_percent: overprovisioning.map_or(OVERPROVISIONING_PERCENT_DEFAULT, |factor| factor.value),
        weighted_priority_health: policy.is_some_and(|policy| policy.weighted_priority_health),
        ..EndpointSet::default()
    };
    if set.overprovisioning_percent == 0 {
        set.refused.push(Problem::new("policy.overprovisioning_factor", "has to be positive").of(&value.cluster_name));
        set.overprovisioning_percent = OVERPROVISIONING_PERCENT_DEFAULT;
    }
    for (group, locality) in value.endpoints.iter().enumerate() {
        for (at, one) in locality.lb_endpoints.iter().enumerate() {
            let path = format!("endpoints[{group}].lb_endpoints[{at}]");
            let not_obeyed = walked(group, at);
            if !not_obeyed.is_empty() {
                set.refused.extend(not_obeyed);
                continue;
            }
            match endpoint(one, (locality.priority, group), &path) {
                Ok(endpoint) => set.endpoints.push(Arc::new(endpoint)),
                Err(problem) => set.refused.push(problem.of(&value.cluster_name)),
            }
        }
    }
    set
}

/// Whether the only endpoint is the way to wherever the client wanted to go: HBONE to nobody in particular, as direct chains have it.
pub(super) fn leads_to_destination(value: &proto::ClusterLoadAssignment) -> bool {
    let [locality] = &value.endpoints[..] else { return false };
    let [only] = &locality.lb_endpoints[..] else { return false };
    let Some(proto::lb_endpoint::HostIdentifier::Endpoint(inner)) = &only.host_identifier else { return false };
    let Some(core::address::Address::EnvoyInternalAddress(internal)) = inner.address.as_ref().and_then(|address| address.address.as_ref())
    else {
        return false;
    };
    let listener = core::envoy_internal_address::AddressNameSpecifier::ServerListenerName(CONNECT_ORIGINATE.to_owned());
    internal.address_name_specifier == Some(listener) && internal.endpoint_id.is_empty() && only.metadata.is_none()
}

fn endpoint(value: &proto::LbEndpoint, (priority, locality): (u32, usize), path: &str) -> Translated<Endpoint> {
    let Some(proto::lb_endpoint::HostIdentifier::Endpoint(inner)) = &value.host_identifier else {
        return Err(Problem::new(path, "has no address"));
    };
    let address = required(inner.address.as_ref().and_then(|address| address.address.as_ref()), path)?;
    let metadata = |filter: &str, name: &str| {
        let fields = value.metadata.as_ref()?.filter_metadata.get(filter)?;
        text_of(fields, name)
    };
    let (address, host) = match address {
        core::address::Address::SocketAddress(socket) => {
            let address = socket_address(socket, path)?;
            (EndpointAddress::Plain(address), address.to_string())
        }
        core::address::Address::EnvoyInternalAddress(internal) => {
            let Some(core::envoy_internal_address::AddressNameSpecifier::ServerListenerName(listener)) = &internal.address_name_specifier
            else {
                return Err(Problem::new(path, "names no internal listener"));
            };
            if listener != CONNECT_ORIGINATE {
                return Err(Problem::new(path, format!("the internal listener {listener:?} is not supported")));
            }
            let target = metadata(ORIGINAL_DST, "local").unwrap_or(&internal.endpoint_id);
            let target: SocketAddr = target.parse().map_err(|_| Problem::new(path, format!("{target:?} is no address")))?;
            let tunnel = match metadata(ORIGINAL_DST, "waypoint") {
                Some(waypoint) => waypoint.parse().map_err(|_| Problem::new(path, format!("{waypoint:?} is no address")))?,
                None => SocketAddr::new(target.ip(), HBONE_PORT),
            };
            (EndpointAddress::Hbone { tunnel, target }, format!("envoy://{CONNECT_ORIGINATE}/{}", internal.endpoint_id))
        }
        core::address::Address::Pipe(_) => return Err(Problem::new(path, "a pipe is not supported")),
    };
    let health = core::HealthStatus::try_from(value.health_status).map_err(|_| Problem::new(path, "the health status is not known"))?;
    let health = match health {
        core::HealthStatus::Unknown | core::HealthStatus::Healthy => Health::Healthy,
        core::HealthStatus::Degraded => Health::Degraded,
        core::HealthStatus::Unhealthy | core::HealthStatus::Draining | core::HealthStatus::Timeout => Health::Unhealthy,
    };
    if priority > PRIORITY_MAX {
        return Err(Problem::new(path, format!("the priority {priority} is above {PRIORITY_MAX}")));
    }
    let weight = value.load_balancing_weight.as_ref().map_or(1, |weight| weight.value);
    let labels = value.metadata.as_ref().and_then(|metadata| metadata.filter_metadata.get(TRANSPORT_SOCKET_MATCH));
    let socket_labels = labels.map_or_else(|| Ok(SocketLabels::default()), |fields| transport::labels(fields, path))?;
    Ok(Endpoint { address, socket_labels, host: host.into(), weight, priority, health, locality })
}
