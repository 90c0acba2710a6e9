//! Lists of revoked certificates (CRLs): whether an application's chain has a certificate that its authority took back.
//!
//! Not for: chains, validity and names (`verify`), or reading files (`secrets`). Invariants: where there is a list, every authority of the
//! chain must have one that holds now, or the certificate is refused, as by Envoy; a list that cannot be read is an error, never no list.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, UnixTime};
use rustls::{CertificateError, OtherError, RootCertStore};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

/// The lists of one place.
pub(super) struct Lists(Vec<CertRevocationList<'static>>);

impl fmt::Debug for Lists {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Lists({})", self.0.len())
    }
}

impl Lists {
    /// Those in PEM form among what else is there; maybe none.
    ///
    /// # Errors
    /// A list that cannot be read.
    pub(super) fn among(pem: &[u8]) -> Result<Self, String> {
        let mut lists = Vec::new();
        for one in CertificateRevocationListDer::pem_slice_iter(pem) {
            let one = one.map_err(|error| format!("a list of revoked certificates is not in PEM form: {error}"))?;
            let list = OwnedCertRevocationList::from_der(&one)
                .map_err(|error| format!("a list of revoked certificates cannot be used: {error}"))?;
            lists.push(CertRevocationList::Owned(list));
        }
        Ok(Self(lists))
    }

    /// At least one list.
    ///
    /// # Errors
    /// None, or one that cannot be read.
    pub(super) fn read(pem: &[u8]) -> Result<Self, String> {
        let lists = Self::among(pem)?;
        if lists.is_empty() { Err("there is no list of revoked certificates".to_owned()) } else { Ok(lists) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What is looked into for a chain.
#[derive(Clone, Debug, Default)]
pub(super) struct Revocation {
    /// Of all places; none: nothing is looked for.
    pub(super) lists: Vec<Arc<Lists>>,
    /// Only the leaf is looked for.
    pub(super) of_leaf_only: bool,
}

impl Revocation {
    /// Whether it is made of the same lists.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.of_leaf_only == other.of_leaf_only
            && self.lists.len() == other.lists.len()
            && self.lists.iter().zip(&other.lists).all(|(one, other)| Arc::ptr_eq(one, other))
    }

    /// Looks for the certificates of a chain to one of `roots`; the root itself is not looked for.
    ///
    /// # Errors
    /// One is revoked, or nothing that holds now says whether it is.
    pub(super) fn check(
        &self,
        (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        roots: &RootCertStore,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let lists: Vec<_> = self.lists.iter().flat_map(|lists| &lists.0).collect();
        let Ok(options) = RevocationOptionsBuilder::new(&lists) else { return Ok(()) };
        let depth = if self.of_leaf_only { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
        let options = options
            .with_depth(depth)
            .with_status_policy(UnknownStatusPolicy::Deny)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build();
        let leaf = EndEntityCert::try_from(leaf).map_err(refusal)?;
        let usage = KeyUsage::server_auth();
        leaf.verify_for_usage(algorithms, &roots.roots, intermediates, now, usage, Some(options), None).map_err(refusal)?;
        Ok(())
    }
}

fn refusal(error: webpki::Error) -> rustls::Error {
    rustls::Error::InvalidCertificate(match error {
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::CrlExpired { .. } => CertificateError::ExpiredRevocationList,
        webpki::Error::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}
