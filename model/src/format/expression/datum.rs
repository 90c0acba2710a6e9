//! Values of expressions, how they compare, and how they print.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::time::{Duration, SystemTime};

/// A value.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is CEL's type of that name")]
pub enum Datum<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Cow<'a, str>),
    Time(SystemTime),
    Duration(Duration),
    List(Vec<Datum<'a>>),
    /// Something with members, of which only these can be read.
    Object,
}

impl Datum<'_> {
    /// How it prints; a list, an object and null have no text.
    #[must_use]
    pub fn to_text(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Null | Self::List(_) | Self::Object => return None,
            Self::Bool(yes) => Cow::Borrowed(if *yes { "true" } else { "false" }),
            Self::Int(number) => number.to_string().into(),
            Self::Uint(number) => number.to_string().into(),
            Self::Double(number) => number.to_string().into(),
            Self::Text(text) => Cow::Borrowed(text),
            Self::Time(time) => super::super::time::default_text(*time).into(),
            Self::Duration(duration) => format!("{duration:?}").into(),
        })
    }

    /// How they compare; none where CEL says that they do not.
    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(left), Self::Bool(right)) => Some(left.cmp(right)),
            (Self::Text(left), Self::Text(right)) => Some(left.cmp(right)),
            (Self::Time(left), Self::Time(right)) => Some(left.cmp(right)),
            (Self::Duration(left), Self::Duration(right)) => Some(left.cmp(right)),
            _ => match (self.whole(), other.whole()) {
                (Some(left), Some(right)) => Some(left.cmp(&right)),
                _ => self.number()?.partial_cmp(&other.number()?),
            },
        }
    }

    /// A whole number of either sign.
    pub(super) fn whole(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some((*number).into()),
            Self::Uint(number) => Some((*number).into()),
            _ => None,
        }
    }

    /// Any number.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Double(number) => Some(*number),
            // By way of text: exact as far as the type is.
            _ => self.whole()?.to_string().parse().ok(),
        }
    }

    /// The same, for as long as one likes.
    pub(super) fn into_owned(self) -> Datum<'static> {
        match self {
            Self::Null => Datum::Null,
            Self::Bool(yes) => Datum::Bool(yes),
            Self::Int(number) => Datum::Int(number),
            Self::Uint(number) => Datum::Uint(number),
            Self::Double(number) => Datum::Double(number),
            Self::Text(text) => Datum::Text(Cow::Owned(text.into_owned())),
            Self::Time(time) => Datum::Time(time),
            Self::Duration(duration) => Datum::Duration(duration),
            Self::List(list) => Datum::List(list.into_iter().map(Datum::into_owned).collect()),
            Self::Object => Datum::Object,
        }
    }
}

/// Values of types that do not compare are different.
impl PartialEq for Datum<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::List(left), Self::List(right)) => left == right,
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }
}
