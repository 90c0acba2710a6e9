//! The few protobuf fields that spans and records of logs are made of, appended to a byte buffer.
//!
//! Not for: messages that are rare; those are structures of `opentelemetry-proto`. Source: the protobuf encoding.
//! Invariant: nothing is encoded twice.

use prost::encoding::{encode_varint, encoded_len_varint};

/// Of a length-delimited field.
const DELIMITED: u32 = 2;
const FIXED64: u32 = 1;
const FIXED32: u32 = 5;
const VARINT: u32 = 0;

/// `KeyValue.key`, `KeyValue.value`, `AnyValue.string_value` and `AnyValue.int_value`.
const KEY: u32 = 1;
const VALUE: u32 = 2;
const STRING_VALUE: u32 = 1;
const INT_VALUE: u32 = 3;

fn tag(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    encode_varint(u64::from(field << 3 | wire_type), out);
}

/// A length, as it stands before what is delimited by it.
pub(crate) fn length(out: &mut Vec<u8>, bytes: usize) {
    encode_varint(wide(bytes), out);
}

fn wide(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a length fits")
}

/// Bytes that a delimited field below number 16 takes: its tag, its length, itself.
pub(crate) fn delimited_bytes(bytes: usize) -> usize {
    1 + encoded_len_varint(wide(bytes)) + bytes
}

/// The head of a nested message or of bytes that the caller appends.
pub(crate) fn head(out: &mut Vec<u8>, field: u32, bytes: usize) {
    tag(out, field, DELIMITED);
    length(out, bytes);
}

/// A message that `write` appends. Its length is known only then, so that what was written moves by the few bytes of it.
pub(crate) fn nested(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    tag(out, field, DELIMITED);
    let start = out.len();
    write(out);
    let end = out.len();
    length(out, end - start);
    let length_bytes = out.len() - end;
    out[start..].rotate_right(length_bytes);
}

/// A text or bytes; like every proto3 field, left out when empty.
pub(crate) fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    if !value.is_empty() {
        head(out, field, value.len());
        out.extend_from_slice(value);
    }
}

/// A `fixed64`.
pub(crate) fn fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A `fixed32`.
pub(crate) fn fixed32(out: &mut Vec<u8>, field: u32, value: u32) {
    tag(out, field, FIXED32);
    out.extend_from_slice(&value.to_le_bytes());
}

/// An unsigned number, or that of an enumeration.
pub(crate) fn number(out: &mut Vec<u8>, field: u32, value: impl Into<u64>) {
    tag(out, field, VARINT);
    encode_varint(value.into(), out);
}

/// A `double`.
pub(crate) fn double(out: &mut Vec<u8>, field: u32, value: f64) {
    fixed64(out, field, value.to_bits());
}

/// A `sint32` or a `sint64`.
pub(crate) fn signed(out: &mut Vec<u8>, field: u32, value: i64) {
    number(out, field, (value.unsigned_abs() << 1) - u64::from(value < 0));
}

/// A `KeyValue` whose value is a number.
pub(crate) fn number_attribute(out: &mut Vec<u8>, field: u32, key: &str, value: u64) {
    nested(out, field, |out| {
        bytes(out, KEY, key.as_bytes());
        nested(out, VALUE, |out| number(out, INT_VALUE, value));
    });
}

/// A `KeyValue` whose value is the text that `parts` make together.
pub(crate) fn attribute(out: &mut Vec<u8>, field: u32, key: &str, parts: &[&str]) {
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
