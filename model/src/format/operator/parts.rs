//! Operators that show a part of something: of a path, a time, a status, of metadata.

use std::borrow::Cow;
use std::time::SystemTime;

use super::super::json::write_string;
use super::super::time::TimeFormat;
use super::{HeaderRef, Operator, Unit, cut};
use crate::service::ServiceRef;
use crate::stream_view::{Field, Moment, StreamView, Value};

/// Where a path is taken from.
const ORIGINAL_PATH: &str = "x-envoy-original-path";

/// How a gRPC status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcForm {
    /// `NotFound`.
    Camel,
    /// `NOT_FOUND`.
    Snake,
    /// `5`.
    Number,
}

/// What of a cluster's metadata is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterMetadata {
    /// `istio`.
    Istio,
    /// `istio:services`.
    Services,
}

/// `PATH(WQ|NQ:ORIG|PATH|ORIG_OR_PATH)`; both parts may be left out.
pub(super) fn path(argument: Option<&str>, bytes_max: Option<usize>) -> Option<Operator> {
    let mut parts = argument.unwrap_or_default().split(':');
    let with_query = match parts.next()? {
        "" | "WQ" => true,
        "NQ" => false,
        _ => return None,
    };
    let original = HeaderRef::parse(ORIGINAL_PATH)?;
    let names = match parts.next() {
        None | Some("" | "ORIG_OR_PATH") => vec![original, HeaderRef::Path],
        Some("ORIG") => vec![original],
        Some("PATH") => vec![HeaderRef::Path],
        Some(_) => return None,
    };
    Some(if with_query { Operator::Request { names, bytes_max, fallback: None } } else { Operator::WithoutQuery(names, bytes_max) })
}

/// What stands before the query.
pub(super) fn without_query(path: &[u8], bytes_max: Option<usize>) -> &[u8] {
    cut(path.split(|byte| *byte == b'?').next().unwrap_or_default(), bytes_max)
}

/// The first value of a parameter of the query.
pub(super) fn query_param<'a>(view: &'a dyn StreamView, name: &str, bytes_max: Option<usize>) -> Value<'a> {
    let query = view.request().and_then(|head| head.path.split_once('?')).map_or("", |(_, query)| query);
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let found = pairs.into_iter().find(|(key, _)| *key == name);
    found.map_or(Value::Missing, |(_, value)| Value::Bytes(cut(value.as_bytes(), bytes_max)))
}

/// `COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)`; moments that are not known here are never reached.
pub(super) fn common_duration(argument: &str) -> Option<Operator> {
    let mut parts = argument.split(':');
    let (from, to, unit) = (parts.next()?, parts.next()?, parts.next());
    let unit = match unit {
        None | Some("ms") => Unit::Milliseconds,
        Some("us") => Unit::Microseconds,
        Some("ns") => Unit::Nanoseconds,
        Some(_) => return None,
    };
    let moment = |name| match name {
        "DS_RX_BEG" => Some(Moment::Start),
        "DS_RX_END" => Some(Moment::RequestEnd),
        "US_TX_BEG" => Some(Moment::UpstreamStart),
        "US_RX_BEG" | "DS_TX_BEG" => Some(Moment::ResponseStart),
        "US_RX_END" | "DS_TX_END" => Some(Moment::End),
        _ => None,
    };
    Some(match (moment(from), moment(to)) {
        (Some(from), Some(to)) => Operator::Elapsed(from, to, unit),
        _ => Operator::Absent,
    })
}

/// From one moment to another; none if the later is not, or was before.
pub(super) fn elapsed(view: &dyn StreamView, from: Moment, to: Moment, unit: Unit) -> Value<'static> {
    let (Some(from), Some(to)) = (view.moment(from), view.moment(to)) else { return Value::Missing };
    let Some(elapsed) = to.checked_sub(from) else { return Value::Missing };
    let count = match unit {
        Unit::Milliseconds => elapsed.as_millis(),
        Unit::Microseconds => elapsed.as_micros(),
        Unit::Nanoseconds => elapsed.as_nanos(),
    };
    Value::Number(u64::try_from(count).unwrap_or(u64::MAX))
}

/// When the line is made: when the request has ended.
pub(super) fn emit_time(view: &dyn StreamView) -> Option<SystemTime> {
    match view.field(Field::StartTime) {
        Value::Time(start) => Some(start + view.moment(Moment::End)?),
        _ => None,
    }
}

/// Prints a time in a format.
pub(super) fn time(format: &TimeFormat, time: SystemTime) -> Value<'static> {
    match format {
        TimeFormat::Default => Value::Time(time),
        format => Value::Owned(format.render(time)),
    }
}

/// `GRPC_STATUS(SNAKE_STRING)`.
pub(super) fn grpc_form(argument: &str) -> Option<Operator> {
    Some(Operator::GrpcStatus(match argument {
        "CAMEL_STRING" => GrpcForm::Camel,
        "SNAKE_STRING" => GrpcForm::Snake,
        "NUMBER" => GrpcForm::Number,
        _ => return None,
    }))
}

/// A gRPC status, written so.
pub(super) fn grpc_status(view: &dyn StreamView, form: GrpcForm) -> Value<'_> {
    match (form, view.field(Field::GrpcStatus)) {
        (GrpcForm::Number, _) => view.field(Field::GrpcStatusNumber),
        (GrpcForm::Snake, Value::Text(camel)) => {
            let mut snake = String::new();
            let mut before = 'A';
            for letter in camel.chars() {
                if letter.is_ascii_uppercase() && before.is_ascii_lowercase() {
                    snake.push('_');
                }
                snake.push(letter.to_ascii_uppercase());
                before = letter;
            }
            Value::Owned(snake)
        }
        (_, camel) => camel,
    }
}

/// `CLUSTER_METADATA(istio:services)`; other metadata is not kept.
pub(super) fn cluster_metadata(argument: &str) -> Operator {
    match argument {
        "istio" => Operator::ClusterMetadata(ClusterMetadata::Istio),
        "istio:services" => Operator::ClusterMetadata(ClusterMetadata::Services),
        _ => Operator::Absent,
    }
}

/// What is known of a cluster's metadata, as JSON.
pub(super) fn metadata(service: Option<&ServiceRef>, which: ClusterMetadata) -> Value<'static> {
    let Some(service) = service else { return Value::Missing };
    let mut out = b"[{".to_vec();
    for (key, value) in [("host", &service.host), ("name", &service.name), ("namespace", &service.namespace)] {
        if !value.is_empty() {
            if out.last() != Some(&b'{') {
                out.push(b',');
            }
            write_string(key.as_bytes(), &mut out);
            out.push(b':');
            write_string(value.as_bytes(), &mut out);
        }
    }
    out.extend_from_slice(b"}]");
    let services = String::from_utf8_lossy(&out);
    Value::Json(match which {
        ClusterMetadata::Services => Cow::into_owned(services),
        ClusterMetadata::Istio => format!("{{\"services\":{services}}}"),
    })
}

/// The port of an address; none if it has none.
pub(super) fn port(value: &Value<'_>) -> Value<'static> {
    let address = match value {
        Value::Address(address) => Some(*address),
        Value::Text(text) => text.parse().ok(),
        _ => None,
    };
    address.map_or(Value::Missing, |address: std::net::SocketAddr| Value::Number(address.port().into()))
}

/// A name without its port, whatever it is a name of: `envoy://connect_originate/10.42.0.74`.
pub(super) fn before_port(value: Value<'_>) -> Value<'_> {
    match value {
        Value::Text(text) => Value::Text(text.rsplit_once(':').map_or(text, |(name, _)| name)),
        other => other,
    }
}

/// An address without its port; one of another kind stays whole.
pub(super) fn address_only(value: Value<'_>) -> Value<'_> {
    match value {
        Value::Address(address) => Value::Owned(address.ip().to_string()),
        Value::Text(text) => match text.parse::<std::net::SocketAddr>() {
            Ok(address) => Value::Owned(address.ip().to_string()),
            Err(_) => Value::Text(text),
        },
        other => other,
    }
}

/// What an internal address leads to: `envoy://connect_originate/10.42.0.74:8080` to `10.42.0.74:8080`.
pub(super) fn endpoint_id(value: Value<'_>) -> Value<'_> {
    match value {
        Value::Text(text) => {
            let id = text.strip_prefix("envoy://").and_then(|rest| rest.split_once('/')).map(|(_, id)| id);
            id.filter(|id| !id.is_empty()).map_or(Value::Missing, Value::Text)
        }
        _ => Value::Missing,
    }
}
