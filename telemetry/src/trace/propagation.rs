//! `traceparent` and `tracestate` (W3C Trace Context, version 00), read and written as Envoy's OpenTelemetry tracer does.
//!
//! Not for: B3 headers, which are [`super::b3`]'s.

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use model::tracing::Zipkin;

use super::b3;

/// `traceparent`.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate`.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Both of them.
pub(super) static HEADERS: [HeaderName; 2] = [TRACEPARENT, TRACESTATE];

/// Bytes of a `traceparent`: version, trace id, parent id and flags in hexadecimal, and the dashes between them.
const TRACEPARENT_BYTES: usize = 55;
const FLAG_SAMPLED: u8 = 1;

/// A request's span before it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; never 0.
    pub trace_id: u128,
    /// This request's span; never 0.
    pub span_id: u64,
    /// The caller's span.
    pub parent: Option<u64>,
    /// Whether it is exported.
    pub sampled: bool,
    /// Passed on as it came; several lines joined by commas, empty if there was none.
    pub tracestate: HeaderValue,
    /// Whether it is the caller's span as well.
    pub is_shared: bool,
    /// How endpoints are told of it.
    pub told: Told,
}

/// How endpoints are told of a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Told {
    /// By `traceparent` and `tracestate`.
    #[default]
    W3c,
    /// By the headers of B3.
    B3 {
        /// In one header, as the caller spoke.
        in_one: bool,
        /// By `traceparent` as well.
        with_w3c: bool,
    },
}

/// The caller's span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace_id: u128,
    pub(super) span_id: u64,
    /// Its own parent, where its caller says so.
    pub(super) parent: Option<u64>,
    pub(super) sampled: bool,
}

/// What `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    None,
    Parent(Parent),
    Malformed,
}

impl TraceContext {
    pub(super) fn root(sampled: bool, tracestate: HeaderValue, random: &mut fastrand::Rng) -> Self {
        let (is_shared, told) = (false, Told::W3c);
        Self { trace_id: random.u128(1..), span_id: random.u64(1..), parent: None, sampled, tracestate, is_shared, told }
    }

    pub(super) fn child(parent: Parent, tracestate: HeaderValue, random: &mut fastrand::Rng) -> Self {
        let (trace_id, span_id, sampled) = (parent.trace_id, random.u64(1..), parent.sampled);
        Self { trace_id, span_id, parent: Some(parent.span_id), sampled, tracestate, is_shared: false, told: Told::W3c }
    }

    /// A span of Zipkin's, without a caller or with one.
    pub(super) fn zipkin(zipkin: Zipkin, parent: Option<Parent>, sampled: bool, random: &mut fastrand::Rng) -> Self {
        let new = random.u64(1..);
        let (trace_id, span_id, parent) = match parent {
            // The first span's id is the lower half of its trace's.
            None if zipkin.wide_trace_ids => (u128::from(random.u64(1..)) << 64 | u128::from(new), new, None),
            None => (new.into(), new, None),
            Some(caller) if zipkin.shares_spans => (caller.trace_id, caller.span_id, caller.parent.filter(|parent| *parent != 0)),
            Some(caller) => (caller.trace_id, new, Some(caller.span_id)),
        };
        let told = Told::B3 { in_one: false, with_w3c: zipkin.with_w3c };
        Self { trace_id, span_id, parent, sampled, tracestate: HeaderValue::from_static(""), is_shared: zipkin.shares_spans, told }
    }

    /// A child within this process.
    pub(super) fn child_of_ours(&self, span_id: u64) -> Self {
        Self { span_id, parent: Some(self.span_id), is_shared: false, ..self.clone() }
    }

    /// Replaces the caller's headers by this span's: `traceparent` and `tracestate`, of which the latter is written even when it is
    /// empty, or B3's, as Envoy does.
    pub fn inject(&self, headers: &mut HeaderMap) {
        match self.told {
            Told::W3c => {
                headers.insert(TRACEPARENT, self.traceparent());
                headers.insert(TRACESTATE, self.tracestate.clone());
            }
            Told::B3 { in_one, with_w3c } => {
                b3::inject(self, in_one, headers);
                if with_w3c {
                    headers.insert(TRACEPARENT, self.traceparent());
                }
            }
        }
    }

    fn traceparent(&self) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut text[3..35], &self.trace_id.to_be_bytes());
        write_hex(&mut text[36..52], &self.span_id.to_be_bytes());
        write_hex(&mut text[53..55], &[u8::from(self.sampled)]);
        HeaderValue::from_bytes(&text).expect("digits and dashes")
    }
}

/// Reads `traceparent`. Several of them are as malformed as a wrong one.
pub(super) fn extract(headers: &HeaderMap) -> Incoming {
    let mut values = headers.get_all(TRACEPARENT).iter();
    match (values.next(), values.next()) {
        (None, _) => Incoming::None,
        (Some(value), None) => parse(value.as_bytes()).map_or(Incoming::Malformed, Incoming::Parent),
        (Some(_), Some(_)) => Incoming::Malformed,
    }
}

fn parse(value: &[u8]) -> Option<Parent> {
    if value.len() != TRACEPARENT_BYTES || value[2] != b'-' || value[35] != b'-' || value[52] != b'-' {
        return None;
    }
    let version: [u8; 1] = read_hex(&value[..2])?;
    let trace_id = u128::from_be_bytes(read_hex(&value[3..35])?);
    let span_id = u64::from_be_bytes(read_hex(&value[36..52])?);
    let flags: [u8; 1] = read_hex(&value[53..])?;
    // Version 255 is forbidden; later versions begin like this one.
    (version != [0xff] && trace_id != 0 && span_id != 0).then_some(Parent {
        trace_id,
        span_id,
        parent: None,
        sampled: flags[0] & FLAG_SAMPLED != 0,
    })
}

/// Clears the flag `sampled`.
pub(super) fn unsample(headers: &mut HeaderMap) {
    let flags_off = headers.get(TRACEPARENT).and_then(|value| {
        let (context, _) = value.to_str().ok()?.rsplit_once('-')?;
        HeaderValue::try_from(format!("{context}-00")).ok()
    });
    if let Some(value) = flags_off {
        headers.insert(TRACEPARENT, value);
    }
}

/// All `tracestate` lines as one; empty if there is none.
pub(super) fn tracestate(headers: &HeaderMap) -> HeaderValue {
    let mut values = headers.get_all(TRACESTATE).iter();
    let (Some(first), second) = (values.next(), values.next()) else { return HeaderValue::from_static("") };
    if second.is_none() {
        return first.clone();
    }
    let lines: Vec<_> = headers.get_all(TRACESTATE).iter().map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&lines.join(&b',')).expect("values joined by a comma are a value")
}

fn read_hex<const BYTES: usize>(digits: &[u8]) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_value(pair[0])? << 4 | hex_value(pair[1])?;
    }
    Some(bytes)
}

/// The value of a hexadecimal digit of either case.
pub(super) fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Writes bytes as lower-case hexadecimal digits, two each.
pub(super) fn write_hex(out: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 0xf)];
    }
}
