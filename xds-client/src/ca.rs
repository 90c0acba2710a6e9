//! The workload's certificate: asks istiod's CA for one, checks what it answers, and keeps one that is valid.
//!
//! Not for: using it in TLS; observers do. When to renew is in [`rotation`].
//! Invariants: a private key never leaves this process and is used for one certificate; what is handed out matches its key and carries
//! the identity that was expected; a failed renewal takes nothing away.

pub mod rotation;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use model::identity::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use tonic::{Code, Request, Status};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use xds_proto::CertificateClient;
use xds_proto::istio::auth::{IstioCertificateRequest, IstioCertificateResponse};

use crate::ads::backoff::{Backoff, BackoffSettings};
use crate::auth::{AuthError, CallCredentials};
use crate::dial::{self, DialError, DialSettings};

/// Most certificates that one answer may hold, roots included. (Its bytes are bounded by tonic's default, 4 MiB.)
const CERTIFICATES_MAX: usize = 256;

/// Longest sleep between looks at the clock: a suspended machine or a corrected clock must not make us miss a renewal.
const CLOCK_LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// How to get certificates.
#[derive(Clone, Debug)]
pub struct CaSettings {
    /// Where the CA is: `CA_ADDR`, else istiod.
    pub dial: DialSettings,
    /// What each call carries.
    pub credentials: CallCredentials,
    /// Who we are; the CA decides that from the token and must come to the same.
    pub identity: SpiffeId,
    /// How long a certificate should be valid (`SECRET_TTL`, 24 h). The CA may give less.
    pub lifetime: Duration,
    /// Which of the CA's signers to use (`ISTIO_META_CERT_SIGNER`); empty for its default.
    pub cert_signer: String,
    /// For one call, without connecting.
    pub request_timeout: Duration,
    /// How to wait between failed attempts.
    pub backoff: BackoffSettings,
}

impl CaSettings {
    /// Waits between attempts: quick ones first, since the pod has 30 s to become ready.
    #[must_use]
    pub fn default_backoff() -> BackoffSettings {
        BackoffSettings { wait_initial: Duration::from_millis(200), ..BackoffSettings::default() }
    }
}

/// A certificate with its key, and the roots of the mesh.
#[derive(Debug)]
pub struct Issued {
    /// The leaf, then intermediates.
    pub certificate_chain: Vec<CertificateDer<'static>>,
    /// PKCS#8, P-256. Its `Debug` shows nothing.
    pub private_key: PrivateKeyDer<'static>,
    /// What peers are verified with; more than one while the mesh changes its root.
    pub roots: Vec<CertificateDer<'static>>,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    /// The identity in the leaf.
    pub id: SpiffeId,
}

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CaError {
    /// No connection to the CA.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The call cannot be made.
    #[error(transparent)]
    Credentials(#[from] AuthError),
    /// The cryptographic library failed: no randomness, for one.
    #[error("cannot make a key and signing request: {0}")]
    Request(#[from] rcgen::Error),
    /// The CA does not accept the token. Check the pod's service account and the audience `istio-ca`.
    #[error("the CA refused this workload's token: {}", dial::status_text(.0))]
    Denied(Box<Status>),
    /// The CA is there and cannot sign now, or its connection broke.
    #[error("the CA did not sign: {}", dial::status_text(.0))]
    Unavailable(Box<Status>),
    /// The CA does not want this request; trying again is unlikely to help until someone changes something.
    #[error("the CA refused the signing request: {}", dial::status_text(.0))]
    Refused(Box<Status>),
    /// The CA took too long.
    #[error("the CA did not answer within {0:?}")]
    Timeout(Duration),
    /// The answer has no root, or nothing at all.
    #[error("the CA answered with {0} elements: expected the certificate, perhaps intermediates, and the roots")]
    ShortChain(usize),
    /// More than anyone would send.
    #[error("the CA answered with more than {CERTIFICATES_MAX} certificates")]
    LongChain,
    /// Part of the answer is no certificate.
    #[error("element {element} of the CA's answer: {reason}")]
    Unreadable {
        /// Counted from zero: the leaf.
        element: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate is for somebody else's key.
    #[error("the CA certified another key than ours")]
    OtherKey,
    /// The certificate is not for who we are.
    #[error("the CA certified {actual:?}: expected {expected} (TRUST_DOMAIN, POD_NAMESPACE, SERVICE_ACCOUNT)")]
    OtherIdentity {
        /// From the settings.
        expected: SpiffeId,
        /// The URI names of the certificate.
        actual: Vec<String>,
    },
    /// The certificate is over already: the clocks of CA and node differ.
    #[error("the CA's certificate has already expired; is the clock right?")]
    Expired,
}

/// How the certificate is doing.
#[derive(Debug)]
pub enum CaStatus {
    /// Asking for one.
    Requesting,
    /// There is a valid one.
    Valid {
        /// When the next one is asked for.
        renew_at: SystemTime,
        /// When it ends.
        not_after: SystemTime,
    },
    /// Could not get one.
    Failing {
        /// Why.
        reason: CaError,
        /// How long until the next attempt.
        retry_in: Duration,
        /// The end of the certificate in use, if there is one; it may have passed.
        not_after: Option<SystemTime>,
    },
}

/// Who is told.
pub trait CaObserver {
    /// Gets a new certificate, at start and at each renewal, to use from now on. Must not block.
    fn issued(&mut self, issued: Arc<Issued>);

    /// Learns how it is going, for readiness and the log.
    fn status(&mut self, status: CaStatus);
}

/// Keeps a certificate for ever. Safe to cancel.
pub async fn run(settings: CaSettings, mut observer: impl CaObserver) -> Infallible {
    let mut backoff = Backoff::new(settings.backoff);
    let mut current: Option<SystemTime> = None;
    loop {
        observer.status(CaStatus::Requesting);
        match issue(&settings).await {
            Ok(issued) => {
                backoff.reset();
                let (not_before, not_after) = (issued.not_before, issued.not_after);
                current = Some(not_after);
                let renew_at = rotation::next_renewal(SystemTime::now(), not_before, not_after, fastrand::f64());
                observer.issued(Arc::new(issued));
                observer.status(CaStatus::Valid { renew_at, not_after });
                sleep_until(renew_at).await;
            }
            Err(reason) => {
                let wait = backoff.after_failure(Duration::ZERO, fastrand::f64());
                let retry_in = rotation::retry_wait(SystemTime::now(), wait, current);
                observer.status(CaStatus::Failing { reason, retry_in, not_after: current });
                tokio::time::sleep(retry_in).await;
            }
        }
    }
}

async fn sleep_until(time: SystemTime) {
    while let Ok(remaining) = time.duration_since(SystemTime::now()) {
        if remaining.is_zero() {
            return;
        }
        tokio::time::sleep(remaining.min(CLOCK_LOOK_INTERVAL)).await;
    }
}

/// Gets one certificate, over a connection of its own: after a failure the next attempt reads the root file anew.
///
/// Safe to cancel: the key is forgotten.
///
/// # Errors
/// The step that failed, or what is wrong with the CA's answer.
pub async fn issue(settings: &CaSettings) -> Result<Issued, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let csr = signing_request(&settings.identity, &key)?;
    let channel = dial::connect(&settings.dial).await?;
    let mut request = Request::new(certificate_request(settings, csr));
    *request.metadata_mut() = settings.credentials.metadata().await?;
    let mut client = CertificateClient::new(channel);
    let answer = tokio::time::timeout(settings.request_timeout, client.create_certificate(request))
        .await
        .map_err(|_| CaError::Timeout(settings.request_timeout))?
        .map_err(refusal)?;
    read_answer(answer.into_inner(), &key, &settings.identity, SystemTime::now())
}

fn signing_request(identity: &SpiffeId, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
    params.serialize_request(key)?.pem()
}

fn certificate_request(settings: &CaSettings, csr: String) -> IstioCertificateRequest {
    let signer = Value { kind: Some(Kind::StringValue(settings.cert_signer.clone())) };
    IstioCertificateRequest {
        csr,
        validity_duration: i64::try_from(settings.lifetime.as_secs()).unwrap_or(i64::MAX),
        metadata: Some(Struct { fields: [("CertSigner".to_owned(), signer)].into() }),
    }
}

fn refusal(status: Status) -> CaError {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => CaError::Denied(Box::new(status)),
        Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented | Code::NotFound | Code::OutOfRange => {
            CaError::Refused(Box::new(status))
        }
        _ => CaError::Unavailable(Box::new(status)),
    }
}

/// Takes the CA's answer apart: the leaf, intermediates, and last the roots, several PEM blocks in one element.
fn read_answer(answer: IstioCertificateResponse, key: &KeyPair, expected: &SpiffeId, now: SystemTime) -> Result<Issued, CaError> {
    let elements = answer.cert_chain;
    let (roots, chain) = match elements.split_last() {
        Some((roots, chain)) if !chain.is_empty() => (roots, chain),
        _ => return Err(CaError::ShortChain(elements.len())),
    };
    let mut certificate_chain = Vec::new();
    for (element, pem) in chain.iter().enumerate() {
        certificate_chain.extend(read_certificates(element, pem)?);
        if certificate_chain.len() > CERTIFICATES_MAX {
            return Err(CaError::LongChain);
        }
    }
    let roots = read_certificates(chain.len(), roots)?;
    let leaf = certificate_chain.first().expect("each element has a certificate");
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| CaError::Unreadable { element: 0, reason: error.to_string() })?;
    if leaf.public_key().raw != key.subject_public_key_info() {
        return Err(CaError::OtherKey);
    }
    check_identity(&leaf, expected)?;
    let (not_before, not_after) = validity(&leaf)?;
    if not_after <= now {
        return Err(CaError::Expired);
    }
    let private_key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Issued { certificate_chain, private_key, roots, not_before, not_after, id: expected.clone() })
}

fn read_certificates(element: usize, pem: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let unreadable = |reason: String| CaError::Unreadable { element, reason };
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
        X509Certificate::from_der(&certificate).map_err(|error| unreadable(error.to_string()))?;
        certificates.push(certificate);
        if certificates.len() > CERTIFICATES_MAX {
            return Err(CaError::LongChain);
        }
    }
    if certificates.is_empty() {
        return Err(unreadable("no CERTIFICATE block".to_owned()));
    }
    Ok(certificates)
}

fn check_identity(leaf: &X509Certificate<'_>, expected: &SpiffeId) -> Result<(), CaError> {
    let unreadable = |error: x509_parser::error::X509Error| CaError::Unreadable { element: 0, reason: error.to_string() };
    let names = leaf.subject_alternative_name().map_err(unreadable)?;
    let actual: Vec<String> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect();
    if actual != [expected.as_str()] {
        return Err(CaError::OtherIdentity { expected: expected.clone(), actual });
    }
    Ok(())
}

fn validity(leaf: &X509Certificate<'_>) -> Result<(SystemTime, SystemTime), CaError> {
    let time = |time: x509_parser::time::ASN1Time| {
        u64::try_from(time.timestamp())
            .ok()
            .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
            .ok_or_else(|| CaError::Unreadable { element: 0, reason: "validity outside of what the system can tell".to_owned() })
    };
    let validity = leaf.validity();
    Ok((time(validity.not_before)?, time(validity.not_after)?))
}

#[cfg(test)]
mod tests;
