//! Clusters whose endpoints are known by name: STRICT_DNS, LOGICAL_DNS, and those whose names requests say (dynamic forward proxy).
//!
//! Not for: looking names up. An endpoint with a name is translated as one at a placeholder, so that all that is said of endpoints is
//! read in one place.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint_proto;
use envoy_types::pb::envoy::extensions::clusters::common::dns::v3 as common;
use envoy_types::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use envoy_types::pb::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use envoy_types::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value};
use model::dns::{ByHost, Family, NAME_BYTES_MAX, Named, Refresh, is_placeholder, placeholder};

use super::{Problem, Translated, duration, endpoint, required};

/// Envoy's `dns_refresh_rate`.
const REFRESH_DEFAULT: Duration = Duration::from_secs(5);
/// The first wait after a failure where the cluster does not say.
const AFTER_FAILURE_DEFAULT: Duration = Duration::from_secs(1);
/// Envoy's defaults of a cache of hosts that requests name.
const HOSTS_REFRESH_DEFAULT: Duration = Duration::from_secs(60);
const HOSTS_LIFETIME_MIN_DEFAULT: Duration = Duration::from_secs(5);
const HOST_UNUSED_MAX_DEFAULT: Duration = Duration::from_secs(300);
const HOSTS_MAX_DEFAULT: u32 = 1024;
const HOSTS_WAITING_MAX_DEFAULT: u32 = 1024;
const HOST_LOOKUP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// Where a cache asks for no limit at all.
const HOST_LOOKUP_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// How the names of a cluster are looked up.
pub(super) struct Lookups {
    first_only: bool,
    family: Family,
    refresh: Refresh,
}

impl Lookups {
    /// STRICT_DNS, or LOGICAL_DNS, which has the first address only.
    pub(super) fn of_cluster(value: &proto::Cluster, first_only: bool) -> Translated<Self> {
        Ok(Self { first_only, family: family(value.dns_lookup_family)?, refresh: refresh(value)? })
    }

    /// The cluster type that replaces both.
    pub(super) fn of_extension(value: &DnsCluster) -> Translated<Self> {
        use common::DnsLookupFamily;
        let family = match DnsLookupFamily::try_from(value.dns_lookup_family) {
            Ok(DnsLookupFamily::Unspecified | DnsLookupFamily::Auto) => Family::Ipv6ElseIpv4,
            Ok(DnsLookupFamily::V4Only) => Family::Ipv4,
            Ok(DnsLookupFamily::V6Only) => Family::Ipv6,
            Ok(DnsLookupFamily::V4Preferred) => Family::Ipv4ElseIpv6,
            Ok(DnsLookupFamily::All) => Family::Both,
            Err(_) => return Err(Problem::new("dns_lookup_family", format!("{} is not known", value.dns_lookup_family))),
        };
        let every = read(value.dns_refresh_rate.as_ref(), "dns_refresh_rate")?.unwrap_or(REFRESH_DEFAULT);
        let failure = value.dns_failure_refresh_rate.as_ref();
        let (base, max) = (failure.and_then(|rate| rate.base_interval.as_ref()), failure.and_then(|rate| rate.max_interval.as_ref()));
        let (after_failure, after_failure_max) = after_failure(base, max, every)?;
        let refresh = Refresh {
            every,
            respects_lifetime: value.respect_dns_ttl,
            lifetime_min: read(value.dns_min_refresh_rate.as_ref(), "dns_min_refresh_rate")?.unwrap_or_default(),
            jitter: read(value.dns_jitter.as_ref(), "dns_jitter")?.unwrap_or_default(),
            after_failure,
            after_failure_max,
        };
        Ok(Self { first_only: value.all_addresses_in_single_endpoint, family, refresh })
    }
}

/// The endpoints of a cluster of this kind.
pub(super) fn named(value: &proto::Cluster, lookups: Lookups) -> Translated<Named> {
    let mut assignment = required(value.load_assignment.as_ref(), "load_assignment")?.clone();
    let mut hosts: Vec<Box<str>> = Vec::new();
    let mut n_endpoints = 0;
    for one in assignment.endpoints.iter_mut().flat_map(|locality| &mut locality.lb_endpoints) {
        n_endpoints += 1;
        let Some(address) = socket_address(one) else { continue };
        if let Ok(literal) = address.address.parse::<IpAddr>() {
            if is_placeholder(literal) {
                return Err(Problem::new("load_assignment", format!("{literal} is nobody's address")));
            }
            continue;
        }
        let position = hosts.iter().position(|host| **host == *address.address).unwrap_or_else(|| {
            hosts.push(address.address.as_str().into());
            hosts.len() - 1
        });
        if address.address.is_empty() || address.address.len() > NAME_BYTES_MAX {
            return Err(Problem::new("load_assignment", format!("{:?} is no name", address.address)));
        }
        let stands_in = placeholder(position).ok_or_else(|| Problem::new("load_assignment", "names too many hosts"))?;
        address.address = stands_in.to_string();
    }
    let Lookups { first_only, family, refresh } = lookups;
    if first_only && n_endpoints != 1 {
        return Err(Problem::new("load_assignment", format!("LOGICAL_DNS has one endpoint, not {n_endpoints}")));
    }
    // It was walked with its cluster.
    let endpoints = Arc::new(endpoint::assignment(&assignment, |_, _| Vec::new()));
    Ok(Named { endpoints, hosts: hosts.into(), first_only, family, refresh })
}

fn socket_address(value: &mut endpoint_proto::LbEndpoint) -> Option<&mut core::SocketAddress> {
    let endpoint_proto::lb_endpoint::HostIdentifier::Endpoint(inner) = value.host_identifier.as_mut()? else { return None };
    match inner.address.as_mut()?.address.as_mut()? {
        core::address::Address::SocketAddress(address) => Some(address),
        _ => None,
    }
}

/// Which addresses count.
pub(super) fn family(number: i32) -> Translated<Family> {
    use proto::cluster::DnsLookupFamily;
    match DnsLookupFamily::try_from(number) {
        Ok(DnsLookupFamily::Auto) => Ok(Family::Ipv6ElseIpv4),
        Ok(DnsLookupFamily::V4Only) => Ok(Family::Ipv4),
        Ok(DnsLookupFamily::V6Only) => Ok(Family::Ipv6),
        Ok(DnsLookupFamily::V4Preferred) => Ok(Family::Ipv4ElseIpv6),
        Ok(DnsLookupFamily::All) => Ok(Family::Both),
        Err(_) => Err(Problem::new("dns_lookup_family", format!("{number} is not known"))),
    }
}

#[expect(deprecated, reason = "istiod does not use the cluster type that replaces the fields")]
fn refresh(value: &proto::Cluster) -> Translated<Refresh> {
    let every = read(value.dns_refresh_rate.as_ref(), "dns_refresh_rate")?.unwrap_or(REFRESH_DEFAULT);
    let (after_failure, after_failure_max) = after_failure_of(value.dns_failure_refresh_rate.as_ref(), every)?;
    let jitter = read(value.dns_jitter.as_ref(), "dns_jitter")?.unwrap_or_default();
    Ok(Refresh { every, respects_lifetime: value.respect_dns_ttl, lifetime_min: Duration::ZERO, jitter, after_failure, after_failure_max })
}

fn read(value: Option<&ProtoDuration>, path: &str) -> Translated<Option<Duration>> {
    value.map(|value| duration(value, path)).transpose()
}

fn after_failure_of(value: Option<&proto::cluster::RefreshRate>, every: Duration) -> Translated<(Duration, Duration)> {
    after_failure(value.and_then(|rate| rate.base_interval.as_ref()), value.and_then(|rate| rate.max_interval.as_ref()), every)
}

/// The first wait after a failure, and the longest.
fn after_failure(base: Option<&ProtoDuration>, max: Option<&ProtoDuration>, every: Duration) -> Translated<(Duration, Duration)> {
    let base = read(base, "dns_failure_refresh_rate.base_interval")?;
    let max = read(max, "dns_failure_refresh_rate.max_interval")?;
    let first = base.unwrap_or(AFTER_FAILURE_DEFAULT.min(every));
    // Envoy: ten times the base where only that is given.
    Ok((first, max.unwrap_or(base.map_or(every, |base| base * 10)).max(first)))
}

/// The hosts of a dynamic forward proxy. `port`: where requests name none.
pub(super) fn by_host(value: &DnsCacheConfig, port: u16) -> Translated<ByHost> {
    let positive = |value: Option<&ProtoDuration>, path: &str, default| match read(value, path)? {
        Some(Duration::ZERO) => Err(Problem::new(path, "has to be positive")),
        found => Ok(found.unwrap_or(default)),
    };
    let number = |value: Option<&UInt32Value>, default| value.map_or(default, |value| value.value);
    let every = positive(value.dns_refresh_rate.as_ref(), "dns_refresh_rate", HOSTS_REFRESH_DEFAULT)?;
    let (after_failure, after_failure_max) = after_failure_of(value.dns_failure_refresh_rate.as_ref(), every)?;
    let lifetime_min = positive(value.dns_min_refresh_rate.as_ref(), "dns_min_refresh_rate", HOSTS_LIFETIME_MIN_DEFAULT)?;
    let breaker = value.dns_cache_circuit_breaker.as_ref();
    let lookup_timeout = read(value.dns_query_timeout.as_ref(), "dns_query_timeout")?.unwrap_or(HOST_LOOKUP_TIMEOUT_DEFAULT);
    let hosts_max = number(value.max_hosts.as_ref(), HOSTS_MAX_DEFAULT);
    if hosts_max == 0 {
        return Err(Problem::new("max_hosts", "has to be positive"));
    }
    Ok(ByHost {
        family: family(value.dns_lookup_family)?,
        refresh: Refresh { every, respects_lifetime: true, lifetime_min, jitter: Duration::ZERO, after_failure, after_failure_max },
        unused_max: positive(value.host_ttl.as_ref(), "host_ttl", HOST_UNUSED_MAX_DEFAULT)?,
        hosts_max: usize::try_from(hosts_max).unwrap_or(usize::MAX),
        waiting_max: number(breaker.and_then(|breaker| breaker.max_pending_requests.as_ref()), HOSTS_WAITING_MAX_DEFAULT),
        lookup_timeout: if lookup_timeout.is_zero() { HOST_LOOKUP_TIMEOUT_MAX } else { lookup_timeout },
        port,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::time::Duration;

    use model::cluster::Discovery;
    use prost::Message;
    use serde_json::{Value, json};

    use super::*;
    use crate::translate::cluster::cluster;

    fn read(json: &Value) -> Translated<Arc<Named>> {
        let bytes = xds_proto::message_from_json("envoy.config.cluster.v3.Cluster", json).unwrap();
        match cluster(&proto::Cluster::decode(&bytes[..]).unwrap())?.discovery {
            Discovery::Named(named) => Ok(named),
            other => panic!("{other:?}"),
        }
    }

    fn with_hosts(kind: &str, hosts: &[&str]) -> Value {
        let endpoint = |host: &&str| json!({"endpoint": {"address": {"socket_address": {"address": host, "port_value": 443}}}});
        json!({"name": "c", "type": kind, "load_assignment": {"cluster_name": "c", "endpoints": [
            {"lb_endpoints": hosts.iter().map(endpoint).collect::<Vec<_>>()},
        ]}})
    }

    #[test]
    fn a_service_entry_of_dns_is_read_as_istiod_sends_it() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/istiod-1.31/08-egress/Cluster.json");
        let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let name = "inbound-vip|80|http|api.example.com";
        let found = recorded["resources"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
        let named = read(&found["resource"]).unwrap();
        assert_eq!((&*named.hosts, named.first_only, named.family), (&["api.example.com".into()][..], false, Family::Ipv4));
        let refresh = Refresh {
            every: Duration::from_secs(60),
            respects_lifetime: true,
            lifetime_min: Duration::ZERO,
            jitter: Duration::from_millis(100),
            after_failure: Duration::from_secs(1),
            after_failure_max: Duration::from_secs(60),
        };
        assert_eq!(named.refresh, refresh);
        assert_eq!(named.resolved(&[vec!["192.0.2.1".parse().unwrap()]]).endpoints[0].host.as_ref(), "192.0.2.1:443");
    }

    #[test]
    fn a_name_is_looked_up_once_for_all_its_endpoints_and_addresses_are_not() {
        let named = read(&with_hosts("STRICT_DNS", &["a.example.com", "192.0.2.1", "b.example.com", "a.example.com"])).unwrap();
        assert_eq!(*named.hosts, ["a.example.com".into(), "b.example.com".into()]);
        assert_eq!(named.endpoints.endpoints.len(), 4);
        assert_eq!(named.family, Family::Ipv6ElseIpv4, "Envoy's AUTO");
    }

    #[test]
    fn a_wildcard_host_is_read_as_istiod_sends_it() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/istiod-1.31/08-egress/Cluster.json");
        let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let all = recorded["resources"].as_array().unwrap();
        let wild = &all.iter().find(|one| one["name"] == "inbound-vip|80|http|*.wild.example.com").unwrap()["resource"];
        let tls = &all.iter().find(|one| one["name"] == "inbound-vip|80|http|api.example.com").unwrap()["resource"]["transport_socket"];
        let read = |json: &Value| -> Translated<Arc<ByHost>> {
            let bytes = xds_proto::message_from_json("envoy.config.cluster.v3.Cluster", json).unwrap();
            match cluster(&proto::Cluster::decode(&bytes[..]).unwrap())?.discovery {
                Discovery::ByHost(by_host) => Ok(by_host),
                other => panic!("{other:?}"),
            }
        };
        let by_host = read(wild).unwrap();
        let seconds = Duration::from_secs;
        assert_eq!((by_host.family, by_host.hosts_max, by_host.waiting_max, by_host.port), (Family::Ipv4, 1024, 1024, 80));
        assert_eq!((by_host.unused_max, by_host.refresh.lifetime_min, by_host.lookup_timeout), (seconds(300), seconds(5), seconds(5)));
        let mut secure = wild.clone();
        secure["transport_socket"] = tls.clone();
        assert_eq!(read(&secure).unwrap().port, 443);
        let options = |options: Value| {
            let mut json = wild.clone();
            json["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http_protocol_options": {}},
                "upstream_http_protocol_options": options,
            }});
            read(&json)
        };
        assert!(options(json!({"auto_sni": true, "auto_san_validation": true})).is_ok());
        assert!(options(json!({"auto_sni": true})).is_err(), "as Envoy: any certificate of a root would do for any host");
        let mut none = wild.clone();
        none["cluster_type"]["typed_config"]["dns_cache_config"]["max_hosts"] = 0.into();
        assert!(read(&none).is_err());
        none["lb_policy"] = "ROUND_ROBIN".into();
        assert!(read(&none).is_err());
    }

    #[test]
    fn the_cluster_type_for_dns_means_what_the_older_fields_mean() {
        let as_extension = |fields: Value, hosts: &[&str]| {
            let mut json = with_hosts("STATIC", hosts);
            json.as_object_mut().unwrap().remove("type");
            let mut config = fields;
            config["@type"] = "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster".into();
            json["cluster_type"] = json!({"name": "envoy.cluster.dns", "typed_config": config});
            read(&json)
        };
        let hosts = ["a.example.com", "b.example.com"];
        assert_eq!(as_extension(json!({}), &hosts), read(&with_hosts("STRICT_DNS", &hosts)));
        assert!(as_extension(json!({"all_addresses_in_single_endpoint": true}), &hosts).is_err(), "of LOGICAL_DNS there is one");
        let fields = json!({
            "all_addresses_in_single_endpoint": true, "dns_lookup_family": "V4_PREFERRED", "respect_dns_ttl": true,
            "dns_refresh_rate": "30s", "dns_min_refresh_rate": "9s", "dns_jitter": "1s", "dns_failure_refresh_rate": {"base_interval": "2s"},
        });
        let named = as_extension(fields, &hosts[..1]).unwrap();
        let seconds = Duration::from_secs;
        let refresh = Refresh {
            every: seconds(30),
            respects_lifetime: true,
            lifetime_min: seconds(9),
            jitter: seconds(1),
            after_failure: seconds(2),
            after_failure_max: seconds(20),
        };
        assert_eq!((named.first_only, named.family, named.refresh), (true, Family::Ipv4ElseIpv6, refresh));
    }

    #[test]
    fn logical_dns_has_one_name() {
        assert!(read(&with_hosts("LOGICAL_DNS", &["a.example.com"])).unwrap().first_only);
        assert!(read(&with_hosts("LOGICAL_DNS", &["a.example.com", "b.example.com"])).is_err());
        assert!(read(&with_hosts("STRICT_DNS", &["a".repeat(254).as_str()])).is_err());
        assert!(read(&json!({"name": "c", "type": "STRICT_DNS"})).is_err());
    }

    #[test]
    fn an_address_of_this_network_is_not_taken_for_a_name() {
        let problem = read(&with_hosts("STRICT_DNS", &["a.example.com", "0.0.0.1"])).unwrap_err();
        assert_eq!(problem.path, "load_assignment");
    }

    #[test]
    fn failures_are_tried_again_as_the_cluster_says() {
        let mut json = with_hosts("STRICT_DNS", &["a.example.com"]);
        json["dns_failure_refresh_rate"] = json!({"base_interval": "2s"});
        let refresh = read(&json).unwrap().refresh;
        assert_eq!((refresh.after_failure, refresh.after_failure_max), (Duration::from_secs(2), Duration::from_secs(20)));
        json["dns_failure_refresh_rate"]["max_interval"] = "7s".into();
        assert_eq!(read(&json).unwrap().refresh.after_failure_max, Duration::from_secs(7));
    }
}
