//! Envoy's and Istio's messages, compiled into the model.
//!
//! Not for: finding fields that nobody obeys (`coverage` walks for those) or keeping last good versions (`apply`).
//! Invariants: what is here either means what Envoy means by it, or is a [`Problem`] with its path; nothing is defaulted that
//! Envoy does not default. Extensions are recognised by the type of their configuration, not by the name istiod gave them.

pub mod chain;
pub mod cluster;
pub mod endpoint;
pub mod listener;
pub mod transport;
pub mod workload;

mod access_log;
mod balance;
mod collector;
mod dispatch;
mod dns;
mod ext_authz;
pub mod extension;
mod hash;
mod judges;
mod jwt;
mod matcher;
mod mirror;
mod mutation;
mod outlier;
mod rate_limit;
mod rbac;
mod rewrite;
mod route;
mod route_filters;
pub(crate) mod stats;
mod subset;
mod timeout;
mod tracing;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf as google;
use ipnet::IpNet;
use model::invalid::Invalid;
use model::turns::Turns;
use prost::Message;

/// What cannot be translated: where, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From the translated object down.
    pub path: String,
    /// Why, for the person who wrote it.
    pub reason: String,
}

impl Problem {
    pub(crate) fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }

    /// As a reason why `resource` is not obeyed.
    #[must_use]
    pub fn of(self, resource: &str) -> Invalid {
        Invalid::new(resource, self.path, self.reason)
    }
}

pub(crate) type Translated<T> = Result<T, Problem>;

/// The value of a message field that has to be there.
pub(crate) fn required<'a, T>(value: Option<&'a T>, path: &str) -> Translated<&'a T> {
    value.ok_or_else(|| Problem::new(path, "is not set"))
}

/// The turns of clusters with these weights.
pub(crate) fn turns(weights: impl IntoIterator<Item = u32>, path: &str) -> Translated<Arc<Turns>> {
    Turns::new(weights)
        .map(Arc::new)
        .ok_or_else(|| Problem::new(path, "the weights of the clusters sum to nothing, or to more than 32 bits"))
}

/// The type of an `Any`, its URL's prefix left out.
pub(crate) fn type_name(any: &google::Any) -> &str {
    xds_proto::message_name(&any.type_url)
}

const TYPED_STRUCT: &str = "udpa.type.v1.TypedStruct";

/// The type of an extension's configuration, which may be in JSON form inside a `TypedStruct`. That form is opened for
/// [`PLUMBING`] only: anything else in it would be passed over, and keeps the type `TypedStruct`, which nothing accepts.
pub(crate) fn extension_type(any: &google::Any) -> Translated<String> {
    if type_name(any) != TYPED_STRUCT {
        return Ok(type_name(any).to_owned());
    }
    let inner = open::<xds_proto::udpa::TypedStruct>(any, "typed_config")?;
    let inner = xds_proto::message_name(&inner.type_url);
    Ok(if PLUMBING.contains(&inner) { inner.to_owned() } else { format!("{TYPED_STRUCT} of {inner}") })
}

/// Filters whose work is done without them: peers are looked up, and a CONNECT's target and client are known.
pub(crate) const PLUMBING: [&str; 4] = [
    "io.istio.http.peer_metadata.Config",
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "envoy.extensions.filters.http.set_filter_state.v3.Config",
    "envoy.extensions.filters.network.set_filter_state.v3.Config",
];

/// Reads an `Any` whose type is known.
pub(crate) fn open<M: Message + Default>(any: &google::Any, path: &str) -> Translated<M> {
    M::decode(&any.value[..]).map_err(|error| Problem::new(path, format!("is not a {}: {error}", type_name(any))))
}

/// Reads a duration; negative ones are refused.
pub(crate) fn duration(value: &google::Duration, path: &str) -> Translated<Duration> {
    let seconds = u64::try_from(value.seconds).ok();
    let nanos = u32::try_from(value.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    match (seconds, nanos) {
        (Some(seconds), Some(nanos)) => Ok(Duration::new(seconds, nanos)),
        _ => Err(Problem::new(path, format!("is no duration: {} s and {} ns", value.seconds, value.nanos))),
    }
}

const PRESERVE_CASE: &str = "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig";

/// Whether the names of headers keep the case in which they are sent.
pub(crate) fn keeps_header_case(value: &core::Http1ProtocolOptions) -> bool {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    match value.header_key_format.as_ref().and_then(|format| format.header_format.as_ref()) {
        Some(HeaderFormat::StatefulFormatter(formatter)) => {
            formatter.typed_config.as_ref().is_some_and(|config| type_name(config) == PRESERVE_CASE)
        }
        Some(HeaderFormat::ProperCaseWords(_)) | None => false,
    }
}

/// A switch that is on unless it is turned off.
pub(crate) fn is_on(value: Option<&google::BoolValue>) -> bool {
    value.is_none_or(|value| value.value)
}

/// Reads a duration that means "none" when it is zero.
pub(crate) fn positive_duration(value: Option<&google::Duration>, path: &str) -> Translated<Option<Duration>> {
    let read = value.map(|value| duration(value, path)).transpose()?;
    Ok(read.filter(|duration| !duration.is_zero()))
}

pub(crate) fn address(text: &str, path: &str) -> Translated<IpAddr> {
    text.parse::<IpAddr>().map(|address| address.to_canonical()).map_err(|_| Problem::new(path, format!("{text:?} is no address")))
}

pub(crate) fn range(prefix: &str, length: Option<u32>, path: &str) -> Translated<IpNet> {
    let address = prefix.parse::<IpAddr>().map_err(|_| Problem::new(path, format!("{prefix:?} is no address")))?;
    let length = u8::try_from(length.unwrap_or(0)).ok();
    let range = length.and_then(|length| IpNet::new(address, length).ok());
    range.map(|range| range.trunc()).ok_or_else(|| Problem::new(path, "the prefix is longer than the address"))
}

pub(crate) fn cidr(value: &core::CidrRange, path: &str) -> Translated<IpNet> {
    range(&value.address_prefix, value.prefix_len.as_ref().map(|length| length.value), path)
}

pub(crate) fn port(value: u32, path: &str) -> Translated<u16> {
    u16::try_from(value).map_err(|_| Problem::new(path, format!("{value} is no port")))
}

/// Reads a socket address with a numeric host and port.
pub(crate) fn socket_address(value: &core::SocketAddress, path: &str) -> Translated<SocketAddr> {
    use core::socket_address::PortSpecifier;
    let host = address(&value.address, &format!("{path}.address"))?;
    match &value.port_specifier {
        Some(PortSpecifier::PortValue(number)) => Ok(SocketAddr::new(host, port(*number, path)?)),
        Some(PortSpecifier::NamedPort(name)) => Err(Problem::new(path, format!("a port by name is not supported: {name:?}"))),
        None => Err(Problem::new(path, "has no port")),
    }
}

/// A text of a `Struct`'s field.
pub(crate) fn text_of<'a>(fields: &'a google::Struct, name: &str) -> Option<&'a str> {
    match fields.fields.get(name)?.kind.as_ref()? {
        google::value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}
