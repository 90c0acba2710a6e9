//! One gRPC connection to istiod: TCP, TLS with the mesh's root, HTTP/2 with the settings of Istio's agent.
//!
//! Not for: calls, credentials of calls, and trying again; each is the caller's.
//! Invariants: the root file is read for every dial, so that a replaced root is used from the next dial on; a connection that broke
//! is not redialled behind the caller's back.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use tonic::transport::{Channel, Endpoint, Uri};

/// HTTP/2 flow-control window of a stream and of the connection, as Istio's agent sets it. It bounds what istiod can have in flight
/// towards us while we apply an earlier response.
const RECEIVE_WINDOW_BYTES: u32 = 1024 * 1024;

/// Longest root bundle that is read.
const ROOT_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where istiod is and how to speak to it.
#[derive(Clone, Debug)]
pub struct DialSettings {
    /// `host:port`, as `discoveryAddress` and `CA_ADDR` are written.
    pub address: String,
    /// The name that istiod's certificate must carry, if not the host part of the address (`ISTIOD_SAN`).
    pub server_name: Option<String>,
    /// With TLS or without.
    pub security: Security,
    /// For name lookup, TCP, TLS and the HTTP/2 preface together.
    pub connect_timeout: Duration,
    /// How often an idle connection is pinged. istiod closes connections that ping more often than every 15 s.
    pub keepalive_interval: Duration,
    /// How long a ping may stay unanswered.
    pub keepalive_timeout: Duration,
}

/// How the connection is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Port 15010, or `controlPlaneAuthPolicy: NONE`: istiod gives no secrets to such a client.
    Plaintext,
    /// TLS 1.2 or 1.3; istiod's certificate is verified with the roots in this PEM file.
    Tls {
        /// `/var/run/secrets/istio/root-cert.pem` in a pod.
        root_file: PathBuf,
    },
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum DialError {
    /// The setting is wrong; trying again cannot help.
    #[error("{0:?} is not an address of the form host:port")]
    Address(String),
    /// The setting is wrong, or the address is, whose host is the name.
    #[error("{0:?} is not a name that a certificate can carry")]
    ServerName(String),
    /// Not mounted yet, or not readable.
    #[error("cannot read the root certificates in {path}: {source}")]
    RootFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{path} holds no usable root certificates: {reason}")]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Unknown name, refused, unreachable.
    #[error("cannot connect to {address}: {source}")]
    Tcp {
        /// Whom we called.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The peer's certificate is not acceptable, or it speaks no TLS.
    #[error("TLS with {address}: {source}")]
    Tls {
        /// Whom we called.
        address: String,
        /// What rustls said.
        source: io::Error,
    },
    /// The peer speaks no HTTP/2.
    #[error("HTTP/2 with {address}: {reason}")]
    Http2 {
        /// Whom we called.
        address: String,
        /// What tonic said.
        reason: String,
    },
    /// Nothing answered.
    #[error("no connection to {address} within {timeout:?}")]
    Timeout {
        /// Whom we called.
        address: String,
        /// How long we waited.
        timeout: Duration,
    },
}

impl DialSettings {
    /// The settings of Istio's agent (keepalive 30 s and 10 s, 5 s to connect) for an address.
    #[must_use]
    pub fn new(address: String, security: Security) -> Self {
        Self {
            address,
            server_name: None,
            security,
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// Opens a connection. Safe to cancel.
///
/// # Errors
/// Settings that cannot be used, or the step that failed.
pub async fn connect(settings: &DialSettings) -> Result<Channel, DialError> {
    let timeout = settings.connect_timeout;
    tokio::time::timeout(timeout, open(settings))
        .await
        .unwrap_or_else(|_| Err(DialError::Timeout { address: settings.address.clone(), timeout }))
}

trait Connection: AsyncRead + AsyncWrite + Send {}
impl<C: AsyncRead + AsyncWrite + Send> Connection for C {}

async fn open(settings: &DialSettings) -> Result<Channel, DialError> {
    let address = &settings.address;
    let host = host_of(address)?;
    let tls = match &settings.security {
        Security::Plaintext => None,
        Security::Tls { root_file } => {
            let name = settings.server_name.as_deref().unwrap_or(host);
            let name = ServerName::try_from(name.to_owned()).map_err(|_| DialError::ServerName(name.to_owned()))?;
            Some((TlsConnector::from(Arc::new(client_config(read_roots(root_file).await?))), name))
        }
    };
    let endpoint = endpoint(settings, tls.is_some())?;
    let refused = |source| DialError::Tcp { address: address.clone(), source };
    let tcp = TcpStream::connect(address.as_str()).await.map_err(refused)?;
    tcp.set_nodelay(true).map_err(refused)?;
    let connection: Pin<Box<dyn Connection>> = match tls {
        None => Box::pin(tcp),
        Some((connector, name)) => {
            Box::pin(connector.connect(name, tcp).await.map_err(|source| DialError::Tls { address: address.clone(), source })?)
        }
    };
    let mut connection = Some(TokioIo::new(connection));
    // tonic asks the connector again when the connection broke; a new one is ours to dial, with the root file read anew.
    let once = tower::service_fn(move |_: Uri| {
        std::future::ready(connection.take().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection has ended")))
    });
    let failed = |error| DialError::Http2 { address: address.clone(), reason: with_causes(&error) };
    endpoint.connect_with_connector(once).await.map_err(failed)
}

fn host_of(address: &str) -> Result<&str, DialError> {
    let refused = || DialError::Address(address.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(refused)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(refused());
    }
    Ok(host)
}

fn endpoint(settings: &DialSettings, tls: bool) -> Result<Endpoint, DialError> {
    let refused = || DialError::Address(settings.address.clone());
    let scheme = if tls { "https" } else { "http" };
    let origin: Uri = format!("{scheme}://{}", settings.address).parse().map_err(|_| refused())?;
    // With an `https` endpoint tonic would look for TLS of its own; the scheme that istiod sees is the origin's.
    let endpoint = Endpoint::from_shared(format!("http://{}", settings.address)).map_err(|_| refused())?;
    Ok(endpoint
        .origin(origin)
        .initial_stream_window_size(RECEIVE_WINDOW_BYTES)
        .initial_connection_window_size(RECEIVE_WINDOW_BYTES)
        .http2_keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout)
        .keep_alive_while_idle(true))
}

async fn read_roots(path: &Path) -> Result<RootCertStore, DialError> {
    let unreadable = |source| DialError::RootFile { path: path.to_owned(), source };
    let unusable = |reason: String| DialError::Roots { path: path.to_owned(), reason };
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(ROOT_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).await.map_err(unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > ROOT_FILE_BYTES_MAX) {
        return Err(unusable("longer than 1 MiB".to_owned()));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("no CERTIFICATE block".to_owned()));
    }
    Ok(roots)
}

fn client_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("aws-lc-rs has cipher suites of both versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// An error with what caused it, in one line: tonic's own texts end at "transport error".
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// A gRPC status as an operator reads it: code, message, and the causes when it was ours rather than the peer's.
pub(crate) fn status_text(status: &tonic::Status) -> String {
    let causes = status.source().map(|cause| format!(": {}", with_causes(cause))).unwrap_or_default();
    format!("{:?}: {}{causes}", status.code(), status.message())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_what_the_address_names() {
        assert_eq!(host_of("istiod.istio-system.svc:15012").unwrap(), "istiod.istio-system.svc");
        assert_eq!(host_of("[::1]:15012").unwrap(), "::1");
        for address in ["", "istiod", ":15012", "istiod:", "istiod:x", "istiod:65536"] {
            assert!(matches!(host_of(address), Err(DialError::Address(_))), "{address:?}");
        }
    }

    #[tokio::test]
    async fn a_root_file_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root-cert.pem");
        assert!(matches!(read_roots(&path).await, Err(DialError::RootFile { .. })));
        for content in ["", "no pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, content).unwrap();
            assert!(matches!(read_roots(&path).await, Err(DialError::Roots { .. })), "{content:?}");
        }
    }

    #[tokio::test]
    async fn a_peer_that_never_answers_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root_file = folder.path().join("root.pem");
        std::fs::write(&root_file, rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap().cert.pem()).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let settings =
            DialSettings { connect_timeout: Duration::from_millis(50), ..DialSettings::new(address, Security::Tls { root_file }) };
        assert!(matches!(connect(&settings).await, Err(DialError::Timeout { .. })));
    }

    #[tokio::test]
    async fn a_refused_connection_names_the_address() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let error = connect(&DialSettings::new(address.clone(), Security::Plaintext)).await.unwrap_err();
        assert!(matches!(&error, DialError::Tcp { .. }) && error.to_string().contains(&address), "{error}");
    }
}
