//! Endpoints: HBONE ones by Envoy's internal addresses, plain ones by socket address. One that cannot be obeyed is left out.

use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as proto;
use envoy_types::pb::google::protobuf::value::Kind;
use model::authority::Authority;
use model::endpoint::{ADDRESSES_MAX, Endpoint, EndpointAddress, EndpointSet, HBONE_PORT, Health, OVERPROVISIONING_PERCENT_DEFAULT};
use model::invalid::Invalid;
use model::transport::SocketLabels;

use super::{Problem, Translated, required, socket_address, subset, text_of, transport};

const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";
const TRANSPORT_SOCKET_MATCH: &str = "envoy.transport_socket_match";
/// Envoy's highest priority.
const PRIORITY_MAX: u32 = 128;
const CONNECT_ORIGINATE: &str = "connect_originate";
const INNER_CONNECT_ORIGINATE: &str = "inner_connect_originate";

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
    let mut remote = None;
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
            let at = metadata(ORIGINAL_DST, "local").unwrap_or(&internal.endpoint_id);
            let at: SocketAddr = at.parse().map_err(|_| Problem::new(path, format!("{at:?} is no address")))?;
            if listener == INNER_CONNECT_ORIGINATE {
                remote = Some(remote_service(value, path)?);
            } else if listener != CONNECT_ORIGINATE {
                return Err(Problem::new(path, format!("the internal listener {listener:?} is not supported")));
            }
            let address = match metadata(ORIGINAL_DST, "waypoint") {
                _ if remote.is_some() => EndpointAddress::Gateway(at),
                Some(waypoint) => {
                    let tunnel = waypoint.parse().map_err(|_| Problem::new(path, format!("{waypoint:?} is no address")))?;
                    EndpointAddress::Hbone { tunnel, target: at }
                }
                None => EndpointAddress::Hbone { tunnel: SocketAddr::new(at.ip(), HBONE_PORT), target: at },
            };
            (address, format!("envoy://{listener}/{}", internal.endpoint_id))
        }
        core::address::Address::Pipe(_) => return Err(Problem::new(path, "a pipe is not supported")),
    };
    // Of tunnels there is one: the pod's.
    let others = if matches!(address, EndpointAddress::Plain(_)) { others(inner, path)? } else { Box::default() };
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
    let hash_key = metadata("envoy.lb", "hash_key").map(Into::into);
    let labels = subset::labels_in(value.metadata.as_ref());
    Ok(Endpoint { address, others, remote, hash_key, labels, socket_labels, host: host.into(), weight, priority, health, locality })
}

/// Where else an endpoint is.
fn others(value: &proto::Endpoint, path: &str) -> Translated<Box<[SocketAddr]>> {
    if value.additional_addresses.len() >= ADDRESSES_MAX {
        return Err(Problem::new(format!("{path}.endpoint.additional_addresses"), format!("makes more than {ADDRESSES_MAX} addresses")));
    }
    let read = value.additional_addresses.iter().enumerate().map(|(at, one)| {
        let path = format!("{path}.endpoint.additional_addresses[{at}]");
        match one.address.as_ref().and_then(|address| address.address.as_ref()) {
            Some(core::address::Address::SocketAddress(socket)) => socket_address(socket, &path),
            _ => Err(Problem::new(path, "is no socket address")),
        }
    });
    read.collect()
}

/// What is asked for behind the gateway of another network.
fn remote_service(value: &proto::LbEndpoint, path: &str) -> Translated<Authority> {
    let istio = value.metadata.as_ref().and_then(|metadata| metadata.filter_metadata.get("istio"));
    let double = istio.and_then(|istio| istio.fields.get("double_hbone")).and_then(|double| double.kind.as_ref());
    let Some(Kind::StructValue(double)) = double else { return Err(Problem::new(path, "names no service behind its gateway")) };
    let target = required(text_of(double, "hbone_target_address").as_ref(), path)?.to_owned();
    Authority::parse(target).map_err(|error| Problem::new(path, format!("the service behind its gateway: {error}")))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use prost::Message;
    use serde_json::{Value, json};

    use super::*;

    fn read(endpoint: &Value) -> EndpointSet {
        let json = json!({"cluster_name": "c", "endpoints": [{"lb_endpoints": [endpoint]}]});
        let bytes = xds_proto::message_from_json("envoy.config.endpoint.v3.ClusterLoadAssignment", &json).unwrap();
        assignment(&proto::ClusterLoadAssignment::decode(&bytes[..]).unwrap(), |_, _| Vec::new())
    }

    #[test]
    fn an_endpoint_in_another_network_is_its_gateway_and_the_service_s_name() {
        let mut json = json!({
            "endpoint": {"address": {"envoy_internal_address": {
                "server_listener_name": "inner_connect_originate", "endpoint_id": "203.0.113.7:15008"}}},
            "metadata": {"filter_metadata": {
                "envoy.filters.listener.original_dst": {"local": "203.0.113.7:15008"},
                "istio": {"workload": ";;;;cluster2", "double_hbone": {"hbone_target_address": "web.shop.svc.cluster.local:80"}},
            }},
        });
        let set = read(&json);
        let endpoint = &set.endpoints[0];
        assert_eq!(endpoint.address, EndpointAddress::Gateway("203.0.113.7:15008".parse().unwrap()));
        assert_eq!(endpoint.remote, Some(Authority::parse("web.shop.svc.cluster.local:80").unwrap()));
        assert_eq!(&*endpoint.host, "envoy://inner_connect_originate/203.0.113.7:15008");
        json["metadata"]["filter_metadata"]["istio"]["double_hbone"] = json!({});
        assert_eq!((read(&json).endpoints.len(), read(&json).refused.len()), (0, 1));
        json["endpoint"]["address"]["envoy_internal_address"]["server_listener_name"] = "forward_inner_connect".into();
        assert_eq!(read(&json).refused.len(), 1, "what a gateway does is not ours");
    }

    #[test]
    fn what_an_endpoint_is_hashed_by_is_read() {
        let mut json = json!({"endpoint": {"address": {"socket_address": {"address": "192.0.2.1", "port_value": 80}}}});
        assert_eq!(read(&json).endpoints[0].hash_key, None);
        json["metadata"] = json!({"filter_metadata": {"envoy.lb": {"hash_key": "shard-1"}}});
        assert_eq!(read(&json).endpoints[0].hash_key.as_deref(), Some("shard-1"));
    }

    #[test]
    fn a_plain_endpoint_may_be_at_several_addresses_up_to_a_bound() {
        let socket = |last: usize| json!({"address": {"socket_address": {"address": format!("10.0.0.{last}"), "port_value": 80}}});
        let read = |others: Vec<Value>| {
            let endpoint = json!({"address": socket(1)["address"], "additional_addresses": others});
            let json = json!({"cluster_name": "c", "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]});
            let bytes = xds_proto::message_from_json("envoy.config.endpoint.v3.ClusterLoadAssignment", &json).unwrap();
            assignment(&proto::ClusterLoadAssignment::decode(&bytes[..]).unwrap(), |_, _| Vec::new())
        };
        let at_two = read(vec![socket(2)]);
        assert_eq!(*at_two.endpoints[0].others, ["10.0.0.2:80".parse().unwrap()]);
        for refused in [vec![json!({"address": {"pipe": {"path": "/x"}}})], vec![json!({})], (2..10).map(socket).collect()] {
            let set = read(refused.clone());
            assert!(set.endpoints.is_empty() && set.refused.len() == 1, "{refused:?}");
        }
    }
}
