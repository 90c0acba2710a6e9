//! Clusters: by EDS, by name, and static ones; the plumbing between Envoy's internal listeners is recognised by name.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3 as dynamic;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;
use envoy_types::pb::google::protobuf::{Struct, UInt32Value, value::Kind};
use model::cluster::{
    CONNECT_TIMEOUT_DEFAULT, Cluster, ConnectionUse, Discovery, Limits, Passthrough, PingRules, RetryBudget, TcpKeepalive, UpstreamProtocol,
};
use model::service::ServiceRef;
use model::transport::Sockets;

use super::{
    Problem, Translated, balance, dns, duration, endpoint, keeps_header_case, open, outlier, positive_duration, required, subset, timeout,
    transport, type_name,
};

/// Clusters that only join Envoy's internal listeners; HBONE out is native here.
pub const PLUMBING: [&str; 4] = ["main_internal", "connect_originate", "inner_connect_originate", "outer_connect_originate"];
/// Envoy's retry budget where it is not said: a fifth of the requests, and three at least.
const BUDGET_PERCENT_DEFAULT: f64 = 20.0;
const BUDGET_RETRIES_MIN_DEFAULT: u32 = 3;
const DNS: &str = "envoy.extensions.clusters.dns.v3.DnsCluster";
const DYNAMIC_FORWARD_PROXY: &str = "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Translates a cluster.
///
/// # Errors
/// The first thing that cannot be obeyed.
pub fn cluster(value: &proto::Cluster) -> Translated<Cluster> {
    let name: Arc<str> = value.name.as_str().into();
    let options = http_options(value)?;
    let timeout = value.connect_timeout.as_ref().map(|timeout| duration(timeout, "connect_timeout")).transpose()?;
    let sockets = transport::sockets(value, options.as_ref())?;
    let (limits, limits_high) = (limits(value, core::RoutingPriority::Default)?, limits(value, core::RoutingPriority::High)?);
    Ok(Cluster {
        stat_name: if value.alt_stat_name.is_empty() { Arc::clone(&name) } else { value.alt_stat_name.as_str().into() },
        service: service(value),
        discovery: discovery(value, options.as_ref(), &sockets)?,
        balance: balance::balance(value)?,
        slow_start: balance::slow_start(value)?,
        panic_threshold_percent: balance::panic_threshold(value)?,
        weighs_localities: subset::weighs_localities(value),
        subsets: subset::rules(value)?,
        outlier: value.outlier_detection.as_ref().map(outlier::outlier).transpose()?,
        protocol: protocol(options.as_ref())?,
        sockets,
        connect_timeout: timeout.unwrap_or(CONNECT_TIMEOUT_DEFAULT),
        limits,
        limits_high,
        connections: connections(value, options.as_ref())?,
        name,
    })
}

/// The EDS name of a cluster, whether or not the rest of it can be obeyed.
#[must_use]
pub fn eds_name(value: &proto::Cluster) -> Option<&str> {
    use proto::cluster::{ClusterDiscoveryType, DiscoveryType};
    let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
    if value.cluster_discovery_type != Some(eds) {
        return None;
    }
    let named = value.eds_cluster_config.as_ref().map(|config| config.service_name.as_str()).filter(|name| !name.is_empty());
    // The protocol has a meaning of its own for these, and one such cluster must not cost the others their endpoints.
    Some(named.unwrap_or(&value.name)).filter(|name| !matches!(*name, "" | "*"))
}

fn discovery(value: &proto::Cluster, options: Option<&upstream::HttpProtocolOptions>, sockets: &Sockets) -> Translated<Discovery> {
    use proto::cluster::{ClusterDiscoveryType, DiscoveryType};
    let kind = match value.cluster_discovery_type.as_ref() {
        // Protobuf's zero: STATIC.
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(kind)) => {
            DiscoveryType::try_from(*kind).map_err(|_| Problem::new("type", format!("{kind} is not known")))?
        }
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let config = required(custom.typed_config.as_ref(), "cluster_type.typed_config")?;
            return match type_name(config) {
                DYNAMIC_FORWARD_PROXY => by_host(value, &open(config, "cluster_type.typed_config")?, options, sockets),
                DNS => named(value, dns::Lookups::of_extension(&open(config, "cluster_type.typed_config")?)?),
                other => Err(Problem::new("cluster_type", format!("{:?} ({other}) is not supported", custom.name))),
            };
        }
    };
    match kind {
        DiscoveryType::Eds => match eds_name(value) {
            Some(name) => Ok(Discovery::Eds(name.into())),
            None => Err(Problem::new("eds_cluster_config.service_name", "is no name that endpoints can be asked for by")),
        },
        DiscoveryType::Static => {
            // It was walked with its cluster.
            let assignment = required(value.load_assignment.as_ref(), "load_assignment")?;
            if endpoint::leads_to_destination(assignment) {
                return Ok(Discovery::Passthrough(Passthrough { over_hbone: true, port: None }));
            }
            Ok(Discovery::Static(Arc::new(endpoint::assignment(assignment, |_, _| Vec::new()))))
        }
        DiscoveryType::StrictDns => named(value, dns::Lookups::of_cluster(value, false)?),
        DiscoveryType::LogicalDns => named(value, dns::Lookups::of_cluster(value, true)?),
        DiscoveryType::OriginalDst => passthrough(value).map(Discovery::Passthrough),
    }
}

fn named(value: &proto::Cluster, lookups: dns::Lookups) -> Translated<Discovery> {
    Ok(Discovery::Named(Arc::new(dns::named(value, lookups)?)))
}

/// A dynamic forward proxy.
fn by_host(
    value: &proto::Cluster,
    config: &dynamic::ClusterConfig,
    options: Option<&upstream::HttpProtocolOptions>,
    sockets: &Sockets,
) -> Translated<Discovery> {
    use dynamic::cluster_config::ClusterImplementationSpecifier;
    if proto::cluster::LbPolicy::try_from(value.lb_policy) != Ok(proto::cluster::LbPolicy::ClusterProvided) {
        return Err(Problem::new("lb_policy", "hosts that requests name are not balanced"));
    }
    let Some(ClusterImplementationSpecifier::DnsCacheConfig(cache)) = &config.cluster_implementation_specifier else {
        return Err(Problem::new("cluster_type.typed_config", "has no dns_cache_config"));
    };
    let by_name = options.and_then(|options| options.upstream_http_protocol_options.as_ref());
    if by_name.is_some_and(|by| !by.auto_sni || !by.auto_san_validation) && !config.allow_insecure_cluster_options {
        return Err(Problem::new("cluster_type.typed_config", "auto_sni and auto_san_validation have to be set"));
    }
    let port = if sockets.otherwise.tls.is_some() { 443 } else { 80 };
    Ok(Discovery::ByHost(Arc::new(dns::by_host(cache, port)?)))
}

/// ORIGINAL_DST. Envoy, too, refuses the cluster if anything but the cluster itself would choose an endpoint.
fn passthrough(value: &proto::Cluster) -> Translated<Passthrough> {
    use proto::cluster::{LbConfig, LbPolicy};
    if value.load_assignment.is_some() || LbPolicy::try_from(value.lb_policy) != Ok(LbPolicy::ClusterProvided) {
        return Err(Problem::new("type", "ORIGINAL_DST has no endpoints to choose from"));
    }
    let Some(LbConfig::OriginalDstLbConfig(config)) = &value.lb_config else { return Ok(Passthrough::default()) };
    const PATH: &str = "original_dst_lb_config.upstream_port_override";
    let port = config.upstream_port_override.as_ref().map(|port| {
        let port = u16::try_from(port.value).ok().filter(|port| *port != 0);
        port.ok_or_else(|| Problem::new(PATH, "is no port"))
    });
    Ok(Passthrough { over_hbone: false, port: port.transpose()? })
}

fn http_options(value: &proto::Cluster) -> Translated<Option<upstream::HttpProtocolOptions>> {
    let config = value.typed_extension_protocol_options.get(HTTP_OPTIONS);
    config.map(|config| open(config, "typed_extension_protocol_options")).transpose()
}

fn protocol(options: Option<&upstream::HttpProtocolOptions>) -> Translated<UpstreamProtocol> {
    use upstream::http_protocol_options::UpstreamProtocolOptions;
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
    const PATH: &str = "typed_extension_protocol_options";
    match options.and_then(|options| options.upstream_protocol_options.as_ref()) {
        None => Ok(UpstreamProtocol::Http1),
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => Ok(UpstreamProtocol::Downstream),
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match required(explicit.protocol_config.as_ref(), PATH)? {
            ProtocolConfig::HttpProtocolOptions(_) => Ok(UpstreamProtocol::Http1),
            ProtocolConfig::Http2ProtocolOptions(_) => Ok(UpstreamProtocol::Http2),
            ProtocolConfig::Http3ProtocolOptions(_) => Err(Problem::new(PATH, "HTTP/3 is not supported")),
        },
        Some(UpstreamProtocolOptions::AutoConfig(_)) => Err(Problem::new(PATH, "auto_config is not supported")),
    }
}

/// The first thresholds of this priority count; what they or the cluster do not say is as Envoy has it.
fn limits(value: &proto::Cluster, priority: core::RoutingPriority) -> Translated<Limits> {
    let thresholds = value.circuit_breakers.as_ref().map_or(&[][..], |breakers| &breakers.thresholds);
    let Some(one) = thresholds.iter().find(|one| one.priority == i32::from(priority)) else { return Ok(Limits::DEFAULT) };
    let or = |max: &Option<UInt32Value>, default| max.as_ref().map_or(default, |max| max.value);
    Ok(Limits {
        connections_max: or(&one.max_connections, Limits::DEFAULT.connections_max),
        pending_requests_max: or(&one.max_pending_requests, Limits::DEFAULT.pending_requests_max),
        requests_max: or(&one.max_requests, Limits::DEFAULT.requests_max),
        retries_max: or(&one.max_retries, Limits::DEFAULT.retries_max),
        retry_budget: one.retry_budget.as_ref().map(retry_budget).transpose()?,
    })
}

fn retry_budget(value: &proto::circuit_breakers::thresholds::RetryBudget) -> Translated<RetryBudget> {
    let percent = value.budget_percent.as_ref().map_or(BUDGET_PERCENT_DEFAULT, |percent| percent.value);
    if !(0.0..=100.0).contains(&percent) {
        return Err(Problem::new("circuit_breakers.retry_budget.budget_percent", format!("{percent} is no percentage")));
    }
    let retries_min = value.min_retry_concurrency.as_ref().map_or(BUDGET_RETRIES_MIN_DEFAULT, |min| min.value);
    let interval = positive_duration(value.budget_interval.as_ref(), "circuit_breakers.retry_budget.budget_interval")?;
    Ok(RetryBudget { percent, interval, retries_min })
}

fn connections(value: &proto::Cluster, options: Option<&upstream::HttpProtocolOptions>) -> Translated<ConnectionUse> {
    let common = options.and_then(|options| options.common_http_protocol_options.as_ref());
    let (http2, http1) = (options.and_then(http2_options), options.and_then(http1_options));
    #[expect(deprecated, reason = "counts where the newer field is not set")]
    let older = value.max_requests_per_connection.as_ref();
    let requests = common.and_then(|common| common.max_requests_per_connection.as_ref()).or(older);
    Ok(ConnectionUse {
        idle_timeout: timeout::connection_idle(common.and_then(|common| common.idle_timeout.as_ref()), "idle_timeout")?,
        duration_max: positive_duration(common.and_then(|common| common.max_connection_duration.as_ref()), "max_connection_duration")?,
        requests_max: requests.map(|max| max.value).filter(|max| *max > 0),
        streams_max: http2.and_then(|http2| http2.max_concurrent_streams.as_ref()).map(|max| max.value).filter(|max| *max > 0),
        ping: http2.and_then(|http2| http2.connection_keepalive.as_ref()).map(ping).transpose()?.flatten(),
        keeps_header_case: http1.is_some_and(keeps_header_case),
        tcp_keepalive: value.upstream_connection_options.as_ref().and_then(|options| options.tcp_keepalive.as_ref()).map(tcp_keepalive),
    })
}

/// The options of HTTP/2, where it may be spoken.
fn http2_options(options: &upstream::HttpProtocolOptions) -> Option<&core::Http2ProtocolOptions> {
    use upstream::http_protocol_options::UpstreamProtocolOptions;
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
    match options.upstream_protocol_options.as_ref()? {
        UpstreamProtocolOptions::ExplicitHttpConfig(explicit) => match explicit.protocol_config.as_ref()? {
            ProtocolConfig::Http2ProtocolOptions(options) => Some(options),
            _ => None,
        },
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(downstream) => downstream.http2_protocol_options.as_ref(),
        UpstreamProtocolOptions::AutoConfig(_) => None,
    }
}

/// The options of HTTP/1.1, where it may be spoken.
fn http1_options(options: &upstream::HttpProtocolOptions) -> Option<&core::Http1ProtocolOptions> {
    use upstream::http_protocol_options::UpstreamProtocolOptions;
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
    match options.upstream_protocol_options.as_ref()? {
        UpstreamProtocolOptions::ExplicitHttpConfig(explicit) => match explicit.protocol_config.as_ref()? {
            ProtocolConfig::HttpProtocolOptions(options) => Some(options),
            _ => None,
        },
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(downstream) => downstream.http_protocol_options.as_ref(),
        UpstreamProtocolOptions::AutoConfig(_) => None,
    }
}

/// None without an interval: nobody is asked (Envoy).
fn ping(value: &core::KeepaliveSettings) -> Translated<Option<PingRules>> {
    let interval = positive_duration(value.interval.as_ref(), "connection_keepalive.interval")?;
    let timeout = positive_duration(value.timeout.as_ref(), "connection_keepalive.timeout")?;
    match (interval, timeout) {
        (None, _) => Ok(None),
        (Some(_), None) => Err(Problem::new("connection_keepalive.timeout", "is not set")),
        (Some(interval), Some(timeout)) => Ok(Some(PingRules { interval, timeout })),
    }
}

fn tcp_keepalive(value: &core::TcpKeepalive) -> TcpKeepalive {
    let seconds = |value: &Option<UInt32Value>| value.as_ref().map(|value| Duration::from_secs(value.value.into()));
    TcpKeepalive {
        time: seconds(&value.keepalive_time).filter(|time| !time.is_zero()),
        interval: seconds(&value.keepalive_interval).filter(|time| !time.is_zero()),
        probes: value.keepalive_probes.as_ref().map(|probes| probes.value).filter(|probes| *probes > 0),
    }
}

/// `istio.services[0]` of the metadata.
fn service(value: &proto::Cluster) -> Option<Arc<ServiceRef>> {
    let istio = value.metadata.as_ref()?.filter_metadata.get("istio")?;
    let Some(Kind::ListValue(services)) = &istio.fields.get("services")?.kind else { return None };
    let Some(Kind::StructValue(first)) = &services.values.first()?.kind else { return None };
    let text = |first: &Struct, name: &str| -> Arc<str> { super::text_of(first, name).unwrap_or_default().into() };
    Some(Arc::new(ServiceRef { host: text(first, "host"), name: text(first, "name"), namespace: text(first, "namespace") }))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use prost::Message;
    use serde_json::{Value, json};

    use super::*;

    fn translated(json: &Value) -> Translated<Cluster> {
        let bytes = xds_proto::message_from_json("envoy.config.cluster.v3.Cluster", json).unwrap();
        cluster(&proto::Cluster::decode(&bytes[..]).unwrap())
    }

    #[test]
    fn breakers_are_by_priority_and_have_envoys_defaults() {
        let thresholds = json!([
            {"max_connections": 7, "max_requests": 4_294_967_295_u32, "retry_budget": {"budget_percent": {"value": 25.0}}},
            {"priority": "HIGH", "max_retries": 9, "retry_budget": {"budget_interval": "10s", "min_retry_concurrency": 1}},
            {"max_connections": 8},
        ]);
        let cluster = translated(&json!({"name": "c", "type": "EDS", "circuit_breakers": {"thresholds": thresholds}})).unwrap();
        let budget = Some(RetryBudget { percent: 25.0, interval: None, retries_min: 3 });
        assert_eq!(cluster.limits, Limits { connections_max: 7, requests_max: u32::MAX, retry_budget: budget, ..Limits::DEFAULT });
        let budget = Some(RetryBudget { percent: 20.0, interval: Some(Duration::from_secs(10)), retries_min: 1 });
        assert_eq!(cluster.limits_high, Limits { retries_max: 9, retry_budget: budget, ..Limits::DEFAULT });
        assert_eq!(translated(&json!({"name": "c", "type": "EDS"})).unwrap().limits, Limits::DEFAULT);
    }

    #[test]
    fn a_budget_that_is_no_percentage_is_refused() {
        let thresholds = json!([{"retry_budget": {"budget_percent": {"value": 101.0}}}]);
        let problem = translated(&json!({"name": "c", "type": "EDS", "circuit_breakers": {"thresholds": thresholds}})).unwrap_err();
        assert_eq!(problem.path, "circuit_breakers.retry_budget.budget_percent");
    }

    #[test]
    fn clusters_without_endpoints_lead_where_the_client_wanted_to_go() {
        let passthrough = |json: &Value| match translated(json).unwrap().discovery {
            Discovery::Passthrough(passthrough) => passthrough,
            other => panic!("{other:?}"),
        };
        let mut json = json!({"name": "c", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"});
        assert_eq!(passthrough(&json), Passthrough::default());
        json["original_dst_lb_config"] = json!({"upstream_port_override": 8443});
        assert_eq!(passthrough(&json).port, Some(8443));
        let target = passthrough(&json).endpoint("192.0.2.1:443".parse().unwrap());
        assert_eq!(&*target.host, "192.0.2.1:8443");
        json["original_dst_lb_config"] = json!({"upstream_port_override": 65_536});
        assert_eq!(translated(&json).unwrap_err().path, "original_dst_lb_config.upstream_port_override");
        assert!(translated(&json!({"name": "c", "type": "ORIGINAL_DST"})).is_err(), "there is nothing to take turns with");
        assert!(translated(&json!({"name": "c", "type": "EDS", "lb_policy": "CLUSTER_PROVIDED"})).is_err());
    }

    #[test]
    fn a_direct_chain_leads_to_the_pod_over_hbone() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/istiod-1.31/01-plain/Cluster.json");
        let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let found = recorded["resources"].as_array().unwrap().iter().find(|one| one["name"] == "encap").unwrap();
        assert_eq!(translated(&found["resource"]).unwrap().discovery, Discovery::Passthrough(Passthrough { over_hbone: true, port: None }));
    }

    #[test]
    fn connections_are_probed_and_shared_as_a_destination_rule_says() {
        let options = |http2: Value| {
            json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"max_requests_per_connection": 5, "max_connection_duration": "60s"},
                "explicit_http_config": {"http2_protocol_options": http2},
            }})
        };
        let json = |http2: Value| {
            json!({
                "name": "c", "type": "EDS", "typed_extension_protocol_options": options(http2),
                "upstream_connection_options": {"tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 30, "keepalive_interval": 10}},
            })
        };
        let http2 = json!({"max_concurrent_streams": 7, "connection_keepalive": {"interval": "20s", "timeout": "5s"}});
        let seconds = Duration::from_secs;
        let expected = ConnectionUse {
            keeps_header_case: false,
            idle_timeout: Some(seconds(3600)),
            duration_max: Some(seconds(60)),
            requests_max: Some(5),
            streams_max: Some(7),
            ping: Some(PingRules { interval: seconds(20), timeout: seconds(5) }),
            tcp_keepalive: Some(TcpKeepalive { time: Some(seconds(30)), interval: Some(seconds(10)), probes: Some(3) }),
        };
        assert_eq!(translated(&json(http2)).unwrap().connections, expected);
        assert_eq!(translated(&json(json!({"connection_keepalive": {"timeout": "5s"}}))).unwrap().connections.ping, None);
        assert!(translated(&json(json!({"connection_keepalive": {"interval": "5s"}}))).is_err());
    }
}
