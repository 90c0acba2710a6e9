//! SPIFFE identities of mesh workloads: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! Not for: verifying certificates. An identity here is only as good as where its text came from.
//! Invariant: a [`SpiffeId`] has exactly these five path parts, none of them empty.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

const SCHEME: &str = "spiffe://";

/// A workload identity as Istio writes it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain_end: usize,
    namespace_end: usize,
}

/// Why a text is not a workload identity.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpiffeIdError {
    /// Another scheme, or none.
    #[error("{0:?} does not begin with spiffe://")]
    Scheme(String),
    /// A SPIFFE id of another shape than Istio's.
    #[error("{0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Shape(String),
}

impl SpiffeId {
    /// Reads `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, the only form that Istio issues.
    ///
    /// # Errors
    /// Anything else, including empty parts and more parts.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        let path = text.strip_prefix(SCHEME).ok_or_else(|| SpiffeIdError::Scheme(text.to_owned()))?;
        let shape = || SpiffeIdError::Shape(text.to_owned());
        let mut parts = path.split('/');
        let mut next = || parts.next().filter(|part| !part.is_empty()).ok_or_else(shape);
        let trust_domain = next()?;
        let ns = next()?;
        let namespace = next()?;
        let sa = next()?;
        next()?;
        if ns != "ns" || sa != "sa" || parts.next().is_some() {
            return Err(shape());
        }
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        Ok(Self { text: text.into(), trust_domain_end, namespace_end: trust_domain_end + "/ns/".len() + namespace.len() })
    }

    /// Puts an identity together from its parts.
    ///
    /// # Errors
    /// A part that is empty or contains a slash.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, SpiffeIdError> {
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The whole URI, shared.
    #[must_use]
    pub fn shared(&self) -> &Arc<str> {
        &self.text
    }

    /// The part before the path, `cluster.local` by default.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.trust_domain_end]
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.text[self.trust_domain_end + "/ns/".len()..self.namespace_end]
    }

    /// The Kubernetes service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.text[self.namespace_end + "/sa/".len()..]
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SpiffeId({})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_identity_are_read() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/clients/sa/frontend").expect("well formed");
        assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("cluster.local", "clients", "frontend"));
        assert_eq!(SpiffeId::new("cluster.local", "clients", "frontend").as_ref(), Ok(&id));
    }

    #[test]
    fn every_other_shape_is_refused() {
        for text in [
            "",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/namespace/a/sa/b",
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text}");
        }
        assert!(SpiffeId::new("td", "a/b", "c").is_err());
    }
}
