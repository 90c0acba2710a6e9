#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use model::ext_authz::{AuthzService, GrpcAuthz, HeaderNames, HttpAuthz, OnFailure, Told};
use model::fraction::Fraction;
use model::matcher::StringMatcher;
use model::rbac::{Permission, Policy, Principal, Rbac, RbacAction};
use prost::Message;

use super::*;

fn filter(gate: Option<Gate>) -> ExtAuthz {
    let grpc = GrpcAuthz { cluster: "authz".into(), authority: HeaderValue::from_static("authz"), timeout: None };
    ExtAuthz {
        name: "ext_authz".into(),
        service: AuthzService::Grpc(grpc),
        gate,
        share: Fraction::ALL,
        denies_unasked: false,
        told: Told::default(),
        on_failure: OnFailure { allows: false, adds_header: false, status: 403 },
        chooses_route_anew: false,
        denied_body_bytes_max: None,
    }
}

fn gate(prefix: &str, invert: bool) -> Gate {
    Gate { test: StringMatcher::Prefix(prefix.as_bytes().into()), invert }
}

fn rules(action: RbacAction, name: &str, port: u16) -> Rbac {
    let policy = Policy::new(name, vec![Permission::DestinationPort(port)], vec![Principal::Any]);
    Rbac::new(action, vec![policy])
}

fn external(gate: Option<Gate>) -> EarlyFilter {
    EarlyFilter::External(Box::new(filter(gate)))
}

/// All steps of a connection to port 80.
fn steps(early: &[EarlyFilter]) -> Vec<String> {
    let input = RbacInput {
        head: None,
        peer_principal: None,
        peer_address: "10.0.0.1".parse().unwrap(),
        forwarded_for: None,
        destination: Some("10.96.1.1:80".parse().unwrap()),
        destination_port: 80,
        server_name: "",
        claims: None,
    };
    let mut progress = Progress::new(early);
    let mut all = Vec::new();
    loop {
        match progress.next(&input, || 50) {
            Step::Passed => return all,
            Step::Denied(by) => {
                all.push(format!("denied {:?}", by.policy()));
                return all;
            }
            Step::Ask(_, policy) => all.push(format!("ask {}", policy.as_deref().unwrap_or("-"))),
            Step::Unasked(_) => all.push("unasked".to_owned()),
        }
    }
}

#[test]
fn a_service_is_asked_where_its_shadow_rules_match_last() {
    let shadow = |name: &str, port| EarlyFilter::Shadow(rules(RbacAction::Deny, name, port));
    let ask = |prefix| external(Some(gate(prefix, false)));
    assert_eq!(steps(&[shadow("one-rule", 80), ask("one")]), ["ask one-rule"]);
    assert_eq!(steps(&[shadow("one-rule", 81), ask("one")]), [""; 0]);
    // Of two providers each has rules of its own; the name of the first stays where the second's do not match.
    let two = |first, second| [shadow("one-rule", first), ask("one"), shadow("two-rule", second), ask("two")];
    assert_eq!(steps(&two(80, 80)), ["ask one-rule", "ask two-rule"]);
    assert_eq!(steps(&two(80, 81)), ["ask one-rule"]);
    assert_eq!(steps(&two(81, 80)), ["ask two-rule"]);
    assert_eq!(steps(&[external(None)]), ["ask -"], "without a condition always");
    assert_eq!(steps(&[external(Some(gate("one", true)))]), ["ask -"], "no name is not like one");
}

#[test]
fn policies_before_a_service_are_judged_before_it_is_asked() {
    let deny = |port| EarlyFilter::Rbac(rules(RbacAction::Deny, "bad-provider", port));
    assert_eq!(steps(&[deny(80), external(None)]), ["denied Some(\"bad-provider\")"]);
    assert_eq!(steps(&[deny(81), external(None)]), ["ask -"]);
}

#[test]
fn a_share_of_requests_is_asked_about_and_others_pass_or_are_refused() {
    let share = |numerator, denies_unasked| {
        let share = Fraction { numerator, denominator: 100 };
        EarlyFilter::External(Box::new(ExtAuthz { share, denies_unasked, ..filter(None) }))
    };
    assert_eq!(steps(&[share(51, false)]), ["ask -"]);
    assert_eq!(steps(&[share(50, false)]), [""; 0]);
    assert_eq!(steps(&[share(50, true)]), ["unasked"]);
}

fn message(response: wire::CheckResponse) -> Answer {
    read_grpc(&wire::framed(&response))
}

fn pair(key: &str, value: &str, append: Option<bool>) -> wire::HeaderOption {
    let header = wire::HeaderValue { key: key.to_owned(), value: value.to_owned(), raw_value: Bytes::new() };
    wire::HeaderOption { header: Some(header), append: append.map(|value| wire::BoolValue { value }), append_action: 0 }
}

fn granted(headers: Vec<wire::HeaderOption>, response: Vec<wire::HeaderOption>) -> Answer {
    let granted = wire::Granted { headers, response_headers_to_add: response, ..wire::Granted::default() };
    message(wire::CheckResponse { status: None, http_response: Some(wire::HttpResponse::Ok(granted)) })
}

#[test]
fn an_answer_that_frames_a_message_anew_or_sends_it_elsewhere_is_unusable() {
    for name in [":path", ":authority", ":method", ":status", "host", "content-length", "transfer-encoding", "connection", "te", "x y", ""]
    {
        assert_eq!(granted(vec![pair(name, "1", None)], vec![]), Answer::Unusable, "{name}");
        assert_eq!(granted(vec![], vec![pair(name, "1", None)]), Answer::Unusable, "{name} in the response");
    }
    for value in ["a\r\nx-b: 1", "\0", "a\nb"] {
        assert_eq!(granted(vec![pair("x-a", value, None)], vec![]), Answer::Unusable, "{value:?}");
    }
    let Answer::Allowed(allowed) = granted(vec![pair("x-a", "1", None)], vec![]) else { panic!("it is usable") };
    let outside = Allowed { parameters: vec![("a".to_owned(), "1 HTTP/1.1".to_owned())], ..allowed };
    assert_eq!(outside.path("/"), Err(Unusable));
}

#[test]
fn an_answer_that_asks_for_too_much_is_unusable_and_a_refusal_is_cut() {
    let headers = |count| std::iter::repeat_n(pair("a", "", None), count).collect::<Vec<_>>();
    assert!(matches!(granted(headers(200), headers(56)), Answer::Allowed(_)));
    assert_eq!(granted(headers(200), headers(57)), Answer::Unusable);
    let denied = wire::Denied { status: None, headers: headers(40_000), body: String::new() };
    let response = wire::CheckResponse { status: Some(wire::Status { code: 7 }), http_response: Some(wire::HttpResponse::Denied(denied)) };
    let Answer::Denied(refusal) = message(response) else { panic!("it stays one") };
    assert_eq!(refusal.headers.len(), 256);
}

#[test]
fn a_refusal_stays_one_without_headers_that_it_cannot_have() {
    let headers = ["content-length", "connection", ":status", "x y"].map(|name| pair(name, "1", None));
    let denied = wire::Denied { status: None, headers: headers.into(), body: "no".to_owned() };
    let answer =
        message(wire::CheckResponse { status: Some(wire::Status { code: 7 }), http_response: Some(wire::HttpResponse::Denied(denied)) });
    assert_eq!(answer, Answer::Denied(Refusal { status: Some(403), headers: HeaderMap::new(), body: "no".into() }));
}

#[test]
fn what_is_no_message_is_no_answer() {
    let whole = wire::framed(&wire::CheckResponse::default());
    assert_eq!(read_grpc(&whole), Answer::Allowed(Allowed::default()), "an empty message is status 0");
    let compressed = [&[1][..], &whole[1..]].concat();
    let twice = [&whole[..], &whole[..]].concat();
    for bytes in [vec![], vec![0; 4], b"\0\0\0\0\x05hello".to_vec(), b"\0\0\0\0\x09hell".to_vec(), compressed, twice] {
        assert_eq!(read_grpc(&Bytes::from(bytes.clone())), Answer::none(), "{bytes:?}");
    }
}

fn http_service(upstream: &str) -> HttpAuthz {
    HttpAuthz {
        cluster: "authz".into(),
        timeout: None,
        path_prefix: "/check".into(),
        headers_to_add: vec![],
        upstream_headers: HeaderNames(vec![StringMatcher::regex(upstream).unwrap()]),
        upstream_headers_to_append: HeaderNames::default(),
        client_headers: None,
        client_headers_on_success: HeaderNames(vec![StringMatcher::Prefix(b"".as_slice().into())]),
    }
}

#[test]
fn no_list_lets_an_http_answers_own_framing_or_an_unnamed_header_pass() {
    let names = ["content-length", "transfer-encoding", "connection", "keep-alive", "host", "te", "x-a", "y-b"];
    let headers: HeaderMap = names.iter().map(|name| (HeaderName::from_static(name), HeaderValue::from_static("1"))).collect();
    let Answer::Allowed(allowed) = read_http(&http_service("x-.*|content-.*|.*ing"), 200, &headers, Bytes::new()) else { panic!() };
    let set: Vec<_> = allowed.request.iter().map(|header| header.name.as_str()).collect();
    assert_eq!(set, ["x-a"]);
    let mut back: Vec<_> = allowed.response.iter().map(|header| header.name.as_str()).collect();
    back.sort_unstable();
    assert_eq!(back, ["x-a", "y-b"]);
    let Answer::Denied(refusal) = read_http(&http_service(""), 401, &headers, Bytes::new()) else { panic!() };
    assert_eq!(refusal.headers.len(), 2, "{:?}", refusal.headers);
    for status in [100, 199, 500, 503, 599, 600] {
        assert_eq!(read_http(&http_service(""), status, &headers, Bytes::new()), Answer::none(), "{status}");
    }
}

#[test]
fn only_headers_that_may_be_told_are_told_and_a_caller_says_nothing_of_the_body() {
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-a", "1"), ("x-a", "\u{e9}"), ("x-b", "2"), ("x-envoy-auth-partial-body", "true"), ("host", "web")] {
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers.append("x-a", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
    let head = model::stream_view::RequestHead { method: "GET", path: "/p?q", authority: Some("web"), scheme: "http", headers: &headers };
    let http = HttpFacts {
        head,
        protocol: "HTTP/1.1",
        time: std::time::UNIX_EPOCH,
        id: 7,
        size: 0,
        shown: None,
        upgrade: Some(b"websocket"),
        context: &[],
    };
    let peer = Peer { address: None, principal: "spiffe://a" };
    let facts = Facts { source: peer, destination: peer, http: Some(http) };
    let only = HeaderNames(vec![StringMatcher::Exact(b"x-a".as_slice().into()), StringMatcher::Exact(b":path".as_slice().into())]);
    let told = Told { headers: Some(only), ..Told::default() };
    let read = |told: &Told| wire::CheckRequest::decode(grpc_call(told, &facts).slice(wire::PREFIX_BYTES..)).unwrap().attributes.unwrap();
    let request = read(&told).request.unwrap().http.unwrap();
    let pairs: Vec<_> = request.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(pairs, [(":path", "/p?q"), ("x-a", "1,\u{e9},!!")]);
    let all = read(&Told::default());
    assert_eq!(all.source.unwrap().principal, "spiffe://a");
    let names: Vec<_> = all.request.unwrap().http.unwrap().headers.into_keys().collect();
    assert_eq!(names, [":authority", ":method", ":path", ":scheme", "upgrade", "x-a", "x-b"]);
}

#[test]
fn parameters_are_written_anew_as_envoy_does() {
    let change = |set: &[(&str, &str)], removed: &[&str]| Allowed {
        parameters: set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        removed_parameters: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..Allowed::default()
    };
    assert_eq!(change(&[], &[]).path("/q?a=1"), Ok(None));
    let path = change(&[("a", "2"), ("n", "1")], &[]).path("/q?a=1&b=%20+&a=3&c&=e&d==");
    assert_eq!(path, Ok(Some("/q?=e&a=2&b=%20+&c=&d==&n=1".to_owned())));
    assert_eq!(change(&[], &["a", "c"]).path("/q?a=1&c&z=#f"), Ok(Some("/q?z=".to_owned())));
    assert_eq!(change(&[], &["a"]).path("/q?a=1"), Ok(Some("/q".to_owned())));
}
