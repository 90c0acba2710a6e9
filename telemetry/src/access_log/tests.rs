#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use http::uri::Scheme;
use model::access_log::{AccessLog, LogFilter, LogFormat, RecordValue};
use model::flags::ResponseFlag;
use model::format::{Expression, JsonFormat, JsonValue, TextFormat};
use model::refusal::{Refusal, RefusedBy};
use model::stream_view::StreamView;
use model::stream_view::forwarded_for;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message as _;

use crate::fixture::{self, headers, text_format};
use crate::record::{Head, RequestRecord, UpstreamLocal};
use crate::trace::begin;

fn log(format: LogFormat) -> AccessLog {
    AccessLog { target: model::access_log::LogTarget::Stdout, format, filters: Vec::new() }
}

fn render(log: &AccessLog, view: &dyn StreamView) -> String {
    let mut out = Vec::new();
    log.render(view, &mut out);
    String::from_utf8(out).unwrap()
}

/// A request through a chain that logs in the seed's format.
fn seed(change: impl FnOnce(&mut RequestRecord)) -> String {
    let log = log(fixture::seed_format());
    let chain = fixture::chain(None, vec![log.clone()], None);
    let mut record = fixture::request(&chain);
    change(&mut record);
    render(&log, &record)
}

#[test]
fn l01_the_seeds_format_prints_the_golden_line_with_both_ids_filled() {
    let parent = headers(&[("traceparent", "00-944465e02249c3cd2ea8d5505aca32a2-00f067aa0ba902b7-01")]);
    let trace = begin(Some(&fixture::tracing()), &parent, true, &mut fastrand::Rng::with_seed(1)).trace.unwrap();
    let span_id = format!("{:016x}", trace.span_id);
    let line = seed(|record| record.trace = Some(trace));
    assert_eq!(
        line,
        format!(
            "{{\"authority\":\"web-svc.emojivoto\",\"bytes_received\":0,\"bytes_sent\":5,\"duration_ms\":7,\"method\":\"GET\",\
             \"path\":\"/ok?a=1\",\"protocol\":\"HTTP/1.1\",\"request_id\":\"fb02baa0-d9f3-9e14-8eb6-1b4dd37b51ad\",\
             \"response_code\":200,\"response_flags\":\"-\",\"span_id\":\"{span_id}\",\"timestamp\":\"2026-11-23T20:31:46.500Z\",\
             \"trace_id\":\"944465e02249c3cd2ea8d5505aca32a2\",\
             \"upstream_cluster\":\"inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local;\",\
             \"upstream_host\":\"envoy://connect_originate/10.42.0.74:8080\",\"user_agent\":\"t/1\"}}\n"
        )
    );
}

#[test]
fn without_a_span_both_ids_are_null() {
    let line = seed(|_| {});
    assert!(line.contains("\"span_id\":null") && line.contains("\"trace_id\":null"), "{line}");
}

#[test]
fn l02_no_route_leaves_host_and_cluster_null() {
    let line = seed(|record| {
        record.response_code = 404;
        record.stream.flags.insert(ResponseFlag::NoRouteFound);
        (record.stream.cluster, record.stream.cluster_stat_name, record.stream.upstream_host) = (None, None, None);
    });
    for part in ["\"upstream_cluster\":null", "\"upstream_host\":null", "\"response_code\":404", "\"response_flags\":\"NR\""] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn l19_what_was_no_request_prints_no_method_and_no_path() {
    let line = seed(|record| {
        record.head = None;
        record.response_code = 400;
        record.stream.flags.insert(ResponseFlag::DownstreamProtocolError);
    });
    for part in ["\"method\":null", "\"path\":null", "\"authority\":null", "\"response_code\":400", "\"response_flags\":\"DPE\""] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn l18_a_tcp_connection_prints_byte_counts_and_no_request() {
    let log = log(fixture::seed_format());
    let mut record = fixture::connection(&fixture::chain(None, vec![log.clone()], None));
    (record.stream.bytes_received, record.stream.bytes_sent) = (6, 5);
    let line = render(&log, &record);
    for name in ["protocol", "method", "path", "authority", "request_id", "trace_id"] {
        assert!(line.contains(&format!("\"{name}\":null")), "{name} in {line}");
    }
    assert!(line.contains("\"response_code\":0") && line.contains("\"bytes_received\":6,\"bytes_sent\":5"), "{line}");
}

#[test]
fn l12_istios_default_text_format_prints_as_envoy_prints_it() {
    let format = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
                  %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% \
                  %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
                  \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
                  %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";
    let log = log(text_format(format));
    let mut record = fixture::request(&fixture::chain(None, vec![log.clone()], None));
    record.capture_response(&headers(&[("x-envoy-upstream-service-time", "1")]));
    assert_eq!(
        render(&log, &record),
        "[2026-11-23T20:31:46.500Z] \"GET /ok?a=1 HTTP/1.1\" 200 - via_upstream - \"-\" 0 5 7 1 \"-\" \"t/1\" \
         \"fb02baa0-d9f3-9e14-8eb6-1b4dd37b51ad\" \"web-svc.emojivoto\" \"envoy://connect_originate/10.42.0.74:8080\" \
         inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local envoy://internal_client_address/ 10.43.7.9:80 10.42.0.51:33952 - \
         default\n"
    );
}

#[test]
fn the_client_is_the_last_one_that_proxies_name_and_the_direct_one_who_dialled() {
    let log = log(text_format("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"));
    let mut record = fixture::request(&fixture::chain(None, vec![log.clone()], None));
    for (forwarded, expected) in [
        ("1.2.3.4, 5.6.7.8", "5.6.7.8:0 0 10.42.0.51:33952"),
        ("::1", "[::1]:0 0 10.42.0.51:33952"),
        ("5.6.7.8, unknown", "10.42.0.51:33952 33952 10.42.0.51:33952"),
    ] {
        record.forwarded_for = forwarded_for(&headers(&[("x-forwarded-for", forwarded)]));
        assert_eq!(render(&log, &record), expected, "{forwarded}");
    }
}

#[test]
fn causes_print_underscores_for_spaces_and_plain_endpoints_their_addresses() {
    let log =
        log(text_format("%RESPONSE_CODE_DETAILS% %UPSTREAM_TRANSPORT_FAILURE_REASON% %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_REMOTE_ADDRESS%"));
    let mut record = fixture::request(&fixture::chain(None, vec![log.clone()], None));
    record.stream.details = Some("a b".into());
    record.stream.failure_reason = Some("delayed connect error: Connection refused".into());
    record.stream.upstream_host = Some("10.0.0.9:80".into());
    record.stream.upstream_local = Some(UpstreamLocal::Socket("[::1]:7".parse().unwrap()));
    assert_eq!(render(&log, &record), "a_b delayed_connect_error:_Connection_refused [::1]:7 10.0.0.9:80");
}

#[test]
fn grpc_status_prints_by_name_and_number_and_only_for_grpc() {
    let log = log(text_format("%GRPC_STATUS% %GRPC_STATUS_NUMBER% %TRAILER(GRPC-MESSAGE)%"));
    let mut record = fixture::request(&fixture::chain(None, vec![log.clone()], None));
    assert_eq!(render(&log, &record), "- - -");
    record.is_grpc = true;
    record.capture_trailers(&headers(&[("grpc-status", "5"), ("grpc-message", "none")]));
    assert_eq!(render(&log, &record), "NotFound 5 none");
}

#[test]
fn only_the_headers_that_formats_name_are_kept() {
    let record = fixture::request(&fixture::chain(None, vec![log(fixture::seed_format())], None));
    let kept: Vec<_> = record.request().unwrap().headers.keys().map(http::HeaderName::as_str).collect();
    assert!(kept.contains(&"user-agent") && kept.contains(&"x-request-id") && !kept.contains(&"x-other"), "{kept:?}");
}

#[test]
fn a_hop_that_logs_only_failures_stays_silent_about_others() {
    let mut log = log(text_format("%REQ(:METHOD)% %RESPONSE_CODE% %RESPONSE_FLAGS%\n"));
    log.filters = vec![LogFilter::CodeAtLeast(400)];
    let mut record = RequestRecord::new(fixture::chain(None, vec![log.clone()], None), "HTTP/2");
    record.head = Some(Head { method: Method::CONNECT, path: None, authority: "10.43.7.9:80".parse().ok(), scheme: Scheme::HTTP });
    record.response_code = 200;
    assert_eq!(render(&log, &record), "");
    record.response_code = 404;
    record.stream.flags.insert(ResponseFlag::NoRouteFound);
    assert_eq!(render(&log, &record), "CONNECT 404 NR\n");
}

/// The lines that a request leaves in a log with this filter.
fn filtered(expression: &str, change: impl FnOnce(&mut RequestRecord)) -> String {
    let log =
        AccessLog { filters: vec![LogFilter::Expression(Expression::parse(expression).unwrap())], ..log(fixture::text_format("logged")) };
    let mut record = fixture::request(&fixture::chain(None, vec![log.clone()], None));
    change(&mut record);
    let mut out = Vec::new();
    log.render(&record, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn l16_a_filter_on_the_code_logs_failures_and_no_request_without_an_answer() {
    for (code, expected) in [(200, ""), (404, "logged"), (503, "logged"), (0, "")] {
        assert_eq!(filtered("response.code >= 400", |record| record.response_code = code), expected, "{code}");
    }
    let set = |record: &mut RequestRecord| record.stream.flags.insert(ResponseFlag::DownstreamConnectionTermination);
    assert_eq!((filtered("response.flags != 0", |_| {}), filtered("response.flags != 0", set)), (String::new(), "logged".to_owned()));
}

#[test]
fn l17_a_filter_without_a_value_logs_nothing() {
    for expression in ["request.headers['x-missing'] == 'a'", "'text'", "1", "nonsense.name", "request.headers['x-missing'] != 'a'"] {
        assert_eq!(filtered(expression, |_| {}), "", "{expression}");
    }
    let idiom = "!has(request.headers['x-kept']) || request.headers['x-kept'] == 'a'";
    let with = |value: &'static str| filtered(idiom, |record| record.capture_request(&fixture::headers(&[("x-kept", value)])));
    assert_eq!((filtered(idiom, |_| {}), with("a"), with("b")), ("logged".to_owned(), "logged".to_owned(), String::new()));
}

#[test]
fn an_expression_prints_as_text_and_an_error_as_missing() {
    let line = |text: &str| {
        let log = log(fixture::text_format(text));
        render(&log, &fixture::request(&fixture::chain(None, vec![log.clone()], None)))
    };
    assert_eq!(line("%CEL(response.code)%|%CEL((1 + 2) * 3):1%|%CEL(request.headers['x-none'])%|"), "200|9|-|");
}

/// One member of a line in JSON.
fn member(format: &str, omits_missing: bool, change: impl FnOnce(&mut RequestRecord)) -> String {
    let object = BTreeMap::from([("x".to_owned(), JsonValue::Text(format.to_owned()))]);
    let log = log(LogFormat::Json(JsonFormat::parse(&object, omits_missing, &mut Vec::new())));
    let mut record = fixture::request(&fixture::chain(None, vec![log.clone()], None));
    change(&mut record);
    let line = render(&log, &record);
    line.strip_prefix('{').unwrap().strip_suffix("}\n").unwrap().to_owned()
}

#[test]
fn l03_without_an_endpoint_the_cluster_is_named_and_the_host_null() {
    let line = seed(|record| {
        record.response_code = 503;
        record.stream.flags.insert(ResponseFlag::NoHealthyUpstream);
        record.stream.upstream_host = None;
    });
    let cluster = "\"upstream_cluster\":\"inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local;\",\"upstream_host\":null";
    assert!(line.contains(cluster) && line.contains("\"response_flags\":\"UH\""), "{line}");
}

#[test]
fn l04_a_client_that_went_away_leaves_code_0_and_no_bytes() {
    let line = seed(|record| {
        record.response_code = 0;
        record.stream.bytes_sent = 0;
        record.stream.flags.insert(ResponseFlag::DownstreamConnectionTermination);
    });
    assert!(line.contains("\"bytes_sent\":0") && line.contains("\"response_code\":0,\"response_flags\":\"DC\""), "{line}");
}

#[test]
fn l05_without_a_user_agent_it_is_null() {
    let line = seed(|record| record.capture_request(&headers(&[])));
    assert!(line.contains("\"user_agent\":null"), "{line}");
}

#[test]
fn l06_a_text_of_several_operators_is_a_text() {
    assert_eq!(member("d=%DURATION%ms c=%RESPONSE_CODE%", false, |_| {}), "\"x\":\"d=7ms c=200\"");
}

#[test]
fn l07_what_is_missing_is_a_dash_within_a_text_and_nothing_where_that_is_asked_for() {
    assert_eq!(member("<%REQ(X-NONE)%>", false, |_| {}), "\"x\":\"<->\"");
    assert_eq!(member("<%REQ(X-NONE)%>", true, |_| {}), "\"x\":\"<>\"");
    assert_eq!((member("%REQ(X-NONE)%", false, |_| {}), member("%REQ(X-NONE)%", true, |_| {})), ("\"x\":null".into(), String::new()));
}

#[test]
fn l09_metadata_of_the_cluster_is_a_list_of_its_service() {
    let services = "[{\"host\":\"web-svc.emojivoto.svc.cluster.local\",\"name\":\"web-svc\",\"namespace\":\"emojivoto\"}]";
    assert_eq!(member("%CLUSTER_METADATA(istio:services)%", false, |_| {}), format!("\"x\":{services}"));
    assert_eq!(member("%METADATA(CLUSTER:istio)%", false, |_| {}), format!("\"x\":{{\"services\":{services}}}"));
    assert_eq!(member("%CLUSTER_METADATA(istio:services)%", false, |record| record.stream.service = None), "\"x\":null");
    assert_eq!(member("%CLUSTER_METADATA(other:key)%", false, |_| {}), "\"x\":null");
}

#[test]
fn l11_the_cluster_is_printed_with_its_semicolon_and_raw_without() {
    let name = "inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local";
    assert_eq!(member("%UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW%", false, |_| {}), format!("\"x\":\"{name}; {name}\""));
}

#[test]
fn l20_an_answer_of_the_route_itself_names_neither_host_nor_cluster() {
    let answered = |record: &mut RequestRecord| {
        record.response_code = 301;
        record.stream.details = Some("direct_response".into());
        (record.stream.cluster, record.stream.cluster_stat_name, record.stream.upstream_host) = (None, None, None);
    };
    let format = "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %UPSTREAM_HOST% %UPSTREAM_CLUSTER%";
    assert_eq!(member(format, false, answered), "\"x\":\"301 direct_response - -\"");
}

#[test]
fn durations_sizes_and_parts_of_addresses_print() {
    let timed = |record: &mut RequestRecord| {
        let start = record.stream.start;
        record.stream.request_end = Some(start + Duration::from_micros(1_500));
        record.stream.response_start = Some(start + Duration::from_micros(5_200));
    };
    for (format, expected) in [
        ("%REQUEST_DURATION%", "1"),
        ("%RESPONSE_DURATION%", "5"),
        ("%RESPONSE_TX_DURATION%", "2"),
        ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%", "7900"),
        ("%COMMON_DURATION(DS_RX_END:US_RX_BEG:ns)%", "3700000"),
        ("%COMMON_DURATION(US_CX_BEG:US_CX_END:ms)%", "null"),
        ("%DOWNSTREAM_WIRE_BYTES_RECEIVED%", "66"),
        ("%RESPONSE_HEADERS_BYTES%", "227"),
        ("%EMIT_TIME(%3s)%", "\"1795465906507\""),
        ("%ACCESS_LOG_TYPE%", "\"DownstreamEnd\""),
        ("%UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID%", "\"10.42.0.74:8080\""),
        ("%DOWNSTREAM_LOCAL_PORT%", "80"),
        ("%TRACE_SAMPLED%", "null"),
    ] {
        assert_eq!(member(format, false, timed), format!("\"x\":{expected}"), "{format}");
    }
}

#[test]
fn a_grpc_status_is_written_in_three_ways() {
    let line = |format: &str| {
        member(format, false, |record| {
            record.is_grpc = true;
            record.grpc_status = Some(crate::grpc::GrpcStatus::new(5));
        })
    };
    assert_eq!(line("%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)%"), "\"x\":\"NotFound NOT_FOUND 5\"");
    assert_eq!(line("%GRPC_STATUS(NUMBER)%"), "\"x\":5");
}

#[test]
fn l25_a_record_for_a_collector_has_the_line_texts_as_attributes_and_the_ids_of_the_span() {
    let text = |text: &str| RecordValue::Text(TextFormat::parse(text, &mut Vec::new()));
    let nested = RecordValue::Pairs(vec![("list".into(), RecordValue::List(vec![text("%PROTOCOL%"), text("x")]))]);
    let attributes = [("code".into(), text("%RESPONSE_CODE%")), ("nest".into(), nested), ("none".into(), text("%REQ(X-NONE)%"))];
    let mut record = fixture::request(&fixture::chain(None, Vec::new(), Some(fixture::tracing())));
    record.trace = begin(Some(&fixture::tracing()), &headers(&[]), true, &mut fastrand::Rng::with_seed(1)).trace;
    let mut writer = super::record::RecordWriter::default();
    let bytes = writer.write(Some(&text("%REQ(:METHOD)% %RESPONSE_FLAGS%\n")), &attributes, None, &record);
    let read = LogRecord::decode(bytes).unwrap();
    let string = |text: &str| Some(AnyValue { value: Some(Value::StringValue(text.to_owned())) });
    let pair = |key: &str, value| KeyValue { key: key.to_owned(), value, ..KeyValue::default() };
    assert_eq!((read.time_unix_nano, read.body), (1_795_465_906_500_000_000, string("GET -\n")));
    let list = ArrayValue { values: [string("HTTP/1.1"), string("x")].into_iter().flatten().collect() };
    let nest = KeyValueList { values: vec![pair("list", Some(AnyValue { value: Some(Value::ArrayValue(list)) }))] };
    let nest = Some(AnyValue { value: Some(Value::KvlistValue(nest)) });
    assert_eq!(read.attributes, [pair("code", string("200")), pair("nest", nest), pair("none", string("-"))]);
    let trace = record.trace.as_ref().unwrap();
    assert_eq!((read.trace_id, read.span_id), (trace.trace_id.to_be_bytes().to_vec(), trace.span_id.to_be_bytes().to_vec()));
    // Longer than what one byte can say.
    let long = "long ".repeat(100);
    let read = LogRecord::decode(writer.write(Some(&text(&long)), &[], None, &record)).unwrap();
    assert_eq!(read.body, string(&long));
}

#[test]
fn a_record_of_a_refused_request_says_why_in_attributes() {
    let mut record = fixture::request(&fixture::chain(None, Vec::new(), None));
    record.stream.refusal = Some(Box::new(Refusal::new(RefusedBy::NoAllowPolicy)));
    let mut writer = super::record::RecordWriter::default();
    let read = LogRecord::decode(writer.write(None, &[], record.refusal(), &record)).unwrap();
    let value = Some(AnyValue { value: Some(Value::StringValue("no_allow_policy".to_owned())) });
    assert_eq!(read.attributes, [KeyValue { key: "waypoint.refusal.by".to_owned(), value, ..KeyValue::default() }]);
}

#[test]
fn l25_a_connections_record_has_no_ids() {
    let connection = fixture::connection(&fixture::chain(None, Vec::new(), None));
    let mut writer = super::record::RecordWriter::default();
    let body = RecordValue::Text(TextFormat::parse("%BYTES_SENT%", &mut Vec::new()));
    let read = LogRecord::decode(writer.write(Some(&body), &[], None, &connection)).unwrap();
    assert_eq!((read.body.unwrap().value, read.trace_id.len(), read.span_id.len()), (Some(Value::StringValue("0".to_owned())), 0, 0));
    let read = LogRecord::decode(writer.write(None, &[], None, &connection)).unwrap();
    assert_eq!((read.body, read.attributes.len()), (None, 0));
}
