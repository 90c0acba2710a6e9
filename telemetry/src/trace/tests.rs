#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use model::flags::ResponseFlag;
use model::tracing::{CustomTag, RequestIdUse, Sampling, TagSource};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;

use super::*;
use crate::fixture::{self, headers};
use crate::grpc::GrpcStatus;

const TRACE: &str = "944465e02249c3cd2ea8d5505aca32a2";
const PARENT: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

fn sampling(percent: f64) -> Tracing {
    Tracing { random_sampling: Sampling::percent(percent), ..fixture::tracing() }
}

/// What the endpoint sees of a request that came with these headers.
fn pass(tracing: Option<&Tracing>, pairs: &[(&'static str, &str)]) -> (Decision, HeaderMap) {
    let mut headers = headers(pairs);
    let decision = begin(tracing, &headers, true, &mut fastrand::Rng::with_seed(7));
    decision.inject(&mut headers);
    (decision, headers)
}

#[test]
fn t01_a_request_without_a_trace_begins_one() {
    let (decision, headers) = pass(Some(&sampling(100.0)), &[]);
    let trace = decision.trace.unwrap();
    assert_eq!((trace.parent, trace.sampled), (None, true));
    assert_eq!(headers[TRACEPARENT], format!("00-{:032x}-{:016x}-01", trace.trace_id, trace.span_id));
    assert_eq!(headers[TRACESTATE], "", "always written, as Envoy does");
}

#[test]
fn an_unsampled_request_goes_on_with_its_ids_and_no_flag() {
    let (decision, headers) = pass(Some(&sampling(0.0)), &[]);
    let trace = decision.trace.unwrap();
    assert!(!trace.sampled);
    assert_eq!(headers[TRACEPARENT], format!("00-{:032x}-{:016x}-00", trace.trace_id, trace.span_id));
}

#[test]
fn t02_a_sampled_parent_decides_whatever_the_percentage() {
    for percent in [0.0, 100.0] {
        let (decision, headers) = pass(Some(&sampling(percent)), &[("traceparent", &traceparent("01"))]);
        let trace = decision.trace.unwrap();
        assert_eq!((format!("{:032x}", trace.trace_id), format!("{:016x}", trace.parent.unwrap())), (TRACE.into(), PARENT.into()));
        assert!(trace.sampled);
        assert_eq!(headers[TRACEPARENT], format!("00-{TRACE}-{:016x}-01", trace.span_id));
        assert_ne!(trace.span_id, trace.parent.unwrap());
    }
}

#[test]
fn t03_an_unsampled_parent_decides_whatever_the_percentage() {
    let (decision, headers) = pass(Some(&sampling(100.0)), &[("traceparent", &traceparent("00"))]);
    let trace = decision.trace.unwrap();
    assert!(!trace.sampled);
    assert_eq!(headers[TRACEPARENT], format!("00-{TRACE}-{:016x}-00", trace.span_id));
}

#[test]
fn t04_a_malformed_traceparent_makes_no_span_and_is_forwarded_unchanged() {
    let good = traceparent("01");
    let zero_trace = format!("00-{}-{PARENT}-01", "0".repeat(32));
    let zero_parent = format!("00-{TRACE}-{}-01", "0".repeat(16));
    let malformed = [
        &good[..54],
        &format!("{good}0"),
        &good.replace('9', "g"),
        &good.replacen('-', "_", 1),
        &zero_trace,
        &zero_parent,
        &good.replacen("00", "ff", 1),
        "",
    ];
    for value in malformed {
        let (decision, headers) = pass(Some(&sampling(100.0)), &[("traceparent", value), ("tracestate", "a=1")]);
        assert_eq!(decision.trace, None, "{value}");
        assert_eq!((headers[TRACEPARENT].to_str().unwrap(), headers[TRACESTATE].to_str().unwrap()), (value, "a=1"));
    }
}

#[test]
fn two_traceparents_are_malformed() {
    let mut headers = headers(&[("traceparent", &traceparent("01"))]);
    headers.append(TRACEPARENT, traceparent("00").parse().unwrap());
    assert_eq!(begin(Some(&sampling(100.0)), &headers, true, &mut fastrand::Rng::new()).trace, None);
}

#[test]
fn several_tracestates_are_joined() {
    let mut headers = headers(&[("traceparent", &traceparent("01")), ("tracestate", "a=1")]);
    headers.append(TRACESTATE, "b=2,c=3".parse().unwrap());
    begin(Some(&sampling(100.0)), &headers, true, &mut fastrand::Rng::new()).inject(&mut headers);
    assert_eq!(headers.get_all(TRACESTATE).iter().collect::<Vec<_>>(), ["a=1,b=2,c=3"]);
}

#[test]
fn t05_b3_headers_are_ignored_and_pass_through() {
    let (decision, headers) = pass(Some(&sampling(100.0)), &[("x-b3-traceid", TRACE), ("x-b3-spanid", PARENT)]);
    assert_ne!(format!("{:032x}", decision.trace.unwrap().trace_id), TRACE);
    assert_eq!((headers["x-b3-traceid"].to_str().unwrap(), headers["x-b3-spanid"].to_str().unwrap()), (TRACE, PARENT));
}

#[test]
fn t23_without_tracing_all_headers_pass_through_and_an_id_is_made() {
    let (decision, headers) = pass(None, &[("traceparent", &traceparent("01"))]);
    assert_eq!(decision.trace, None);
    assert_eq!(headers[TRACEPARENT], traceparent("01"));
    assert!(!headers.contains_key(TRACESTATE));
    assert_eq!(headers[X_REQUEST_ID].as_bytes()[14], b'4');
}

/// A mesh without a tracing provider, istiod's default: a span here would be the parent of others and never be seen.
#[test]
fn without_a_provider_trace_headers_pass_through_and_the_request_id_still_says_what_was_decided() {
    let tracing = Tracing { provider: None, ..sampling(100.0) };
    let (decision, headers) = pass(Some(&tracing), &[]);
    assert_eq!(decision.trace, None);
    assert!(!headers.contains_key(TRACEPARENT) && !headers.contains_key(TRACESTATE));
    assert_eq!(headers[X_REQUEST_ID].as_bytes()[14], b'9');
    let (_, headers) = pass(Some(&tracing), &[("traceparent", &traceparent("01"))]);
    assert_eq!(headers[TRACEPARENT], traceparent("01"));
}

#[test]
fn a_request_id_is_a_version_4_uuid_whose_digit_says_that_it_is_traced() {
    for (percent, digit) in [(0.0, b'4'), (100.0, b'9')] {
        let (decision, headers) = pass(Some(&sampling(percent)), &[]);
        let id = headers[X_REQUEST_ID].as_bytes();
        assert_eq!(decision.request_id.as_ref().unwrap(), headers[X_REQUEST_ID]);
        assert_eq!((id.len(), id[8], id[13], id[18], id[23]), (36, b'-', b'-', b'-', b'-'));
        assert_eq!(id[14], digit);
        assert!(matches!(id[19], b'8' | b'9' | b'a' | b'b'));
    }
}

#[test]
fn no_id_is_made_where_none_is_wanted_and_then_nothing_is_sampled() {
    let headers = HeaderMap::new();
    let decision = begin(Some(&sampling(100.0)), &headers, false, &mut fastrand::Rng::new());
    assert_eq!(decision.request_id, None);
    assert!(!decision.trace.unwrap().sampled);
}

/// What an incoming id comes to: whether it is sampled, and what is forwarded.
fn decided(percent: f64, id: &str, more: Option<&'static str>) -> (bool, String) {
    let mut pairs = vec![("x-request-id", id)];
    pairs.extend(more.map(|name| (name, "1")));
    let (decision, headers) = pass(Some(&sampling(percent)), &pairs);
    (decision.trace.unwrap().sampled, headers[X_REQUEST_ID].to_str().unwrap().to_owned())
}

#[test]
fn t07_an_id_below_the_percentage_is_sampled_and_says_so() {
    let id = "00000063-2222-4333-8444-555555555555";
    assert_eq!(decided(1.0, id, None), (true, "00000063-2222-9333-8444-555555555555".to_owned()));
    // Of another length it decides, and is not rewritten.
    assert_eq!(decided(100.0, "00000063", None), (true, "00000063".to_owned()));
}

#[test]
fn t08_an_id_above_the_percentage_is_not_sampled_and_stays() {
    let id = "00000064-2222-4333-8444-555555555555";
    assert_eq!(decided(1.0, id, None), (false, id.to_owned()));
}

#[test]
fn t09_an_id_that_is_none_is_never_sampled_and_stays() {
    for id in ["abc", "zzzzzzzz-2222-4333-8444-555555555555"] {
        assert_eq!(decided(100.0, id, None), (false, id.to_owned()));
    }
}

#[test]
fn an_id_that_says_traced_is_and_others_may_ask_for_it() {
    let id = "00000064-2222-4333-8444-555555555555";
    for (id, more, forwarded) in [
        ("00000064-2222-9333-8444-555555555555", None, "00000064-2222-9333-8444-555555555555"),
        (id, Some("x-client-trace-id"), "00000064-2222-b333-8444-555555555555"),
        (id, Some("x-envoy-force-trace"), "00000064-2222-a333-8444-555555555555"),
    ] {
        assert_eq!(decided(0.0, id, more), (true, forwarded.to_owned()), "{more:?}");
    }
}

#[test]
fn t10_a_client_that_asks_for_it_is_traced_as_far_as_it_may() {
    let id = "00000064-2222-4333-8444-555555555555";
    for (percent, sampled, forwarded) in [(100.0, true, "00000064-2222-b333-8444-555555555555"), (0.0, false, id)] {
        let tracing = Tracing { client_sampling: Sampling::percent(percent), ..sampling(0.0) };
        let (decision, headers) = pass(Some(&tracing), &[("x-request-id", id), ("x-client-trace-id", "1")]);
        assert_eq!((decision.trace.unwrap().sampled, headers[X_REQUEST_ID].to_str().unwrap()), (sampled, forwarded));
    }
    let span = span(|record| record.capture_request(&headers(&[("x-client-trace-id", "1")])));
    assert_eq!(by_name(&span)["guid:x-client-trace-id"], "1");
}

#[test]
fn t22_without_propagation_there_is_a_span_and_the_endpoint_sees_the_clients_headers() {
    let tracing = Tracing { propagates: false, ..sampling(100.0) };
    let (decision, headers) = pass(Some(&tracing), &[("traceparent", &traceparent("01"))]);
    let trace = decision.trace.unwrap();
    assert!(trace.sampled && trace.parent.is_some());
    assert_eq!((&headers[TRACEPARENT], headers.contains_key(TRACESTATE)), (&traceparent("01").parse().unwrap(), false));
    assert!(!pass(Some(&tracing), &[]).1.contains_key(TRACEPARENT));
}

#[test]
fn request_ids_decide_and_tell_only_where_they_are_to() {
    let id = "00000064-2222-4333-8444-555555555555";
    let of = |decides, tells, percent| Tracing { request_id: RequestIdUse { decides, tells }, ..sampling(percent) };
    for (tracing, sampled) in [(of(false, true, 0.0), true), (of(true, false, 100.0), true), (of(true, false, 0.0), false)] {
        let (decision, headers) = pass(Some(&tracing), &[("x-request-id", id)]);
        assert_eq!((decision.trace.unwrap().sampled, headers[X_REQUEST_ID].to_str().unwrap()), (sampled, id));
    }
}

#[test]
fn overall_sampling_bounds_every_reason_and_takes_the_digit_back() {
    let tracing = Tracing { overall_sampling: Sampling::percent(0.0), ..sampling(100.0) };
    let (decision, headers) = pass(Some(&tracing), &[("x-request-id", "00000064-2222-9333-8444-555555555555")]);
    assert!(!decision.trace.unwrap().sampled);
    assert_eq!(headers[X_REQUEST_ID], "00000064-2222-4333-8444-555555555555");
}

fn identity() -> SpanIdentity {
    SpanIdentity::new(
        "waypoint~10.42.0.20~waypoint-7d4.emojivoto~emojivoto.svc.cluster.local".into(),
        "waypoint.emojivoto".into(),
        "".into(),
    )
}

fn written(record: &RequestRecord, tracing: &Tracing) -> Span {
    let mut writer = SpanWriter::new(identity());
    Span::decode(writer.write(record, record.trace.as_ref().unwrap(), tracing)).unwrap()
}

fn span_with(tracing: Tracing, change: impl FnOnce(&mut RequestRecord)) -> Span {
    let mut record = fixture::request(&fixture::chain(None, Vec::new(), Some(tracing.clone())));
    let parent = headers(&[("traceparent", &traceparent("01")), ("tracestate", "a=1")]);
    record.trace = begin(Some(&tracing), &parent, true, &mut fastrand::Rng::with_seed(1)).trace;
    record.operation = Some("web-svc.emojivoto.svc.cluster.local:80/*".into());
    change(&mut record);
    written(&record, &tracing)
}

fn span(change: impl FnOnce(&mut RequestRecord)) -> Span {
    span_with(fixture::tracing(), change)
}

fn attributes(span: &Span) -> Vec<(&str, &str)> {
    span.attributes.iter().map(|pair| (pair.key.as_str(), text_of(pair))).collect()
}

fn text_of(pair: &KeyValue) -> &str {
    match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{} is not a text: {other:?}", pair.key),
    }
}

fn status_of(span: &Span) -> StatusCode {
    span.status.as_ref().unwrap().code()
}

fn by_name(span: &Span) -> BTreeMap<&str, &str> {
    attributes(span).into_iter().collect()
}

#[test]
fn t19_t20_a_normal_requests_span_has_envoys_attributes_in_envoys_order_all_texts() {
    let span = span(|_| {});
    assert_eq!(
        attributes(&span),
        [
            ("node_id", "waypoint~10.42.0.20~waypoint-7d4.emojivoto~emojivoto.svc.cluster.local"),
            ("zone", ""),
            ("guid:x-request-id", "fb02baa0-d9f3-9e14-8eb6-1b4dd37b51ad"),
            ("http.url", "http://web-svc.emojivoto/ok?a=1"),
            ("http.method", "GET"),
            ("http.protocol", "HTTP/1.1"),
            ("downstream_cluster", "-"),
            ("user_agent", "t/1"),
            ("peer.address", "10.42.0.51"),
            ("request_size", "0"),
            ("response_size", "5"),
            ("component", "proxy"),
            ("upstream_cluster", "inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local"),
            ("upstream_cluster.name", "inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local;"),
            ("http.status_code", "200"),
            ("response_flags", "-"),
            ("istio.mesh_id", "cluster.local"),
            ("istio.source_workload", "vote-bot"),
            ("istio.destination_workload", "web"),
        ]
    );
    assert_eq!(
        (span.name.as_str(), span.kind(), status_of(&span)),
        ("web-svc.emojivoto.svc.cluster.local:80/*", SpanKind::Server, StatusCode::Unset)
    );
    assert_eq!(Duration::from_nanos(span.end_time_unix_nano - span.start_time_unix_nano), Duration::from_micros(7_900));
}

#[test]
fn t01_t02_flags_say_whether_a_span_has_a_remote_parent() {
    let span = span(|_| {});
    assert_eq!(span.trace_id, u128::from_str_radix(TRACE, 16).unwrap().to_be_bytes());
    assert_eq!(span.parent_span_id, u64::from_str_radix(PARENT, 16).unwrap().to_be_bytes());
    assert_eq!((span.flags, span.trace_state.as_str()), (0x301, "a=1"), "sampled, of a remote parent");
    let root = fixture::chain(None, Vec::new(), Some(fixture::tracing()));
    let mut record = fixture::request(&root);
    record.trace = begin(Some(&fixture::tracing()), &HeaderMap::new(), true, &mut fastrand::Rng::new()).trace;
    let span = written(&record, &fixture::tracing());
    assert!(span.parent_span_id.is_empty() && span.flags == 0x101);
    assert_eq!(span.name, "ingress", "no decorator");
}

/// The status and the `error` of a span, whose code is told as it is.
fn ended(code: u16, grpc: Option<u32>) -> (StatusCode, bool) {
    let span = span(|record| {
        record.response_code = code;
        record.is_grpc = grpc.is_some();
        record.grpc_status = grpc.map(GrpcStatus::new);
    });
    let names = by_name(&span);
    assert_eq!(names["http.status_code"], code.to_string());
    assert!(names.get("error").is_none_or(|error| *error == "true"));
    (status_of(&span), names.contains_key("error"))
}

#[test]
fn t11_a_failure_of_the_upstream_is_an_error_and_a_mistake_of_the_client_none() {
    for code in [500, 503] {
        assert_eq!(ended(code, None), (StatusCode::Error, true), "{code}");
    }
    for code in [200, 404] {
        assert_eq!(ended(code, None), (StatusCode::Unset, false), "{code}");
    }
}

#[test]
fn t13_a_client_that_went_away_leaves_code_0_and_an_error_without_a_status() {
    assert_eq!(ended(0, None), (StatusCode::Unset, true));
}

#[test]
fn t14_a_grpc_status_of_the_servers_making_is_an_error() {
    for status in [2, 4, 12, 13, 14, 15] {
        assert_eq!(ended(200, Some(status)), (StatusCode::Error, true), "{status}");
    }
    assert_eq!(ended(200, Some(8)), (StatusCode::Unset, true), "RESOURCE_EXHAUSTED is an error without a status");
}

#[test]
fn t15_another_grpc_status_is_none() {
    for status in [0, 5] {
        assert_eq!(ended(200, Some(status)), (StatusCode::Unset, false), "{status}");
    }
}

#[test]
fn t12_no_route_leaves_the_cluster_out() {
    let span = span(|record| {
        record.response_code = 404;
        record.stream.flags.insert(ResponseFlag::NoRouteFound);
        (record.stream.cluster, record.stream.cluster_stat_name, record.stream.destination) = (None, None, None);
        record.operation = None;
    });
    let names = by_name(&span);
    for absent in ["upstream_cluster", "upstream_cluster.name", "error", "istio.destination_workload"] {
        assert!(!names.contains_key(absent), "{absent}");
    }
    assert_eq!((names["response_flags"], span.name.as_str(), status_of(&span)), ("NR", "ingress", StatusCode::Unset));
}

#[test]
fn grpc_requests_have_their_attributes_even_when_a_filter_denied_them() {
    let span = span(|record| {
        record.capture_request(&headers(&[("content-type", "application/grpc"), ("grpc-timeout", "1S")]));
        record.capture_trailers(&headers(&[("grpc-status", "14"), ("grpc-message", "no")]));
    });
    let names = by_name(&span);
    assert_eq!((names["grpc.path"], names["grpc.authority"]), ("/ok?a=1", "web-svc.emojivoto"));
    assert_eq!((names["grpc.content_type"], names["grpc.timeout"]), ("application/grpc", "1S"));
    assert_eq!((names["grpc.status_code"], names["grpc.message"], names["error"]), ("14", "no", "true"));
}

#[test]
fn headers_of_the_caller_are_named_when_they_are_there() {
    let span = span(|record| {
        record.capture_request(&headers(&[
            ("x-forwarded-proto", "https"),
            ("x-envoy-original-path", "/before"),
            ("x-client-trace-id", "1"),
            ("x-envoy-downstream-service-cluster", "shop"),
        ]));
    });
    let names = by_name(&span);
    assert_eq!((names["http.url"], names["user_agent"]), ("https://web-svc.emojivoto/before", "-"));
    assert_eq!((names["guid:x-client-trace-id"], names["downstream_cluster"]), ("1", "shop"));
}

#[test]
fn t21_a_long_path_is_cut() {
    let path: PathAndQuery = format!("/{}", "p".repeat(1999)).parse().unwrap();
    let span = span(|record| record.head.as_mut().unwrap().path = Some(path.clone()));
    assert_eq!(by_name(&span)["http.url"], format!("http://web-svc.emojivoto{}", &path.as_str()[..256]));
}

#[test]
fn t20_custom_tags_without_a_value_are_left_out() {
    let mut tracing = fixture::tracing();
    let header =
        |name: &'static str, default: &str| TagSource::RequestHeader { name: http::HeaderName::from_static(name), default: default.into() };
    tracing.custom_tags = [
        ("given", header("user-agent", "")),
        ("defaulted", header("x-none", "d")),
        ("absent", header("x-none", "")),
        ("metadata", TagSource::Metadata { field: None, default: "".into() }),
        ("empty", TagSource::Literal("".into())),
    ]
    .map(|(tag, source)| CustomTag { tag: Arc::from(tag), source })
    .into();
    let span = span_with(tracing, |_| {});
    let names = by_name(&span);
    assert_eq!((names["given"], names["defaulted"]), ("t/1", "d"));
    assert!(!names.contains_key("absent") && !names.contains_key("metadata") && !names.contains_key("empty"));
}
