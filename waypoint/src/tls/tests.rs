//! A small PKI for the tests of this crate, and the tests of `tls`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tokio::io::{AsyncReadExt, DuplexStream, duplex};

use super::*;

/// A certificate authority.
pub(crate) struct Pki {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// The validity of a leaf: years of its begin and end.
pub(crate) const VALID: (i32, i32) = (2020, 4000);
pub(crate) const EXPIRED: (i32, i32) = (2020, 2021);
pub(crate) const FUTURE: (i32, i32) = (3999, 4000);

impl Pki {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::OrganizationName, name);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { root, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn leaf(
        &self,
        uris: &[&str],
        validity: (i32, i32),
        purposes: Vec<ExtendedKeyUsagePurpose>,
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.not_before = rcgen::date_time_ymd(validity.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(validity.1, 1, 1);
        params.extended_key_usages = purposes;
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// An identity that trusts this authority.
    pub(crate) fn identity(&self, uri: &str, generation: u64) -> Arc<Identity> {
        self.identity_valid(uri, generation, VALID)
    }

    pub(crate) fn identity_valid(&self, uri: &str, generation: u64, validity: (i32, i32)) -> Arc<Identity> {
        let purposes = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (leaf, key) = self.leaf(&[uri], validity, purposes);
        Arc::new(Identity::new(vec![leaf], key, std::slice::from_ref(&self.root), generation).unwrap())
    }

    /// An identity issued by this authority that trusts another one.
    pub(crate) fn identity_trusting(&self, uri: &str, other: &Self) -> Arc<Identity> {
        let purposes = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (leaf, key) = self.leaf(&[uri], VALID, purposes);
        Arc::new(Identity::new(vec![leaf], key, std::slice::from_ref(&other.root), 1).unwrap())
    }

    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }
}

pub(crate) const SERVER_ID: &str = "spiffe://cluster.local/ns/shop/sa/waypoint";
pub(crate) const CLIENT_ID: &str = "spiffe://cluster.local/ns/clients/sa/frontend";

/// The matcher of a default mesh.
pub(crate) fn mesh() -> Arc<PeerMatcher> {
    Arc::new(PeerMatcher::trust_domains(["cluster.local"]))
}

/// What a client checks servers with, for clients that are not ours.
pub(crate) fn server_verifier(pki: &Pki) -> Arc<dyn rustls::client::danger::ServerCertVerifier> {
    let mut roots = RootCertStore::empty();
    roots.add(pki.root.clone()).unwrap();
    Arc::new(verify::ServerVerifier::new(Some(Arc::new(roots)), mesh(), provider()))
}

async fn shake(client: &ClientTls, server: &ServerTls) -> (Result<accept::Handshake, TlsFailure>, Result<accept::Handshake, TlsFailure>) {
    let (near, far): (DuplexStream, DuplexStream) = duplex(64 * 1024);
    let dial = async {
        let (mut stream, handshake) = client.connect(near, std::net::Ipv4Addr::LOCALHOST.into()).await?;
        // A refusal by the server comes after the handshake.
        match stream.read(&mut [0]).await {
            Ok(_) => Ok(handshake),
            Err(error) if super::rustls_cause(&error).is_some() => Err(TlsFailure::from_io(&error)),
            Err(_) => Ok(handshake),
        }
    };
    let accept = async { server.accept(far).await.map(|(_, handshake)| handshake) };
    tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(dial, accept) }).await.unwrap()
}

#[tokio::test]
async fn both_ends_learn_the_identity_of_the_other() {
    let pki = Pki::new("mesh");
    let client = ClientTls::new(&pki.identity(CLIENT_ID, 1), mesh()).unwrap();
    let server = ServerTls::new(&pki.identity(SERVER_ID, 1), mesh()).unwrap();
    let (dialled, accepted) = shake(&client, &server).await;
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    assert_eq!((dialled.peer.as_str(), dialled.local.as_str()), (SERVER_ID, CLIENT_ID));
    assert_eq!((accepted.peer.as_str(), accepted.local.as_str()), (CLIENT_ID, SERVER_ID));
    assert_eq!((accepted.tls.version, accepted.tls.group), ("TLSv1.3", "X25519"));
}

#[tokio::test]
async fn each_bad_client_certificate_has_its_reason() {
    let (pki, stranger) = (Pki::new("mesh"), Pki::new("stranger"));
    let server = ServerTls::new(&pki.identity(SERVER_ID, 1), mesh()).unwrap();
    let foreign = "spiffe://elsewhere/ns/clients/sa/frontend";
    let cases = [
        ("certificate_expired", pki.identity_valid(CLIENT_ID, 1, EXPIRED)),
        ("certificate_not_yet_valid", pki.identity_valid(CLIENT_ID, 1, FUTURE)),
        ("foreign_trust_domain", pki.identity(foreign, 1)),
        ("unknown_issuer", stranger.identity_trusting(CLIENT_ID, &pki)),
    ];
    for (reason, identity) in cases {
        let client = ClientTls::new(&identity, mesh()).unwrap();
        let (dialled, accepted) = shake(&client, &server).await;
        assert_eq!(accepted.unwrap_err().name(), reason);
        assert!(matches!(dialled, Err(TlsFailure::Alert(_))), "{reason}: the client is told by an alert, got {dialled:?}");
    }
}

#[tokio::test]
async fn a_certificate_for_servers_only_is_refused_from_a_client() {
    let pki = Pki::new("mesh");
    let server = ServerTls::new(&pki.identity(SERVER_ID, 1), mesh()).unwrap();
    let (leaf, key) = pki.leaf(&[CLIENT_ID], VALID, vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let identity = Identity::new(vec![leaf], key, std::slice::from_ref(pki.root()), 1).unwrap();
    let client = ClientTls::new(&identity, mesh()).unwrap();
    assert_eq!(shake(&client, &server).await.1.unwrap_err(), TlsFailure::WrongPurpose);
}

#[tokio::test]
async fn the_client_insists_on_the_exact_identity_it_was_given() {
    let pki = Pki::new("mesh");
    let server = ServerTls::new(&pki.identity(SERVER_ID, 1), mesh()).unwrap();
    let wanted = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
    let client = ClientTls::new(&pki.identity(CLIENT_ID, 1), Arc::new(PeerMatcher::new(Vec::new(), vec![wanted]))).unwrap();
    assert_eq!(shake(&client, &server).await.0.unwrap_err().name(), "unexpected_identity");
}

#[tokio::test]
async fn a_peer_that_offers_only_the_hybrid_group_is_accepted() {
    let pki = Pki::new("mesh");
    let server = ServerTls::new(&pki.identity(SERVER_ID, 1), mesh()).unwrap();
    let identity = pki.identity(CLIENT_ID, 1);
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    let provider = Arc::new(provider);
    let verifier = verify::ServerVerifier::new(Some(Arc::clone(&identity.roots)), mesh(), Arc::clone(&provider));
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .unwrap();
    let client = ClientTls { config: Arc::new(config), accepted: mesh(), id: identity.id.clone(), generation: 1 };
    assert_eq!(shake(&client, &server).await.1.unwrap().tls.group, "X25519MLKEM768");
}

#[test]
fn of_several_names_the_accepted_one_is_the_identity() {
    let pki = Pki::new("mesh");
    let (leaf, _) = pki.leaf(&["https://example.com", "spiffe://elsewhere/ns/a/sa/b", CLIENT_ID], VALID, Vec::new());
    assert_eq!(mesh().identify(&leaf).unwrap().as_str(), CLIENT_ID);
    assert_eq!(PeerMatcher::any().identify(&leaf).unwrap().as_str(), "spiffe://elsewhere/ns/a/sa/b");
    let (nameless, _) = pki.leaf(&["https://example.com"], VALID, Vec::new());
    assert_eq!(mesh().identify(&nameless), Err(SanRefusal::NoIdentity));
}

#[test]
fn a_published_identity_replaces_both_configurations() {
    let pki = Pki::new("mesh");
    let store = MeshTls::new();
    assert!(store.server().is_none() && store.client(&mesh()).unwrap().is_none());
    store.publish(pki.identity(SERVER_ID, 1), mesh()).unwrap();
    let first = store.client(&mesh()).unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &store.client(&mesh()).unwrap().unwrap()), "equal matchers share a configuration");
    store.publish(pki.identity(SERVER_ID, 2), mesh()).unwrap();
    assert_eq!(store.client(&mesh()).unwrap().unwrap().generation(), 2);
}

#[test]
fn parts_that_make_no_identity_are_refused() {
    let pki = Pki::new("mesh");
    let (leaf, key) = pki.leaf(&[CLIENT_ID], VALID, Vec::new());
    let roots = [pki.root().clone()];
    assert!(matches!(Identity::new(Vec::new(), key.clone_key(), &roots, 1), Err(IdentityError::EmptyChain)));
    assert!(matches!(Identity::new(vec![leaf.clone()], key.clone_key(), &[], 1), Err(IdentityError::NoRoots)));
    let (other, _) = pki.leaf(&[CLIENT_ID], VALID, Vec::new());
    let mismatched = Identity::new(vec![other], key, &roots, 1).unwrap();
    assert!(matches!(ServerTls::new(&mismatched, mesh()), Err(IdentityError::Unusable(_))));
}
