//! What is read, when, and what stays when it cannot be read again.
#![expect(clippy::unwrap_used, reason = "tests")]

use tempfile::TempDir;

use super::*;

fn made() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["app".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn wanting(roots: Option<RootsSource>, certificate: Option<CertificateSource>) -> Arc<TlsOrigination> {
    Arc::new(TlsOrigination { roots, certificate, ..TlsOrigination::default() })
}

fn keeper() -> (Keeper, Arc<Secrets>) {
    let secrets = Arc::new(Secrets::default());
    (Keeper::new(Arc::clone(&secrets)), secrets)
}

fn roots_of(secrets: &Secrets, source: &RootsSource) -> Loaded<RootCertStore> {
    secrets.read.load().roots[source].clone().map(|roots| Arc::clone(&roots.store))
}

fn put(folder: &TempDir, name: &str, text: &str) {
    // As a volume of Kubernetes changes: by another file in its place.
    std::fs::write(folder.path().join("next"), text).unwrap();
    std::fs::rename(folder.path().join("next"), folder.path().join(name)).unwrap();
}

#[test]
fn a_file_is_read_again_when_it_changes_and_kept_while_it_cannot_be_read() {
    let folder = TempDir::new().unwrap();
    let source = RootsSource::File(folder.path().join("root.pem").as_path().into());
    let (mut keeper, secrets) = keeper();
    let tls = wanting(Some(source.clone()), None);
    keeper.want([&tls].into_iter());
    assert!(roots_of(&secrets, &source).is_err(), "there is no file yet");
    put(&folder, "root.pem", &made().0);
    keeper.look_at_files();
    let first = roots_of(&secrets, &source).unwrap();
    keeper.look_at_files();
    assert!(Arc::ptr_eq(&first, &roots_of(&secrets, &source).unwrap()), "nothing has changed");
    put(&folder, "root.pem", "nothing of use");
    keeper.look_at_files();
    assert!(Arc::ptr_eq(&first, &roots_of(&secrets, &source).unwrap()));
    put(&folder, "root.pem", &made().0);
    keeper.look_at_files();
    assert!(!Arc::ptr_eq(&first, &roots_of(&secrets, &source).unwrap()));
}

#[test]
fn a_pair_that_does_not_fit_waits_for_its_other_half() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| -> Arc<Path> { folder.path().join(name).as_path().into() };
    let source = CertificateSource::Files { chain: path("chain.pem"), key: path("key.pem") };
    let ((first, first_key), (second, second_key)) = (made(), made());
    put(&folder, "chain.pem", &first);
    put(&folder, "key.pem", &first_key);
    let (mut keeper, secrets) = keeper();
    let tls = wanting(None, Some(source.clone()));
    keeper.want([&tls].into_iter());
    let leaf = |secrets: &Secrets| secrets.read.load().certificates[&source].as_ref().unwrap().cert[0].clone();
    let before = leaf(&secrets);
    put(&folder, "chain.pem", &second);
    keeper.look_at_files();
    assert_eq!(leaf(&secrets), before);
    put(&folder, "key.pem", &second_key);
    keeper.look_at_files();
    assert_ne!(leaf(&secrets), before);
}

#[test]
fn a_secret_is_none_until_it_comes_and_of_the_wrong_kind_is_none() {
    let (mut keeper, secrets) = keeper();
    let name: Arc<str> = "kubernetes://api-cacert".into();
    let source = RootsSource::Discovered(Arc::clone(&name));
    let tls = wanting(Some(source.clone()), None);
    keeper.want([&tls].into_iter());
    assert_eq!(roots_of(&secrets, &source).unwrap_err().as_ref(), NOT_SUPPLIED);
    let (chain, key) = made();
    let pem = |text: &str| Pem(text.as_bytes().into());
    keeper.hold(&name, Arc::new(Secret::Certificate { chain: pem(&chain), key: pem(&key) }));
    assert_eq!(roots_of(&secrets, &source).unwrap_err().as_ref(), "the secret has no roots");
    keeper.hold(&name, Arc::new(Secret::Roots { roots: pem(&chain), crl: None, crl_of_leaf_only: false }));
    assert_eq!(roots_of(&secrets, &source).unwrap().len(), 1);
    keeper.want(std::iter::empty());
    assert!(secrets.read.load().roots.is_empty());
}

#[test]
fn the_roots_of_the_system_are_the_first_file_there_is() {
    let folder = TempDir::new().unwrap();
    let (mut keeper, secrets) = keeper();
    keeper.system_roots = vec![folder.path().join("missing"), folder.path().join("bundle")];
    let tls = wanting(Some(RootsSource::System), None);
    keeper.want([&tls].into_iter());
    assert!(roots_of(&secrets, &RootsSource::System).is_err());
    put(&folder, "bundle", &format!("{}{}", made().0, made().0));
    keeper.want(std::iter::empty());
    keeper.want([&tls].into_iter());
    assert_eq!(roots_of(&secrets, &RootsSource::System).unwrap().len(), 2);
}

#[test]
fn a_list_of_revoked_certificates_is_followed_and_one_that_cannot_be_read_is_not_no_list() {
    let folder = TempDir::new().unwrap();
    let source = CrlSource::File(folder.path().join("crl.pem").as_path().into());
    let (mut keeper, secrets) = keeper();
    let of = |secrets: &Secrets| secrets.read.load().crls[&source].clone();
    let tls = Arc::new(TlsOrigination { crl: Some(source.clone()), ..TlsOrigination::default() });
    keeper.want([&tls].into_iter());
    assert!(of(&secrets).is_err(), "there is no file yet");
    for nothing in ["", "nothing of use", made().0.as_str()] {
        put(&folder, "crl.pem", nothing);
        keeper.look_at_files();
        assert!(of(&secrets).is_err(), "{nothing}");
    }
    put(&folder, "crl.pem", &crl(1));
    keeper.look_at_files();
    let first = of(&secrets).unwrap();
    put(&folder, "crl.pem", "");
    keeper.look_at_files();
    assert!(Arc::ptr_eq(&first, &of(&secrets).unwrap()), "the one before stays");
    put(&folder, "crl.pem", &crl(2));
    keeper.look_at_files();
    assert!(!Arc::ptr_eq(&first, &of(&secrets).unwrap()));
}

fn crl(number: u64) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2036, 1, 1),
        crl_number: rcgen::SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    list.signed_by(&rcgen::Issuer::new(params, key)).unwrap().pem().unwrap()
}
