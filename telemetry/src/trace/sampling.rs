//! `x-request-id`: made when missing, and the carrier of the sampling decision, as Envoy's UUID request ids are.
//!
//! Source: `envoy:source/common/http/conn_manager_utility.cc`. The digit at index 14 says why a request is traced.

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use model::tracing::Tracing;

use super::propagation::{hex_value, write_hex};
use crate::record::X_CLIENT_TRACE_ID;

const X_ENVOY_FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");

/// Bytes of a UUID with its dashes.
const UUID_BYTES: usize = 36;
/// Where a UUID says its version, and Envoy why it is traced.
const REASON_AT: usize = 14;
const NOT_TRACED: u8 = b'4';
const SAMPLED: u8 = b'9';
const FORCED: u8 = b'a';
const CLIENT: u8 = b'b';
/// Hexadecimal digits that sampling draws its lot from.
const DRAW_DIGITS: usize = 8;

/// What the request id decides.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) sampled: bool,
    /// The id with its digit rewritten; none if it stays.
    pub(super) request_id: Option<HeaderValue>,
}

/// A random UUID of version 4.
pub(super) fn new_request_id(random: &mut fastrand::Rng) -> HeaderValue {
    let mut bytes = random.u128(..).to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = *b"00000000-0000-0000-0000-000000000000";
    for (at, range) in [(0..8, 0..4), (9..13, 4..6), (14..18, 6..8), (19..23, 8..10), (24..36, 10..16)] {
        write_hex(&mut text[at], &bytes[range]);
    }
    HeaderValue::from_bytes(&text).expect("digits and dashes")
}

/// Whether a request without a caller's decision is traced, and how its id says so.
pub(super) fn decide(tracing: &Tracing, request_id: Option<&HeaderValue>, headers: &HeaderMap) -> Verdict {
    if !tracing.request_id.decides {
        return Verdict { sampled: true, request_id: None };
    }
    let Some((id, draw)) = request_id.and_then(|id| Some((id.as_bytes(), draw(id.as_bytes())?))) else {
        return Verdict { sampled: false, request_id: None };
    };
    let is_uuid = id.len() == UUID_BYTES;
    let before = id.get(REASON_AT).copied().filter(|_| is_uuid).unwrap_or(NOT_TRACED);
    let mut reason = match before {
        SAMPLED | FORCED | CLIENT => before,
        _ if headers.contains_key(X_CLIENT_TRACE_ID) && tracing.client_sampling.takes(draw) => CLIENT,
        _ if headers.contains_key(X_ENVOY_FORCE_TRACE) => FORCED,
        _ if tracing.random_sampling.takes(draw) => SAMPLED,
        _ => NOT_TRACED,
    };
    if reason != NOT_TRACED && !tracing.overall_sampling.takes(draw) {
        reason = NOT_TRACED;
    }
    let rewrite =
        tracing.request_id.tells && is_uuid && reason != before && (reason != NOT_TRACED || matches!(before, SAMPLED | FORCED | CLIENT));
    let request_id = rewrite.then(|| {
        let mut id = id.to_vec();
        id[REASON_AT] = reason;
        HeaderValue::from_bytes(&id).expect("a digit was replaced by another")
    });
    Verdict { sampled: reason != NOT_TRACED, request_id }
}

/// The first digits of an id as a number; none if they are not hexadecimal.
fn draw(id: &[u8]) -> Option<u64> {
    id.get(..DRAW_DIGITS)?.iter().try_fold(0, |draw, digit| Some(draw << 4 | u64::from(hex_value(*digit)?)))
}
