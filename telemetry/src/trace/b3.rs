//! B3, the trace headers of Zipkin, read and written as Envoy's Zipkin tracer does: `x-b3-*`, or `b3` for those who sent it.
//!
//! Not for: W3C's headers, which are [`super::propagation`]'s. Source: openzipkin's b3-propagation; a stock Envoy, asked.

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use model::tracing::Zipkin;

use super::TraceContext;
use super::propagation::{self, Incoming, Parent, TRACEPARENT, TRACESTATE, Told, hex_value};

const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const SINGLE: HeaderName = HeaderName::from_static("b3");

/// All of them, and W3C's, which may be beside them.
pub(super) static HEADERS: [HeaderName; 7] = [TRACE_ID, SPAN_ID, PARENT_SPAN_ID, SAMPLED, SINGLE, TRACEPARENT, TRACESTATE];

/// Hexadecimal digits of a span's id, and of half a trace's.
const ID_DIGITS: usize = 16;

/// A request's span; none where its headers are malformed. `locally_sampled` is what its id decides, for callers that did not.
pub(super) fn begin(zipkin: Zipkin, headers: &HeaderMap, locally_sampled: bool, random: &mut fastrand::Rng) -> Option<TraceContext> {
    let decided = sampled(headers);
    let parent = match extract(headers, decided.unwrap_or(locally_sampled)) {
        Incoming::Parent(parent) => Some(parent),
        Incoming::Malformed => return None,
        Incoming::None => match propagation::extract(headers) {
            Incoming::Parent(parent) if zipkin.with_w3c && decided.is_none() => Some(parent),
            _ => None,
        },
    };
    let is_sampled = parent.map_or(decided.unwrap_or(locally_sampled), |parent| parent.sampled);
    let mut trace = TraceContext::zipkin(zipkin, parent, is_sampled, random);
    if headers.contains_key(SINGLE) {
        trace.told = Told::B3 { in_one: true, with_w3c: zipkin.with_w3c };
    }
    Some(trace)
}

/// What the caller decided; none if it did not.
fn sampled(headers: &HeaderMap) -> Option<bool> {
    let Some(single) = headers.get(SINGLE) else {
        return headers.get(SAMPLED).map(|value| matches!(value.as_bytes(), b"1" | b"true"));
    };
    let parts: Vec<_> = single.as_bytes().split(|byte| *byte == b'-').collect();
    let flag = match &parts[..] {
        [flag] | [_, _, flag] | [_, _, flag, _] => *flag,
        _ => return None,
    };
    is_flag(flag).then(|| flag != b"0")
}

/// No, yes, or "debug", which is yes.
fn is_flag(flag: &[u8]) -> bool {
    matches!(flag, b"0" | b"1" | b"d")
}

/// Whose span the request belongs to; `sampled` is what was decided.
fn extract(headers: &HeaderMap, sampled: bool) -> Incoming {
    if let Some(single) = headers.get(SINGLE) {
        return extract_single(single.as_bytes(), sampled);
    }
    let (Some(trace_id), Some(span_id)) = (headers.get(TRACE_ID), headers.get(SPAN_ID)) else { return Incoming::None };
    let parent = headers.get(PARENT_SPAN_ID).map(HeaderValue::as_bytes).filter(|parent| !parent.is_empty()).map(number);
    match (trace_id_of(trace_id.as_bytes()), number(span_id.as_bytes()), parent) {
        (_, _, Some(None)) => Incoming::Malformed,
        (Some(trace_id), Some(span_id), parent) => Incoming::Parent(Parent { trace_id, span_id, parent: parent.flatten(), sampled }),
        _ => Incoming::Malformed,
    }
}

/// `TRACE-SPAN`, `TRACE-SPAN-FLAG`, `TRACE-SPAN-FLAG-PARENT`, or a flag alone.
fn extract_single(value: &[u8], sampled: bool) -> Incoming {
    let parts: Vec<_> = value.split(|byte| *byte == b'-').collect();
    let (trace_id, span_id, flag, parent) = match &parts[..] {
        [flag] if is_flag(flag) => return Incoming::None,
        [trace_id, span_id] => (*trace_id, *span_id, None, None),
        [trace_id, span_id, flag] => (*trace_id, *span_id, Some(*flag), None),
        [trace_id, span_id, flag, parent] => (*trace_id, *span_id, Some(*flag), Some(*parent)),
        _ => return Incoming::Malformed,
    };
    let is_whole = matches!(trace_id.len(), 16 | 32) && [Some(span_id), parent].iter().flatten().all(|id| id.len() == ID_DIGITS);
    let parent = parent.map(number);
    match (trace_id_of(trace_id), number(span_id)) {
        (Some(trace_id), Some(span_id)) if is_whole && flag.is_none_or(is_flag) && parent != Some(None) => {
            Incoming::Parent(Parent { trace_id, span_id, parent: parent.flatten(), sampled })
        }
        _ => Incoming::Malformed,
    }
}

/// 32 digits, or up to 16.
fn trace_id_of(digits: &[u8]) -> Option<u128> {
    if digits.len() == 2 * ID_DIGITS {
        let (high, low) = digits.split_at(ID_DIGITS);
        return Some(u128::from(number(high)?) << 64 | u128::from(number(low)?));
    }
    number(digits).map(u128::from)
}

/// Up to 16 digits.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > ID_DIGITS {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| Some(number << 4 | u64::from(hex_value(*digit)?)))
}

/// Tells endpoints of a span: in one header, or in one for each id.
pub(super) fn inject(trace: &TraceContext, in_one: bool, headers: &mut HeaderMap) {
    let (trace_id, span_id, flag) = (trace_id_text(trace.trace_id), trace.span_id, if trace.sampled { "1" } else { "0" });
    let value = |text: String| HeaderValue::from_str(&text).expect("digits and dashes");
    if in_one {
        let parent = trace.parent.map(|parent| format!("-{parent:016x}")).unwrap_or_default();
        headers.insert(SINGLE, value(format!("{trace_id}-{span_id:016x}-{flag}{parent}")));
        return;
    }
    headers.insert(TRACE_ID, value(trace_id));
    headers.insert(SPAN_ID, value(format!("{span_id:016x}")));
    if let Some(parent) = trace.parent {
        headers.insert(PARENT_SPAN_ID, value(format!("{parent:016x}")));
    }
    headers.insert(SAMPLED, HeaderValue::from_static(flag));
}

/// Takes back that a span is sampled, where endpoints were told so.
pub(super) fn unsample(headers: &mut HeaderMap) {
    if headers.contains_key(SAMPLED) {
        headers.insert(SAMPLED, HeaderValue::from_static("0"));
    }
    let single = headers.get(SINGLE).and_then(|single| single.to_str().ok()).map(|single| {
        let mut parts: Vec<_> = single.split('-').collect();
        if let [_, _, flag, ..] = &mut parts[..] {
            *flag = "0";
        }
        parts.join("-")
    });
    if let Some(single) = single.and_then(|single| HeaderValue::from_str(&single).ok()) {
        headers.insert(SINGLE, single);
    }
}

/// 32 digits, or 16 where the upper half is zero.
pub(super) fn trace_id_text(trace_id: u128) -> String {
    match u64::try_from(trace_id) {
        Ok(low) => format!("{low:016x}"),
        Err(_) => format!("{trace_id:032x}"),
    }
}

#[cfg(test)]
mod tests;
