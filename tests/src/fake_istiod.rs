//! A scripted istiod in process: delta ADS over TLS from resources that a test can change at run time, and the certificate signing service.
//!
//! It keeps the rules of the conversation and means nothing by the resources: what it serves comes from recordings of a real one
//! ([`crate::scenario`]). As istiod does, it answers a first subscription in full, pushes what changed to whom it concerns, answers
//! unknown endpoint names with empty assignments, and never answers an ACK. Identity: the bearer token is the text `namespace/account`.
//!
//! Invariants: every ACK and NACK is recorded with the version it answers; [`FakeIstiod::stop`] cuts all connections.

mod ads;
mod ca;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use envoy_types::pb::google::protobuf::Any;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service;

use crate::pki::Pki;
use crate::wait::{Look, until};

/// The name in istiod's certificate.
pub const NAME: &str = "istiod.istio-system.svc";
/// istiod's port for discovery and certificates.
pub const PORT: u16 = 15012;
/// How long a restart may wait for the port that the former server is giving back.
const REBIND_DEADLINE: Duration = Duration::from_secs(5);

/// The types a waypoint subscribes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Cluster,
    Endpoints,
    Secret,
    Listener,
    Extension,
    Workload,
}

impl Kind {
    /// All of them, in the order in which istiod pushes.
    pub const ALL: [Self; 6] = [Self::Cluster, Self::Endpoints, Self::Secret, Self::Listener, Self::Extension, Self::Workload];

    /// The full name of its message.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::Cluster => "envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Secret => "envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Listener => "envoy.config.listener.v3.Listener",
            Self::Extension => "envoy.config.core.v3.TypedExtensionConfig",
            Self::Workload => "istio.workload.Workload",
        }
    }

    /// Its type URL.
    #[must_use]
    pub fn type_url(self) -> String {
        format!("type.googleapis.com/{}", self.message())
    }

    fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// What a client answered to a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub kind: Kind,
    /// The state's generation that the response carried.
    pub generation: u64,
    /// `None` is an ACK; the text of a NACK otherwise.
    pub refusal: Option<String>,
}

#[derive(Debug, Clone)]
struct Versioned {
    /// The generation that set it.
    generation: u64,
    body: Any,
}

#[derive(Debug, Default)]
struct State {
    /// Counts changes; each resource has the generation of its last one as version.
    generation: u64,
    resources: BTreeMap<Kind, BTreeMap<String, Versioned>>,
    replies: Vec<Reply>,
    nodes: Vec<serde_json::Value>,
    streams_opened: u64,
    certificates_signed: u64,
    tokens_seen: BTreeSet<String>,
    certificate_lifetime: Option<Duration>,
}

struct Shared {
    state: Mutex<State>,
    /// Tells streams that the generation changed.
    changed: watch::Sender<u64>,
    pki: Arc<Pki>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A control plane that a test holds in its hand.
pub struct FakeIstiod {
    shared: Arc<Shared>,
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    serving: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for FakeIstiod {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FakeIstiod").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for FakeIstiod {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

impl FakeIstiod {
    /// Not listening yet; set resources, then [`Self::start`].
    pub fn new(pki: Arc<Pki>, address: SocketAddr) -> Result<Self> {
        let tls = pki.control_plane_config(&pki.server(NAME, address.ip())?)?;
        let shared = Shared { state: Mutex::default(), changed: watch::channel(0).0, pki };
        Ok(Self { shared: Arc::new(shared), address, tls, serving: None })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to listen; after [`Self::stop`], again with all it knew.
    pub async fn start(&mut self) -> Result<()> {
        if self.serving.is_some() {
            return Ok(());
        }
        let address = self.address;
        let listener = until(&format!("istiod's port {address}"), REBIND_DEADLINE, async || {
            Ok(match TcpListener::bind(address).await {
                Ok(listener) => Look::Done(listener),
                Err(error) => Look::NotYet(error.to_string()),
            })
        })
        .await?;
        let (shared, acceptor) = (Arc::clone(&self.shared), TlsAcceptor::from(Arc::clone(&self.tls)));
        self.serving = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(serve(Arc::clone(&shared), tcp, acceptor.clone()));
                while connections.try_join_next().is_some() {}
            }
        }));
        Ok(())
    }

    /// Cuts every connection and listens no more; what it knows stays.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            // Cancelled, which is what was asked for.
            drop(serving.await);
        }
    }

    /// Sets or replaces resources in one push; returns the generation that carries them.
    pub fn set(&self, kind: Kind, resources: impl IntoIterator<Item = (String, Vec<u8>)>) -> u64 {
        self.change(|state, generation| {
            let of_kind = state.resources.entry(kind).or_default();
            for (name, value) in resources {
                let body = Any { type_url: kind.type_url(), value };
                of_kind.insert(name, Versioned { generation, body });
            }
        })
    }

    /// Removes a resource; returns the generation from which it is gone.
    pub fn remove(&self, kind: Kind, name: &str) -> u64 {
        self.change(|state, _| {
            state.resources.entry(kind).or_default().remove(name);
        })
    }

    fn change(&self, change: impl FnOnce(&mut State, u64)) -> u64 {
        let generation = {
            let mut state = self.shared.state();
            state.generation += 1;
            let generation = state.generation;
            change(&mut state, generation);
            generation
        };
        self.shared.changed.send_replace(generation);
        generation
    }

    /// Certificates signed from now on live this long, whatever was asked for; `None` is what was asked for.
    pub fn set_certificate_lifetime(&self, lifetime: Option<Duration>) {
        self.shared.state().certificate_lifetime = lifetime;
    }

    /// Certificates signed so far.
    #[must_use]
    pub fn certificates_signed(&self) -> u64 {
        self.shared.state().certificates_signed
    }

    /// ADS streams opened so far.
    #[must_use]
    pub fn streams_opened(&self) -> u64 {
        self.shared.state().streams_opened
    }

    /// The nodes that introduced themselves, as JSON.
    #[must_use]
    pub fn nodes(&self) -> Vec<serde_json::Value> {
        self.shared.state().nodes.clone()
    }

    /// All answers so far.
    #[must_use]
    pub fn replies(&self) -> Vec<Reply> {
        self.shared.state().replies.clone()
    }

    /// Waits for the answer to a push of `kind` that carried `generation` or a later one.
    pub async fn reply(&self, kind: Kind, generation: u64, deadline: Duration) -> Result<Reply> {
        until(&format!("an answer to generation {generation} of {kind:?}"), deadline, async || {
            let replies = self.replies();
            let found = replies.iter().find(|reply| reply.kind == kind && reply.generation >= generation);
            Ok(found.map_or_else(|| Look::NotYet(format!("answers: {replies:?}")), |reply| Look::Done(reply.clone())))
        })
        .await
    }

    /// Waits for the answer to a push, which has to be an ACK.
    pub async fn acknowledged(&self, kind: Kind, generation: u64, deadline: Duration) -> Result<()> {
        match self.reply(kind, generation, deadline).await?.refusal {
            None => Ok(()),
            Some(refusal) => Err(anyhow!("{kind:?} was refused: {refusal}")),
        }
    }
}

async fn serve(shared: Arc<Shared>, tcp: TcpStream, acceptor: TlsAcceptor) -> Result<()> {
    tcp.set_nodelay(true)?;
    let tls = acceptor.accept(tcp).await.context("TLS")?;
    let discovery = AggregatedDiscoveryServiceServer::new(ads::Discovery(Arc::clone(&shared)));
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (mut discovery, shared) = (discovery.clone(), Arc::clone(&shared));
        async move {
            let request = request.map(tonic::body::Body::new);
            if request.uri().path() == xds_proto::CREATE_CERTIFICATE_PATH {
                return Ok::<_, Infallible>(ca::answer(shared, request).await);
            }
            discovery.call(request).await
        }
    });
    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service).await.context("HTTP/2")
}

/// The namespace and account in a call's token.
fn caller(metadata: &tonic::metadata::MetadataMap) -> Result<(String, String), tonic::Status> {
    let refused = |why: &str| tonic::Status::unauthenticated(format!("authentication failure: {why}"));
    let header = metadata.get("authorization").ok_or_else(|| refused("no token"))?;
    let text = header.to_str().map_err(|_| refused("the token is no text"))?;
    let token = text.strip_prefix("Bearer ").ok_or_else(|| refused("no bearer token"))?;
    let (namespace, account) = token.split_once('/').ok_or_else(|| refused("the token is not namespace/account"))?;
    Ok((namespace.to_owned(), account.to_owned()))
}
