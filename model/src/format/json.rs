//! JSON log lines: a tree compiled into literal bytes and operators, keys sorted, no spaces.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::operator::write_text;
use super::{HeaderUse, MISSING, Operator, Part, UnknownOperator, parse_parts};
use crate::refusal::Refusal;
use crate::stream_view::{StreamView, Value};

/// A JSON value of a format's configuration. Texts may hold operators; everything else is printed as it is.
#[derive(Clone, Debug)]
pub enum JsonValue {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, printed as JavaScript would.
    Number(f64),
    /// A text with operators.
    Text(String),
    /// A list.
    List(Vec<JsonValue>),
    /// An object; sorted bytewise by key, as Envoy prints them.
    Object(BTreeMap<String, JsonValue>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Literal(Box<[u8]>),
    /// A single operator: keeps its type.
    Typed(Operator),
    /// A text of several parts: always a string.
    Mixed(Box<[Part]>),
    /// A member left out, comma and key included, when its value is missing (`omit_empty_values`).
    Member {
        key: Box<[u8]>,
        value: Operator,
    },
    /// A member that is an object, left out the same way if nothing is in it; ends with [`Step::Leave`].
    Enter {
        key: Box<[u8]>,
    },
    Leave,
}

/// One JSON log line. Copies share what was compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonFormat {
    /// All but the last brace.
    steps: Arc<[Step]>,
    omit_missing: bool,
    adds_refusal: bool,
}

/// The member that says why a request was refused, where the format itself does not.
const REFUSAL_MEMBER: &[u8] = b"\"waypoint_refusal\":";

impl JsonFormat {
    /// Compiles an object. In log formats the B3 headers fall back to the active span's ids (`b3-log-fallback`).
    pub fn parse(object: &BTreeMap<String, JsonValue>, omit_missing: bool, unknown: &mut Vec<UnknownOperator>) -> Self {
        let mut compiler = Compiler { steps: Vec::new(), literal: Vec::new(), omit_missing, unknown };
        compiler.literal.push(b'{');
        compiler.members(object);
        compiler.flush();
        Self { steps: compiler.steps.into(), omit_missing, adds_refusal: false }
    }

    /// With one more member, at the end, in lines of what was refused, unless the format prints something of refusals anyway.
    #[must_use]
    pub fn adding_refusal(mut self) -> Self {
        let says = |operator: &Operator| matches!(operator, Operator::Refusal(_));
        self.adds_refusal = !self.steps.iter().any(|step| match step {
            Step::Typed(operator) | Step::Member { value: operator, .. } => says(operator),
            Step::Mixed(parts) => parts.iter().any(|part| matches!(part, Part::Operator(operator) if says(operator))),
            Step::Literal(_) | Step::Enter { .. } | Step::Leave => false,
        });
        self
    }

    /// Notes the headers that the line reads.
    pub fn uses(&self, headers: &mut HeaderUse) {
        for step in &*self.steps {
            match step {
                Step::Literal(_) | Step::Enter { .. } | Step::Leave => {}
                Step::Typed(operator) | Step::Member { value: operator, .. } => operator.uses(headers),
                Step::Mixed(parts) => headers.add_all(parts),
            }
        }
    }

    /// Appends the line, its newline included.
    pub fn render(&self, view: &dyn StreamView, out: &mut Vec<u8>) {
        // Where the objects begin that are open.
        let mut open: SmallVec<[usize; 4]> = SmallVec::new();
        for step in &*self.steps {
            match step {
                Step::Enter { key } => {
                    open.push(out.len());
                    if out.last() != Some(&b'{') {
                        out.push(b',');
                    }
                    out.extend_from_slice(key);
                    out.push(b'{');
                }
                Step::Leave => {
                    let began = open.pop().expect("each object that is left was entered");
                    if out.last() == Some(&b'{') {
                        out.truncate(began);
                    } else {
                        out.push(b'}');
                    }
                }
                Step::Literal(text) => {
                    // A member was left out just before: no comma follows an opening brace.
                    let text = if self.omit_missing && out.last() == Some(&b'{') { text.strip_prefix(b",").unwrap_or(text) } else { text };
                    out.extend_from_slice(text);
                }
                Step::Typed(operator) => write_json(&operator.value(view), out),
                Step::Mixed(parts) => self.mixed(parts, view, out),
                Step::Member { key, value } => {
                    let value = value.value(view);
                    if value != Value::Missing {
                        if out.last() != Some(&b'{') {
                            out.push(b',');
                        }
                        out.extend_from_slice(key);
                        write_json(&value, out);
                    }
                }
            }
        }
        if self.adds_refusal
            && let Some(refusal) = view.refusal()
        {
            if out.last() != Some(&b'{') {
                out.push(b',');
            }
            out.extend_from_slice(REFUSAL_MEMBER);
            write_object(&members_of(refusal), out);
        }
        out.extend_from_slice(b"}\n");
    }

    fn mixed(&self, parts: &[Part], view: &dyn StreamView, out: &mut Vec<u8>) {
        let mut text = Vec::new();
        for part in parts {
            match part {
                Part::Literal(literal) => text.extend_from_slice(literal),
                Part::Operator(operator) => {
                    if !operator.render_text(view, &mut text) && !self.omit_missing {
                        text.extend_from_slice(MISSING);
                    }
                }
            }
        }
        write_string(&text, out);
    }
}

struct Compiler<'a> {
    steps: Vec<Step>,
    literal: Vec<u8>,
    omit_missing: bool,
    unknown: &'a mut Vec<UnknownOperator>,
}

impl Compiler<'_> {
    fn flush(&mut self) {
        if !self.literal.is_empty() {
            self.steps.push(Step::Literal(std::mem::take(&mut self.literal).into()));
        }
    }

    fn step(&mut self, step: Step) {
        self.flush();
        self.steps.push(step);
    }

    fn object(&mut self, object: &BTreeMap<String, JsonValue>) {
        self.literal.push(b'{');
        self.members(object);
        self.literal.push(b'}');
    }

    fn members(&mut self, object: &BTreeMap<String, JsonValue>) {
        let mut first = true;
        for (key, value) in object {
            let mut name = Vec::new();
            write_string(key.as_bytes(), &mut name);
            name.push(b':');
            if self.omit_missing {
                if matches!(value, JsonValue::Null) {
                    continue;
                }
                if let Some(operator) = self.single(value) {
                    self.step(Step::Member { key: name.into(), value: operator });
                    first = false;
                    continue;
                }
                if let JsonValue::Object(inner) = value {
                    self.step(Step::Enter { key: name.into() });
                    self.members(inner);
                    self.step(Step::Leave);
                    first = false;
                    continue;
                }
            }
            if !first {
                self.literal.push(b',');
            }
            first = false;
            self.literal.extend_from_slice(&name);
            self.value(value);
        }
    }

    /// The operator, if the value is exactly one.
    fn single(&mut self, value: &JsonValue) -> Option<Operator> {
        let JsonValue::Text(text) = value else { return None };
        let mut unknown = Vec::new();
        let mut parts = parse_parts(text, &mut unknown);
        match (parts.len(), parts.pop()) {
            (1, Some(Part::Operator(operator))) => {
                self.unknown.append(&mut unknown);
                Some(operator.with_b3_fallback())
            }
            _ => None,
        }
    }

    fn value(&mut self, value: &JsonValue) {
        if let Some(operator) = self.single(value) {
            return self.step(Step::Typed(operator));
        }
        match value {
            JsonValue::Null => self.literal.extend_from_slice(b"null"),
            JsonValue::Bool(yes) => self.literal.extend_from_slice(if *yes { b"true" } else { b"false" }),
            JsonValue::Number(number) => self.literal.extend_from_slice(number.to_string().as_bytes()),
            JsonValue::List(list) => {
                self.literal.push(b'[');
                for (index, item) in list.iter().enumerate() {
                    if index > 0 {
                        self.literal.push(b',');
                    }
                    self.value(item);
                }
                self.literal.push(b']');
            }
            JsonValue::Object(object) => self.object(object),
            JsonValue::Text(text) => self.text(text),
        }
    }

    fn text(&mut self, text: &str) {
        let parts: Vec<Part> = parse_parts(text, self.unknown)
            .into_iter()
            .map(|part| match part {
                Part::Operator(operator) => Part::Operator(operator.with_b3_fallback()),
                literal @ Part::Literal(_) => literal,
            })
            .collect();
        match parts.as_slice() {
            [] => self.literal.extend_from_slice(b"\"\""),
            [Part::Literal(literal)] => write_string(literal, &mut self.literal),
            _ => self.step(Step::Mixed(parts.into())),
        }
    }
}

fn write_json(value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Missing => out.extend_from_slice(b"null"),
        Value::Number(_) | Value::Bool(_) | Value::Json(_) | Value::Object(_) => {
            write_text(value, out);
        }
        Value::Text(text) => write_string(text.as_bytes(), out),
        Value::Owned(text) => write_string(text.as_bytes(), out),
        Value::Bytes(bytes) => write_string(bytes, out),
        // The rest is digits, letters and punctuation that JSON does not escape.
        Value::Time(_) | Value::Address(_) | Value::Hex128(_) | Value::Hex64(_) | Value::Flags(_) => {
            out.push(b'"');
            write_text(value, out);
            out.push(b'"');
        }
    }
}

/// What is known of a refusal, as members of an object.
pub(super) fn members_of(refusal: &Refusal) -> Vec<(&'static str, Cow<'_, str>)> {
    refusal.fields().map(|(field, text)| (field.key(), text)).collect()
}

/// Appends an object of texts.
pub(super) fn write_object(members: &[(&'static str, Cow<'_, str>)], out: &mut Vec<u8>) {
    for (at, (name, text)) in members.iter().enumerate() {
        out.push(if at == 0 { b'{' } else { b',' });
        write_string(name.as_bytes(), out);
        out.push(b':');
        write_string(text.as_bytes(), out);
    }
    out.extend_from_slice(if members.is_empty() { b"{}" } else { b"}" });
}

/// Appends a JSON string. Bytes that are not UTF-8 are replaced, so that a line is always JSON.
pub fn write_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    // Without an early end, so that many bytes are looked at in one step; hardly any text needs more.
    if text.iter().fold(true, |is_plain, byte| is_plain & matches!(byte, b' '..=b'!' | b'#'..=b'[' | b']'..=b'~')) {
        out.extend_from_slice(text);
        out.push(b'"');
        return;
    }
    for chunk in text.utf8_chunks() {
        write_escaped(chunk.valid(), out);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}

fn write_escaped(text: &str, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut plain_from = 0;
    for (at, byte) in text.bytes().enumerate() {
        let short = match byte {
            b'"' | b'\\' => byte,
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0..0x20 | 0x7f => 0,
            _ => continue,
        };
        out.extend_from_slice(&text.as_bytes()[plain_from..at]);
        plain_from = at + 1;
        if short == 0 {
            out.extend_from_slice(b"\\u00");
            out.push(DIGITS[usize::from(byte >> 4)]);
            out.push(DIGITS[usize::from(byte & 0xf)]);
        } else {
            out.extend_from_slice(&[b'\\', short]);
        }
    }
    out.extend_from_slice(&text.as_bytes()[plain_from..]);
}
