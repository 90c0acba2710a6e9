//! Certificates and roots for TLS to applications, read: istiod's secrets, files of the pod, the system's roots, what clusters hold.
//!
//! Not for: our own certificate (`identity`), or TLS itself (`originate`). The control thread loads, workers read.
//! Invariants: what cannot be read leaves in use what was read before from the same place; a source that was never read is none, so
//! that no connection is made without it; text about a failure never has a key in it.

use std::collections::{HashMap, HashSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use model::transport::{CertificateSource, CrlSource, Pem, RootsSource, Secret, TlsOrigination};
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::provider;
use super::revocation::{Beneath, Lists};

/// Bytes of a file with certificates or a key; the system's roots are a quarter of a MiB.
pub const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Where operating systems keep their roots; the first one that is there counts. As pilot-agent looks for them.
const SYSTEM_ROOTS: [&str; 7] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/etc/ssl/cert.pem",
];

/// What could be read of a source; or why nothing ever could.
type Loaded<T> = Result<Arc<T>, Arc<str>>;

/// Roots, and what came with them.
#[derive(Debug)]
pub(super) struct Roots {
    pub(super) store: Arc<RootCertStore>,
    /// Which of them are no roots.
    pub(super) beneath: Option<Arc<Beneath>>,
    /// Lists of revoked certificates among the roots, which count as well.
    pub(super) among: Arc<Lists>,
    /// Lists of the secret, instead of those of the configuration.
    pub(super) instead: Option<Arc<Lists>>,
    /// Only leaves are looked for in lists.
    pub(super) of_leaf_only: bool,
}

/// All that was loaded, for workers.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) roots: HashMap<RootsSource, Loaded<Roots>>,
    pub(super) crls: HashMap<CrlSource, Loaded<Lists>>,
    pub(super) certificates: HashMap<CertificateSource, Loaded<CertifiedKey>>,
}

/// Where workers find what was loaded.
#[derive(Debug, Default)]
pub struct Secrets {
    pub(super) read: ArcSwap<Read>,
}

/// What a file was like when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: Option<SystemTime>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { inode: metadata.ino(), bytes: metadata.len(), changed: metadata.modified().ok() }
    }
}

/// What the configurations in use need.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    roots: HashSet<RootsSource>,
    crls: HashSet<CrlSource>,
    certificates: HashSet<CertificateSource>,
}

/// Keeps [`Secrets`] current. Lives on the control thread.
#[derive(Debug)]
pub struct Keeper {
    secrets: Arc<Secrets>,
    discovered: HashMap<Arc<str>, Arc<Secret>>,
    wanted: Wanted,
    files: HashMap<PathBuf, Option<Stamp>>,
    system_roots: Vec<PathBuf>,
}

impl Keeper {
    /// Loads into `secrets`.
    #[must_use]
    pub fn new(secrets: Arc<Secrets>) -> Self {
        Self {
            secrets,
            discovered: HashMap::new(),
            wanted: Wanted::default(),
            files: HashMap::new(),
            system_roots: SYSTEM_ROOTS.map(PathBuf::from).to_vec(),
        }
    }

    /// These configurations are in use now, and no others.
    pub fn want<'a>(&mut self, configurations: impl Iterator<Item = &'a Arc<TlsOrigination>>) {
        let mut wanted = Wanted::default();
        for tls in configurations {
            wanted.roots.extend(tls.roots.clone());
            wanted.crls.extend(tls.crl.clone());
            wanted.certificates.extend(tls.certificate.clone());
        }
        if wanted != self.wanted {
            self.wanted = wanted;
            self.load(|_| false);
        }
    }

    /// A secret of istiod's, new or changed.
    pub fn hold(&mut self, name: &Arc<str>, secret: Arc<Secret>) {
        self.discovered.insert(Arc::clone(name), secret);
        self.load(|source| source == Some(&**name));
    }

    /// Nobody names this secret any more.
    pub fn forget(&mut self, name: &str) {
        self.discovered.remove(name);
    }

    /// Looks whether files have changed, and reads those that have.
    pub fn look_at_files(&mut self) {
        let changed = self.files.iter().any(|(path, stamp)| stamp_of(path) != *stamp);
        if changed {
            self.load(|_| false);
        }
    }

    /// Loads what is wanted. What was loaded before stays as it is, unless its file has changed, or `anew` says so of its secret.
    fn load(&mut self, anew: impl Fn(Option<&str>) -> bool) {
        let before = self.secrets.read.load_full();
        let stamps: HashMap<PathBuf, Option<Stamp>> = self.paths().into_iter().map(|path| (path.clone(), stamp_of(&path))).collect();
        let is_same = |path: &Path| stamps.get(path).is_some_and(|stamp| stamp.is_some() && self.files.get(path) == Some(stamp));
        let mut read = Read::default();
        for source in &self.wanted.roots {
            let known = before.roots.get(source);
            let same = match source {
                RootsSource::Mesh => continue,
                RootsSource::Discovered(name) => !anew(Some(name)),
                RootsSource::Given(_) => true,
                RootsSource::File(path) => is_same(path),
                RootsSource::System => self.system_file().is_some_and(|path| is_same(&path)),
            };
            let loaded =
                known.filter(|known| same && known.is_ok()).cloned().unwrap_or_else(|| kept(known, self.read_roots(source), source));
            read.roots.insert(source.clone(), loaded);
        }
        for source in &self.wanted.crls {
            let known = before.crls.get(source);
            let (same, again): (_, &dyn Fn() -> _) = match source {
                CrlSource::Given(pem) => (true, &|| Lists::read(&pem.0)),
                CrlSource::File(path) => (is_same(path), &|| Lists::read(&read_file(path)?)),
            };
            let loaded = known.filter(|known| same && known.is_ok()).cloned().unwrap_or_else(|| kept(known, again(), source));
            read.crls.insert(source.clone(), loaded);
        }
        for source in &self.wanted.certificates {
            let known = before.certificates.get(source);
            let same = match source {
                CertificateSource::Workload => continue,
                CertificateSource::Discovered(name) => !anew(Some(name)),
                CertificateSource::Given { .. } => true,
                CertificateSource::Files { chain, key } => is_same(chain) && is_same(key),
            };
            let loaded =
                known.filter(|known| same && known.is_ok()).cloned().unwrap_or_else(|| kept(known, self.read_certificate(source), source));
            read.certificates.insert(source.clone(), loaded);
        }
        self.files = stamps;
        self.secrets.read.store(Arc::new(read));
    }

    /// The files that are wanted.
    fn paths(&self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for source in &self.wanted.roots {
            match source {
                RootsSource::File(path) => paths.push(path.to_path_buf()),
                RootsSource::System => paths.extend(self.system_file()),
                _ => {}
            }
        }
        for source in &self.wanted.crls {
            if let CrlSource::File(path) = source {
                paths.push(path.to_path_buf());
            }
        }
        for source in &self.wanted.certificates {
            if let CertificateSource::Files { chain, key } = source {
                paths.extend([chain.to_path_buf(), key.to_path_buf()]);
            }
        }
        paths
    }

    fn system_file(&self) -> Option<PathBuf> {
        self.system_roots.iter().find(|path| path.exists()).cloned()
    }

    fn read_roots(&self, source: &RootsSource) -> Result<Roots, String> {
        match source {
            RootsSource::Given(pem) => roots(&pem.0),
            RootsSource::File(path) => roots(&read_file(path)?),
            RootsSource::System => roots(&read_file(&self.system_file().ok_or("the system has no file with roots")?)?),
            RootsSource::Discovered(name) => match self.discovered.get(name).map(|secret| &**secret) {
                Some(Secret::Roots { roots: pem, crl, crl_of_leaf_only }) => {
                    let instead = crl.as_ref().map(|crl| Lists::read(&crl.0)).transpose()?.map(Arc::new);
                    Ok(Roots { instead, of_leaf_only: *crl_of_leaf_only, ..roots(&pem.0)? })
                }
                Some(Secret::Certificate { .. }) => Err("the secret has no roots".to_owned()),
                None => Err(NOT_SUPPLIED.to_owned()),
            },
            RootsSource::Mesh => Err("the mesh's roots are not kept here".to_owned()),
        }
    }

    fn read_certificate(&self, source: &CertificateSource) -> Result<CertifiedKey, String> {
        match source {
            CertificateSource::Given { chain, key } => certificate(&chain.0, &key.0),
            CertificateSource::Files { chain, key } => certificate(&read_file(chain)?, &read_file(key)?),
            CertificateSource::Discovered(name) => match self.discovered.get(name).map(|secret| &**secret) {
                Some(Secret::Certificate { chain: Pem(chain), key: Pem(key) }) => certificate(chain, key),
                Some(Secret::Roots { .. }) => Err("the secret has no certificate".to_owned()),
                None => Err(NOT_SUPPLIED.to_owned()),
            },
            CertificateSource::Workload => Err("the workload's certificate is not kept here".to_owned()),
        }
    }
}

/// As Envoy says it of a cluster whose secret has not come yet.
const NOT_SUPPLIED: &str = "Secret is not supplied by SDS";

/// What was read; if nothing could be, what was known before.
fn kept<T>(known: Option<&Loaded<T>>, read: Result<T, String>, source: &impl std::fmt::Debug) -> Loaded<T> {
    match (read, known) {
        (Ok(read), _) => Ok(Arc::new(read)),
        (Err(reason), Some(Ok(known))) => {
            tracing::warn!(?source, reason, "certificates cannot be read again; those before stay in use");
            Ok(Arc::clone(known))
        }
        (Err(reason), Some(Err(known))) if *reason == **known => Err(Arc::clone(known)),
        (Err(reason), _) => {
            tracing::warn!(?source, reason, "certificates cannot be read; there are no connections that need them");
            Err(reason.into())
        }
    }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    std::fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata))
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let read = || -> io::Result<Vec<u8>> {
        if std::fs::metadata(path)?.len() > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("has more than {FILE_BYTES_MAX} bytes")));
        }
        std::fs::read(path)
    };
    read().map_err(|error| format!("{}: {error}", path.display()))
}

/// Roots, of which at least one can be used: bundles of systems have some that cannot.
fn roots(pem: &[u8]) -> Result<Roots, String> {
    let mut store = RootCertStore::empty();
    let mut trusted = Vec::new();
    for one in CertificateDer::pem_slice_iter(pem) {
        let one = one.map_err(|error| format!("a certificate is not in PEM form: {error}"))?;
        match store.add(one.clone()) {
            Ok(()) => trusted.push(one),
            Err(error) => tracing::debug!(%error, "left out a root that cannot be used"),
        }
    }
    if store.is_empty() {
        return Err("there is no root that can be used".to_owned());
    }
    let beneath = Beneath::of(&trusted).map(Arc::new);
    Ok(Roots { store: Arc::new(store), beneath, among: Arc::new(Lists::among(pem)?), instead: None, of_leaf_only: false })
}

fn certificate(chain: &[u8], key: &[u8]) -> Result<CertifiedKey, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(|error| format!("a certificate is not in PEM form: {error}"))?;
    if chain.is_empty() {
        return Err("there is no certificate".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the key is not in PEM form: {error}"))?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| format!("certificate and key cannot be used: {error}"))
}

#[cfg(test)]
mod tests;
