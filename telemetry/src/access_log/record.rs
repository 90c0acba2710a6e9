//! A record of an access log, as the bytes of OTLP's `LogRecord`.
//!
//! Not for: sending it. Source: Envoy's OpenTelemetry access logger: the request's start, the line as body, attributes whose values
//! are texts, and the ids of the request's span. A record is written once, as the bytes that leave.

use std::sync::Arc;

use model::access_log::RecordValue;
use model::refusal::Refusal;
use model::stream_view::{Field, StreamView, Value};
use model::text::readable;

use crate::trace::nanoseconds;
use crate::wire;

/// Numbers of the fields of OTLP's `LogRecord`.
mod field {
    pub(super) const TIME: u32 = 1;
    pub(super) const BODY: u32 = 5;
    pub(super) const ATTRIBUTES: u32 = 6;
    pub(super) const TRACE_ID: u32 = 9;
    pub(super) const SPAN_ID: u32 = 10;
}

/// Numbers of the fields of `AnyValue`, `ArrayValue`, `KeyValueList` and `KeyValue`.
mod value {
    pub(super) const STRING: u32 = 1;
    pub(super) const LIST: u32 = 5;
    pub(super) const PAIRS: u32 = 6;
    pub(super) const VALUES: u32 = 1;
    pub(super) const PAIR_KEY: u32 = 1;
    pub(super) const PAIR_VALUE: u32 = 2;
}

/// Writes records into a buffer that it keeps.
#[derive(Debug, Default)]
pub(super) struct RecordWriter {
    record: Vec<u8>,
    rendered: Vec<u8>,
}

impl RecordWriter {
    /// The record of a request or connection, and, if it is to say so, of why it was refused.
    pub(super) fn write(
        &mut self,
        body: Option<&RecordValue>,
        attributes: &[(Arc<str>, RecordValue)],
        refusal: Option<&Refusal>,
        view: &dyn StreamView,
    ) -> &[u8] {
        let Self { record, rendered } = self;
        record.clear();
        if let Value::Time(start) = view.field(Field::StartTime) {
            wire::fixed64(record, field::TIME, nanoseconds(start));
        }
        if let Some(body) = body {
            wire::nested(record, field::BODY, |out| write_value(out, body, view, rendered));
        }
        for pair in attributes {
            wire::nested(record, field::ATTRIBUTES, |out| write_pair(out, pair, view, rendered));
        }
        for (field, text) in refusal.iter().flat_map(|refusal| refusal.fields()) {
            wire::attribute(record, field::ATTRIBUTES, field.attribute(), &[&text]);
        }
        match view.field(Field::TraceId) {
            Value::Hex128(id) => wire::bytes(record, field::TRACE_ID, &id.to_be_bytes()),
            Value::Hex64(low) => wire::bytes(record, field::TRACE_ID, &u128::from(low).to_be_bytes()),
            _ => {}
        }
        if let Value::Hex64(id) = view.field(Field::SpanId) {
            wire::bytes(record, field::SPAN_ID, &id.to_be_bytes());
        }
        record
    }
}

/// A `KeyValue`.
fn write_pair(out: &mut Vec<u8>, (key, value): &(Arc<str>, RecordValue), view: &dyn StreamView, rendered: &mut Vec<u8>) {
    wire::bytes(out, value::PAIR_KEY, key.as_bytes());
    wire::nested(out, value::PAIR_VALUE, |out| write_value(out, value, view, rendered));
}

/// An `AnyValue`.
fn write_value(out: &mut Vec<u8>, value: &RecordValue, view: &dyn StreamView, rendered: &mut Vec<u8>) {
    match value {
        RecordValue::Text(format) => {
            rendered.clear();
            format.render(view, rendered);
            let text = readable(rendered);
            // Inside a `oneof` an empty text is written too: it says that there is a value.
            wire::head(out, value::STRING, text.len());
            out.extend_from_slice(text.as_bytes());
        }
        RecordValue::List(values) => wire::nested(out, value::LIST, |out| {
            for value in values {
                wire::nested(out, value::VALUES, |out| write_value(out, value, view, rendered));
            }
        }),
        RecordValue::Pairs(pairs) => wire::nested(out, value::PAIRS, |out| {
            for pair in pairs {
                wire::nested(out, value::VALUES, |out| write_pair(out, pair, view, rendered));
            }
        }),
    }
}
