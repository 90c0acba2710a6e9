//! Envoy's `%…%` formats: compiled once, rendered into a byte buffer without allocating.
//!
//! Used by access logs, header edits and span tags alike. Source: Envoy's access log operators and their JSON rules:
//! keys sorted, numbers stay numbers, a missing single operator is `null`, in a longer text `-`.
//! Invariant: rendering cannot fail; what is unknown was found when compiling and renders as missing.

mod expression;
mod json;
mod operator;
mod time;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderName;

pub use expression::{Datum, Expression};
pub use json::{JsonFormat, JsonValue, write_string as write_json_string};
pub use operator::{HeaderRef, Operator, PeerField};

use crate::stream_view::StreamView;

/// A point in time as access logs print it, `2026-11-23T20:31:46.500Z`.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    time::TimeFormat::Default.render(time)
}

/// How a missing value looks inside a text.
const MISSING: &[u8] = b"-";

/// A part of a text format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Literal(Box<[u8]>),
    Operator(Operator),
}

/// Which headers a chain's formats read: only these are kept until the request has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderUse {
    /// Of the request.
    pub request: Vec<HeaderName>,
    /// Of the response.
    pub response: Vec<HeaderName>,
    /// Of the response's trailers.
    pub trailers: Vec<HeaderName>,
}

impl HeaderUse {
    /// Notes a request header, once.
    pub fn add_request(&mut self, name: &HeaderName) {
        add(&mut self.request, name);
    }

    pub(crate) fn add_all(&mut self, parts: &[Part]) {
        for part in parts {
            if let Part::Operator(operator) = part {
                operator.uses(self);
            }
        }
    }
}

fn add(names: &mut Vec<HeaderName>, name: &HeaderName) {
    if !names.contains(name) {
        names.push(name.clone());
    }
}

/// A text with operators in it. Copies share what was compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFormat {
    parts: Arc<[Part]>,
    omit_missing: bool,
}

/// An operator that this build does not know: it renders as missing, and is reported once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownOperator(pub String);

impl fmt::Display for UnknownOperator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the format operator %{}% is not known and prints as missing", self.0)
    }
}

impl TextFormat {
    /// Compiles a text. Unknown operators are pushed to `unknown` and render as missing.
    pub fn parse(text: &str, unknown: &mut Vec<UnknownOperator>) -> Self {
        Self { parts: parse_parts(text, unknown).into(), omit_missing: false }
    }

    /// Missing parts print as nothing rather than `-` (`omit_empty_values`).
    #[must_use]
    pub fn omitting_missing(mut self) -> Self {
        self.omit_missing = true;
        self
    }

    /// The text when it has no operators.
    #[must_use]
    pub fn as_literal(&self) -> Option<&[u8]> {
        match &*self.parts {
            [] => Some(b""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Notes the headers that the text reads.
    pub fn uses(&self, headers: &mut HeaderUse) {
        headers.add_all(&self.parts);
    }

    /// Appends the text to `out`.
    pub fn render(&self, view: &dyn StreamView, out: &mut Vec<u8>) {
        for part in &*self.parts {
            match part {
                Part::Literal(text) => out.extend_from_slice(text),
                Part::Operator(operator) => {
                    if !operator.render_text(view, out) && !self.omit_missing {
                        out.extend_from_slice(MISSING);
                    }
                }
            }
        }
    }
}

/// Splits `text` into literals and operators; `%%` is a percent sign, a lone `%` is itself.
pub(crate) fn parse_parts(text: &str, unknown: &mut Vec<UnknownOperator>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            literal.push('%');
            rest = after;
        } else if let Some((command, after)) = operator::take(rest) {
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal).into_bytes().into()));
            }
            parts.push(Part::Operator(Operator::parse(command).unwrap_or_else(|| {
                unknown.push(UnknownOperator(command.to_owned()));
                Operator::Unknown
            })));
            rest = after;
        } else {
            literal.push('%');
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal.into_bytes().into()));
    }
    parts
}

#[cfg(test)]
mod tests;
