//! What of a request is hashed, so that like requests go to the same endpoint.
//!
//! Not for: hashing (`filters::hash`), or which endpoint follows. Source: Envoy's `RouteAction.HashPolicy`.

use http::HeaderName;

use crate::rewrite::Substitution;

/// A cookie for clients that have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCookie {
    /// How long it is kept, in seconds; zero is as long as the client's session.
    pub seconds: u64,
    /// For which paths, if it is said.
    pub path: Option<Box<str>>,
    /// Other attributes, with a value or without.
    pub attributes: Vec<(Box<str>, Option<Box<str>>)>,
}

/// What is hashed.
#[derive(Clone, Debug)]
pub enum HashSource {
    /// A header, after a rewrite if there is one; the authority is `host`.
    Header(HeaderName, Option<Substitution>),
    /// A cookie, which is made where it is missing, if that is wanted.
    Cookie(Box<str>, Option<NewCookie>),
    /// The client's address.
    SourceAddress,
    /// A query parameter.
    Query(Box<str>),
}

/// One of several hashes that are combined.
#[derive(Clone, Debug)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// Once there is a hash, those that follow do not count.
    pub is_terminal: bool,
}
