//! Lists of revoked certificates (CRLs): whether an application's chain has a certificate that its authority took back.
//!
//! Not for: chains, validity and names (`verify`), or reading files (`secrets`). Invariants: where there is a list, every authority of the
//! chain must have one that holds now, or the certificate is refused, as by Envoy; of several of one authority the newest decides; an authority
//! that is trusted is looked for as well, if it is no root; a list that cannot be read is an error, never no list.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, UnixTime};
use rustls::{CertificateError, OtherError, RootCertStore};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};
use x509_parser::extensions::ParsedExtension;

/// The lists of one place.
pub(super) struct Lists(Vec<List>);

struct List {
    list: CertRevocationList<'static>,
    /// When it was made and until when it holds, seconds since 1970.
    from: i64,
    until: i64,
    /// Who signed it: the authority's name, and which of its keys, if it says so.
    signer: (Box<[u8]>, Option<Box<[u8]>>),
}

impl List {
    fn read(der: &CertificateRevocationListDer<'_>) -> Result<Self, String> {
        let unusable = |error: &dyn fmt::Display| format!("a list of revoked certificates cannot be used: {error}");
        let list = OwnedCertRevocationList::from_der(der).map_err(|error| unusable(&error))?;
        let (_, times) = x509_parser::parse_x509_crl(der).map_err(|error| unusable(&error))?;
        let until = times.next_update().ok_or_else(|| unusable(&"it has no end"))?;
        let key = times.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(authority) => authority.key_identifier.as_ref().map(|key| key.0.into()),
            _ => None,
        });
        let signer = (times.issuer().as_raw().into(), key);
        Ok(Self { list: CertRevocationList::Owned(list), from: times.last_update().timestamp(), until: until.timestamp(), signer })
    }

    /// The order in which lists are asked; the first one of an authority decides.
    fn order(&self, now: i64) -> impl Ord + use<> {
        let holds = self.from <= now && now < self.until;
        (!holds, Reverse(self.from))
    }
}

/// What is trusted without being a root: authorities that others have signed.
#[derive(Debug)]
pub(super) struct Beneath {
    certificates: Vec<CertificateDer<'static>>,
    /// All else that is trusted.
    roots: RootCertStore,
}

impl Beneath {
    /// None where only roots are trusted, as nearly always.
    pub(super) fn of(trusted: &[CertificateDer<'static>]) -> Option<Self> {
        let (beneath, roots): (Vec<_>, Vec<_>) = trusted.iter().cloned().partition(|one| !is_self_issued(one));
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots);
        (!beneath.is_empty()).then_some(Self { certificates: beneath, roots: store })
    }
}

/// What cannot be read is trusted as nothing.
fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate).map_or(true, |(_, read)| read.issuer().as_raw() == read.subject().as_raw())
}

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
            lists.push(List::read(&one)?);
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
    /// Of the roots that go with it.
    pub(super) beneath: Option<Arc<Beneath>>,
}

impl Revocation {
    /// Whether it is made of the same lists.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.of_leaf_only == other.of_leaf_only
            && self.lists.len() == other.lists.len()
            && self.lists.iter().zip(&other.lists).all(|(one, other)| Arc::ptr_eq(one, other))
    }

    /// Looks for the certificates of a chain to one of `roots`; a root itself is not looked for.
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
        let now_seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let mut lists: Vec<_> = self.lists.iter().flat_map(|lists| &lists.0).collect();
        lists.sort_by_key(|list| list.order(now_seconds));
        let chain = (leaf, intermediates);
        let first = self.check_by(&lists, chain, roots, (algorithms, now));
        if !matches!(first, Err(Refusal::OtherKey)) {
            return first.map_err(Refusal::into_error);
        }
        // An authority has got another key under its name: its lists are told apart by their keys, which webpki does not do. Leaving lists out
        // lets nothing in: an authority without any is refused.
        let signers: BTreeSet<_> = lists.iter().map(|list| &list.signer).collect();
        for left_out in signers {
            let lists: Vec<_> = lists.iter().copied().filter(|list| list.signer != *left_out).collect();
            if !lists.is_empty() {
                match self.check_by(&lists, chain, roots, (algorithms, now)) {
                    Ok(()) => return Ok(()),
                    Err(Refusal::Other(error @ webpki::Error::CertRevoked)) => return Err(refusal(error)),
                    Err(_) => {}
                }
            }
        }
        first.map_err(Refusal::into_error)
    }

    /// The same with these lists, of which the first one of an authority counts.
    fn check_by(
        &self,
        lists: &[&List],
        (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        roots: &RootCertStore,
        (algorithms, now): (&[&dyn SignatureVerificationAlgorithm], UnixTime),
    ) -> Result<(), Refusal> {
        let lists: Vec<_> = lists.iter().map(|list| &list.list).collect();
        let Ok(options) = RevocationOptionsBuilder::new(&lists) else { return Ok(()) };
        let depth = if self.of_leaf_only { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
        let options = options
            .with_depth(depth)
            .with_status_policy(UnknownStatusPolicy::Deny)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build();
        let leaf = EndEntityCert::try_from(leaf).map_err(Refusal::of)?;
        let usage = KeyUsage::server_auth();
        let verify = |roots: &RootCertStore, intermediates: &[CertificateDer<'_>]| {
            leaf.verify_for_usage(algorithms, &roots.roots, intermediates, now, usage, Some(options), None).map(drop).map_err(Refusal::of)
        };
        match self.beneath.as_ref().filter(|_| !self.of_leaf_only) {
            None => verify(roots, intermediates),
            // A chain that ended with one of them would not say whether it was revoked.
            Some(beneath) => verify(&beneath.roots, &[intermediates, &beneath.certificates].concat()),
        }
    }
}

/// Why a chain is refused.
enum Refusal {
    /// A list of an authority's name was not signed by its key.
    OtherKey,
    Other(webpki::Error),
}

impl Refusal {
    fn of(error: webpki::Error) -> Self {
        match error {
            webpki::Error::InvalidCrlSignatureForPublicKey => Self::OtherKey,
            other => Self::Other(other),
        }
    }

    fn into_error(self) -> rustls::Error {
        refusal(match self {
            Self::OtherKey => webpki::Error::InvalidCrlSignatureForPublicKey,
            Self::Other(error) => error,
        })
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
