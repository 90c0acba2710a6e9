//! What a request's span says in the names of OpenTelemetry's conventions, where that is asked for.
//!
//! Not for: Envoy's names, which every span has ([`super::span`]). Source: OpenTelemetry's semantic conventions for HTTP servers and for
//! gRPC, as of 1.23. Numbers are numbers where the dialect has any.

use http::header::USER_AGENT;
use model::text::readable;

use super::span::{Attributes, Sink, path_of};
use crate::record::RequestRecord;

pub(super) fn write<S: Sink>(out: &mut Attributes<'_, S>, record: &RequestRecord, path_bytes_max: usize) {
    if let Some(head) = &record.head {
        out.add("http.request.method", head.method.as_str());
        out.add("url.scheme", head.scheme.as_str());
        let path = path_of(record, head, path_bytes_max);
        let (path, query) = path.split_once('?').map_or((&*path, None), |(path, query)| (path, Some(query)));
        out.add("url.path", path);
        if let Some(query) = query {
            out.add("url.query", query);
        }
        if let Some((host, port)) = head.authority().map(host_and_port) {
            out.add("server.address", host);
            if let Some(port) = port {
                out.add_whole("server.port", port.into());
            }
        }
    }
    out.add("network.protocol.name", "http");
    if let Some(version) = record.protocol.strip_prefix("HTTP/") {
        out.add("network.protocol.version", version);
    }
    if let Some(client) = record.forwarded_for.or(record.stream.downstream_remote.map(|address| address.ip())) {
        out.add("client.address", &client.to_string());
    }
    if let Some(agent) = record.request_header(&USER_AGENT) {
        out.add("user_agent.original", &readable(agent.as_bytes()));
    }
    if record.response_code != 0 {
        out.add_whole("http.response.status_code", record.response_code.into());
    }
    if record.response_code == 0 || record.response_code >= 500 {
        let code = record.response_code.to_string();
        out.add("error.type", if record.response_code == 0 { "_OTHER" } else { &code });
    }
    if record.came_as_grpc() {
        out.add("rpc.system", "grpc");
        if let Some(status) = record.grpc_status {
            out.add_whole("rpc.grpc.status_code", status.number().into());
        }
    }
}

/// The parts of an authority; no port if it is none.
fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))) {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use model::tracing::{Dialect, SpanProvider, Tracing, Zipkin};
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::trace::v1::Span;
    use prost::Message as _;

    use super::super::{SpanIdentity, SpanWriter, begin};
    use super::*;
    use crate::fixture;

    fn written(tracing: &Tracing, change: impl FnOnce(&mut RequestRecord)) -> Vec<u8> {
        let mut record = fixture::request(&fixture::chain(None, Vec::new(), Some(tracing.clone())));
        let trace = begin(Some(tracing), &fixture::headers(&[]), true, &mut fastrand::Rng::with_seed(1)).trace.unwrap();
        change(&mut record);
        let mut writer = SpanWriter::new(SpanIdentity::new("waypoint~".into(), "".into(), "".into()));
        writer.write(&record, &trace, tracing).to_vec()
    }

    /// What is said beside Envoy's names.
    fn added(change: impl Fn(&mut RequestRecord)) -> Vec<(String, Value)> {
        let plain = fixture::tracing();
        let semantic = Tracing { semantic_names: true, ..fixture::tracing() };
        let read = |tracing: &Tracing| {
            let span = Span::decode(&*written(tracing, &change)).unwrap();
            span.attributes.into_iter().map(|pair| (pair.key, pair.value.unwrap().value.unwrap())).collect::<Vec<_>>()
        };
        let old = read(&plain);
        let new = read(&semantic);
        assert!(old.iter().all(|pair| new.contains(pair)), "nothing of the old names is lost");
        new.into_iter().filter(|pair| !old.contains(pair)).collect()
    }

    #[test]
    fn a_span_has_the_names_of_the_conventions_beside_envoys() {
        let text = |key: &str, value: &str| (key.to_owned(), Value::StringValue(value.to_owned()));
        let number = |key: &str, value| (key.to_owned(), Value::IntValue(value));
        let expected = [
            text("http.request.method", "GET"),
            text("url.scheme", "http"),
            text("url.path", "/ok"),
            text("url.query", "a=1"),
            text("server.address", "web-svc.emojivoto"),
            text("network.protocol.name", "http"),
            text("network.protocol.version", "1.1"),
            text("client.address", "10.42.0.51"),
            text("user_agent.original", "t/1"),
            number("http.response.status_code", 200),
        ];
        assert_eq!(added(|_| {}), expected);
        let failed = added(|record| {
            record.response_code = 503;
            record.head.as_mut().unwrap().authority = Some("[::1]:8080".parse().unwrap());
        });
        for pair in [text("error.type", "503"), text("server.address", "[::1]"), number("server.port", 8080)] {
            assert!(failed.contains(&pair), "{pair:?} in {failed:?}");
        }
        let cut = added(|record| record.response_code = 0);
        assert!(cut.contains(&text("error.type", "_OTHER")) && !cut.iter().any(|(key, _)| key == "http.response.status_code"));
    }

    #[test]
    fn in_zipkins_dialect_all_are_texts() {
        let zipkin = Dialect::Zipkin(Zipkin { shares_spans: false, wide_trace_ids: true, with_w3c: false });
        let provider = SpanProvider { collector: fixture::collector(), dialect: zipkin };
        let tracing = Tracing { provider: Some(std::sync::Arc::new(provider)), semantic_names: true, ..fixture::tracing() };
        let text = String::from_utf8(written(&tracing, |_| {})).unwrap();
        assert!(text.contains("\"http.response.status_code\":\"200\""), "{text}");
    }
}
