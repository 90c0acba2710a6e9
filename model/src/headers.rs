//! Changes to headers that routes ask for: add, append, overwrite, remove.
//!
//! Not for: doing them; `filters::headers` does. Source: Envoy's `HeaderValueOption`.

use http::HeaderName;

use crate::format::TextFormat;
use crate::matcher::StringMatcher;

/// What to do when the header is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendAction {
    /// `APPEND_IF_EXISTS_OR_ADD`: one more line.
    Append,
    /// `ADD_IF_ABSENT`: leave it.
    AddIfAbsent,
    /// `OVERWRITE_IF_EXISTS_OR_ADD`: replace all lines.
    Overwrite,
    /// `OVERWRITE_IF_EXISTS`: replace all lines, add none.
    OverwriteIfExists,
}

/// One header to set.
#[derive(Clone, Debug)]
pub struct HeaderAdd {
    /// Which; neither a pseudo-header nor `host`, which have rewrites of their own.
    pub name: HeaderName,
    /// To what; may hold operators.
    pub value: TextFormat,
    /// How.
    pub action: AppendAction,
    /// Whether an empty value is sent at all.
    pub keep_empty_value: bool,
}

/// One change that a `header_mutation` filter makes; each sees what those before it made.
#[derive(Clone, Debug)]
pub enum HeaderChange {
    /// A header is set.
    Add(HeaderAdd),
    /// It is taken away.
    Remove(HeaderName),
    /// All are taken away whose names match.
    RemoveMatching(StringMatcher),
}

/// One change to the parameters of a path.
#[derive(Clone, Debug)]
pub enum ParameterChange {
    /// A parameter is set.
    Add {
        /// Which.
        name: Box<str>,
        /// To what; may hold operators.
        value: TextFormat,
        /// What to do when it is there already.
        action: AppendAction,
    },
    /// It is taken away.
    Remove(Box<str>),
}

/// What a `header_mutation` filter changes on a route: its own changes and those of the route's levels, in their order.
#[derive(Clone, Debug, Default)]
pub struct Mutations {
    /// Of requests.
    pub request: Box<[HeaderChange]>,
    /// Of their parameters, after their headers.
    pub parameters: Box<[ParameterChange]>,
    /// Of their trailers; values hold no operators.
    pub request_trailers: Box<[HeaderChange]>,
    /// Of answers.
    pub response: Box<[HeaderChange]>,
    /// Of their trailers; values hold no operators.
    pub response_trailers: Box<[HeaderChange]>,
    /// It stands before the filters that set headers on answers, and so changes those too.
    pub sees_all_of_answers: bool,
}

/// Changes in the order in which they are done: removals first, then additions, as Envoy does.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdits {
    /// Headers taken away.
    pub remove: Vec<HeaderName>,
    /// Headers set.
    pub add: Vec<HeaderAdd>,
}

impl HeaderEdits {
    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}
