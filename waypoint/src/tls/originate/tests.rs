//! What a configuration is made of; handshakes are in `tests/tests/it/origination.rs`.
#![expect(clippy::unwrap_used, reason = "tests")]

use model::transport::Pem;

use super::*;
use crate::tls::secrets::Keeper;

fn originator() -> (Originator, Keeper) {
    let secrets = Arc::new(Secrets::default());
    (Originator::new(Arc::new(MeshTls::new()), Arc::clone(&secrets)), Keeper::new(secrets))
}

fn root() -> Pem {
    Pem(rcgen::generate_simple_self_signed(["app".to_owned()]).unwrap().cert.pem().as_bytes().into())
}

fn secret() -> model::transport::Secret {
    model::transport::Secret::Roots { roots: root(), crl: None, crl_of_leaf_only: false }
}

#[test]
fn without_its_secrets_there_is_no_configuration() {
    let (originator, mut keeper) = originator();
    let missing = |roots, certificate| {
        let tls = Arc::new(TlsOrigination { roots, certificate, ..TlsOrigination::default() });
        originator.client(&tls, Inside::Http1).unwrap_err().to_string()
    };
    let not_supplied = "Secret is not supplied by SDS";
    assert_eq!(missing(Some(RootsSource::Mesh), None), format!("{not_supplied} (default)"));
    assert_eq!(missing(None, Some(CertificateSource::Workload)), format!("{not_supplied} (default)"));
    assert_eq!(missing(Some(RootsSource::Discovered("kubernetes://a".into())), None), format!("{not_supplied} (kubernetes://a)"));
    let tls = Arc::new(TlsOrigination { roots: Some(RootsSource::File(std::path::Path::new("/no/such").into())), ..Default::default() });
    keeper.want([&tls].into_iter());
    let reason = originator.client(&tls, Inside::Http1).unwrap_err().to_string();
    assert!(reason.contains("/no/such: ") && reason.ends_with("(file-root:/no/such)"), "{reason}");
}

#[test]
fn a_configuration_is_kept_until_what_it_is_made_of_changes() {
    let (originator, mut keeper) = originator();
    let name: Arc<str> = "kubernetes://a".into();
    let tls = Arc::new(TlsOrigination { roots: Some(RootsSource::Discovered(Arc::clone(&name))), ..TlsOrigination::default() });
    keeper.want([&tls].into_iter());
    keeper.hold(&name, Arc::new(secret()));
    let first = originator.client(&tls, Inside::Http1).unwrap();
    assert!(Arc::ptr_eq(&first, &originator.client(&tls, Inside::Http1).unwrap()));
    assert!(!Arc::ptr_eq(&first, &originator.client(&tls, Inside::Http2).unwrap()));
    keeper.hold(&name, Arc::new(secret()));
    assert!(!Arc::ptr_eq(&first, &originator.client(&tls, Inside::Http1).unwrap()));
}

#[test]
fn alpn_names_what_is_spoken_unless_the_rule_names_something() {
    let (originator, _) = originator();
    let alpn = |tls: &TlsOrigination, inside| originator.client(&Arc::new(tls.clone()), inside).unwrap().alpn_protocols.clone();
    let tls = TlsOrigination::default();
    assert_eq!(alpn(&tls, Inside::Http1), [b"http/1.1".to_vec()]);
    assert_eq!(alpn(&tls, Inside::Http2), [b"h2".to_vec()]);
    assert!(alpn(&tls, Inside::Tcp).is_empty());
    let named = TlsOrigination { alpn: Box::new([(*b"istio").into()]), ..tls };
    assert_eq!(alpn(&named, Inside::Http2), [b"istio".to_vec()]);
}

#[test]
fn restrictions_leave_less() {
    let (originator, _) = originator();
    let tls = Arc::new(TlsOrigination {
        cipher_suites: Box::new([CipherSuite::RsaAes256]),
        groups: Box::new([Group::P256]),
        ..TlsOrigination::default()
    });
    let config = originator.client(&tls, Inside::Tcp).unwrap();
    let provider = config.crypto_provider();
    assert_eq!(provider.cipher_suites.iter().filter(|suite| suite.tls13().is_none()).count(), 1);
    assert_eq!(provider.kx_groups.iter().map(|group| group.name()).collect::<Vec<_>>(), [rustls::NamedGroup::secp256r1]);
}
