//! A mesh in one process, for this crate's tests: two certificates, and a workload on a port of its own.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;

use tempfile::TempDir;
use tokio::net::TcpListener;

use super::app::App;
use super::pki::{parse_peer, write_pki};
use super::workload::{Refusal, Workload};
use crate::hbone::client::Connector;
use crate::tls::TlsFiles;

/// The certificates of `client` and `pod`.
pub struct Mesh {
    dir: TempDir,
}

impl Mesh {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let peers = ["client", "pod"].map(|name| parse_peer(&format!("{name}=spiffe://cluster.local/ns/a/sa/{name}")).unwrap());
        write_pki(dir.path(), &peers).unwrap();
        Self { dir }
    }

    pub fn files(&self, name: &str) -> TlsFiles {
        TlsFiles::in_dir(self.dir.path(), name)
    }

    pub fn connector(&self, name: &str) -> Connector {
        Connector::new(self.files(name).client_config().unwrap())
    }
}

/// A workload named `pod`; it accepts a CONNECT to any address, as a waypoint would.
pub async fn workload(mesh: &Mesh, refusal: Refusal) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let workload = Workload::new(App::new("pod").unwrap(), refusal);
    tokio::spawn(workload.serve_hbone(listener, mesh.files("pod").server_config().unwrap()));
    address
}
