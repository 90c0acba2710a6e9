//! What is drawn or measured anew for each request, taken out of lines and spans. What is masked still has to be there on both sides.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};
use tests::otlp::Span;

/// Texts within texts, and what stands for them.
static DRAWN: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    [
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3,9}Z", "TIME"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+0000", "LOCAL TIME"),
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]([0-9a-f]{3})-[0-9a-f]{4}-[0-9a-f]{12}", "ID"),
        // Ports that the kernel chose.
        (r"(127\.\d+\.\d+\.\d+):[3-6]\d{4}", "$1:PORT"),
        // The two durations of Istio's text format, between bytes and `x-forwarded-for`.
        (r#"" (\d+) (\d+) \d+ \d+ ""#, r#"" $1 $2 MS MS ""#),
        (r#"" (\d+) (\d+) \d+ - ""#, r#"" $1 $2 MS - ""#),
        // What is left of a time limit.
        (r"^\d+m$", "LEFT"),
        (r"\b[0-9a-f]{32}\b", "TRACE"),
        (r"\b[0-9a-f]{16}\b", "SPAN"),
    ]
    .into_iter()
    .map(|(pattern, instead)| (Regex::new(pattern).expect("patterns are literals"), instead))
    .collect()
});

/// Fields that are numbers of milliseconds.
const MEASURED: [&str; 7] =
    ["duration_ms", "service_time", "request_duration", "response_duration", "response_tx_duration", "roundtrip", "request_tx_duration"];

/// What the names of members begin with that are durations, or ports that the kernel chose.
const MEASURED_OPERATORS: [&str; 3] = ["op COMMON_DURATION(DS_", "op COMMON_DURATION(US_TX_BEG", "op DOWNSTREAM_REMOTE_PORT"];

fn masked(text: &str, side: &str) -> String {
    let text = text.replace(side, "SIDE");
    DRAWN.iter().fold(text, |text, (pattern, instead)| pattern.replace_all(&text, *instead).into_owned())
}

pub(super) fn masked_line(line: &Value, side: &str) -> Value {
    let mut line = line.clone();
    for (key, value) in line.as_object_mut().into_iter().flatten() {
        match value {
            Value::Number(_) if MEASURED.contains(&key.as_str()) || MEASURED_OPERATORS.iter().any(|start| key.starts_with(start)) => {
                *value = "MS".into()
            }
            Value::String(text) if key == "service_time" => *value = if text.parse::<u64>().is_ok() { "MS".into() } else { json!(text) },
            Value::String(text) => *value = masked(text, side).into(),
            _ => {}
        }
    }
    line
}

/// Whether a span is of this side: callers' traces are the same on both.
pub(super) fn is_of(span: &Span, side: &str) -> bool {
    let other = if side == "ours" { "them" } else { "ours" };
    span.attributes.get("user_agent").is_none_or(|agent| agent != other)
}

pub(super) fn masked_span(span: &Span, side: &str) -> BTreeMap<String, Value> {
    let mut fields = BTreeMap::from([
        ("span.name".to_owned(), json!(span.name)),
        ("span.kind".to_owned(), json!(span.kind)),
        ("span.status".to_owned(), json!(span.status)),
        ("span.flags".to_owned(), json!(span.flags)),
        ("span.trace_state".to_owned(), json!(span.trace_state)),
        // A caller's trace and span are the same on both sides; a root has neither.
        ("span.parent".to_owned(), json!(span.parent_span_id)),
    ]);
    fields.extend(span.attributes.iter().map(|(name, value)| (format!("span.{name}"), json!(masked(value, side)))));
    fields.extend(span.resource.iter().map(|(name, value)| (format!("resource.{name}"), json!(value))));
    fields
}
