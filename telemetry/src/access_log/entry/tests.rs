#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, RequestMethod, address};
use envoy_types::pb::envoy::data::accesslog::v3::http_access_log_entry::HttpVersion;
use envoy_types::pb::envoy::data::accesslog::v3::{AccessLogType, HttpAccessLogEntry, TcpAccessLogEntry};
use envoy_types::pb::google::protobuf as google;
use model::access_log::{AccessLog, LogFormat, LogTarget};
use model::refusal::{Refusal, RefusedBy};
use model::stream_view::Side;
use prost::Message as _;

use super::*;
use crate::fixture::{self, headers};
use crate::record::RequestRecord;
use crate::trace::begin;

/// Decoded by Envoy's own definitions.
fn http_entry(record: &RequestRecord, fields: EntryFields) -> HttpAccessLogEntry {
    HttpAccessLogEntry::decode(EntryWriter::default().write(&fields, record)).unwrap()
}

fn entry_fields(kind: EntryKind) -> EntryFields {
    let names = |name: &'static str| vec![http::HeaderName::from_static(name)];
    EntryFields {
        kind,
        peers: vec![("downstream_peer".into(), Side::Downstream), ("upstream_peer".into(), Side::Upstream)],
        request_headers: ["x-user", ":path", ":method", ":authority", ":scheme", "host"]
            .map(|name| (name.into(), HeaderRef::parse(name).unwrap()))
            .into(),
        response_status: true,
        response_headers: names("x-answer"),
        response_trailers: names("x-trailer"),
        adds_refusal: true,
    }
}

/// A request through a chain that logs such entries.
fn entered(change: impl FnOnce(&mut RequestRecord)) -> HttpAccessLogEntry {
    let format = LogFormat::Entry(Box::new(entry_fields(EntryKind::Http)));
    let log = AccessLog { target: LogTarget::Stdout, format, filters: Vec::new() };
    let mut record = fixture::request(&fixture::chain(None, vec![log], Some(fixture::tracing())));
    record.capture_request(&headers(&[
        ("user-agent", "t/1"),
        ("referer", "r"),
        ("x-forwarded-for", "10.0.0.9"),
        ("x-request-id", "id"),
        ("x-envoy-original-path", "/before"),
        ("x-user", "alice"),
        ("x-other", "no"),
    ]));
    record.forwarded_for = Some("10.0.0.9".parse().unwrap());
    record.capture_response(&headers(&[("x-answer", "yes"), ("x-other", "no")]));
    record.capture_trailers(&headers(&[("x-trailer", "end")]));
    record.stream.response_start = Some(record.stream.start + Duration::from_millis(5));
    record.stream.request_end = Some(record.stream.start + Duration::from_millis(2));
    change(&mut record);
    http_entry(&record, entry_fields(EntryKind::Http))
}

fn pairs(expected: &[(&str, &str)]) -> HashMap<String, String> {
    expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn socket(address: Option<Address>) -> (String, u32) {
    let Some(address::Address::SocketAddress(socket)) = address.unwrap().address else { panic!("a socket's address") };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!("a port") };
    (socket.address, port)
}

#[test]
fn an_entry_of_http_says_in_its_fields_what_a_line_says() {
    let entry = entered(|_| {});
    assert_eq!(entry.protocol_version(), HttpVersion::Http11);
    let request = entry.request.unwrap();
    assert_eq!((request.request_method(), request.scheme.as_str()), (RequestMethod::Get, "http"));
    assert_eq!((request.authority.as_str(), request.path.as_str()), ("web-svc.emojivoto", "/ok?a=1"));
    assert_eq!((request.user_agent.as_str(), request.referer.as_str()), ("t/1", "r"));
    assert_eq!((request.forwarded_for.as_str(), request.request_id.as_str()), ("10.0.0.9", "id"));
    assert_eq!((request.original_path.as_str(), request.request_headers_bytes, request.request_body_bytes), ("/before", 66, 0));
    assert_eq!(
        request.request_headers,
        pairs(&[
            ("x-user", "alice"),
            (":path", "/ok?a=1"),
            (":method", "GET"),
            (":authority", "web-svc.emojivoto"),
            (":scheme", "http"),
            ("host", "web-svc.emojivoto"),
        ])
    );
    let response = entry.response.unwrap();
    assert_eq!((response.response_code.unwrap().value, response.response_code_details.as_str()), (200, "via_upstream"));
    assert_eq!((response.response_headers_bytes, response.response_body_bytes), (227, 5));
    assert_eq!(response.response_headers, pairs(&[("x-answer", "yes"), (":status", "200")]));
    assert_eq!(response.response_trailers, pairs(&[("x-trailer", "end")]));
}

#[test]
fn an_entry_says_where_from_where_to_and_how_long() {
    let common = entered(|_| {}).common_properties.unwrap();
    assert_eq!((common.access_log_type(), &common.response_flags), (AccessLogType::DownstreamEnd, &None));
    // Whom the client says it speaks for, and who it is.
    assert_eq!(socket(common.downstream_remote_address), ("10.0.0.9".to_owned(), 0));
    assert_eq!(socket(common.downstream_direct_remote_address), ("10.42.0.51".to_owned(), 33952));
    assert_eq!(socket(common.downstream_local_address), ("10.43.7.9".to_owned(), 80));
    let internal = |address: Option<Address>| match address.unwrap().address {
        Some(address::Address::EnvoyInternalAddress(internal)) => (internal.address_name_specifier, internal.endpoint_id),
        other => panic!("{other:?}"),
    };
    let listener = |name: &str| Some(AddressNameSpecifier::ServerListenerName(name.to_owned()));
    assert_eq!(internal(common.upstream_remote_address), (listener("connect_originate"), "10.42.0.74:8080".to_owned()));
    assert_eq!(internal(common.upstream_local_address), (listener("internal_client_address"), String::new()));
    assert_eq!(common.upstream_cluster, "inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local");
    let start = common.start_time.unwrap();
    assert_eq!((start.seconds, start.nanos), (1_795_465_906, 500_000_000));
    let nanos = |duration: Option<google::Duration>| duration.map(|duration| (duration.seconds, duration.nanos));
    assert_eq!(nanos(common.duration), Some((0, 7_900_000)));
    assert_eq!(
        (nanos(common.time_to_last_rx_byte), nanos(common.time_to_first_downstream_tx_byte)),
        (Some((0, 2_000_000)), Some((0, 5_000_000)))
    );
    assert_eq!((common.route_name.as_str(), common.upstream_request_attempt_count), ("default", 1));
    assert_eq!((common.downstream_wire_bytes_received, common.downstream_wire_bytes_sent), (66, 232));
}

#[test]
fn an_entry_has_peers_as_istios_filters_leave_them_and_the_ids_of_the_span() {
    let decision = begin(Some(&fixture::tracing()), &headers(&[]), true, &mut fastrand::Rng::with_seed(1));
    let trace = decision.trace.clone().unwrap();
    let common = entered(|record| record.trace = decision.trace).common_properties.unwrap();
    let ids = [("trace_id", format!("{:032x}", trace.trace_id)), ("span_id", format!("{:016x}", trace.span_id))];
    assert_eq!(common.custom_tags, ids.into_iter().map(|(key, id)| (key.to_owned(), id)).collect());
    let peer = |name: &str| {
        let any = &common.filter_state_objects[name];
        assert_eq!(any.type_url, "type.googleapis.com/google.protobuf.Struct");
        let peer = google::Struct::decode(&any.value[..]).unwrap();
        let text = |key: &str| match peer.fields.get(key).and_then(|value| value.kind.clone()) {
            Some(google::value::Kind::StringValue(text)) => text,
            other => format!("{other:?}"),
        };
        [text("workload"), text("namespace"), text("service"), text("identity")]
    };
    assert_eq!(peer("downstream_peer"), ["vote-bot", "emojivoto", "vote-bot", "spiffe://cluster.local/ns/emojivoto/sa/default"]);
    assert_eq!(peer("upstream_peer"), ["web", "emojivoto", "web-svc", "spiffe://cluster.local/ns/emojivoto/sa/web"]);
}

#[test]
fn every_flag_is_the_field_of_its_name() {
    for flag in ResponseFlag::ALL {
        let flags = entered(|record| {
            record.stream.flags.insert(flag);
            record.stream.failure_reason = Some("delayed connect error: Connection refused".into());
        });
        let common = flags.common_properties.unwrap();
        assert_eq!(common.upstream_transport_failure_reason, "delayed connect error: Connection refused");
        let flags = common.response_flags.unwrap();
        let is_set = match flag {
            ResponseFlag::NoHealthyUpstream => flags.no_healthy_upstream,
            ResponseFlag::UpstreamConnectionFailure => flags.upstream_connection_failure,
            ResponseFlag::UpstreamConnectionTermination => flags.upstream_connection_termination,
            ResponseFlag::UpstreamRemoteReset => flags.upstream_remote_reset,
            ResponseFlag::UpstreamOverflow => flags.upstream_overflow,
            ResponseFlag::UpstreamRequestTimeout => flags.upstream_request_timeout,
            ResponseFlag::UpstreamProtocolError => flags.upstream_protocol_error,
            ResponseFlag::UpstreamRetryLimitExceeded => flags.upstream_retry_limit_exceeded,
            ResponseFlag::NoRouteFound => flags.no_route_found,
            ResponseFlag::NoClusterFound => flags.no_cluster_found,
            ResponseFlag::DownstreamConnectionTermination => flags.downstream_connection_termination,
            ResponseFlag::DownstreamRemoteReset => flags.downstream_remote_reset,
            ResponseFlag::DownstreamProtocolError => flags.downstream_protocol_error,
            ResponseFlag::DurationTimeout => flags.duration_timeout,
            ResponseFlag::StreamIdleTimeout => flags.stream_idle_timeout,
            ResponseFlag::DelayInjected => flags.delay_injected,
            ResponseFlag::FaultInjected => flags.fault_injected,
            ResponseFlag::RateLimited => flags.rate_limited,
            ResponseFlag::UnauthorizedExternalService => flags.unauthorized_details.is_some_and(|details| details.reason == 1),
            ResponseFlag::LocalReset => flags.local_reset,
            ResponseFlag::OverloadManager => flags.overload_manager,
            ResponseFlag::DnsResolutionFailed => flags.dns_resolution_failure,
        };
        assert!(is_set, "{flag:?}: {flags:?}");
    }
}

#[test]
fn an_entry_of_a_refused_request_says_why_in_tags_unless_it_is_not_to() {
    let refused = |adds_refusal| {
        let mut record = fixture::request(&fixture::chain(None, Vec::new(), None));
        record.stream.refusal = Some(Box::new(Refusal::new(RefusedBy::NoAllowPolicy)));
        http_entry(&record, EntryFields { adds_refusal, ..entry_fields(EntryKind::Http) }).common_properties.unwrap().custom_tags
    };
    assert_eq!(refused(true), HashMap::from([("waypoint.refusal.by".to_owned(), "no_allow_policy".to_owned())]));
    assert_eq!(refused(false), HashMap::new());
}

#[test]
fn an_entry_of_tcp_has_its_bytes() {
    let mut connection = fixture::connection(&fixture::chain(None, Vec::new(), None));
    (connection.stream.bytes_received, connection.stream.bytes_sent) = (6, 11);
    let entry = TcpAccessLogEntry::decode(EntryWriter::default().write(&entry_fields(EntryKind::Tcp), &connection)).unwrap();
    let counted = entry.connection_properties.unwrap();
    assert_eq!((counted.received_bytes, counted.sent_bytes), (6, 11));
    let common = entry.common_properties.unwrap();
    assert_eq!((common.access_log_type(), common.custom_tags.len()), (AccessLogType::TcpConnectionEnd, 0));
}
