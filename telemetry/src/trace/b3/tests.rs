#![expect(clippy::unwrap_used, reason = "tests")]

use model::tracing::{Dialect, RequestIdUse, Sampling, SpanProvider, Tracing, Zipkin};

use super::super::{TRACEPARENT, begin};
use super::*;
use crate::fixture::{self, headers};

const TRACE: &str = "463ac35c9f6413ad48485a3953bb6124";
const LOW: &str = "48485a3953bb6124";
const SPAN: &str = "a2fb4a1d1a96d312";
const PARENT: &str = "0020000000000001";
const W3C: &str = "00-944465e02249c3cd2ea8d5505aca32a2-00f067aa0ba902b7-01";

fn zipkin(change: impl FnOnce(&mut Zipkin)) -> Tracing {
    let mut zipkin = Zipkin { shares_spans: false, wide_trace_ids: true, with_w3c: false };
    change(&mut zipkin);
    let provider = SpanProvider { collector: fixture::collector(), dialect: Dialect::Zipkin(zipkin) };
    Tracing { provider: Some(std::sync::Arc::new(provider)), ..fixture::tracing() }
}

/// The trace headers that an endpoint sees; ids that are made here are written as `NEW`.
fn seen(tracing: &Tracing, pairs: &[(&'static str, &str)]) -> Vec<(String, String)> {
    let mut forwarded = headers(pairs);
    let decision = begin(Some(tracing), &forwarded, true, &mut fastrand::Rng::with_seed(7));
    decision.inject(&mut forwarded);
    let new = decision.trace.as_ref().map(|trace| (trace_id_text(trace.trace_id), format!("{:016x}", trace.span_id)));
    let mut seen: Vec<_> = forwarded
        .iter()
        .filter(|(name, _)| name.as_str() != "x-request-id")
        .map(|(name, value)| {
            let mut text = value.to_str().unwrap().to_owned();
            for (id, mark) in new.iter().flat_map(|(trace, span)| [(trace, "TRACE"), (span, "SPAN")]) {
                let is_incoming = pairs.iter().any(|(_, value)| value.contains(id.trim_start_matches('0')));
                text = if is_incoming { text } else { text.replace(&**id, mark) };
            }
            (name.as_str().to_owned(), text)
        })
        .collect();
    seen.sort();
    seen
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut pairs: Vec<_> = expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    pairs.sort();
    pairs
}

/// As a stock Envoy 1.40 answered, asked with the same headers.
#[test]
fn what_endpoints_see_of_several_headers_is_what_envoys_see() {
    let tracing = zipkin(|_| {});
    let ids = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
    let child = |flag| pairs(&[("x-b3-traceid", TRACE), ("x-b3-spanid", "SPAN"), ("x-b3-parentspanid", SPAN), ("x-b3-sampled", flag)]);
    for (flag, expected) in [("1", "1"), ("0", "0"), ("true", "1"), ("z", "0")] {
        assert_eq!(seen(&tracing, &[ids[0], ids[1], ("x-b3-sampled", flag)]), child(expected), "{flag}");
    }
    assert_eq!(seen(&tracing, &ids), child("1"));
    assert_eq!(seen(&tracing, &[ids[0], ids[1], ("x-b3-parentspanid", PARENT)]), child("1"));
    let short = [("x-b3-traceid", "1a2b"), ("x-b3-spanid", "3c")];
    let expected =
        [("x-b3-traceid", "0000000000001a2b"), ("x-b3-spanid", "SPAN"), ("x-b3-parentspanid", "000000000000003c"), ("x-b3-sampled", "1")];
    assert_eq!(seen(&tracing, &short), pairs(&expected));
    // A flag alone, and half of the ids, begin a trace; the lower half of whose id is that of its first span.
    let root = |flag| pairs(&[("x-b3-traceid", "TRACE"), ("x-b3-spanid", "SPAN"), ("x-b3-sampled", flag)]);
    assert_eq!(seen(&tracing, &[]), root("1"));
    assert_eq!(seen(&tracing, &[("x-b3-sampled", "0")]), root("0"));
    let trace = begin(Some(&tracing), &headers(&[]), true, &mut fastrand::Rng::with_seed(1)).trace.unwrap();
    assert_eq!((u64::try_from(trace.trace_id & u128::from(u64::MAX)).unwrap(), trace.trace_id >> 64 == 0), (trace.span_id, false));
}

#[test]
fn a_caller_with_one_header_is_answered_in_one() {
    let tracing = zipkin(|_| {});
    let id = |rest: &str| format!("{TRACE}-{rest}");
    for (given, expected) in [
        (id(&format!("{SPAN}-1")), format!("{TRACE}-SPAN-1-{SPAN}")),
        (id(&format!("{SPAN}-d-{PARENT}")), format!("{TRACE}-SPAN-1-{SPAN}")),
        (id(&format!("{SPAN}-0")), format!("{TRACE}-SPAN-0-{SPAN}")),
        (format!("{LOW}-{SPAN}"), format!("{LOW}-SPAN-1-{SPAN}")),
        ("0".to_owned(), "TRACE-SPAN-0".to_owned()),
        ("1".to_owned(), "TRACE-SPAN-1".to_owned()),
    ] {
        assert_eq!(seen(&tracing, &[("b3", &given)]), pairs(&[("b3", &expected)]), "{given}");
    }
}

#[test]
fn malformed_headers_make_no_span_and_are_forwarded_as_they_came() {
    let tracing = zipkin(|_| {});
    let single = [
        format!("{TRACE}-{SPAN}-x"),
        format!("{TRACE}-{SPAN}-1-2"),
        TRACE.to_owned(),
        "2".to_owned(),
        format!("{TRACE}-{SPAN}-1-{PARENT}-1"),
    ];
    for value in &single {
        let given = [("b3", value.as_str())];
        assert_eq!(seen(&tracing, &given), pairs(&given));
        assert_eq!(begin(Some(&tracing), &headers(&given), true, &mut fastrand::Rng::new()).trace, None);
    }
    let long = "1".repeat(33);
    for (trace_id, span_id) in [("xyz", SPAN), (TRACE, ""), (&long, SPAN), (&long[..17], SPAN), (TRACE, &long)] {
        let given = [("x-b3-traceid", trace_id), ("x-b3-spanid", span_id)];
        assert_eq!(seen(&tracing, &given), pairs(&given));
    }
}

#[test]
fn a_span_that_is_shared_is_the_callers() {
    let tracing = zipkin(|zipkin| (zipkin.shares_spans, zipkin.wide_trace_ids) = (true, false));
    let given = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-parentspanid", PARENT), ("x-b3-sampled", "1")];
    assert_eq!(seen(&tracing, &given), pairs(&given));
    let trace = begin(Some(&tracing), &headers(&[]), true, &mut fastrand::Rng::with_seed(1)).trace.unwrap();
    assert_eq!(trace.trace_id, u128::from(trace.span_id));
}

#[test]
fn w3c_is_read_and_written_only_where_it_is_asked_for_and_b3_wins() {
    let (without, with) = (zipkin(|_| {}), zipkin(|zipkin| zipkin.with_w3c = true));
    let traceparent = |tracing: &Tracing, given: &[(&'static str, &str)]| {
        let seen = seen(tracing, given);
        let of = |wanted: &str| seen.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        (of("x-b3-traceid").unwrap(), of(TRACEPARENT.as_str()))
    };
    let w3c = [("traceparent", W3C)];
    assert_eq!(traceparent(&without, &w3c), ("TRACE".to_owned(), Some(W3C.to_owned())));
    let told = "00-944465e02249c3cd2ea8d5505aca32a2-SPAN-01".to_owned();
    assert_eq!(traceparent(&with, &w3c), ("944465e02249c3cd2ea8d5505aca32a2".to_owned(), Some(told)));
    assert_eq!(traceparent(&with, &[("traceparent", "00-xx")]), ("TRACE".to_owned(), Some("00-TRACE-SPAN-01".to_owned())));
    let both = [w3c[0], ("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
    assert_eq!(traceparent(&with, &both), (TRACE.to_owned(), Some(format!("00-{TRACE}-SPAN-01"))));
    let unsampled = W3C.replace("-01", "-00");
    let seen = seen(&with, &[("traceparent", &unsampled)]);
    assert!(seen.contains(&("x-b3-sampled".to_owned(), "0".to_owned())), "{seen:?}");
}

#[test]
fn a_caller_without_a_decision_is_sampled_by_the_request_id() {
    let mut tracing = zipkin(|_| {});
    (tracing.random_sampling, tracing.request_id) = (Sampling::percent(0.0), RequestIdUse::default());
    let flag = |given: &[(&'static str, &str)]| seen(&tracing, given).into_iter().find(|(name, _)| name == "x-b3-sampled").unwrap().1;
    assert_eq!((flag(&[]), flag(&[("x-b3-sampled", "1")])), ("0".to_owned(), "1".to_owned()));
    assert_eq!(flag(&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)]), "0");
}

#[test]
fn a_copy_that_is_not_sampled_says_so() {
    let mut several = headers(&[("x-b3-sampled", "1")]);
    unsample(&mut several);
    assert_eq!(several["x-b3-sampled"], "0");
    let mut one = headers(&[("b3", &format!("{TRACE}-{SPAN}-1-{PARENT}"))]);
    unsample(&mut one);
    assert_eq!(one["b3"].to_str().unwrap(), format!("{TRACE}-{SPAN}-0-{PARENT}"));
}

#[test]
fn calls_on_behalf_of_a_request_take_the_headers_that_its_provider_speaks() {
    let (b3, w3c) = (super::super::headers(&zipkin(|_| {})), super::super::headers(&fixture::tracing()));
    assert!(["x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "b3"].iter().all(|name| b3.iter().any(|header| header == name)));
    assert_eq!(w3c.iter().map(HeaderName::as_str).collect::<Vec<_>>(), ["traceparent", "tracestate"]);
}
