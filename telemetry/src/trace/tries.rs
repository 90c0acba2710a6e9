//! The tries of a traced request: a CLIENT span for each, where the chain wants them.
//!
//! Not for: the request's own span ([`super::span`]). Source: Envoy's router, which makes them where `spawn_upstream_span` is set. The
//! endpoint is told of its try's span. Invariant: a request keeps no more than [`TRY_SPANS_MAX`]; later tries belong to its own span.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use model::flags::ResponseFlag;
use model::tracing::Tracing;

use super::TraceContext;
use super::span::{Attributes, Kind, Shape, Sink, add_custom};
use crate::record::RequestRecord;

/// Tries of one request that have a span.
pub const TRY_SPANS_MAX: usize = 16;

/// A try that was begun.
#[derive(Clone, Debug)]
pub struct TrySpan {
    context: TraceContext,
    number: u32,
    host: Option<Arc<str>>,
    protocol: Option<&'static str>,
    began: Instant,
    /// None of the one whose answer is the request's: it ends with that.
    ended: Option<Instant>,
    /// Of its answer; 0 without one.
    status: u16,
    /// Why it ended before the end of its answer, if there is a flag for that.
    flag: Option<ResponseFlag>,
    /// It was ended here.
    is_canceled: bool,
}

impl RequestRecord {
    /// Whether tries have spans.
    fn traces_tries(&self) -> bool {
        let wants = self.stream.chain.tracing.as_ref().is_some_and(|tracing| tracing.spans_of_tries);
        wants && self.trace.as_ref().is_some_and(|trace| trace.sampled)
    }

    /// The span of the try that is going on; none of one beyond the bound, or before an endpoint was found.
    fn current_try(&mut self) -> Option<&mut TrySpan> {
        let number = self.stream.attempts;
        self.tries.last_mut().filter(|latest| latest.number == number)
    }

    /// A try of the endpoint that was noted begins; what that endpoint is to be told if tries have spans and the chain tells of them:
    /// of the request's span where the try has none, for the head may be that of the try before.
    pub fn begin_try(&mut self, draw: impl FnOnce() -> u64) -> Option<TraceContext> {
        if !self.traces_tries() {
            return None;
        }
        let propagates = self.stream.chain.tracing.as_ref()?.propagates;
        let request = self.trace.as_ref()?;
        if self.tries.len() >= TRY_SPANS_MAX {
            return propagates.then(|| request.clone());
        }
        let context = request.child_of_ours(draw().max(1));
        self.tries.push(TrySpan {
            context: context.clone(),
            number: self.stream.attempts,
            host: self.stream.upstream_host.clone(),
            protocol: None,
            began: Instant::now(),
            ended: None,
            status: 0,
            flag: None,
            is_canceled: false,
        });
        propagates.then_some(context)
    }

    /// The try was answered.
    pub fn try_answered(&mut self, status: u16) {
        let protocol = self.upstream_protocol;
        if let Some(current) = self.current_try() {
            (current.status, current.protocol) = (status, protocol);
        }
    }

    /// The try has ended before the end of its answer, unless it had ended already: by its endpoint, or on the way there.
    pub fn try_failed(&mut self, flag: Option<ResponseFlag>) {
        self.end_try(flag, false);
    }

    /// The try was ended here before the end of its answer, unless it had ended already: since its time, or that of its route, had
    /// passed, or for a reason that is not the try's.
    pub fn try_canceled(&mut self, is_late: bool) {
        self.end_try(is_late.then_some(ResponseFlag::UpstreamRequestTimeout), true);
    }

    fn end_try(&mut self, flag: Option<ResponseFlag>, is_canceled: bool) {
        let protocol = self.upstream_protocol;
        if let Some(current) = self.current_try().filter(|current| current.ended.is_none()) {
            (current.flag, current.protocol) = (flag, protocol);
            (current.ended, current.is_canceled) = (Some(Instant::now()), is_canceled);
        }
    }

    /// The try is followed by another; whether more of its answer was to come.
    pub fn try_given_up(&mut self, is_canceled: bool) {
        self.end_try(None, is_canceled);
    }
}

impl TrySpan {
    /// What Envoy calls it.
    pub(super) fn name(record: &RequestRecord) -> String {
        let cluster = record.stream.cluster_stat_name.as_ref().or(record.stream.cluster.as_ref());
        format!("router {} egress", cluster.map_or("", |cluster| cluster))
    }

    /// What of its span is no attribute.
    pub(super) fn shape<'a>(&'a self, record: &RequestRecord, name: &'a str) -> Shape<'a> {
        let stream = &record.stream;
        let at = |instant: Instant| stream.start_time + instant.saturating_duration_since(stream.start);
        let end: SystemTime = self.ended.map_or(stream.start_time + stream.duration(), at);
        Shape { trace: &self.context, name, kind: Kind::Client, start: at(self.began), end, is_failed: self.status >= 500 }
    }

    /// Its attributes, in Envoy's names, and the chain's own.
    pub(super) fn write_attributes<S: Sink>(&self, out: &mut Attributes<'_, S>, record: &RequestRecord, tracing: &Tracing) {
        out.add("component", "proxy");
        if let Some(protocol) = self.protocol {
            out.add("http.protocol", protocol);
        }
        if let Some(host) = &self.host {
            out.add("upstream_address", host);
            out.add("peer.address", host);
        }
        out.add_cluster(record);
        out.add_number("http.status_code", self.status.into());
        out.add("response_flags", self.flag.map_or("-", ResponseFlag::as_str));
        let reason = self.flag.and_then(reset_reason);
        if self.status == 0 || self.status >= 500 || reason.is_some() {
            out.add("error", "true");
        }
        if let Some(reason) = reason {
            out.add("error.reason", reason);
        }
        if self.is_canceled {
            out.add("canceled", "true");
        }
        for tag in &*tracing.custom_tags {
            add_custom(out, record, tag);
        }
        if self.number > 1 {
            out.add_number("retry.count", u64::from(self.number) - 1);
        }
    }
}

/// What Envoy calls the end of a stream that was reset.
fn reset_reason(flag: ResponseFlag) -> Option<&'static str> {
    match flag {
        ResponseFlag::UpstreamConnectionFailure => Some("remote connection failure"),
        ResponseFlag::UpstreamConnectionTermination => Some("connection termination"),
        ResponseFlag::UpstreamRemoteReset => Some("remote reset"),
        ResponseFlag::UpstreamProtocolError => Some("protocol error"),
        ResponseFlag::UpstreamOverflow => Some("overflow"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::time::Duration;

    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::trace::v1::Span;
    use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
    use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
    use prost::Message as _;

    use super::super::{SpanIdentity, SpanWriter, begin};
    use super::*;
    use crate::fixture;

    fn traced(spans_of_tries: bool) -> (RequestRecord, Tracing) {
        let tracing = Tracing { spans_of_tries, custom_tags: Arc::default(), ..fixture::tracing() };
        let mut record = fixture::request(&fixture::chain(None, Vec::new(), Some(tracing.clone())));
        record.trace = begin(Some(&tracing), &fixture::headers(&[]), true, &mut fastrand::Rng::with_seed(1)).trace;
        (record, tracing)
    }

    fn spans(record: &RequestRecord, tracing: &Tracing) -> Vec<Span> {
        let mut writer = SpanWriter::new(SpanIdentity::new("waypoint~".into(), "".into(), "".into()));
        record.tries.iter().map(|one| Span::decode(writer.write_try(record, one, tracing)).unwrap()).collect()
    }

    fn attributes(span: &Span) -> Vec<(&str, &str)> {
        let text = |value: &Value| match value {
            Value::StringValue(text) => text.as_str().to_owned(),
            other => panic!("{other:?}"),
        };
        let pairs = span.attributes.iter().map(|pair| (pair.key.as_str(), text(pair.value.as_ref().unwrap().value.as_ref().unwrap())));
        pairs.map(|(key, text)| (key, &*text.leak())).collect()
    }

    #[test]
    fn without_being_asked_for_there_is_none() {
        let (mut record, _) = traced(false);
        assert_eq!(record.begin_try(|| panic!("drawn for nothing")), None);
        record.try_answered(200);
        assert!(record.tries.is_empty());
        let (mut record, _) = traced(true);
        record.trace.as_mut().unwrap().sampled = false;
        assert_eq!(record.begin_try(|| panic!("drawn for nothing")), None);
    }

    #[test]
    fn each_try_is_a_client_span_below_the_requests_and_its_endpoint_is_told_of_it() {
        let (mut record, tracing) = traced(true);
        let told = record.begin_try(|| 7).unwrap();
        let trace = record.trace.clone().unwrap();
        assert_eq!((told.trace_id, told.span_id, told.parent, told.sampled), (trace.trace_id, 7, Some(trace.span_id), true));
        record.try_failed(Some(ResponseFlag::UpstreamConnectionFailure));
        record.try_given_up(false);
        record.stream.attempts = 2;
        record.begin_try(|| 0).unwrap();
        record.upstream_protocol = Some("HTTP/1.1");
        record.try_answered(200);
        let spans = spans(&record, &tracing);
        let ids: Vec<_> = spans.iter().map(|span| (span.span_id.clone(), span.parent_span_id.clone())).collect();
        let parent = trace.span_id.to_be_bytes().to_vec();
        assert_eq!(ids, [7_u64, 1].map(|id| (id.to_be_bytes().to_vec(), parent.clone())));
        let [failed, answered] = &spans[..] else { panic!("two") };
        assert_eq!(
            (failed.kind(), failed.name.as_str()),
            (SpanKind::Client, "router inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local; egress")
        );
        assert_eq!(
            (failed.status.as_ref().unwrap().code(), answered.status.as_ref().unwrap().code()),
            (StatusCode::Unset, StatusCode::Unset)
        );
        let host = "envoy://connect_originate/10.42.0.74:8080";
        let cluster = "inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local";
        let common = [("upstream_address", host), ("peer.address", host), ("upstream_cluster", cluster)];
        let name = ("upstream_cluster.name", "inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local;");
        let expected =
            [("http.status_code", "0"), ("response_flags", "UF"), ("error", "true"), ("error.reason", "remote connection failure")];
        assert_eq!(attributes(failed), [&[("component", "proxy")][..], &common, &[name], &expected].concat());
        let expected = [("http.status_code", "200"), ("response_flags", "-"), ("retry.count", "1")];
        assert_eq!(
            attributes(answered),
            [&[("component", "proxy"), ("http.protocol", "HTTP/1.1")][..], &common, &[name], &expected].concat()
        );
        let end = record.stream.start_time + Duration::from_micros(7_900);
        assert_eq!(answered.end_time_unix_nano, super::super::nanoseconds(end), "it ends with the request");
    }

    #[test]
    fn a_try_that_ends_within_its_answer_says_whether_that_was_here_once() {
        let ends = |end: &dyn Fn(&mut RequestRecord), expected: &[(&str, &str)]| {
            let (mut record, tracing) = traced(true);
            record.begin_try(|| 7).unwrap();
            record.try_answered(200);
            end(&mut record);
            // What comes later is not the try's.
            record.try_canceled(false);
            assert_eq!(attributes(&spans(&record, &tracing)[0])[5..], *expected);
        };
        let reset = [("http.status_code", "200"), ("response_flags", "UR"), ("error", "true"), ("error.reason", "remote reset")];
        ends(&|record| record.try_failed(Some(ResponseFlag::UpstreamRemoteReset)), &reset);
        ends(&|record| record.try_canceled(true), &[("http.status_code", "200"), ("response_flags", "UT"), ("canceled", "true")]);
        ends(&|_| (), &[("http.status_code", "200"), ("response_flags", "-"), ("canceled", "true")]);
    }

    #[test]
    fn tries_beyond_the_bound_belong_to_the_requests_span() {
        let (mut record, tracing) = traced(true);
        let request = record.trace.as_ref().unwrap().span_id;
        for number in 1..=TRY_SPANS_MAX + 3 {
            record.stream.attempts = u32::try_from(number).unwrap();
            let told = record.begin_try(|| 9).unwrap();
            assert_eq!(told.span_id, if number > TRY_SPANS_MAX { request } else { 9 }, "{number}");
            match number {
                ..=TRY_SPANS_MAX => record.try_answered(503),
                17 => record.try_answered(504),
                _ => record.try_failed(Some(ResponseFlag::UpstreamRequestTimeout)),
            }
            record.try_given_up(number > TRY_SPANS_MAX);
        }
        let spans = spans(&record, &tracing);
        assert_eq!(spans.len(), TRY_SPANS_MAX);
        let last = attributes(&spans[TRY_SPANS_MAX - 1]);
        assert_eq!(last[5..], [("http.status_code", "503"), ("response_flags", "-"), ("error", "true"), ("retry.count", "15")]);
    }
}
