//! Time limits of routes and chains. Envoy's zero is no limit; what is not set has Envoy's default.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as proto;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf as google;
use model::timeout::{ChainTimeouts, GrpcTimeout, Override, RouteTimeouts, StreamTimeout};

use super::{Translated, positive_duration};

/// Envoy's route timeout when a route names none.
const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
/// Envoy's idle timeout of streams when a chain names none.
const STREAM_IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// Envoy's idle timeout of connections, of either side, HTTP or not, when nothing names one.
const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);

pub(super) fn chain(value: &hcm::HttpConnectionManager, path: &str) -> Translated<ChainTimeouts> {
    let common = value.common_http_protocol_options.as_ref();
    let stream = common.and_then(|common| common.max_stream_duration.as_ref());
    Ok(ChainTimeouts {
        idle: or_default(value.stream_idle_timeout.as_ref(), STREAM_IDLE_TIMEOUT_DEFAULT, &format!("{path}.stream_idle_timeout"))?,
        upload: positive_duration(value.request_timeout.as_ref(), &format!("{path}.request_timeout"))?,
        stream: positive_duration(stream, &format!("{path}.common_http_protocol_options.max_stream_duration"))?,
    })
}

pub(super) fn route(value: &proto::RouteAction, path: &str) -> Translated<RouteTimeouts> {
    #[expect(deprecated, reason = "istiod sets max_grpc_timeout")]
    let (cap, offset) = (value.max_grpc_timeout.as_ref(), value.grpc_timeout_offset.as_ref());
    let stream = value.max_stream_duration.as_ref().map(|limits| stream(limits, &format!("{path}.max_stream_duration"))).transpose()?;
    Ok(RouteTimeouts {
        request: or_default(value.timeout.as_ref(), REQUEST_TIMEOUT_DEFAULT, &format!("{path}.timeout"))?,
        grpc: grpc(cap, offset, &format!("{path}.max_grpc_timeout"))?,
        idle: over(value.idle_timeout.as_ref(), &format!("{path}.idle_timeout"))?,
        stream,
    })
}

fn stream(value: &proto::route_action::MaxStreamDuration, path: &str) -> Translated<StreamTimeout> {
    let (cap, offset) = (value.grpc_timeout_header_max.as_ref(), value.grpc_timeout_header_offset.as_ref());
    Ok(StreamTimeout { max: over(value.max_stream_duration.as_ref(), path)?, grpc: grpc(cap, offset, path)? })
}

fn grpc(cap: Option<&google::Duration>, offset: Option<&google::Duration>, path: &str) -> Translated<Option<GrpcTimeout>> {
    if cap.is_none() {
        return Ok(None);
    }
    Ok(Some(GrpcTimeout { cap: positive_duration(cap, path)?, offset: positive_duration(offset, path)?.unwrap_or_default() }))
}

fn over(value: Option<&google::Duration>, path: &str) -> Translated<Override> {
    Ok(match (value, positive_duration(value, path)?) {
        (None, _) => Override::Inherit,
        (Some(_), None) => Override::Unlimited,
        (Some(_), Some(limit)) => Override::Limit(limit),
    })
}

/// How long a connection without a request, or without bytes if it is not HTTP, is kept; none is for ever.
pub(super) fn connection_idle(value: Option<&google::Duration>, path: &str) -> Translated<Option<Duration>> {
    or_default(value, IDLE_TIMEOUT_DEFAULT, path)
}

fn or_default(value: Option<&google::Duration>, default: Duration, path: &str) -> Translated<Option<Duration>> {
    if value.is_none() { Ok(Some(default)) } else { positive_duration(value, path) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn an_idle_timeout_of_nothing_is_never_and_none_is_an_hour() {
        let idle = |value: Option<i64>| {
            let value = value.map(|seconds| google::Duration { seconds, nanos: 0 });
            connection_idle(value.as_ref(), "idle_timeout").unwrap()
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!([idle(None), idle(Some(0)), idle(Some(7))], [seconds(3600), None, seconds(7)]);
    }
}
