//! The mesh's mutual TLS: this workload's identity, and the two rustls configurations made from it.
//!
//! Not for: getting certificates (`identity` and the CA client do), nor TLS to applications (`originate`).
//! Invariants: TLS 1.3 only, ALPN `h2`, a certificate on both sides, never resumed, so no session outlives the identity
//! it was checked against. A new identity changes what the *next* connection uses; open ones are not touched.

pub mod accept;
mod names;
pub mod originate;
mod revocation;
pub mod secrets;
pub mod verify;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use model::identity::SpiffeId;
use parking_lot::RwLock;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, InvalidMessage, RootCertStore};
use thiserror::Error;

use verify::{PeerMatcher, SanRefusal};

/// ALPN of HBONE: HTTP/2 and nothing else.
const ALPN: &[u8] = b"h2";

/// Client configurations kept per identity. Clusters of one mesh share a handful of matchers; beyond this bound a
/// configuration is built for each connection instead of being kept.
const CLIENT_SETTINGS_MAX: usize = 256;

/// A workload certificate with its key and the roots that its peers are checked against.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    id: SpiffeId,
    generation: u64,
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Identity").field("id", &self.id).field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// Why DER parts do not make an identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The CA answered with no certificate.
    #[error("the certificate chain is empty")]
    EmptyChain,
    /// There is nothing to check peers against.
    #[error("the root bundle is empty")]
    NoRoots,
    /// A root that cannot be a trust anchor.
    #[error("root certificate {index} cannot be used: {source}")]
    Root {
        /// Position in the bundle, from 0.
        index: usize,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The leaf names no workload.
    #[error("the certificate names no workload: {0}")]
    Name(SanRefusal),
    /// Key and certificate do not fit each other, or one cannot be used.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(rustls::Error),
}

impl Identity {
    /// Puts an identity together. `chain` begins with the leaf; `generation` must differ for each certificate *and*
    /// for each root bundle, because connections are told apart by it.
    ///
    /// # Errors
    /// Parts that cannot be used, each by its own variant.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: &[CertificateDer<'static>],
        generation: u64,
    ) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or(IdentityError::EmptyChain)?;
        let id = verify::first_identity(leaf).map_err(IdentityError::Name)?;
        let mut store = RootCertStore::empty();
        for (index, root) in roots.iter().enumerate() {
            store.add(root.clone()).map_err(|source| IdentityError::Root { index, source })?;
        }
        if store.is_empty() {
            return Err(IdentityError::NoRoots);
        }
        Ok(Self { chain, key, roots: Arc::new(store), id, generation })
    }

    /// Who we are.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Which certificate and roots these are.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The certificates, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
}

/// The cryptography of the mesh. X25519 comes first because ztunnel sends a key share for it alone: any other choice
/// would cost a round trip. X25519MLKEM768 is there for peers that offer nothing else (`COMPLIANCE_POLICY=pqc`).
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![
        aws_lc_rs::kx_group::X25519,
        aws_lc_rs::kx_group::SECP256R1,
        aws_lc_rs::kx_group::SECP384R1,
        aws_lc_rs::kx_group::X25519MLKEM768,
    ];
    Arc::new(provider)
}

/// What accepts HBONE connections.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<rustls::ServerConfig>,
    accepted: Arc<PeerMatcher>,
    id: SpiffeId,
}

impl ServerTls {
    /// A configuration with `identity`, for clients that `accepted` accepts.
    ///
    /// # Errors
    /// [`IdentityError::Unusable`] if rustls refuses the certificate, the key or the roots.
    pub fn new(identity: &Identity, accepted: Arc<PeerMatcher>) -> Result<Self, IdentityError> {
        let provider = provider();
        let verifier = verify::ClientVerifier::new(Arc::clone(&identity.roots), Arc::clone(&accepted), Arc::clone(&provider))
            .map_err(IdentityError::Unusable)?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(IdentityError::Unusable)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(IdentityError::Unusable)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), accepted, id: identity.id.clone() })
    }
}

/// What dials HBONE connections: an identity, and whom it accepts at the other end.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<rustls::ClientConfig>,
    accepted: Arc<PeerMatcher>,
    id: SpiffeId,
    generation: u64,
}

impl ClientTls {
    /// A configuration with `identity`, for servers that `accepted` accepts. No server name is sent or checked.
    ///
    /// # Errors
    /// [`IdentityError::Unusable`] if rustls refuses the certificate or the key.
    pub fn new(identity: &Identity, accepted: Arc<PeerMatcher>) -> Result<Self, IdentityError> {
        let provider = provider();
        let verifier = verify::ServerVerifier::new(Some(Arc::clone(&identity.roots)), Arc::clone(&accepted), Arc::clone(&provider));
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(IdentityError::Unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(IdentityError::Unusable)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self { config: Arc::new(config), accepted, id: identity.id.clone(), generation: identity.generation })
    }

    /// Whom this accepts.
    #[must_use]
    pub fn accepted(&self) -> &Arc<PeerMatcher> {
        &self.accepted
    }

    /// The generation of the identity inside.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// One identity and all that was made from it, published together so that nothing mixes two of them.
#[derive(Debug)]
struct Published {
    identity: Arc<Identity>,
    server: Arc<ServerTls>,
    clients: RwLock<HashMap<Arc<PeerMatcher>, Arc<ClientTls>, foldhash::fast::RandomState>>,
}

/// The current identity of this process, read without a lock by every new connection.
#[derive(Debug, Default)]
pub struct MeshTls {
    published: ArcSwapOption<Published>,
}

impl MeshTls {
    /// A store without an identity: connections are refused until [`Self::publish`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `identity` the one that new connections use; clients are accepted by `accepted`. Open connections stay.
    ///
    /// # Errors
    /// [`IdentityError::Unusable`]; the previous identity then stays in use.
    pub fn publish(&self, identity: Arc<Identity>, accepted: Arc<PeerMatcher>) -> Result<(), IdentityError> {
        let server = Arc::new(ServerTls::new(&identity, accepted)?);
        self.published.store(Some(Arc::new(Published { identity, server, clients: RwLock::default() })));
        Ok(())
    }

    /// The current identity; none before the first certificate.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.published.load().as_ref().map(|published| Arc::clone(&published.identity))
    }

    /// What accepts connections now; none before the first certificate.
    #[must_use]
    pub fn server(&self) -> Option<Arc<ServerTls>> {
        self.published.load().as_ref().map(|published| Arc::clone(&published.server))
    }

    /// What dials servers that `accepted` accepts; none before the first certificate.
    ///
    /// # Errors
    /// [`IdentityError::Unusable`] if rustls refuses the identity as a client's.
    pub fn client(&self, accepted: &Arc<PeerMatcher>) -> Result<Option<Arc<ClientTls>>, IdentityError> {
        let published = self.published.load();
        let Some(published) = published.as_ref() else { return Ok(None) };
        if let Some(client) = published.clients.read().get(accepted) {
            return Ok(Some(Arc::clone(client)));
        }
        let client = Arc::new(ClientTls::new(&published.identity, Arc::clone(accepted))?);
        let mut clients = published.clients.write();
        if clients.len() < CLIENT_SETTINGS_MAX {
            clients.insert(Arc::clone(accepted), Arc::clone(&client));
        }
        Ok(Some(client))
    }
}

/// What a TLS handshake agreed on, for access logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// `TLSv1.3`, as Envoy prints it.
    pub version: &'static str,
    /// The cipher suite as rustls names it.
    pub cipher_suite: &'static str,
    /// The key exchange group as rustls names it.
    pub group: &'static str,
    /// The peer's leaf certificate.
    pub peer_certificate: CertificateDer<'static>,
}

/// Why a TLS handshake, or the connection soon after it, failed; one reason per thing that an operator does differently.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum TlsFailure {
    /// The bytes are no TLS.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// A client without a certificate.
    #[error("the peer sent no certificate")]
    NoCertificate,
    /// Its validity has ended.
    #[error("the peer's certificate has expired")]
    Expired,
    /// Its validity has not begun: clocks differ.
    #[error("the peer's certificate is not valid yet")]
    NotYetValid,
    /// It does not chain to our roots.
    #[error("the peer's certificate is from an unknown issuer")]
    UnknownIssuer,
    /// Not issued for this use (extended key usage).
    #[error("the peer's certificate is not issued for this purpose")]
    WrongPurpose,
    /// A good certificate of a workload that is not ours to speak with.
    #[error("{0}")]
    Identity(SanRefusal),
    /// It, or an authority's of its chain, was taken back.
    #[error("the peer's certificate is revoked")]
    Revoked,
    /// No list that holds now says whether it is revoked.
    #[error("no list says whether the peer's certificate is revoked")]
    RevocationUnknown,
    /// Any other fault of the certificate.
    #[error("the peer's certificate is unusable: {0:?}")]
    BadCertificate(CertificateError),
    /// No version, suite, group or ALPN in common.
    #[error("nothing in common with the peer: {0}")]
    Incompatible(String),
    /// The peer refused us; the alert says why.
    #[error("the peer sent the alert {0:?}")]
    Alert(AlertDescription),
    /// The connection ended during the handshake.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The peer broke the protocol.
    #[error("the peer broke TLS: {0}")]
    Protocol(String),
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(io::ErrorKind),
}

impl TlsFailure {
    /// The reason as a label or log value: lower case, closed list.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::NoCertificate => "no_certificate",
            Self::Expired => "certificate_expired",
            Self::NotYetValid => "certificate_not_yet_valid",
            Self::UnknownIssuer => "unknown_issuer",
            Self::WrongPurpose => "wrong_purpose",
            Self::Identity(SanRefusal::Unreadable) => "unreadable_names",
            Self::Identity(SanRefusal::NoIdentity) => "no_spiffe_id",
            Self::Identity(SanRefusal::ForeignTrustDomain(_)) => "foreign_trust_domain",
            Self::Identity(SanRefusal::UnexpectedIdentity(_)) => "unexpected_identity",
            Self::Identity(SanRefusal::OtherName) => "other_name",
            Self::Revoked => "certificate_revoked",
            Self::RevocationUnknown => "revocation_unknown",
            Self::BadCertificate(_) => "bad_certificate",
            Self::Incompatible(_) => "incompatible",
            Self::Alert(_) => "alert",
            Self::Closed => "closed",
            Self::Protocol(_) => "protocol",
            Self::Io(_) => "io",
        }
    }

    /// Whether the peer's certificate is what failed.
    #[must_use]
    pub fn is_of_certificate(&self) -> bool {
        match self {
            Self::Expired | Self::NotYetValid | Self::UnknownIssuer | Self::WrongPurpose | Self::Identity(_) => true,
            Self::Revoked | Self::RevocationUnknown | Self::BadCertificate(_) => true,
            Self::NotTls
            | Self::NoCertificate
            | Self::Incompatible(_)
            | Self::Alert(_)
            | Self::Closed
            | Self::Protocol(_)
            | Self::Io(_) => false,
        }
    }

    /// Reads the reason out of what tokio-rustls returns.
    #[must_use]
    pub fn from_io(error: &io::Error) -> Self {
        if let Some(tls) = rustls_cause(error) {
            return Self::from_rustls(tls);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
            kind => Self::Io(kind),
        }
    }

    fn from_rustls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::InvalidCertificate(reason) => Self::from_certificate(reason),
            rustls::Error::AlertReceived(alert) => Self::Alert(*alert),
            rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion | InvalidMessage::MessageTooLarge,
            ) => Self::NotTls,
            rustls::Error::PeerIncompatible(reason) => Self::Incompatible(format!("{reason:?}")),
            rustls::Error::NoApplicationProtocol => Self::Incompatible("ALPN".to_owned()),
            other => Self::Protocol(other.to_string()),
        }
    }

    fn from_certificate(reason: &CertificateError) -> Self {
        match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            // A root of the same name with another key fails as a signature: to an operator it is an unknown issuer.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::WrongPurpose,
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownRevocationStatus | CertificateError::ExpiredRevocationList => Self::RevocationUnknown,
            CertificateError::Other(other) => match other.0.downcast_ref::<SanRefusal>() {
                Some(refusal) => Self::Identity(refusal.clone()),
                None => Self::BadCertificate(reason.clone()),
            },
            other => Self::BadCertificate(other.clone()),
        }
    }
}

/// The rustls error inside an I/O error, however deep; h2 wraps what the stream below it returned.
pub(crate) fn rustls_cause(error: &io::Error) -> Option<&rustls::Error> {
    let mut cause: &(dyn std::error::Error + 'static) = error.get_ref()?;
    loop {
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        cause = match cause.downcast_ref::<io::Error>() {
            Some(inner) => inner.get_ref()?,
            None => cause.source()?,
        };
    }
}

#[cfg(test)]
pub(crate) mod tests;
