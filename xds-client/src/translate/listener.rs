//! The listeners of a waypoint: what is outside of filter chains, and the raw bytes of the chains.
//!
//! `main_internal` holds all chains of all services and is sent again for any change, so its chains are cut out as slices of
//! what arrived and looked at only if their bytes changed.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as proto;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::google::protobuf::value::Kind;
use model::access_log::AccessLog;
use model::dispatch::Dispatch;
use model::listener::{BaggageUse, Terminate};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::{PLUMBING, Problem, Translated, access_log, dispatch, extension_type, open, required, socket_address, type_name};

/// HBONE in.
pub const CONNECT_TERMINATE: &str = "connect_terminate";
/// Dispatch and chains.
pub const MAIN_INTERNAL: &str = "main_internal";
/// HBONE out.
pub const CONNECT_ORIGINATE: &str = "connect_originate";

const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const PEER_METADATA: &str = "io.istio.http.peer_metadata.Config";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const DOWNSTREAM_TLS: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const FILTER_CHAINS_FIELD: u32 = 3;
const CHAIN_NAME_FIELD: u32 = 7;
/// Envoy's keepalive of HBONE listeners as istiod sets it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams per connection that are advertised at least: clients ignore less.
const STREAMS_MIN: u32 = 100;

/// A listener taken apart.
#[derive(Debug)]
pub struct Parts {
    /// Everything but its chains.
    pub shell: proto::Listener,
    /// Name and bytes of each chain, in order.
    pub chains: Vec<(String, Bytes)>,
}

/// A listener in pieces that are not decoded.
#[derive(Debug)]
pub struct Cut {
    /// Everything but its chains.
    pub shell: Vec<u8>,
    /// Name and bytes of each chain, in order.
    pub chains: Vec<(String, Bytes)>,
}

impl Cut {
    /// Decodes what is not a chain.
    ///
    /// # Errors
    /// It is not a listener.
    pub fn decode(self) -> Translated<Parts> {
        let shell = proto::Listener::decode(&self.shell[..]).map_err(malformed)?;
        Ok(Parts { shell, chains: self.chains })
    }
}

fn malformed(error: prost::DecodeError) -> Problem {
    Problem::new("", format!("is not a listener: {error}"))
}

/// Takes a listener apart without decoding it.
///
/// # Errors
/// The bytes are not a message.
pub fn take_apart(body: &Bytes) -> Translated<Cut> {
    let mut rest = Vec::new();
    let mut chains = Vec::new();
    let mut cursor = body.clone();
    while cursor.has_remaining() {
        let before = cursor.clone();
        let (field, wire) = decode_key(&mut cursor).map_err(malformed)?;
        if field == FILTER_CHAINS_FIELD && wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut cursor).map_err(malformed)?).unwrap_or(usize::MAX);
            if length > cursor.remaining() {
                return Err(Problem::new("filter_chains", "is cut short"));
            }
            let chain = cursor.split_to(length);
            chains.push((chain_name(&chain)?, chain));
        } else {
            prost::encoding::skip_field(wire, field, &mut cursor, prost::encoding::DecodeContext::default()).map_err(malformed)?;
            rest.extend_from_slice(&before[..before.len() - cursor.len()]);
        }
    }
    Ok(Cut { shell: rest, chains })
}

fn chain_name(chain: &Bytes) -> Translated<String> {
    let malformed = |error: prost::DecodeError| Problem::new("filter_chains", format!("is not a chain: {error}"));
    let mut cursor = chain.clone();
    while cursor.has_remaining() {
        let (field, wire) = decode_key(&mut cursor).map_err(malformed)?;
        if field == CHAIN_NAME_FIELD && wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut cursor).map_err(malformed)?).unwrap_or(usize::MAX);
            if length > cursor.remaining() {
                return Err(Problem::new("filter_chains", "has a name that is cut short"));
            }
            let name = cursor.split_to(length);
            return String::from_utf8(name.to_vec()).map_err(|_| Problem::new("filter_chains", "has a name that is no text"));
        }
        prost::encoding::skip_field(wire, field, &mut cursor, prost::encoding::DecodeContext::default()).map_err(malformed)?;
    }
    Ok(String::new())
}

/// What `connect_terminate` says: where HBONE is taken, and from whom.
///
/// # Errors
/// Something that steers who may connect, and cannot be obeyed.
pub fn terminate(parts: &Parts) -> Translated<Terminate> {
    let mut addresses = vec![listen_address(required(parts.shell.address.as_ref(), "address")?, "address")?];
    for (at, more) in parts.shell.additional_addresses.iter().enumerate() {
        let path = format!("additional_addresses[{at}]");
        addresses.push(listen_address(required(more.address.as_ref(), &path)?, &path)?);
    }
    let chain = only_chain(parts)?;
    let manager = chain.filters.iter().find_map(|filter| match &filter.config_type {
        Some(proto::filter::ConfigType::TypedConfig(config)) if type_name(config) == HCM => Some(config),
        _ => None,
    });
    let manager: hcm::HttpConnectionManager = open(required(manager, "filter_chains[0].filters")?, "filter_chains[0]")?;
    let http2 = manager.http2_protocol_options.as_ref();
    let keepalive = http2.and_then(|options| options.connection_keepalive.as_ref());
    let read = |value: Option<&envoy_types::pb::google::protobuf::Duration>, default| {
        value.map_or(Ok(default), |value| super::duration(value, "connection_keepalive"))
    };
    Ok(Terminate {
        addresses,
        client_id_prefixes: Some(client_id_prefixes(&chain)?),
        concurrent_streams_max: http2
            .and_then(|options| options.max_concurrent_streams.as_ref())
            .map_or(STREAMS_MIN, |max| max.value.max(STREAMS_MIN)),
        keepalive_interval: read(keepalive.and_then(|keepalive| keepalive.interval.as_ref()), KEEPALIVE_INTERVAL)?,
        keepalive_timeout: read(keepalive.and_then(|keepalive| keepalive.timeout.as_ref()), KEEPALIVE_TIMEOUT)?,
        baggage: client_baggage(&manager),
        access_logs: access_log::all(&manager.access_log, "filter_chains[0]")?,
    })
}

/// Whether the tunnel has no filters but those that every waypoint has. Any other, above all a policy, would decide about tunnels, and
/// nothing here does: to pass over it would let in whom it keeps out. Apart from [`terminate`], so that who may connect is known even
/// when this fails.
///
/// # Errors
/// A filter that is not obeyed on tunnels.
pub fn check_tunnel_filters(parts: &Parts) -> Translated<()> {
    const PATH: &str = "filter_chains[0].filters";
    let chain = only_chain(parts)?;
    let [filter] = chain.filters.as_slice() else { return Err(Problem::new(PATH, "there has to be exactly one")) };
    let manager: hcm::HttpConnectionManager = match &filter.config_type {
        Some(proto::filter::ConfigType::TypedConfig(config)) if type_name(config) == HCM => open(config, PATH)?,
        _ => return Err(Problem::new(PATH, format!("the filter {:?} is not supported on tunnels", filter.name))),
    };
    for (at, filter) in manager.http_filters.iter().enumerate() {
        let path = format!("{PATH}[0].typed_config.http_filters[{at}]");
        let kind = match &filter.config_type {
            Some(hcm::http_filter::ConfigType::TypedConfig(config)) => extension_type(config)?,
            _ => return Err(Problem::new(path, format!("the filter {:?} comes by discovery", filter.name))),
        };
        if !is_obeyed_on_tunnels(&kind) {
            return Err(Problem::new(path, format!("the filter {:?} ({kind}) is not supported on tunnels", filter.name)));
        }
    }
    Ok(())
}

/// Whether tunnels may have HTTP filters with configurations of this type.
pub(crate) fn is_obeyed_on_tunnels(type_name: &str) -> bool {
    type_name == ROUTER || PLUMBING.contains(&type_name)
}

fn only_chain(parts: &Parts) -> Translated<proto::FilterChain> {
    let [(_, bytes)] = parts.chains.as_slice() else { return Err(Problem::new("filter_chains", "there has to be exactly one")) };
    proto::FilterChain::decode(&bytes[..]).map_err(|error| Problem::new("filter_chains", format!("is not a chain: {error}")))
}

fn listen_address(value: &core::Address, path: &str) -> Translated<SocketAddr> {
    match &value.address {
        Some(core::address::Address::SocketAddress(address)) => socket_address(address, path),
        _ => Err(Problem::new(path, "is no socket address")),
    }
}

/// The prefixes that a client's SPIFFE id must begin with; none means any of the mesh's roots.
fn client_id_prefixes(chain: &proto::FilterChain) -> Translated<Vec<Box<str>>> {
    const PATH: &str = "filter_chains[0].transport_socket";
    let socket = required(chain.transport_socket.as_ref(), PATH)?;
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = &socket.config_type else {
        return Err(Problem::new(PATH, "is not set"));
    };
    if type_name(config) != DOWNSTREAM_TLS {
        return Err(Problem::new(PATH, format!("{} is not TLS", type_name(config))));
    }
    let context: tls::DownstreamTlsContext = open(config, PATH)?;
    if !context.require_client_certificate.as_ref().is_some_and(|required| required.value) {
        return Err(Problem::new(PATH, "client certificates have to be required"));
    }
    let common = required(context.common_tls_context.as_ref(), PATH)?;
    use tls::common_tls_context::ValidationContextType;
    let validation = match &common.validation_context_type {
        Some(ValidationContextType::CombinedValidationContext(combined)) => combined.default_validation_context.as_ref(),
        Some(ValidationContextType::ValidationContext(validation)) => Some(validation),
        _ => None,
    };
    let mut prefixes = Vec::new();
    for (at, san) in validation.iter().flat_map(|validation| &validation.match_typed_subject_alt_names).enumerate() {
        match san.matcher.as_ref().and_then(|matcher| matcher.match_pattern.as_ref()) {
            Some(MatchPattern::Prefix(prefix)) => prefixes.push(prefix.as_str().into()),
            _ => return Err(Problem::new(format!("{PATH}.match_typed_subject_alt_names[{at}]"), "only prefixes are supported")),
        }
    }
    Ok(prefixes)
}

/// The matcher tree of `main_internal`.
///
/// # Errors
/// A matcher that is not known.
pub fn main_dispatch(shell: &proto::Listener) -> Translated<Dispatch> {
    dispatch::dispatch(shell)
}

/// A listener's own access logs.
///
/// # Errors
/// One that cannot be read.
pub fn listener_logs(shell: &proto::Listener) -> Translated<Vec<AccessLog>> {
    access_log::all(&shell.access_log, "")
}

/// The TCP proxy of `connect_originate`; none if there is none.
fn originating_proxy(parts: &Parts) -> Translated<Option<TcpProxy>> {
    let Some((_, bytes)) = parts.chains.first() else { return Ok(None) };
    let chain =
        proto::FilterChain::decode(&bytes[..]).map_err(|error| Problem::new("filter_chains", format!("is not a chain: {error}")))?;
    let proxy = chain.filters.iter().find_map(|filter| match &filter.config_type {
        Some(proto::filter::ConfigType::TypedConfig(config)) if type_name(config) == TCP_PROXY => Some(config),
        _ => None,
    });
    proxy.map(|config| open(config, "filter_chains[0]")).transpose()
}

/// Lines for tunnels that could not be made: the logs of `connect_originate`'s TCP proxy.
///
/// # Errors
/// One that cannot be read.
pub fn originate_logs(parts: &Parts) -> Translated<Vec<AccessLog>> {
    let proxy = originating_proxy(parts)?;
    proxy.map_or_else(|| Ok(Vec::new()), |proxy| access_log::all(&proxy.access_log, "filter_chains[0]"))
}

/// Whether pods are told our baggage, and theirs is read. Istiod says both of `connect_originate` and of double HBONE alike. What else a
/// tunnel could tell is refused by the coverage.
#[must_use]
pub fn originate_baggage(parts: &Parts) -> BaggageUse {
    let tunnel = originating_proxy(parts).ok().flatten().and_then(|proxy| proxy.tunneling_config);
    tunnel.map_or_else(BaggageUse::default, |tunnel| BaggageUse {
        reads: tunnel.propagate_response_headers,
        tells: tunnel.headers_to_add.iter().any(|option| option.header.as_ref().is_some_and(|header| header.key == "baggage")),
    })
}

/// Whether clients are told our baggage, and theirs is read: methods of the filters of peer metadata, which istiod sends in JSON form.
fn client_baggage(manager: &hcm::HttpConnectionManager) -> BaggageUse {
    let mut found = BaggageUse::default();
    for filter in &manager.http_filters {
        if let Some(hcm::http_filter::ConfigType::TypedConfig(config)) = &filter.config_type
            && extension_type(config).is_ok_and(|kind| kind == PEER_METADATA)
            && let Ok(config) = open::<xds_proto::udpa::TypedStruct>(config, "typed_config")
        {
            let has = |list: &str| {
                let methods = config.value.as_ref().and_then(|value| value.fields.get(list)?.kind.as_ref());
                matches!(methods, Some(Kind::ListValue(methods)) if methods.values.iter().any(is_baggage))
            };
            found.reads |= has("downstream_discovery");
            found.tells |= has("downstream_propagation");
        }
    }
    found
}

fn is_baggage(method: &envoy_types::pb::google::protobuf::Value) -> bool {
    matches!(&method.kind, Some(Kind::StructValue(method)) if method.fields.contains_key("baggage"))
}
