//! Certificates of members of a real mesh: istiod's CA signs them, for the service account's token, as it does for ztunnel.
//!
//! Not for: meshes without an istiod ([`crate::pki`]). Invariant: every identity here was decided by istiod, none by the test.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use model::identity::SpiffeId;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use xds_client::ads::backoff::BackoffSettings;
use xds_client::auth::CallCredentials;
use xds_client::ca::{CaSettings, issue};
use xds_client::dial::{DialSettings, Security};

use crate::istiod::ControlPlane;
use crate::pki::{self, Identity};

/// As long as ztunnel asks for.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// For one call of the CA.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// The name in istiod's certificate.
const ISTIOD_NAME: &str = "istiod.istio-system.svc";

/// A member's certificate and the roots of its mesh.
#[derive(Debug)]
pub struct Member {
    identity: Identity,
    roots: RootCertStore,
}

impl Member {
    /// Asks istiod for the certificate of a service account.
    pub async fn of(plane: &ControlPlane, namespace: &str, account: &str) -> Result<Self> {
        let (root_file, token_file) = (plane.run().join("member-root.pem"), plane.run().join(format!("member-{namespace}-{account}")));
        std::fs::write(&root_file, plane.root_cert())?;
        std::fs::write(&token_file, plane.token(namespace, account).await?)?;
        let mut dial = DialSettings::new(plane.istiod_ads_address().to_string(), Security::Tls { root_file });
        dial.server_name = Some(ISTIOD_NAME.to_owned());
        let settings = CaSettings {
            dial,
            credentials: CallCredentials::new(token_file, "Kubernetes", &[])?,
            identity: SpiffeId::new("cluster.local", namespace, account)?,
            lifetime: LIFETIME,
            cert_signer: String::new(),
            request_timeout: REQUEST_TIMEOUT,
            backoff: BackoffSettings::default(),
        };
        let issued = issue(&settings).await.with_context(|| format!("the certificate of {namespace}/{account}"))?;
        let mut roots = RootCertStore::empty();
        for root in issued.roots {
            roots.add(root)?;
        }
        Ok(Self { identity: Identity::new(issued.certificate_chain, issued.private_key), roots })
    }

    /// TLS of this member when it calls.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>> {
        pki::client_config(self.roots.clone(), Some(&self.identity))
    }

    /// TLS of this member when it is called.
    pub fn workload_config(&self) -> Result<Arc<ServerConfig>> {
        pki::workload_config(self.roots.clone(), &self.identity)
    }
}
