//! Who this process is, kept current: certificates as the CA issues them, and whom we accept as istiod says.
//!
//! Not for: asking the CA (`xds_client::ca`) or TLS itself (`tls`). Invariant: connections that are open keep the identity
//! they were made with; only new ones see a new certificate, root bundle or trust domain list.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use xds_client::ca::{CaObserver, CaStatus, Issued};

use crate::admin::ready::Readiness;
use crate::tls::verify::PeerMatcher;
use crate::tls::{Identity, MeshTls};

/// Holds the current certificate and whom we accept, and publishes both together.
#[derive(Debug)]
pub struct Identities {
    tls: Arc<MeshTls>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    identity: Option<Arc<Identity>>,
    /// Of the last certificate that could be used.
    not_after: Option<SystemTime>,
    accepted: Arc<PeerMatcher>,
    generation: u64,
}

impl Identities {
    /// Nobody yet; accepts the workloads of `trust_domain` until istiod says whom.
    #[must_use]
    pub fn new(tls: Arc<MeshTls>, trust_domain: &str) -> Self {
        let accepted = Arc::new(PeerMatcher::trust_domains([trust_domain]));
        Self { tls, state: Mutex::new(State { identity: None, not_after: None, accepted, generation: 0 }) }
    }

    /// Clients are accepted by these prefixes of their SPIFFE ids from now on; none means any of the mesh's roots.
    pub fn accept(&self, prefixes: &[Box<str>]) {
        let mut state = self.state.lock();
        let accepted = if prefixes.is_empty() { PeerMatcher::any() } else { PeerMatcher::new(prefixes.to_vec(), Vec::new()) };
        if *state.accepted != accepted {
            state.accepted = Arc::new(accepted);
            self.publish(&state);
        }
    }

    /// When our certificate ends; none while there is none.
    #[must_use]
    pub fn expire_at(&self) -> Option<SystemTime> {
        self.state.lock().not_after
    }

    /// A certificate from the CA.
    fn issued(&self, issued: &Issued) {
        let mut state = self.state.lock();
        state.generation += 1;
        let made = Identity::new(issued.certificate_chain.clone(), issued.private_key.clone_key(), &issued.roots, state.generation);
        match made {
            Ok(identity) => {
                state.identity = Some(Arc::new(identity));
                state.not_after = Some(issued.not_after);
                self.publish(&state);
            }
            Err(error) => tracing::error!(%error, "the CA's certificate cannot be used; the one before stays"),
        }
    }

    fn publish(&self, state: &State) {
        let Some(identity) = &state.identity else { return };
        if let Err(error) = self.tls.publish(Arc::clone(identity), Arc::clone(&state.accepted)) {
            tracing::error!(%error, "the certificate cannot be used; the one before stays");
        }
    }
}

/// Hears from the CA client.
#[derive(Debug)]
pub struct CertificateObserver {
    /// Where certificates go.
    pub identities: Arc<Identities>,
    /// Where the state of affairs goes.
    pub readiness: Arc<Readiness>,
}

impl CaObserver for CertificateObserver {
    fn issued(&mut self, issued: Arc<Issued>) {
        tracing::info!(id = %issued.id, not_after = ?issued.not_after, "certificate issued");
        self.identities.issued(&issued);
        self.readiness.certificate(None);
    }

    fn status(&mut self, status: CaStatus) {
        match status {
            CaStatus::Requesting => tracing::debug!("asking the CA for a certificate"),
            CaStatus::Valid { renew_at, not_after } => tracing::debug!(?renew_at, ?not_after, "certificate is valid"),
            CaStatus::Failing { reason, retry_in, not_after } => {
                tracing::warn!(%reason, ?retry_in, ?not_after, "no certificate from the CA; trying again");
                self.readiness.certificate(Some(reason.to_string()));
            }
        }
    }
}
