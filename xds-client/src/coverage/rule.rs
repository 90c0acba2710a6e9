//! What can be said about a field: the vocabulary of the table.
//!
//! Not here: what is said ([`super::table`]), and how a message is walked ([`super::walk`]).
use prost_reflect::{DynamicMessage, Value};

/// What kind of thing a message configures. It decides about everything in the message that the table does not name: fields it does
/// not list, fields it cannot know, values and oneofs it cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Where traffic goes and what it becomes: what is not named is refused.
    Routing,
    /// Who may do what, and how peers are told apart: what is not named is refused.
    Security,
    /// What is recorded: what is not named is listed.
    Observability,
    /// How well it works: what is not named is listed.
    Tuning,
    /// A building block of other messages: as the message that holds it.
    Part,
}

impl Kind {
    /// The kind of a message inside one of kind `holder`.
    pub(super) const fn inside(self, holder: Self) -> Self {
        match self {
            Self::Part => holder,
            own => own,
        }
    }

    /// Whether what is not named is refused.
    pub(super) const fn is_strict(self) -> bool {
        match self {
            Self::Routing | Self::Security | Self::Part => true,
            Self::Observability | Self::Tuning => false,
        }
    }
}

/// A field where it was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site<'a> {
    /// The message that has the field.
    pub(super) message: &'a DynamicMessage,
    /// Where that message was found; none for the resource itself.
    pub(super) holder: Option<&'a Site<'a>>,
}

/// Whether a value at a place is one that is obeyed.
pub(super) type Check = fn(&Value, &Site<'_>) -> bool;

/// What is done about a field that is set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    /// Obeyed; messages in it are walked.
    Honoured,
    /// Obeyed as a whole: nothing in it can be misunderstood, so it is not walked.
    Whole,
    /// A waypoint has no use for it, and an Envoy waypoint has none either.
    Unused(&'static str),
    /// Obeyed, and walked, for some values; others are refused, or listed where the message is not strict.
    When { only: &'static str, check: Check, otherwise: &'static str },
    /// As `When`, and not walked.
    WholeWhen { only: &'static str, check: Check, otherwise: &'static str },
    /// Accepted, without effect, and counted; the text says what is missing.
    Listed(&'static str),
    /// Not obeyed, so that the object is not used; the text says what it would have changed.
    Refused(&'static str),
    /// Holds extensions, by type: an `Any`, or messages with a `typed_config`. What is not named here is as the message's kind says.
    Extension(&'static [Extension]),
}

/// What is done about an extension of this type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extension {
    /// The full name of the message that configures it.
    pub(super) type_name: &'static str,
    /// What is done. Not `Extension`.
    pub(super) rule: Rule,
}

/// The table's part for one message: the rules of its fields, by name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) message: &'static str,
    pub(super) kind: Kind,
    pub(super) fields: &'static [(&'static str, Rule)],
}

/// Constructors, so that the table reads as one line a field.
pub(super) const fn entry(kind: Kind, message: &'static str, fields: &'static [(&'static str, Rule)]) -> Entry {
    Entry { message, kind, fields }
}

pub(super) const fn when(only: &'static str, check: Check, otherwise: &'static str) -> Rule {
    Rule::When { only, check, otherwise }
}

pub(super) const fn whole_when(only: &'static str, check: Check, otherwise: &'static str) -> Rule {
    Rule::WholeWhen { only, check, otherwise }
}

pub(super) const fn walked(type_name: &'static str) -> Extension {
    Extension { type_name, rule: Rule::Honoured }
}

/// Known by its type, and obeyed whatever it says.
pub(super) const fn whole(type_name: &'static str) -> Extension {
    Extension { type_name, rule: Rule::Whole }
}

pub(super) const fn listed(type_name: &'static str, missing: &'static str) -> Extension {
    Extension { type_name, rule: Rule::Listed(missing) }
}

pub(super) const fn refused(type_name: &'static str, effect: &'static str) -> Extension {
    Extension { type_name, rule: Rule::Refused(effect) }
}
