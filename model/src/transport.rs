//! What a byte stream to an application wears: nothing, or TLS, and whose certificates and names count; and whether it is told its client.
//!
//! Not for: where the stream leads (`endpoint`), or reading certificates and files: here are only their sources.
//! Invariants: a stream is never plainer than what was configured; keys never show in `Debug`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use crate::matcher::StringMatcher;

/// Certificates or a key in PEM form.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pem(pub Arc<[u8]>);

impl fmt::Debug for Pem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Pem({} bytes)", self.0.len())
    }
}

/// Where the certificate comes from that is shown to the application.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CertificateSource {
    /// This workload's own.
    Workload,
    /// A secret of istiod's, by name.
    Discovered(Arc<str>),
    /// Files of this pod.
    Files {
        /// The leaf, then intermediates.
        chain: Arc<Path>,
        /// Its key.
        key: Arc<Path>,
    },
    /// Given with the cluster.
    Given {
        /// The leaf, then intermediates.
        chain: Pem,
        /// Its key.
        key: Pem,
    },
}

/// Where the roots come from that the application's certificate is checked against.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RootsSource {
    /// The mesh's.
    Mesh,
    /// Those of the operating system.
    System,
    /// A secret of istiod's, by name.
    Discovered(Arc<str>),
    /// A file of this pod.
    File(Arc<Path>),
    /// Given with the cluster.
    Given(Pem),
}

/// Where lists of revoked certificates come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CrlSource {
    /// A file of this pod.
    File(Arc<Path>),
    /// Given with the cluster.
    Given(Pem),
}

/// A secret that istiod sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// A certificate and its key.
    Certificate {
        /// The leaf, then intermediates.
        chain: Pem,
        /// Its key.
        key: Pem,
    },
    /// Roots.
    Roots {
        /// The roots.
        roots: Pem,
        /// Lists of revoked certificates, instead of those of the cluster.
        crl: Option<Pem>,
        /// As [`TlsOrigination::crl_of_leaf_only`]; one of the two is enough.
        crl_of_leaf_only: bool,
    },
}

/// Which kind of subject alternative name a matcher looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// DNS names; an exact matcher lets a wildcard of the certificate stand for one label.
    Dns,
    /// URIs.
    Uri,
    /// Mail addresses.
    Email,
    /// IP addresses, in their text form.
    Ip,
    /// Any of these.
    Any,
}

/// A name that the application's certificate may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameMatcher {
    /// Where it is looked for.
    pub kind: NameKind,
    /// What it is.
    pub text: StringMatcher,
}

/// Versions of TLS that are spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    #[default]
    Both,
    /// 1.2 only.
    Tls12,
    /// 1.3 only.
    Tls13,
}

/// A cipher suite of TLS 1.2; those of 1.3 are not negotiable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherSuite {
    /// `ECDHE-ECDSA-AES128-GCM-SHA256`
    EcdsaAes128,
    /// `ECDHE-ECDSA-AES256-GCM-SHA384`
    EcdsaAes256,
    /// `ECDHE-ECDSA-CHACHA20-POLY1305`
    EcdsaChacha20,
    /// `ECDHE-RSA-AES128-GCM-SHA256`
    RsaAes128,
    /// `ECDHE-RSA-AES256-GCM-SHA384`
    RsaAes256,
    /// `ECDHE-RSA-CHACHA20-POLY1305`
    RsaChacha20,
}

/// A key exchange group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// `X25519`
    X25519,
    /// `P-256`
    P256,
    /// `P-384`
    P384,
    /// `X25519MLKEM768`
    X25519MlKem768,
}

/// TLS to an application.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOrigination {
    /// The name that is asked for.
    pub server_name: Option<Box<str>>,
    /// HTTP: the request's host is asked for instead, unless it is an address.
    pub server_name_from_host: bool,
    /// HTTP: the certificate must name the request's host.
    pub verify_host: bool,
    /// The certificate must name what was asked for.
    pub verify_server_name: bool,
    /// None: the configuration asks for no verification at all.
    pub roots: Option<RootsSource>,
    /// Lists of revoked certificates; each authority of a chain must have one then.
    pub crl: Option<CrlSource>,
    /// Only the application's own certificate is looked for in lists, not those of its authorities.
    pub crl_of_leaf_only: bool,
    /// The certificate must have one of these names; empty: any.
    pub names: Box<[NameMatcher]>,
    /// What is shown.
    pub certificate: Option<CertificateSource>,
    /// What is offered by ALPN; empty: what is spoken.
    pub alpn: Box<[Box<[u8]>]>,
    /// Versions.
    pub versions: TlsVersions,
    /// Suites of TLS 1.2; empty: the usual ones.
    pub cipher_suites: Box<[CipherSuite]>,
    /// Groups; empty: the usual ones.
    pub groups: Box<[Group]>,
}

impl TlsOrigination {
    /// Whether connections for different hosts differ.
    #[must_use]
    pub fn depends_on_host(&self) -> bool {
        self.server_name_from_host || self.verify_host
    }
}

/// How the application is told who its client is, before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    /// In a line of text.
    V1,
    /// In binary form.
    V2,
}

/// What a stream wears. Equal means: of the same configured object, so that nothing of one serves another.
#[derive(Clone, Debug, Default)]
pub struct Transport {
    /// TLS, or the application's protocol in plain.
    pub tls: Option<Arc<TlsOrigination>>,
    /// Whether a header of the PROXY protocol comes before all of that.
    pub proxy_protocol: Option<ProxyProtocol>,
}

impl Transport {
    /// As configured, by value.
    #[must_use]
    pub fn means_the_same(&self, other: &Self) -> bool {
        self.tls == other.tls && self.proxy_protocol == other.proxy_protocol
    }
}

impl PartialEq for Transport {
    fn eq(&self, other: &Self) -> bool {
        let of_one_object = match (&self.tls, &other.tls) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        of_one_object && self.proxy_protocol == other.proxy_protocol
    }
}

impl Eq for Transport {}

impl Hash for Transport {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if let Some(tls) = &self.tls {
            std::ptr::hash(Arc::as_ptr(tls), state);
        }
        self.proxy_protocol.hash(state);
    }
}

/// What an endpoint says about itself to be matched with a transport (`envoy.transport_socket_match`), sorted by key.
pub type SocketLabels = Box<[(Box<str>, Box<str>)]>;

/// What streams to the endpoints of a cluster wear.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    /// For endpoints that nothing matches.
    pub otherwise: Transport,
    /// The first whose labels an endpoint all has.
    pub matched: Box<[(SocketLabels, Transport)]>,
}

impl Sockets {
    /// What a stream to an endpoint with these labels wears.
    #[must_use]
    pub fn of(&self, labels: &[(Box<str>, Box<str>)]) -> &Transport {
        let matches = |(wanted, _): &&(SocketLabels, Transport)| wanted.iter().all(|label| labels.contains(label));
        self.matched.iter().find(matches).map_or(&self.otherwise, |(_, transport)| transport)
    }

    /// All TLS configurations.
    pub fn tls(&self) -> impl Iterator<Item = &Arc<TlsOrigination>> {
        std::iter::once(&self.otherwise).chain(self.matched.iter().map(|(_, transport)| transport)).filter_map(|one| one.tls.as_ref())
    }
}

impl PartialEq for Sockets {
    /// By value: a cluster that is sent again keeps its connections.
    fn eq(&self, other: &Self) -> bool {
        self.otherwise.means_the_same(&other.otherwise)
            && self.matched.len() == other.matched.len()
            && self.matched.iter().zip(&other.matched).all(|(one, other)| one.0 == other.0 && one.1.means_the_same(&other.1))
    }
}

impl Eq for Sockets {}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(key: &str, value: &str) -> (Box<str>, Box<str>) {
        (key.into(), value.into())
    }

    #[test]
    fn an_endpoint_gets_the_first_transport_whose_labels_it_has() {
        let tls = Transport { tls: Some(Arc::default()), ..Transport::default() };
        let sockets = Sockets {
            otherwise: Transport::default(),
            matched: Box::new([
                (Box::new([label("tunnel", "http")]), Transport::default()),
                (Box::new([label("tlsMode", "istio")]), tls.clone()),
            ]),
        };
        assert_eq!(sockets.of(&[label("tlsMode", "istio")]), &tls);
        assert_eq!(sockets.of(&[label("tlsMode", "istio"), label("tunnel", "http")]), &Transport::default());
        assert_eq!(sockets.of(&[label("tlsMode", "disabled")]), &Transport::default());
        assert_eq!(sockets.of(&[]), &Transport::default());
    }

    #[test]
    fn connections_of_two_objects_are_never_shared_and_equal_objects_are_no_change() {
        let (one, other) = (
            Transport { tls: Some(Arc::default()), ..Transport::default() },
            Transport { tls: Some(Arc::default()), ..Transport::default() },
        );
        assert_ne!(one, other);
        let sockets = |transport| Sockets { otherwise: transport, matched: Box::default() };
        assert_eq!(sockets(one), sockets(other));
        assert_ne!(sockets(Transport { tls: Some(Arc::default()), ..Transport::default() }), sockets(Transport::default()));
    }

    #[test]
    fn a_key_does_not_show() {
        let text = format!("{:?}", CertificateSource::Given { chain: Pem((*b"chain").into()), key: Pem((*b"private").into()) });
        assert!(!text.contains("private") && text.contains("Pem(7 bytes)"), "{text}");
    }
}
