#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use http::HeaderMap;

use super::*;
use crate::flags::{ResponseFlag, ResponseFlags};
use crate::refusal::Refusal;
use crate::stream_view::{Field, RequestHead, Side, Value};
use crate::workload::Workload;

struct Request {
    headers: HeaderMap,
    code: u64,
    flags: ResponseFlags,
}

impl Request {
    fn new(headers: &[(&'static str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect();
        Self { headers, code: 200, flags: ResponseFlags::default() }
    }
}

impl StreamView for Request {
    fn request(&self) -> Option<RequestHead<'_>> {
        Some(RequestHead { method: "GET", path: "/api/a?b=c", authority: Some("web.shop"), scheme: "http", headers: &self.headers })
    }
    fn response_headers(&self) -> Option<&HeaderMap> {
        None
    }
    fn response_trailers(&self) -> Option<&HeaderMap> {
        None
    }
    fn field(&self, field: Field) -> Value<'_> {
        match field {
            Field::ResponseCode => Value::Number(self.code),
            Field::ResponseFlags => Value::Flags(self.flags),
            Field::BytesSent => Value::Number(5),
            Field::Duration => Value::Number(1500),
            Field::DownstreamLocalAddress => Value::Address("10.43.7.9:80".parse().unwrap()),
            Field::UpstreamClusterRaw => Value::Text("outbound|80||web"),
            _ => Value::Missing,
        }
    }
    fn peer(&self, _: Side) -> Option<&Workload> {
        None
    }
    fn refusal(&self) -> Option<&Refusal> {
        None
    }
}

/// What an expression prints; none for an error.
fn value(text: &str, view: &Request) -> Option<String> {
    let expression = Expression::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    expression.with_text(view, |text| text.map(str::to_owned))
}

#[test]
fn expressions_say_what_cel_says() {
    let view = Request::new(&[("x-user", "alice"), ("user-agent", "t/1")]);
    for (text, expected) in [
        ("'test'", "test"),
        ("\"a\\n\\x41\\u00e9\"", "a\nAé"),
        ("r'\\d'", "\\d"),
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3 - -1", "10"),
        ("7 / 2", "3"),
        ("-7 % 3", "-1"),
        ("0x1f", "31"),
        ("2u + 3u", "5"),
        ("1.5 + 1.0", "2.5"),
        ("'a' + 'b'", "ab"),
        ("1 == 1.0 && 2u > 1 && 1 != 'a'", "true"),
        ("true ? 'yes' : 'no'", "yes"),
        ("!false", "true"),
        ("2 in [1, 2, 3]", "true"),
        ("'x' in ['y']", "false"),
        ("size('héllo')", "5"),
        ("size([1, 2])", "2"),
        ("string(1) + string(true)", "1true"),
        ("int('42') + int(1.9)", "43"),
        ("double('1.5') < 2", "true"),
        ("request.path", "/api/a?b=c"),
        ("request.url_path.startsWith('/api')", "true"),
        ("request.query.contains('=') && request.path.endsWith('c')", "true"),
        ("request.method == 'GET' && request.host != 'x'", "true"),
        ("request.headers['x-user']", "alice"),
        ("request.headers[':path']", "/api/a?b=c"),
        ("request.useragent.matches('^t/[0-9]$')", "true"),
        ("'x-user' in request.headers", "true"),
        ("'x-none' in request.headers", "false"),
        ("has(request.headers['x-none']) || has(request.method)", "true"),
        ("!has(request.headers['x-none']) || request.headers['x-none'] == 'a'", "true"),
        ("response.code >= 200 && response.code < 300", "true"),
        ("response.code == 200 ? '2xx' : 'other'", "2xx"),
        ("response.size", "5"),
        ("request.duration > duration('1s')", "true"),
        ("string(destination.port)", "80"),
        ("destination.address", "10.43.7.9:80"),
        ("xds.cluster_name.split == 1 || true", "true"),
        ("connection.mtls", "false"),
        ("string(duration('90s')) + string(timestamp('2026-01-02T03:04:05+01:00'))", "90s2026-01-02T02:04:05Z"),
        ("duration('-1.5us')", "-1.5us"),
        ("duration('25h')", "25h"),
        ("[1]", "CelList value"),
        ("null", "NULL"),
        ("1234567.0", "1.23457e+06"),
        ("0.00001", "1e-05"),
        ("100000.0 + 0.4", "100000"),
        ("connection.requested_server_name", ""),
        ("upstream.transport_failure_reason", ""),
        ("xds.listener_direction", "1"),
        ("has(request.headers) && has(xds.cluster_metadata) && has(xds.node)", "true"),
        ("has(xds.upstream_host_metadata) || 'downstream_peer' in filter_state", "false"),
    ] {
        assert_eq!(value(text, &view).as_deref(), Some(expected), "{text}");
    }
}

#[test]
fn what_cannot_be_told_has_no_value() {
    let view = Request { code: 0, ..Request::new(&[]) };
    for text in [
        "request.headers['x-missing']",
        "request.headers['x-missing'] == 'a'",
        "request.headers['x-missing'] == 'a' || false",
        "!request.headers['x-missing']",
        "response.code >= 400",
        "response.grpc_status",
        "unknown.name",
        "request.headers",
        "request.headers[0]",
        "response.backend_latency",
        "xds.cluster_metadata.filter_metadata.istio.services[0].host",
        "xds.cluster_metadata.filter_metadata.istio.services[1].host",
        "metadata.filter_metadata['none']['key']",
        "connection.tls_version",
        "'a' < 1",
        "1 + 'a'",
        "9223372036854775807 + 1",
        "1 / 0",
        "source.address",
        "filter_state.upstream_peer.app",
        "int('x')",
        "'a' && true",
        "'a' ? 1 : 2",
    ] {
        assert_eq!(value(text, &view), None, "{text}");
        assert!(!Expression::parse(text).unwrap().is_true(&view), "{text}");
    }
    for text in ["request.headers['x'] == 'a' || true", "true || request.headers['x'] == 'a'", "!(request.headers['x'] == 'a' && false)"] {
        assert_eq!(value(text, &view).as_deref(), Some("true"), "one side decides alone: {text}");
    }
}

#[test]
fn flags_are_envoys_bits() {
    let mut view = Request::new(&[]);
    assert_eq!(value("response.flags", &view).as_deref(), Some("0"));
    view.flags.insert(ResponseFlag::NoHealthyUpstream);
    view.flags.insert(ResponseFlag::DownstreamConnectionTermination);
    assert_eq!(value("response.flags", &view).as_deref(), Some("16386"));
    let bits: BTreeSet<_> = ResponseFlag::ALL.into_iter().map(ResponseFlag::envoy_bit).collect();
    assert_eq!(bits.len(), ResponseFlag::ALL.len());
}

#[test]
fn what_cannot_be_read_is_refused_with_its_place() {
    for text in [
        "",
        "1 +",
        "(1",
        "a.b.",
        "'open",
        "1 2",
        "foo(1)",
        "'a'.matches(request.path)",
        "request.headers[request.path]",
        "[1, 2].all(x, x > 0)",
        "{'a': 1}",
        "'''x'''",
        "99999999999999999999",
        "'\\q'",
        "'a'.matches('(')",
        &"(".repeat(100),
        &"!".repeat(100),
        &format!("{}1", "1+".repeat(100)),
        &format!("'{}'", "a".repeat(10_000)),
    ] {
        assert!(Expression::parse(text).is_err(), "{text}");
    }
}

#[test]
fn constants_are_worked_out_once_and_names_of_headers_are_noted() {
    assert!(Expression::parse("'a' + string(1 + 1)").unwrap().is_constant());
    assert!(!Expression::parse("request.method").unwrap().is_constant());
    let mut headers = HeaderUse::default();
    Expression::parse("request.headers['x-a'] == 'b' || has(response.headers['x-b'])").unwrap().uses(&mut headers);
    assert_eq!((headers.request.len(), headers.response.len()), (1, 1));
}

#[test]
fn an_expression_at_its_limits_needs_little_stack() {
    let chain = |text: &str| format!("{text}{}", " + 1".repeat(40));
    let mut nested = chain("1");
    for _ in 0..40 {
        nested = chain(&format!("({nested})"));
    }
    let texts = [nested, format!("{}1", "-(".repeat(47)), chain("1"), format!("{}true{}", "(".repeat(47), ")".repeat(47))];
    let read = std::thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(move || {
        texts
            .map(|text| Expression::parse(&text).map(|expression| expression.with_text(&Request::new(&[]), |text| text.map(str::to_owned))))
    });
    let [nested, open, long, deep] = read.unwrap().join().unwrap();
    assert!(nested.is_err() && open.is_err());
    assert_eq!((long, deep), (Ok(Some("41".to_owned())), Ok(Some("true".to_owned()))));
}
