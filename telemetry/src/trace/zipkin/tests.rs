#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use http::HeaderMap;
use model::tracing::{Dialect, SpanProvider, Tracing, Zipkin};

use super::super::{SpanWriter, TraceContext, begin};
use super::*;
use crate::fixture::{self, headers};
use crate::record::RequestRecord;

/// The span of the golden request, with such headers.
fn span(zipkin: Zipkin, incoming: &HeaderMap, change: impl FnOnce(&mut RequestRecord)) -> (String, TraceContext) {
    let provider = SpanProvider { collector: fixture::collector(), dialect: Dialect::Zipkin(zipkin) };
    let tracing = Tracing { provider: Some(Arc::new(provider)), ..fixture::tracing() };
    let trace = begin(Some(&tracing), incoming, true, &mut fastrand::Rng::with_seed(1)).trace.unwrap();
    let mut record = fixture::request(&fixture::chain(None, Vec::new(), Some(tracing.clone())));
    record.trace = Some(trace.clone());
    change(&mut record);
    let node = "waypoint~10.42.0.20~waypoint-7d4.emojivoto~emojivoto.svc.cluster.local";
    let mut writer = SpanWriter::new(SpanIdentity::new(node.into(), "waypoint.emojivoto".into(), "".into()));
    (String::from_utf8(writer.write(&record, &trace, &tracing).to_vec()).unwrap(), trace)
}

const ISTIOS: Zipkin = Zipkin { shares_spans: false, wide_trace_ids: true, with_w3c: false };

#[test]
fn a_span_is_an_object_with_envoys_members_and_the_tags_of_otlp() {
    let (text, trace) = span(ISTIOS, &headers(&[]), |record| record.operation = Some("web.emojivoto:80/*".into()));
    let expected = format!(
        "{{\"traceId\":\"{:032x}\",\"id\":\"{:016x}\",\"kind\":\"SERVER\",\"name\":\"web.emojivoto:80/*\",\
         \"timestamp\":1795465906500000,\"duration\":7900,\
         \"localEndpoint\":{{\"serviceName\":\"waypoint.emojivoto\",\"ipv4\":\"10.42.0.20\",\"port\":0}},\
         \"annotations\":[{{\"timestamp\":1795465906507900,\"value\":\"ss\"}}],\
         \"tags\":{{\"node_id\":\"waypoint~10.42.0.20~waypoint-7d4.emojivoto~emojivoto.svc.cluster.local\",\
         \"guid:x-request-id\":\"fb02baa0-d9f3-9e14-8eb6-1b4dd37b51ad\",\"http.url\":\"http://web-svc.emojivoto/ok?a=1\",\
         \"http.method\":\"GET\",\"http.protocol\":\"HTTP/1.1\",\"downstream_cluster\":\"-\",\"user_agent\":\"t/1\",\
         \"peer.address\":\"10.42.0.51\",\"request_size\":\"0\",\"response_size\":\"5\",\"component\":\"proxy\",\
         \"upstream_cluster\":\"inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local\",\
         \"upstream_cluster.name\":\"inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local;\",\"http.status_code\":\"200\",\
         \"response_flags\":\"-\",\"istio.mesh_id\":\"cluster.local\",\"istio.source_workload\":\"vote-bot\",\
         \"istio.destination_workload\":\"web\"}}}}",
        trace.trace_id, trace.span_id
    );
    assert_eq!(text, expected);
}

#[test]
fn ids_are_those_of_the_headers() {
    let incoming = headers(&[("x-b3-traceid", "48485a3953bb6124"), ("x-b3-spanid", "a2fb4a1d1a96d312"), ("x-b3-sampled", "1")]);
    let (text, trace) = span(ISTIOS, &incoming, |_| {});
    let ids = format!("{{\"traceId\":\"48485a3953bb6124\",\"id\":\"{:016x}\",\"parentId\":\"a2fb4a1d1a96d312\",\"kind\"", trace.span_id);
    assert!(text.starts_with(&ids), "{text}");
    let (text, _) = span(Zipkin { shares_spans: true, ..ISTIOS }, &incoming, |_| {});
    assert!(
        text.starts_with("{\"traceId\":\"48485a3953bb6124\",\"id\":\"a2fb4a1d1a96d312\",\"kind\"") && text.contains(",\"shared\":true,"),
        "{text}"
    );
}

#[test]
fn a_span_is_json_whatever_a_header_holds() {
    let agent = http::HeaderValue::from_bytes(b"a\"b\\c\xff\t").unwrap();
    let (text, _) = span(ISTIOS, &headers(&[]), |record| {
        record.capture_request(&HeaderMap::from_iter([(http::header::USER_AGENT, agent)]));
    });
    assert!(text.contains("\"user_agent\":\"a\\\"b\\\\c\u{fffd}\\t\""), "{text}");
}
