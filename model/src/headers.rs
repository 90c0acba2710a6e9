//! Changes to headers that routes ask for: add, append, overwrite, remove.
//!
//! Not for: doing them; `filters::headers` does. Source: Envoy's `HeaderValueOption`.

use http::HeaderName;

use crate::format::TextFormat;

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
