//! A certificate authority of a mesh in memory, and the TLS settings of its members: TLS 1.3, ALPN `h2`, certificates on both sides.
//!
//! Not for: the real istiod's CA ([`crate::istiod`]). Independent of the waypoint's own TLS on purpose.
//! Invariant: a member is judged by its chain only; whoever wants to see an identity asks [`spiffe_of`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

/// How far a certificate's validity begins before now, for clocks that are read twice.
const BACKDATE: Duration = Duration::from_secs(60);
/// Validity of a member's certificate where the test does not care.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// One authority, its root as a rule, and what it signs.
pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
    /// Itself, if it is no root: what it signs comes with its certificate.
    between: Option<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    root_pem: String,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pki").finish_non_exhaustive()
    }
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Identity {
    /// One that another authority signed: the leaf first, then intermediates.
    #[must_use]
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        Self { chain, key }
    }

    /// The chain as PEM.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
    }

    /// The key as PEM.
    #[must_use]
    pub fn key_pem(&self) -> String {
        let label = match self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        pem(label, self.key.secret_der())
    }

    /// The certificates, the leaf first, and the key.
    #[must_use]
    pub fn parts(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain.clone(), self.key.clone_key())
    }
}

/// `spiffe://cluster.local/ns/<namespace>/sa/<account>`.
#[must_use]
pub fn spiffe(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

impl Pki {
    /// A new root.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::OrganizationName, "cluster.local");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.not_before = (SystemTime::now() - BACKDATE).into();
        params.not_after = (SystemTime::now() + LIFETIME).into();
        let root = params.self_signed(&key)?;
        Ok(Self { issuer: Issuer::new(params, key), between: None, root: root.der().clone(), root_pem: root.pem() })
    }

    /// A root that exists: its certificate and key as PEM.
    pub fn from_pem(root_pem: &str, key_pem: &str) -> Result<Self> {
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes()).map_err(|error| anyhow!("the root certificate: {error}"))?;
        let issuer = Issuer::from_ca_cert_der(&root, KeyPair::from_pem(key_pem).context("the root's key")?)?;
        Ok(Self { issuer, between: None, root, root_pem: root_pem.to_owned() })
    }

    /// The root as PEM, what `istio-ca-root-cert` holds.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.root_pem.clone()
    }

    /// The root itself.
    #[must_use]
    pub fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    /// A member's certificate.
    pub fn member(&self, spiffe_id: &str) -> Result<Identity> {
        let now = SystemTime::now();
        self.member_valid(spiffe_id, now - BACKDATE, now + LIFETIME)
    }

    /// A member's certificate that is valid in the given time only.
    pub fn member_valid(&self, spiffe_id: &str, from: SystemTime, until: SystemTime) -> Result<Identity> {
        let mut params = leaf_params(vec![SanType::URI(spiffe_id.try_into()?)])?;
        params.not_before = from.into();
        params.not_after = until.into();
        self.issue(&params)
    }

    /// The certificate of a server with a DNS name and an address, as istiod's.
    pub fn server(&self, dns_name: &str, address: IpAddr) -> Result<Identity> {
        self.issue(&leaf_params(vec![SanType::DnsName(dns_name.try_into()?), SanType::IpAddress(address)])?)
    }

    fn issue(&self, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Identity { chain: std::iter::once(certificate.der().clone()).chain(self.between.clone()).collect(), key })
    }

    /// An authority below this one.
    pub fn below(&self) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::OrganizationName, "below cluster.local");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.not_before = (SystemTime::now() - BACKDATE).into();
        params.not_after = (SystemTime::now() + LIFETIME).into();
        let between = params.signed_by(&key, &self.issuer)?.der().clone();
        let (root, root_pem) = (self.root.clone(), self.root_pem.clone());
        Ok(Self { issuer: Issuer::new(params, key), between: Some(between), root, root_pem })
    }

    /// What this authority says of the certificates that it signed, until `until`: the first ones of these chains are revoked.
    pub fn crl(&self, revoked: &[&[CertificateDer<'static>]], until: SystemTime) -> Result<String> {
        let revoked = revoked.iter().map(|chain| {
            let certificate = webpki::EndEntityCert::try_from(chain.first().context("no certificate")?).context("a certificate")?;
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(certificate.serial()),
                revocation_time: (SystemTime::now() - BACKDATE).into(),
                reason_code: None,
                invalidity_date: None,
            })
        });
        let params = CertificateRevocationListParams {
            this_update: (until - LIFETIME).into(),
            next_update: until.into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect::<Result<_>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }

    /// The certificates of this authority itself, if it is no root.
    #[must_use]
    pub fn between(&self) -> Vec<CertificateDer<'static>> {
        self.between.iter().cloned().collect()
    }

    /// The same in PEM form.
    pub fn between_pem(&self) -> Result<String> {
        let certificate = self.between.as_ref().context("a root has nothing above it")?;
        let text = STANDARD.encode(certificate);
        Ok(format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"))
    }

    /// Signs a request as Istio's CA does: its key is kept, its names are not, they follow from who asks.
    pub fn sign(&self, csr_pem: &str, spiffe_id: &str, lifetime: Duration) -> Result<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).context("the signing request")?;
        request.params = leaf_params(vec![SanType::URI(spiffe_id.try_into()?)])?;
        // Short-lived certificates must not begin so early that half their life is over.
        request.params.not_before = (SystemTime::now() - BACKDATE.min(lifetime / 100)).into();
        request.params.not_after = (SystemTime::now() + lifetime).into();
        Ok(request.signed_by(&self.issuer)?.pem())
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        Ok(roots)
    }

    /// TLS of a caller that shows `identity`, or nothing, and accepts any server of this root.
    pub fn client_config(&self, identity: Option<&Identity>) -> Result<Arc<ClientConfig>> {
        client_config(self.roots()?, identity)
    }

    /// TLS of a workload: callers need a certificate of this root.
    pub fn workload_config(&self, identity: &Identity) -> Result<Arc<ServerConfig>> {
        workload_config(self.roots()?, identity)
    }

    /// The certificate of an application by its names, valid until `until`.
    pub fn application(&self, dns_names: &[&str], until: SystemTime) -> Result<Identity> {
        let names: Result<Vec<_>, _> = dns_names.iter().map(|name| Ok::<_, rcgen::Error>(SanType::DnsName((*name).try_into()?))).collect();
        let mut params = leaf_params(names?)?;
        // An end that is over has a beginning before it.
        params.not_before = (until - LIFETIME).into();
        params.not_after = until.into();
        self.issue(&params)
    }

    /// TLS of an application, of both versions and both HTTPs; with `callers`, its callers need a certificate of that root.
    pub fn application_config(&self, identity: &Identity, callers: Option<&Pki>) -> Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match callers {
            None => builder.with_no_client_auth(),
            Some(callers) => builder
                .with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(Arc::new(callers.roots()?), provider()).build()?),
        };
        let mut config = builder.with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// TLS of istiod: callers show a token rather than a certificate.
    pub fn control_plane_config(&self, identity: &Identity) -> Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// TLS of a caller that shows `identity`, or nothing, and accepts any server of these roots.
pub fn client_config(roots: RootCertStore, identity: Option<&Identity>) -> Result<Arc<ClientConfig>> {
    let provider = provider();
    let verifier = Arc::new(AnyName { roots, algorithms: provider.signature_verification_algorithms });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// TLS of a workload: callers need a certificate of these roots.
pub fn workload_config(roots: RootCertStore, identity: &Identity) -> Result<Arc<ServerConfig>> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn leaf_params(names: Vec<SanType>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.subject_alt_names = names;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = (SystemTime::now() - BACKDATE).into();
    params.not_after = (SystemTime::now() + LIFETIME).into();
    Ok(params)
}

/// RFC 7468: lines of 64 characters between the labels.
fn pem(label: &str, der: &[u8]) -> String {
    const LINE_CHARACTERS: usize = 64;
    let text: Vec<char> = STANDARD.encode(der).chars().collect();
    let lines: String = text.chunks(LINE_CHARACTERS).flat_map(|line| line.iter().chain(&['\n'])).collect();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The identity in a certificate: the first URI that begins with `spiffe://`, found by its DER encoding (tag 6 in context, length, text).
/// Good enough for certificates made here, whose names are short.
pub fn spiffe_of(certificate: &CertificateDer<'_>) -> Result<String> {
    const SCHEME: &[u8] = b"spiffe://";
    let missing = || anyhow!("no SPIFFE name in the certificate");
    let at = certificate.windows(SCHEME.len()).position(|window| window == SCHEME).ok_or_else(missing)?;
    let length = usize::from(*certificate.get(at.wrapping_sub(1)).ok_or_else(missing)?);
    let name = certificate.get(at..at + length).ok_or_else(missing)?;
    Ok(std::str::from_utf8(name)?.to_owned())
}

/// Accepts any server under the root that may authenticate servers.
#[derive(Debug)]
struct AnyName {
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
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
