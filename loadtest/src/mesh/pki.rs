//! A test PKI: one root, and a leaf with a SPIFFE URI SAN for each name.
//!
//! Keys are P-256 as ztunnel's are; leaves may authenticate servers and clients. Each call makes a new root: all peers of
//! a mesh are named in one call. Not for production: private keys are written as plain files (mode 0600).

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

/// Years between which the certificates are valid: a test must not fail because of the calendar.
const VALID_YEARS: (i32, i32) = (2020, 2049);

/// `loadtest certs`
#[derive(Debug, clap::Args)]
pub struct CertsArgs {
    /// Folder for root-cert.pem, root-key.pem, NAME.pem and NAME.key; made if missing
    #[arg(long)]
    pub out: PathBuf,
    /// Peers, each NAME=spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT
    #[arg(required = true, value_parser = parse_peer)]
    pub peers: Vec<Peer>,
}

/// A name for files, and the identity in the certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub identity: String,
}

/// Reads `NAME=spiffe://…`.
pub fn parse_peer(text: &str) -> Result<Peer, String> {
    let (name, identity) = text.split_once('=').ok_or("expected NAME=spiffe://…")?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || !name.bytes().all(is_plain) {
        return Err(format!("the name {name:?} must be letters, digits, - or _: it becomes a file name"));
    }
    if !identity.starts_with("spiffe://") {
        return Err(format!("the identity {identity:?} must begin with spiffe://"));
    }
    Ok(Peer { name: name.to_owned(), identity: identity.to_owned() })
}

/// Writes the PKI.
pub fn run(args: &CertsArgs) -> anyhow::Result<()> {
    write_pki(&args.out, &args.peers)?;
    println!("wrote root-cert.pem and {} certificates to {}", args.peers.len(), args.out.display());
    Ok(())
}

/// Makes a root and the peers' certificates in `dir`, replacing what is there.
pub fn write_pki(dir: &Path, peers: &[Peer]) -> anyhow::Result<()> {
    for (index, peer) in peers.iter().enumerate() {
        if peers[..index].iter().any(|earlier| earlier.name == peer.name) {
            bail!("the name {:?} is given twice", peer.name);
        }
    }
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let root_key = KeyPair::generate()?;
    let mut root = params("loadtest root")?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let root_pem = root.self_signed(&root_key)?.pem();
    write_secret(&dir.join("root-key.pem"), &root_key.serialize_pem())?;
    let issuer = Issuer::new(root, root_key);
    for peer in peers {
        let key = KeyPair::generate()?;
        let mut leaf = params(&peer.name)?;
        leaf.subject_alt_names = vec![SanType::URI(peer.identity.as_str().try_into()?)];
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let chain = leaf.signed_by(&key, &issuer)?.pem();
        write_secret(&dir.join(format!("{}.key", peer.name)), &key.serialize_pem())?;
        write_file(&dir.join(format!("{}.pem", peer.name)), &chain)?;
    }
    write_file(&dir.join("root-cert.pem"), &root_pem)
}

fn params(common_name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(VALID_YEARS.0, 1, 1);
    params.not_after = date_time_ymd(VALID_YEARS.1, 1, 1);
    Ok(params)
}

fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::tls::{TlsFiles, spiffe_identity};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    #[test]
    fn written_files_load_as_tls_settings_and_carry_the_identity() {
        let dir = tempfile::tempdir().unwrap();
        let peer = parse_peer("client=spiffe://cluster.local/ns/a/sa/client").unwrap();
        write_pki(dir.path(), std::slice::from_ref(&peer)).unwrap();
        let files = TlsFiles::in_dir(dir.path(), "client");
        files.client_config().unwrap();
        files.server_config().unwrap();
        let leaf = CertificateDer::from_pem_file(&files.cert).unwrap();
        assert_eq!(spiffe_identity(&leaf), Some(peer.identity));
    }

    #[test]
    fn names_that_are_no_file_names_and_other_schemes_are_refused() {
        assert!(parse_peer("../x=spiffe://a/ns/b/sa/c").is_err());
        assert!(parse_peer("x=https://a").is_err());
        assert!(parse_peer("x").is_err());
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let peer = parse_peer("a=spiffe://t/ns/b/sa/c").unwrap();
        assert!(write_pki(dir.path(), &[peer.clone(), peer]).is_err());
    }
}
