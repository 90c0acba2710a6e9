//! Who a peer is and whether we speak with it: chain, validity and purpose by webpki, then its SPIFFE ids.
//!
//! Not for: authorization. Here a peer is let in or not; what it may do is decided per request.
//! Invariants: DNS names of a workload are never looked at; a certificate without a readable workload identity is refused.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use model::identity::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme};
use thiserror::Error;
use x509_parser::extensions::GeneralName;

use super::names::{Unreadable, alternative_names};
use super::revocation::Revocation;

/// Why a certificate that chains to our roots is refused for its names.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SanRefusal {
    /// The certificate or its names cannot be read.
    #[error("the names in the peer's certificate cannot be read")]
    Unreadable,
    /// No URI names a workload.
    #[error("the peer's certificate names no workload")]
    NoIdentity,
    /// A workload of a mesh that we do not trust.
    #[error("the peer {0} is of a foreign trust domain")]
    ForeignTrustDomain(SpiffeId),
    /// A workload of ours, but not the one that we meant to reach.
    #[error("the peer {0} is not the workload that was expected")]
    UnexpectedIdentity(SpiffeId),
    /// An application's certificate that has none of the names it must have.
    #[error("the peer's certificate has none of the names that are accepted")]
    OtherName,
}

impl From<Unreadable> for SanRefusal {
    fn from(_: Unreadable) -> Self {
        Self::Unreadable
    }
}

impl From<SanRefusal> for rustls::Error {
    fn from(refusal: SanRefusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// Which peers are accepted, compared by value: equal matchers share connections.
#[derive(Clone)]
pub struct PeerMatcher {
    prefixes: Vec<Box<str>>,
    exact: Vec<SpiffeId>,
    fingerprint: u64,
}

impl PeerMatcher {
    /// Any workload with a SPIFFE id.
    #[must_use]
    pub fn any() -> Self {
        Self::new(Vec::new(), Vec::new())
    }

    /// Workloads whose URI begins with one of `prefixes` (`spiffe://cluster.local/`; with the slash, or a longer name
    /// would match too) and is one of `exact`. An empty list does not restrict.
    #[must_use]
    pub fn new(mut prefixes: Vec<Box<str>>, mut exact: Vec<SpiffeId>) -> Self {
        prefixes.sort_unstable();
        prefixes.dedup();
        exact.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        exact.dedup();
        let fingerprint = foldhash::fast::FixedState::default().hash_one((&prefixes, &exact));
        Self { prefixes, exact, fingerprint }
    }

    /// Workloads of the given trust domains.
    #[must_use]
    pub fn trust_domains<'a>(domains: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(domains.into_iter().map(|domain| format!("spiffe://{domain}/").into()).collect(), Vec::new())
    }

    /// The peer's identity: its first workload id that is accepted. SPIFFE allows one URI per certificate; should a CA
    /// put in more, authorization must not see an id that was not accepted.
    ///
    /// # Errors
    /// Why none of its ids is accepted.
    pub fn identify(&self, certificate: &CertificateDer<'_>) -> Result<SpiffeId, SanRefusal> {
        let ids = identities(certificate)?;
        let trusted = |id: &&SpiffeId| self.prefixes.is_empty() || self.prefixes.iter().any(|prefix| id.as_str().starts_with(&**prefix));
        let expected = |id: &&SpiffeId| self.exact.is_empty() || self.exact.contains(id);
        if let Some(id) = ids.iter().filter(trusted).find(expected) {
            return Ok(id.clone());
        }
        match (ids.iter().find(trusted), ids.first()) {
            (Some(id), _) => Err(SanRefusal::UnexpectedIdentity(id.clone())),
            (None, Some(id)) => Err(SanRefusal::ForeignTrustDomain(id.clone())),
            (None, None) => Err(SanRefusal::NoIdentity),
        }
    }
}

impl PartialEq for PeerMatcher {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint && self.prefixes == other.prefixes && self.exact == other.exact
    }
}

impl Eq for PeerMatcher {}

impl Hash for PeerMatcher {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.fingerprint);
    }
}

impl fmt::Debug for PeerMatcher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PeerMatcher").field("prefixes", &self.prefixes).field("exact", &self.exact).finish_non_exhaustive()
    }
}

/// The first workload identity in a certificate.
///
/// # Errors
/// An unreadable certificate, or none in it.
pub fn first_identity(certificate: &CertificateDer<'_>) -> Result<SpiffeId, SanRefusal> {
    identities(certificate)?.into_iter().next().ok_or(SanRefusal::NoIdentity)
}

/// The workload identities in a certificate, in order. Names of other kinds, and URIs that are no workload's, are not
/// identities, and are skipped as ztunnel does.
fn identities(certificate: &CertificateDer<'_>) -> Result<Vec<SpiffeId>, SanRefusal> {
    let ids = alternative_names(certificate, |name| match name {
        GeneralName::URI(uri) => SpiffeId::parse(uri).ok(),
        _ => None,
    })?;
    Ok(ids)
}

/// Checks the certificates of clients.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    accepted: Arc<PeerMatcher>,
}

impl ClientVerifier {
    pub(super) fn new(roots: Arc<RootCertStore>, accepted: Arc<PeerMatcher>, provider: Arc<CryptoProvider>) -> Result<Self, rustls::Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Self { chain, accepted })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        self.accepted.identify(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Which names a server's certificate must have.
pub(super) trait AcceptsNames: fmt::Debug + Send + Sync {
    /// Whether the certificate has one; `asked` is what was asked for in the handshake.
    fn check(&self, certificate: &CertificateDer<'_>, asked: &ServerName<'_>) -> Result<(), SanRefusal>;
}

/// A peer of the mesh: whatever was asked for, its identity counts.
impl AcceptsNames for Arc<PeerMatcher> {
    fn check(&self, certificate: &CertificateDer<'_>, _asked: &ServerName<'_>) -> Result<(), SanRefusal> {
        self.identify(certificate).map(drop)
    }
}

/// Checks the certificates of servers.
#[derive(Debug)]
pub(super) struct ServerVerifier<N> {
    roots: Option<Arc<RootCertStore>>,
    revocation: Revocation,
    names: N,
    provider: Arc<CryptoProvider>,
}

impl<N> ServerVerifier<N> {
    /// Without roots nothing is verified, names included: for configurations that ask for just that.
    pub(super) fn new(roots: Option<Arc<RootCertStore>>, names: N, provider: Arc<CryptoProvider>) -> Self {
        Self { roots, revocation: Revocation::default(), names, provider }
    }

    /// Certificates of a chain must not be revoked either.
    pub(super) fn with_revocation(self, revocation: Revocation) -> Self {
        Self { revocation, ..self }
    }
}

impl<N: AcceptsNames> ServerCertVerifier for ServerVerifier<N> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        self.revocation.check((end_entity, intermediates), roots, algorithms, now)?;
        self.names.check(end_entity, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
