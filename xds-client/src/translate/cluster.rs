//! Clusters: EDS and static ones; the plumbing between Envoy's internal listeners is recognised by name.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;
use envoy_types::pb::google::protobuf::{Struct, value::Kind};
use model::cluster::{Balance, CONNECT_TIMEOUT_DEFAULT, Cluster, Discovery, Limits, UpstreamProtocol};
use model::service::ServiceRef;

use super::{Problem, Translated, duration, endpoint, open, positive_duration, required};

/// Clusters that only join Envoy's internal listeners; HBONE out is native here.
pub const PLUMBING: [&str; 5] = ["main_internal", "encap", "connect_originate", "inner_connect_originate", "outer_connect_originate"];
const UPSTREAM_TLS: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Translates a cluster.
///
/// # Errors
/// The first thing that cannot be obeyed.
pub fn cluster(value: &proto::Cluster) -> Translated<Cluster> {
    check_sockets(value)?;
    let name: Arc<str> = value.name.as_str().into();
    let options = http_options(value)?;
    let timeout = value.connect_timeout.as_ref().map(|timeout| duration(timeout, "connect_timeout")).transpose()?;
    let idle =
        options.as_ref().and_then(|options| options.common_http_protocol_options.as_ref()).and_then(|common| common.idle_timeout.as_ref());
    Ok(Cluster {
        stat_name: if value.alt_stat_name.is_empty() { Arc::clone(&name) } else { value.alt_stat_name.as_str().into() },
        service: service(value),
        discovery: discovery(value)?,
        balance: balance(value)?,
        protocol: protocol(options.as_ref())?,
        connect_timeout: timeout.unwrap_or(CONNECT_TIMEOUT_DEFAULT),
        limits: limits(value),
        idle_timeout: positive_duration(idle, "idle_timeout")?,
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

/// Which of several sockets an endpoint gets follows from its metadata. HBONE and plain ones are spoken; mesh TLS only where an
/// endpoint asks for it by `tlsMode: istio`, and such endpoints are left out. TLS for all others must not become plain text.
fn check_sockets(value: &proto::Cluster) -> Translated<()> {
    for (at, one) in value.transport_socket_matches.iter().enumerate() {
        let config = one.transport_socket.as_ref().and_then(|socket| socket.config_type.as_ref());
        let Some(core::transport_socket::ConfigType::TypedConfig(config)) = config else { continue };
        let for_mesh_tls = one.r#match.as_ref().is_some_and(|fields| super::text_of(fields, "tlsMode") == Some("istio"));
        if super::type_name(config) == UPSTREAM_TLS && !for_mesh_tls {
            return Err(Problem::new(format!("transport_socket_matches[{at}]"), "TLS for all endpoints is not spoken yet"));
        }
    }
    Ok(())
}

fn discovery(value: &proto::Cluster) -> Translated<Discovery> {
    use proto::cluster::{ClusterDiscoveryType, DiscoveryType};
    let kind = match value.cluster_discovery_type.as_ref() {
        // Protobuf's zero: STATIC.
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(kind)) => {
            DiscoveryType::try_from(*kind).map_err(|_| Problem::new("type", format!("{kind} is not known")))?
        }
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return Err(Problem::new("cluster_type", format!("{:?} is not supported", custom.name)));
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
            Ok(Discovery::Static(Arc::new(endpoint::assignment(assignment, |_, _| Vec::new()))))
        }
        other => Err(Problem::new("type", format!("{} is not supported yet", other.as_str_name()))),
    }
}

fn balance(value: &proto::Cluster) -> Translated<Balance> {
    use proto::cluster::LbPolicy;
    match LbPolicy::try_from(value.lb_policy) {
        Ok(LbPolicy::LeastRequest) => Ok(Balance::LeastRequest),
        Ok(LbPolicy::RoundRobin) => Ok(Balance::RoundRobin),
        Ok(LbPolicy::Random) => Ok(Balance::Random),
        Ok(other) => Err(Problem::new("lb_policy", format!("{} is not supported yet", other.as_str_name()))),
        Err(_) => Err(Problem::new("lb_policy", format!("{} is not known", value.lb_policy))),
    }
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

fn limits(value: &proto::Cluster) -> Limits {
    let thresholds = value.circuit_breakers.as_ref().and_then(|breakers| breakers.thresholds.iter().find(|one| one.priority == 0));
    thresholds.map_or(Limits::NONE, |one| Limits {
        connections_max: one.max_connections.as_ref().map_or(u32::MAX, |max| max.value),
        pending_requests_max: one.max_pending_requests.as_ref().map_or(u32::MAX, |max| max.value),
        requests_max: one.max_requests.as_ref().map_or(u32::MAX, |max| max.value),
        retries_max: one.max_retries.as_ref().map_or(u32::MAX, |max| max.value),
    })
}

/// `istio.services[0]` of the metadata.
fn service(value: &proto::Cluster) -> Option<Arc<ServiceRef>> {
    let istio = value.metadata.as_ref()?.filter_metadata.get("istio")?;
    let Some(Kind::ListValue(services)) = &istio.fields.get("services")?.kind else { return None };
    let Some(Kind::StructValue(first)) = &services.values.first()?.kind else { return None };
    let text = |first: &Struct, name: &str| -> Arc<str> { super::text_of(first, name).unwrap_or_default().into() };
    Some(Arc::new(ServiceRef { host: text(first, "host"), name: text(first, "name"), namespace: text(first, "namespace") }))
}
