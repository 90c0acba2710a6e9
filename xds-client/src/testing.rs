//! What tests of the ADS stream and of the CA client share: a mesh root, and a gRPC server on loopback that serves with it and can be
//! taken away. Not for: what such a server answers.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, ServerConfig};
use tonic::service::Routes;

use crate::ads::backoff::BackoffSettings;
use crate::auth::CallCredentials;
use crate::dial::{DialSettings, Security};

/// The longest that a test waits for anything. Far above what passes take, so that a slow machine fails nothing.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The name in the certificates of [`Pki::server`].
pub(crate) const SERVER_NAME: &str = "istiod.istio-system.svc";

/// Waits between attempts in tests: short, and never reset by a healthy period.
pub(crate) const BACKOFF: BackoffSettings = BackoffSettings {
    wait_initial: Duration::from_millis(5),
    wait_max: Duration::from_millis(20),
    healthy_after: Duration::from_secs(3600),
};

/// Waits for something, but not for ever.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("nothing happened within {DEADLINE:?}"))
}

/// A root of trust.
pub(crate) struct Pki {
    pub(crate) issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub(crate) fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    fn server(&self) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// The files of a pod.
pub(crate) struct Pod {
    folder: tempfile::TempDir,
}

impl Pod {
    /// With a root, and `first` as its token.
    pub(crate) fn new(root_pem: &str) -> Self {
        let pod = Self { folder: tempfile::tempdir().unwrap() };
        pod.write_root(root_pem);
        pod.write_token("first");
        pod
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write_root(&self, root_pem: &str) {
        replace(&self.file("root-cert.pem"), root_pem);
    }

    pub(crate) fn write_token(&self, token: &str) {
        replace(&self.file("istio-token"), token);
    }

    pub(crate) fn credentials(&self) -> CallCredentials {
        CallCredentials::new(self.file("istio-token"), "Kubernetes", &[]).unwrap()
    }

    pub(crate) fn dial(&self, address: &str) -> DialSettings {
        let security = Security::Tls { root_file: self.file("root-cert.pem") };
        DialSettings { server_name: Some(SERVER_NAME.to_owned()), ..DialSettings::new(address.to_owned(), security) }
    }
}

/// As kubelet does: never half a file.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// A gRPC server. Dropped, it is gone with all its connections.
pub(crate) struct Server {
    pub(crate) address: String,
    _tasks: JoinSet<()>,
}

/// An address where nobody listens, nor will: of a loopback address that is this caller's own, so that no other test is given its port.
pub(crate) fn free_address() -> String {
    static CALLS: AtomicU32 = AtomicU32::new(1);
    let (process, call) = (std::process::id() % 16_384, CALLS.fetch_add(1, Ordering::Relaxed) % 256);
    let address = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + 0x40_0000 + process * 256 + call);
    std::net::TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().to_string()
}

impl Server {
    /// Serves with TLS from `pki`, or in plaintext.
    pub(crate) async fn start(address: &str, pki: Option<&Pki>, routes: Routes) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let acceptor = pki.map(Pki::server);
        let (accepted, mut incoming) = mpsc::channel::<std::io::Result<DuplexStream>>(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
                connections.spawn(async move {
                    match acceptor {
                        None => hand_over(tcp, accepted).await,
                        Some(acceptor) => {
                            if let Ok(tls) = acceptor.accept(tcp).await {
                                hand_over(tls, accepted).await;
                            }
                        }
                    }
                });
            }
        });
        tasks.spawn(async move {
            let incoming = futures_util::stream::poll_fn(move |context| incoming.poll_recv(context));
            tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, _tasks: tasks }
    }
}

/// Gives a connection to tonic through a pipe, which it takes as it is.
async fn hand_over(mut connection: impl AsyncRead + AsyncWrite + Unpin, accepted: mpsc::Sender<std::io::Result<DuplexStream>>) {
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    if accepted.send(Ok(far)).await.is_ok() {
        // How the connection ends is for the peer to see.
        drop(tokio::io::copy_bidirectional(&mut connection, &mut near).await);
    }
}
