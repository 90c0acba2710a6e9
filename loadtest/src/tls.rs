//! TLS of an HBONE peer: TLS 1.3 with AES-256, ALPN `h2`, certificates on both sides, as ztunnel does it.
//!
//! Not here: making certificates (`mesh/pki.rs`). Invariant: names are never compared with DNS or IP entries; a peer is
//! judged by its chain, its extended key usage and its SPIFFE identity, the first URI SAN that begins with `spiffe://`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

/// The only protocol spoken inside an HBONE connection's TLS.
const ALPN_H2: &[u8] = b"h2";

/// The PEM files of one mesh peer.
#[derive(Debug, Clone, clap::Args)]
pub struct TlsFiles {
    /// Certificate chain of this peer, leaf first (PEM)
    #[arg(long)]
    pub cert: PathBuf,
    /// Private key of this peer (PEM)
    #[arg(long)]
    pub key: PathBuf,
    /// Root certificates that peers must chain to (PEM)
    #[arg(long)]
    pub root: PathBuf,
}

impl TlsFiles {
    /// The files that `loadtest certs --out DIR` wrote for `name`.
    pub fn in_dir(dir: &Path, name: &str) -> Self {
        Self { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")), root: dir.join("root-cert.pem") }
    }

    /// Client side: presents its certificate, checks the server's chain and key usage, and no name.
    pub fn client_config(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let provider = provider();
        let verifier = Arc::new(AnyName { roots: self.roots()?, algorithms: provider.signature_verification_algorithms });
        let (chain, key) = self.identity()?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, key)
            .context("the client certificate and its key")?;
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.enable_sni = false;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// Server side: a client certificate under the root is required.
    pub fn server_config(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let provider = provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), Arc::clone(&provider)).build()?;
        let (chain, key) = self.identity()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .context("the server certificate and its key")?;
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(Arc::new(config))
    }

    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&self.root)? {
            roots.add(certificate).with_context(|| format!("a root in {}", self.root.display()))?;
        }
        Ok(roots)
    }

    fn identity(&self) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let key = PrivateKeyDer::from_pem_file(&self.key).with_context(|| format!("reading a private key from {}", self.key.display()))?;
        Ok((read_certificates(&self.cert)?, key))
    }
}

/// With one cipher suite, for clients and servers: whatever stands between them encrypts alike, whichever it would rather take. It is
/// the one that rustls, and so ztunnel, asks for first.
fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![TLS13_AES_256_GCM_SHA384];
    Arc::new(CryptoProvider { cipher_suites, ..rustls::crypto::aws_lc_rs::default_provider() })
}

fn read_certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("reading certificates from {}", path.display()))?;
    if certificates.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(certificates)
}

/// The SPIFFE identity of a leaf certificate: its first URI SAN of that scheme, or `None`.
pub fn spiffe_identity(leaf: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) if uri.starts_with("spiffe://") => Some((*uri).to_owned()),
        _ => None,
    })
}

/// Accepts any server under the roots that may authenticate servers; the SPIFFE identity is compared by the caller.
#[derive(Debug)]
struct AnyName {
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, self.algorithms.all)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
