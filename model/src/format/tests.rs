#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::*;
use crate::flags::{ResponseFlag, ResponseFlags};
use crate::refusal::{PolicyRule, Refusal, RefusedBy};
use crate::stream_view::{Field, RequestHead, Side, Value};
use crate::workload::Workload;

#[derive(Default)]
struct Request {
    headers: HeaderMap,
    flags: ResponseFlags,
    span: Option<u64>,
    refusal: Option<Refusal>,
    peer: Option<Workload>,
}

impl StreamView for Request {
    fn request(&self) -> Option<RequestHead<'_>> {
        Some(RequestHead { method: "GET", path: "/ok?a=1", authority: Some("web.shop"), scheme: "http", headers: &self.headers })
    }
    fn response_headers(&self) -> Option<&HeaderMap> {
        None
    }
    fn response_trailers(&self) -> Option<&HeaderMap> {
        None
    }
    fn field(&self, field: Field) -> Value<'_> {
        match field {
            Field::StartTime => Value::Time(SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_465_906_500)),
            Field::ResponseCode => Value::Number(200),
            Field::ResponseFlags => Value::Flags(self.flags),
            Field::TraceId => Value::Hex128(0x9444_65e0_2249_c3cd_2ea8_d550_5aca_32a2),
            Field::SpanId => self.span.map_or(Value::Missing, Value::Hex64),
            Field::DownstreamRemoteAddress | Field::DownstreamDirectRemoteAddress => Value::Address("10.42.0.51:33952".parse().unwrap()),
            Field::PeerPrincipal => Value::Text("spiffe://cluster.local/ns/clients/sa/frontend"),
            _ => Value::Missing,
        }
    }
    fn peer(&self, _: Side) -> Option<&Workload> {
        self.peer.as_ref()
    }
    fn variable(&self, name: &str) -> Option<&str> {
        (name == "ZONE").then_some("eu-west")
    }
    fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }
}

fn text(format: &str, view: &Request) -> String {
    let mut out = Vec::new();
    TextFormat::parse(format, &mut Vec::new()).render(view, &mut out);
    String::from_utf8(out).unwrap()
}

fn line(labels: &[(&str, JsonValue)], omit: bool, view: &Request) -> String {
    let object: BTreeMap<_, _> = labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let mut out = Vec::new();
    JsonFormat::parse(&object, omit, &mut Vec::new()).render(view, &mut out);
    String::from_utf8(out).unwrap()
}

fn string(text: &str) -> JsonValue {
    JsonValue::Text(text.to_owned())
}

#[test]
fn a_text_keeps_its_literals_and_prints_a_dash_for_what_is_missing() {
    let view = Request::default();
    assert_eq!(text("[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%\" 100%% %ROUTE_NAME%", &view), {
        "[2026-11-23T20:31:46.500Z] \"GET /ok?a=1\" 100% -"
    });
    assert_eq!(text("50% off %REQ(:PATH):3% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", &view), "50% off /ok 10.42.0.51");
    assert_eq!(text("%START_TIME(%Y/%m/%d %H:%M:%S.%3f)%", &view), "2026/11/23 20:31:46.500");
}

#[test]
fn json_keys_are_sorted_and_single_operators_keep_their_type() {
    let labels = [
        ("response_code", string("%RESPONSE_CODE%")),
        ("authority", string("%REQ(:AUTHORITY)%")),
        ("mixed", string("<%REQ(X-NONE)%>")),
        ("nothing", string("%REQ(X-NONE)%")),
        ("flags", string("%RESPONSE_FLAGS%")),
        ("literal", JsonValue::Number(7.0)),
        ("nested", JsonValue::Object(BTreeMap::from([("b".to_owned(), JsonValue::Bool(true)), ("a".to_owned(), string("x"))]))),
    ];
    assert_eq!(
        line(&labels, false, &Request::default()),
        "{\"authority\":\"web.shop\",\"flags\":\"-\",\"literal\":7,\"mixed\":\"<->\",\"nested\":{\"a\":\"x\",\"b\":true},\
         \"nothing\":null,\"response_code\":200}\n"
    );
}

#[test]
fn omitted_values_take_their_key_and_comma_along() {
    let labels = [("a", string("%REQ(X-NONE)%")), ("b", string("%RESPONSE_CODE%")), ("c", string("%ROUTE_NAME%")), ("d", string("x"))];
    assert_eq!(line(&labels, true, &Request::default()), "{\"b\":200,\"d\":\"x\"}\n");
    assert_eq!(line(&labels[..1], true, &Request::default()), "{}\n");
}

#[test]
fn b3_headers_of_a_log_format_fall_back_to_the_active_span() {
    let labels = [("span_id", string("%REQ(X-B3-SPANID)%")), ("trace_id", string("%TRACE_ID%"))];
    let mut view = Request { span: Some(0x00f0_67aa_0ba9_02b7), ..Request::default() };
    assert_eq!(line(&labels, false, &view), "{\"span_id\":\"00f067aa0ba902b7\",\"trace_id\":\"944465e02249c3cd2ea8d5505aca32a2\"}\n");
    view.headers.insert("x-b3-spanid", "e457b5a2e4d86bd1".parse().unwrap());
    assert!(line(&labels, false, &view).contains("e457b5a2e4d86bd1"));
    assert_eq!(text("%REQ(X-B3-SPANID)%", &Request { span: Some(1), ..Request::default() }), "-");
}

#[test]
fn l22_a_line_is_json_whatever_a_header_holds() {
    let mut view = Request::default();
    view.headers.insert("x-bad", http::HeaderValue::from_bytes(b"a\"b\\c\xff\td").unwrap());
    assert_eq!(line(&[("h", string("%REQ(X-BAD)%"))], false, &view), "{\"h\":\"a\\\"b\\\\c\u{fffd}\\td\"}\n");
}

#[test]
fn l23_an_unknown_operator_is_reported_and_prints_as_missing() {
    let mut unknown = Vec::new();
    let object = BTreeMap::from([("x".to_owned(), string("%BOGUS(1)%"))]);
    let mut out = Vec::new();
    JsonFormat::parse(&object, false, &mut unknown).render(&Request::default(), &mut out);
    assert_eq!(unknown, [UnknownOperator("BOGUS(1)".to_owned())]);
    assert_eq!(out, b"{\"x\":null}\n");
}

#[test]
fn a_variable_of_the_environment_prints_and_one_that_is_not_set_is_a_dash() {
    let view = Request::default();
    assert_eq!(text("%ENVIRONMENT(ZONE)% %ENVIRONMENT(ZONE):2% %ENVIRONMENT(NONE)%", &view), "eu-west eu -");
    let labels = [("a", string("%ENVIRONMENT(ZONE)%")), ("b", string("%ENVIRONMENT(NONE)%"))];
    assert_eq!(line(&labels, false, &view), "{\"a\":\"eu-west\",\"b\":\"-\"}\n", "Envoy has the text for it, not null");
}

#[test]
fn local_times_name_their_zone_and_what_nothing_sets_is_empty() {
    let view = Request::default();
    assert_eq!(text("%START_TIME_LOCAL% %START_TIME_LOCAL(%Y)%", &view), "2026-11-23T20:31:46.500+0000 2026");
    let labels = [("a", string("%CUSTOM_FLAGS%")), ("b", string("%DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID%"))];
    assert_eq!(line(&labels, false, &view), "{\"a\":\"\",\"b\":\"\"}\n");
}

#[test]
fn what_is_said_of_a_peer_is_cut_where_the_format_says_so() {
    let identity = crate::identity::SpiffeId::new("cluster.local", "shop", "web").unwrap();
    let peer = Workload {
        uid: "u".into(),
        name: "web-1".into(),
        namespace: "shop".into(),
        workload_name: "website".into(),
        workload_type: crate::workload::WorkloadType::Deployment,
        canonical_name: "web".into(),
        canonical_revision: "v1".into(),
        cluster_id: "".into(),
        network: "".into(),
        identity,
        region: "".into(),
        zone: "".into(),
        addresses: Vec::new(),
    };
    let view = Request { peer: Some(peer), ..Request::default() };
    for (format, expected) in [
        ("%FILTER_STATE(downstream_peer_obj:FIELD:workload)%", "website"),
        ("%FILTER_STATE(downstream_peer_obj:FIELD:workload):3%", "web"),
        ("%FILTER_STATE(downstream_peer_obj:FIELD:workload):300%", "website"),
        ("%FILTER_STATE(upstream_peer_obj:FIELD:namespace):2%", "sh"),
        ("%FILTER_STATE(io.istio.peer_principal:PLAIN):9%", "spiffe://"),
    ] {
        assert_eq!(text(format, &view), expected, "{format}");
    }
}

#[test]
fn response_flags_print_in_order() {
    let mut view = Request::default();
    view.flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
    view.flags.insert(ResponseFlag::UpstreamConnectionFailure);
    assert_eq!(text("%RESPONSE_FLAGS%", &view), "URX,UF");
}

#[test]
fn a_refusal_is_an_object_its_parts_are_texts_and_envoy_reads_the_operator_too() {
    let formats = [
        ("by", string("%DYNAMIC_METADATA(waypoint.refusal:by)%")),
        ("policy", string("%DYNAMIC_METADATA(waypoint.refusal:policy)%")),
        ("nearest", string("%DYNAMIC_METADATA(waypoint.refusal:nearest_policy)%")),
        ("refusal", string("%DYNAMIC_METADATA(waypoint.refusal)%")),
    ];
    assert_eq!(line(&formats, false, &Request::default()), "{\"by\":null,\"nearest\":null,\"policy\":null,\"refusal\":null}\n");
    let rule = Some(PolicyRule::of("ns[shop]-policy[web]-rule[1]"));
    let refused = Request { refusal: Some(Refusal { rule, ..Refusal::new(RefusedBy::DenyPolicy) }), ..Request::default() };
    let object = r#"{"by":"deny_policy","policy":"shop/web","rule":"1"}"#;
    let expected = format!("{{\"by\":\"deny_policy\",\"nearest\":null,\"policy\":\"shop/web\",\"refusal\":{object}}}\n");
    assert_eq!(line(&formats, false, &refused), expected);
    assert_eq!(text("%DYNAMIC_METADATA(waypoint.refusal)%", &refused), object);
    assert!(Operator::parse("DYNAMIC_METADATA(waypoint.refusal:other)").is_none());
}

#[test]
fn a_line_says_why_it_was_refused_unless_its_format_does_and_only_then() {
    let refused = Request { refusal: Some(Refusal::new(RefusedBy::Token)), ..Request::default() };
    let added = |format: JsonValue, omit: bool, view: &Request| {
        let mut out = Vec::new();
        let object = BTreeMap::from([("a".to_owned(), format)]);
        JsonFormat::parse(&object, omit, &mut Vec::new()).adding_refusal().render(view, &mut out);
        String::from_utf8(out).unwrap()
    };
    let by_token = r#""waypoint_refusal":{"by":"token"}"#;
    assert_eq!(added(JsonValue::Null, false, &refused), format!("{{\"a\":null,{by_token}}}\n"));
    assert_eq!(added(JsonValue::Null, true, &refused), format!("{{{by_token}}}\n"));
    assert_eq!(added(JsonValue::Null, false, &Request::default()), "{\"a\":null}\n");
    let said = string("%DYNAMIC_METADATA(waypoint.refusal:by)%");
    assert_eq!(added(said.clone(), false, &refused), "{\"a\":\"token\"}\n");
    assert_eq!(added(JsonValue::List(vec![said]), true, &refused), "{\"a\":[\"token\"]}\n");
}

#[test]
fn l10_times_print_in_envoys_formats() {
    let view = Request::default();
    for (format, expected) in [
        ("%s.%6f", "1795465906.500000"),
        ("%s", "1795465906"),
        ("%3s", "1795465906500"),
        ("%9s", "1795465906500000000"),
        ("%f", "500000000"),
        ("%1f", "5"),
        ("%E3f", "500"),
        ("%E*f", "5"),
        ("%Y-%m-%dT%H:%M:%S.%3fZ", "2026-11-23T20:31:46.500Z"),
        ("%d/%b/%Y:%H:%M:%S %z %%s", "23/Nov/2026:20:31:46 +0000 %s"),
    ] {
        assert_eq!(text(&format!("%START_TIME({format})%"), &view), expected, "{format}");
        assert_eq!(text(&format!("%START_TIME_LOCAL({format})%"), &view), expected, "{format}");
    }
}

#[test]
fn l08_objects_and_lists_keep_their_form() {
    let list = JsonValue::List(vec![string("%REQ(:METHOD)%"), string("x"), JsonValue::Number(3.0)]);
    let inner = JsonValue::Object(BTreeMap::from([("list".to_owned(), list), ("code".to_owned(), string("%RESPONSE_CODE%"))]));
    assert_eq!(line(&[("nest", inner)], false, &Request::default()), "{\"nest\":{\"code\":200,\"list\":[\"GET\",\"x\",3]}}\n");
}

#[test]
fn an_object_that_has_nothing_left_is_left_out_too() {
    let object =
        |members: &[(&str, JsonValue)]| JsonValue::Object(members.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect());
    let none = object(&[("x", string("%REQ(X-NONE)%")), ("y", JsonValue::Null)]);
    let some = object(&[("a", none.clone()), ("b", string("%RESPONSE_CODE%")), ("c", none.clone()), ("d", string("{"))]);
    let labels = [("a", none.clone()), ("b", some), ("c", none)];
    assert_eq!(line(&labels, true, &Request::default()), "{\"b\":{\"b\":200,\"d\":\"{\"}}\n");
    assert_eq!(line(&labels[..1], true, &Request::default()), "{}\n");
}

#[test]
fn parts_of_paths_addresses_and_flags_print() {
    let mut view = Request::default();
    view.flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
    view.flags.insert(ResponseFlag::UpstreamConnectionFailure);
    for (format, expected) in [
        ("%REQ_WITHOUT_QUERY(X-NONE?:PATH)% %REQ_WITHOUT_QUERY(:PATH):2%", "/ok /o"),
        ("%PATH% %PATH(NQ)% %PATH(WQ:PATH)% %PATH(NQ:ORIG)% %PATH(:ORIG_OR_PATH):3%", "/ok?a=1 /ok /ok?a=1 - /ok"),
        ("%QUERY_PARAM(a)% %QUERY_PARAM(b)%", "1 -"),
        ("%RESPONSE_FLAGS_LONG%", "UpstreamRetryLimitExceeded,UpstreamConnectionFailure"),
        ("%DOWNSTREAM_REMOTE_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_PORT%", "33952 10.42.0.51 -"),
        ("%BYTES_RETRANSMITTED% %CONNECTION_ID% %DYNAMIC_METADATA(a:b)% %FILTER_STATE(x:PLAIN)%", "0 - - -"),
    ] {
        assert_eq!(text(format, &view), expected, "{format}");
    }
}

#[test]
fn every_operator_of_envoy_is_known() {
    let mut all = String::from(
        "%REQ(A)% %REQUEST_HEADER(A)% %RESP(A)% %RESPONSE_HEADER(A)% %TRAILER(A)% %RESPONSE_TRAILER(A)% %REQ_WITHOUT_QUERY(A)% %PATH% \
         %QUERY_PARAM(a)% %COMMON_DURATION(US_CX_BEG:US_CX_END:us)% %GRPC_STATUS(SNAKE_STRING)% %DYNAMIC_METADATA(a)% %CLUSTER_METADATA(a)% \
         %UPSTREAM_METADATA(a)% %METADATA(ROUTE:a:b)% %FILTER_STATE(a:PLAIN)% %UPSTREAM_FILTER_STATE(a)% %CEL(request.path)% \
         %ENVIRONMENT(X)% %START_TIME% %START_TIME_LOCAL% %EMIT_TIME% %EMIT_TIME_LOCAL%",
    );
    let names = "PROTOCOL UPSTREAM_PROTOCOL RESPONSE_CODE RESPONSE_CODE_DETAILS RESPONSE_FLAGS RESPONSE_FLAGS_LONG BYTES_RECEIVED BYTES_SENT \
        CONNECTION_TERMINATION_DETAILS DURATION REQUEST_DURATION REQUEST_TX_DURATION RESPONSE_DURATION RESPONSE_TX_DURATION ROUNDTRIP_DURATION \
        DOWNSTREAM_HANDSHAKE_DURATION UPSTREAM_CONNECTION_POOL_READY_DURATION UPSTREAM_HOST UPSTREAM_HOST_NAME UPSTREAM_HOST_NAME_WITHOUT_PORT \
        UPSTREAM_CLUSTER UPSTREAM_CLUSTER_RAW UPSTREAM_CONNECTION_ID CONNECTION_ID ROUTE_NAME REQUESTED_SERVER_NAME TRACE_ID SPAN_ID STREAM_ID \
        GRPC_STATUS GRPC_STATUS_NUMBER UPSTREAM_REQUEST_ATTEMPT_COUNT ACCESS_LOG_TYPE HOSTNAME UNIQUE_ID FILTER_CHAIN_NAME VIRTUAL_CLUSTER_NAME \
        CUSTOM_FLAGS TLS_JA3_FINGERPRINT TLS_JA4_FINGERPRINT STREAM_INFO_REQ BYTES_RETRANSMITTED PACKETS_RETRANSMITTED LOCAL_REPLY_BODY \
        REQUEST_HEADERS_BYTES RESPONSE_HEADERS_BYTES RESPONSE_TRAILERS_BYTES UPSTREAM_HOSTS_ATTEMPTED UPSTREAM_SERVER_NAME \
        UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID DOWNSTREAM_CX_RTT \
        UPSTREAM_LOCAL_PORT UPSTREAM_REMOTE_PORT UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT \
        DOWNSTREAM_LOCAL_PORT DOWNSTREAM_REMOTE_PORT DOWNSTREAM_DIRECT_LOCAL_PORT DOWNSTREAM_DIRECT_REMOTE_PORT \
        DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    let of_sides = "WIRE_BYTES_SENT WIRE_BYTES_RECEIVED HEADER_BYTES_SENT HEADER_BYTES_RECEIVED DECOMPRESSED_HEADER_BYTES_SENT LOCAL_ADDRESS \
        DECOMPRESSED_HEADER_BYTES_RECEIVED REMOTE_ADDRESS PEER_URI_SAN LOCAL_URI_SAN PEER_DNS_SAN LOCAL_DNS_SAN PEER_IP_SAN LOCAL_IP_SAN \
        PEER_EMAIL_SAN LOCAL_EMAIL_SAN PEER_OTHERNAME_SAN LOCAL_OTHERNAME_SAN PEER_SUBJECT LOCAL_SUBJECT PEER_ISSUER PEER_SERIAL \
        PEER_FINGERPRINT_1 PEER_FINGERPRINT_256 PEER_CERT PEER_CERT_V_START PEER_CERT_V_END PEER_CHAIN_SERIALS TLS_VERSION TLS_CIPHER \
        TLS_SESSION_ID TLS_GROUP TRANSPORT_FAILURE_REASON LOCAL_CLOSE_REASON DETECTED_CLOSE_TYPE";
    for name in names.split_whitespace() {
        all.push_str(&format!(" %{name}%"));
    }
    for name in of_sides.split_whitespace() {
        all.push_str(&format!(" %DOWNSTREAM_{name}% %UPSTREAM_{name}%"));
    }
    let mut unknown = Vec::new();
    TextFormat::parse(&all, &mut unknown);
    assert_eq!(unknown, []);
}
