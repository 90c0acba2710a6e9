//! TLS to applications: which certificate they must show, which one we show, and rustls configurations for it.
//!
//! Not for: the mesh's own TLS, nor reading certificates (`secrets`). Invariants: nothing is verified less than the configuration
//! asks; sessions are not resumed, so every connection is verified; a configuration is made anew when what it was made of changes.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use model::transport::{CertificateSource, CipherSuite, CrlSource, Group, NameMatcher, RootsSource, TlsOrigination, TlsVersions};
use parking_lot::RwLock;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use thiserror::Error;

use super::MeshTls;
use super::names::names;
use super::revocation::Revocation;
use super::secrets::{Read, Roots, Secrets};
use super::verify::{AcceptsNames, SanRefusal, ServerVerifier};

/// Configurations kept; beyond, all are made anew.
pub const CONFIGURATIONS_MAX: usize = 4096;

/// What is spoken inside, for ALPN where the configuration names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inside {
    /// Bytes.
    Tcp,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Why there is no TLS to an application; nothing was dialled.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum OriginationError {
    /// A certificate or roots that are not there, or cannot be used.
    #[error("{reason} ({name})")]
    Secret {
        /// As the configuration names it.
        name: String,
        /// Why.
        reason: Arc<str>,
    },
    /// rustls refuses the parts.
    #[error("the configuration cannot be used: {0}")]
    Unusable(rustls::Error),
}

/// Makes configurations, and keeps them.
#[derive(Debug)]
pub struct Originator {
    mesh: Arc<MeshTls>,
    secrets: Arc<Secrets>,
    made: RwLock<HashMap<(Key, Inside), Made, foldhash::fast::RandomState>>,
}

/// A configuration by its object.
#[derive(Debug)]
struct Key(Arc<TlsOrigination>);

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::ptr::hash(Arc::as_ptr(&self.0), state);
    }
}

/// What a configuration was made of.
#[derive(Clone, Debug, Default)]
struct Parts {
    roots: Option<Arc<RootCertStore>>,
    revocation: Revocation,
    certificate: Option<Shown>,
}

/// A certificate that is shown, and what tells it from others.
#[derive(Clone, Debug)]
enum Shown {
    Workload(Arc<super::Identity>),
    Key(Arc<CertifiedKey>),
}

impl Parts {
    fn is(&self, other: &Self) -> bool {
        let same_roots = match (&self.roots, &other.roots) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        let same_certificate = match (&self.certificate, &other.certificate) {
            (None, None) => true,
            (Some(Shown::Workload(one)), Some(Shown::Workload(other))) => Arc::ptr_eq(one, other),
            (Some(Shown::Key(one)), Some(Shown::Key(other))) => Arc::ptr_eq(one, other),
            _ => false,
        };
        same_roots && same_certificate && self.revocation.is(&other.revocation)
    }
}

#[derive(Debug)]
struct Made {
    of: Parts,
    config: Arc<ClientConfig>,
}

impl Originator {
    /// Of our own identity and what else was loaded.
    #[must_use]
    pub fn new(mesh: Arc<MeshTls>, secrets: Arc<Secrets>) -> Self {
        Self { mesh, secrets, made: RwLock::default() }
    }

    /// What a new connection uses.
    ///
    /// # Errors
    /// What is missing, by name.
    pub fn client(&self, tls: &Arc<TlsOrigination>, inside: Inside) -> Result<Arc<ClientConfig>, OriginationError> {
        let parts = self.parts(tls)?;
        let key = (Key(Arc::clone(tls)), inside);
        if let Some(made) = self.made.read().get(&key).filter(|made| made.of.is(&parts)) {
            return Ok(Arc::clone(&made.config));
        }
        let config = Arc::new(configuration(tls, inside, &parts)?);
        let mut made = self.made.write();
        if made.len() >= CONFIGURATIONS_MAX {
            made.clear();
        }
        // Whoever holds the only handle is a cluster that is gone.
        made.retain(|(key, _), _| Arc::strong_count(&key.0) > 1);
        made.insert(key, Made { of: parts, config: Arc::clone(&config) });
        Ok(config)
    }

    fn parts(&self, tls: &TlsOrigination) -> Result<Parts, OriginationError> {
        let read = self.secrets.read.load();
        let missing = |name: String, reason: &Arc<str>| OriginationError::Secret { name, reason: Arc::clone(reason) };
        let not_loaded: Arc<str> = "Secret is not supplied by SDS".into();
        let identity = || self.mesh.identity().ok_or_else(|| missing("default".to_owned(), &not_loaded));
        let mut loaded: Option<&Roots> = None;
        let roots = match &tls.roots {
            None => None,
            Some(RootsSource::Mesh) => Some(Arc::clone(&identity()?.roots)),
            Some(source) => match read.roots.get(source) {
                Some(Ok(roots)) => {
                    loaded = Some(roots);
                    Some(Arc::clone(&roots.store))
                }
                Some(Err(reason)) => return Err(missing(roots_name(source), reason)),
                None => return Err(missing(roots_name(source), &not_loaded)),
            },
        };
        let revocation = revocation(tls, loaded, &read)?;
        let certificate = match &tls.certificate {
            None => None,
            Some(CertificateSource::Workload) => Some(Shown::Workload(identity()?)),
            Some(source) => match read.certificates.get(source) {
                Some(Ok(key)) => Some(Shown::Key(Arc::clone(key))),
                Some(Err(reason)) => return Err(missing(certificate_name(source), reason)),
                None => return Err(missing(certificate_name(source), &not_loaded)),
            },
        };
        Ok(Parts { roots, revocation, certificate })
    }
}

/// Which lists count: those of the roots' secret before those of the configuration, and those among the roots anyway.
fn revocation(tls: &TlsOrigination, roots: Option<&Roots>, read: &Read) -> Result<Revocation, OriginationError> {
    let of_leaf_only = tls.crl_of_leaf_only || roots.is_some_and(|roots| roots.of_leaf_only);
    let among = roots.map(|roots| &roots.among).filter(|lists| !lists.is_empty()).cloned();
    let apart = match (roots.and_then(|roots| roots.instead.as_ref()), &tls.crl) {
        (Some(instead), _) => Some(Arc::clone(instead)),
        (None, None) => None,
        (None, Some(source)) => match read.crls.get(source) {
            Some(Ok(lists)) => Some(Arc::clone(lists)),
            Some(Err(reason)) => return Err(OriginationError::Secret { name: crl_name(source), reason: Arc::clone(reason) }),
            None => return Err(OriginationError::Secret { name: crl_name(source), reason: "the list has not been read".into() }),
        },
    };
    let beneath = roots.and_then(|roots| roots.beneath.clone());
    Ok(Revocation { lists: among.into_iter().chain(apart).collect(), of_leaf_only, beneath })
}

fn roots_name(source: &RootsSource) -> String {
    match source {
        RootsSource::Mesh => "ROOTCA".to_owned(),
        RootsSource::System => "file-root:system".to_owned(),
        RootsSource::Discovered(name) => name.to_string(),
        RootsSource::File(path) => format!("file-root:{}", path.display()),
        RootsSource::Given(_) => "trusted_ca".to_owned(),
    }
}

fn crl_name(source: &CrlSource) -> String {
    match source {
        CrlSource::File(path) => format!("crl:{}", path.display()),
        CrlSource::Given(_) => "crl".to_owned(),
    }
}

fn certificate_name(source: &CertificateSource) -> String {
    match source {
        CertificateSource::Workload => "default".to_owned(),
        CertificateSource::Discovered(name) => name.to_string(),
        CertificateSource::Files { chain, key } => format!("file-cert:{}~{}", chain.display(), key.display()),
        CertificateSource::Given { .. } => "tls_certificates".to_owned(),
    }
}

fn configuration(tls: &Arc<TlsOrigination>, inside: Inside, parts: &Parts) -> Result<ClientConfig, OriginationError> {
    let provider = restricted(tls);
    let versions: &[&rustls::SupportedProtocolVersion] = match tls.versions {
        TlsVersions::Both => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersions::Tls12 => &[&rustls::version::TLS12],
        TlsVersions::Tls13 => &[&rustls::version::TLS13],
    };
    // Bytes have no host; what istiod means for hosts is then about nothing, as it is to Envoy.
    let verifies_asked = tls.verify_server_name || (tls.verify_host && inside != Inside::Tcp);
    let accepted = Accepted { verifies_asked, tls: Arc::clone(tls) };
    let verifier = ServerVerifier::new(parts.roots.clone(), accepted, Arc::clone(&provider)).with_revocation(parts.revocation.clone());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(OriginationError::Unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &parts.certificate {
        None => builder.with_no_client_auth(),
        Some(Shown::Key(key)) => builder.with_client_cert_resolver(Arc::new(Fixed(Arc::clone(key)))),
        Some(Shown::Workload(identity)) => {
            builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()).map_err(OriginationError::Unusable)?
        }
    };
    config.alpn_protocols = match (tls.alpn.is_empty(), inside) {
        (false, _) => tls.alpn.iter().map(|one| one.to_vec()).collect(),
        (true, Inside::Tcp) => Vec::new(),
        (true, Inside::Http1) => vec![b"http/1.1".to_vec()],
        (true, Inside::Http2) => vec![b"h2".to_vec()],
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The usual cryptography, or the part of it that the configuration leaves.
fn restricted(tls: &TlsOrigination) -> Arc<CryptoProvider> {
    static USUAL: LazyLock<Arc<CryptoProvider>> = LazyLock::new(super::provider);
    if tls.cipher_suites.is_empty() && tls.groups.is_empty() {
        return Arc::clone(&USUAL);
    }
    let mut provider = CryptoProvider::clone(&USUAL);
    if !tls.cipher_suites.is_empty() {
        let wanted: Vec<_> = tls.cipher_suites.iter().map(|one| suite(*one)).collect();
        provider.cipher_suites.retain(|suite| suite.tls13().is_some() || wanted.contains(suite));
    }
    if !tls.groups.is_empty() {
        provider.kx_groups = tls.groups.iter().map(|one| group(*one)).collect();
    }
    Arc::new(provider)
}

fn suite(of: CipherSuite) -> rustls::SupportedCipherSuite {
    match of {
        CipherSuite::EcdsaAes128 => cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdsaAes256 => cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdsaChacha20 => cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        CipherSuite::RsaAes128 => cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::RsaAes256 => cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::RsaChacha20 => cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

fn group(of: Group) -> &'static dyn rustls::crypto::SupportedKxGroup {
    match of {
        Group::X25519 => kx_group::X25519,
        Group::P256 => kx_group::SECP256R1,
        Group::P384 => kx_group::SECP384R1,
        Group::X25519MlKem768 => kx_group::X25519MLKEM768,
    }
}

/// Shows one certificate to whoever asks for any, as Envoy does.
#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesClientCert for Fixed {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Which names an application's certificate must have.
#[derive(Debug)]
struct Accepted {
    /// It must name what was asked for.
    verifies_asked: bool,
    tls: Arc<TlsOrigination>,
}

impl AcceptsNames for Accepted {
    fn check(&self, certificate: &CertificateDer<'_>, asked: &ServerName<'_>) -> Result<(), SanRefusal> {
        let names = names(certificate)?;
        if self.verifies_asked && !names.iter().any(|name| name.is_of(&asked.to_str())) {
            return Err(SanRefusal::OtherName);
        }
        let accepts = |matcher: &NameMatcher| names.iter().any(|name| name.matches(matcher));
        if !self.tls.names.is_empty() && !self.tls.names.iter().any(accepts) {
            return Err(SanRefusal::OtherName);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
