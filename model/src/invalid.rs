//! What a translator returns instead of guessing: which resource, which field, why.
//!
//! Not for: failures of single requests.

use std::fmt;

/// One reason why a resource cannot be obeyed as it was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The resource or part of one, as its owner names it: a cluster's or a filter chain's name.
    pub resource: String,
    /// The field, from the resource down: `filters[0].http_filters[2].rules.policies[x].principals[0]`.
    pub path: String,
    /// What is wrong with it, for the person who wrote it.
    pub reason: String,
}

impl Invalid {
    /// An [`Invalid`] of these parts.
    pub fn new(resource: impl Into<String>, path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { resource: resource.into(), path: path.into(), reason: reason.into() }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}: {}", self.resource, self.path, self.reason)
    }
}

impl std::error::Error for Invalid {}
