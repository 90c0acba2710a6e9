//! Expressions in the Common Expression Language over Envoy's attributes: labels of metrics, filters and operators of access logs.
//!
//! Compiled once: names become plain reads, what is constant is worked out. Not for: policies; macros over lists (`all`, `exists`)
//! and map literals are not read. Source: the CEL specification, Envoy's attributes. Invariants: evaluating cannot fail but by having no
//! value, which is what CEL calls an error: a missing header, operands of other types, an overflow; its cost is bounded by the text's
//! length.

mod attribute;
mod datum;
mod evaluate;
mod parse;

use std::sync::Arc;

pub use datum::Datum;

use self::attribute::Attribute;
use self::evaluate::Node;
use super::HeaderUse;
use crate::stream_view::StreamView;

/// One compiled expression. Equal if written alike.
#[derive(Clone, Debug)]
pub struct Expression {
    text: Arc<str>,
    node: Arc<Node>,
    /// Its value in text, where it is always the same.
    constant: Option<Arc<str>>,
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}

impl Expression {
    /// Compiles a text.
    ///
    /// # Errors
    /// What cannot be read, for the person who wrote it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let node = Node::compile(parse::parse(text)?)?;
        let constant = match &node {
            Node::Constant(value) => value.to_text().map(|text| text.as_ref().into()),
            _ => None,
        };
        Ok(Self { text: text.into(), node: Arc::new(node), constant })
    }

    /// The value; none where CEL says that there is an error.
    #[must_use]
    pub fn evaluate<'a>(&'a self, view: &'a dyn StreamView) -> Option<Datum<'a>> {
        self.node.evaluate(view)
    }

    /// Whether it is true; false for an error or a value that is no truth.
    #[must_use]
    pub fn is_true(&self, view: &dyn StreamView) -> bool {
        self.evaluate(view) == Some(Datum::Bool(true))
    }

    /// Whether it says the same of every request.
    #[must_use]
    pub fn is_constant(&self) -> bool {
        self.constant.is_some()
    }

    /// Hands over the value as text; none where there is no value, or one that has no text.
    pub fn with_text<R>(&self, view: &dyn StreamView, with: impl FnOnce(Option<&str>) -> R) -> R {
        match &self.constant {
            Some(text) => with(Some(text)),
            None => with(self.evaluate(view).and_then(|value| value.to_text().map(std::borrow::Cow::into_owned)).as_deref()),
        }
    }

    /// The value as a whole number, or what text of it reads as one; 0 for anything else.
    #[must_use]
    pub fn whole_number(&self, view: &dyn StreamView) -> u64 {
        match self.evaluate(view) {
            Some(Datum::Int(number)) => u64::try_from(number).unwrap_or(0),
            Some(Datum::Uint(number)) => number,
            other => other.and_then(|value| value.to_text()?.trim().parse().ok()).unwrap_or(0),
        }
    }

    /// Notes the headers that it reads.
    pub fn uses(&self, headers: &mut HeaderUse) {
        self.node.attributes(&mut |attribute: &Attribute| attribute.uses(headers));
    }
}

#[cfg(test)]
mod tests;
