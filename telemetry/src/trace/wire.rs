//! The few protobuf fields that a span is made of, appended to a byte buffer.
//!
//! Not for: messages that are rare; those are structures of `opentelemetry-proto`. Source: the protobuf encoding, and
//! `opentelemetry/proto/trace/v1/trace.proto`. Invariant: the length of what is nested is known before it is written, so nothing is
//! written twice.

use prost::encoding::{encode_varint, encoded_len_varint};

/// Of a length-delimited field.
const DELIMITED: u32 = 2;
const FIXED64: u32 = 1;
const FIXED32: u32 = 5;
const VARINT: u32 = 0;

/// `KeyValue.key`, `KeyValue.value` and `AnyValue.string_value`.
const KEY: u32 = 1;
const VALUE: u32 = 2;
const STRING_VALUE: u32 = 1;

fn tag(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    encode_varint(u64::from(field << 3 | wire_type), out);
}

fn length(out: &mut Vec<u8>, bytes: usize) {
    encode_varint(wide(bytes), out);
}

fn wide(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a length fits")
}

/// Bytes that a delimited field below number 16 takes: its tag, its length, itself.
fn delimited_bytes(bytes: usize) -> usize {
    1 + encoded_len_varint(wide(bytes)) + bytes
}

/// The head of a nested message or of bytes that the caller appends.
pub(super) fn head(out: &mut Vec<u8>, field: u32, bytes: usize) {
    tag(out, field, DELIMITED);
    length(out, bytes);
}

/// A text or bytes; like every proto3 field, left out when empty.
pub(super) fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    if !value.is_empty() {
        head(out, field, value.len());
        out.extend_from_slice(value);
    }
}

/// A `fixed64`.
pub(super) fn fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A `fixed32`.
pub(super) fn fixed32(out: &mut Vec<u8>, field: u32, value: u32) {
    tag(out, field, FIXED32);
    out.extend_from_slice(&value.to_le_bytes());
}

/// An enumeration's number.
pub(super) fn number(out: &mut Vec<u8>, field: u32, value: u32) {
    tag(out, field, VARINT);
    encode_varint(u64::from(value), out);
}

/// A `KeyValue` whose value is the text that `parts` make together.
pub(super) fn attribute(out: &mut Vec<u8>, field: u32, key: &str, parts: &[&str]) {
    let text_bytes = parts.iter().map(|part| part.len()).sum();
    let value_bytes = delimited_bytes(text_bytes);
    head(out, field, delimited_bytes(key.len()) + delimited_bytes(value_bytes));
    head(out, KEY, key.len());
    out.extend_from_slice(key.as_bytes());
    head(out, VALUE, value_bytes);
    // Inside a `oneof` an empty text is written too: it says that there is a value.
    head(out, STRING_VALUE, text_bytes);
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}
