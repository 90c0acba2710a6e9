//! The process, put together: what runs on which thread, and how it ends.
//!
//! Not for: anything that could be somewhere else. One control thread runs discovery, the CA client, exporters and the
//! admin ports; each worker runs the data plane on a runtime of its own.
//! Invariants: a drain ends before the pod's grace period does; what was recorded is flushed before the process exits.

mod collector;
mod discovery;
pub mod explain;
mod jwks;
pub mod parity;
mod refusals;
mod vitals;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use telemetry::{Telemetry, TelemetrySettings};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use xds_client::ads::backoff::BackoffSettings;
use xds_client::ads::node::Node;
use xds_client::ads::stream::{AdsSettings, RESPONSE_BYTES_MAX};
use xds_client::auth::CallCredentials;
use xds_client::ca::{self, CaSettings};
use xds_client::dial::{DialSettings, Security};

use self::discovery::{Discovery, DiscoveryStart};
use self::jwks::{JwksKeeper, JwksView};
use self::workers::{WorkerShare, Workers};
use crate::admin::ready::Readiness;
use crate::admin::{self, Admin, Port};
use crate::config::{ServerAddress, Settings};
use crate::drain::{Drain, drain};
use crate::identity::{CertificateObserver, Identities};
use crate::state::published::Published;
use crate::tls::MeshTls;
use crate::tls::originate::Originator;
use crate::tls::secrets::{Keeper, Secrets};
use crate::upstream::dns::Resolver;
use crate::upstream::introduction::Introduction;

/// How long flushing logs and spans may take at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long nothing has to be applied until memory that only this needs is let go.
const REST_AFTER: Duration = Duration::from_secs(5);
/// How often files with certificates of applications are looked at; a change is a new inode, size or time.
const FILES_EVERY: Duration = Duration::from_secs(2);
/// How long one call of the CA may take, without connecting.
const CA_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the process cannot run.
#[derive(Debug, Error)]
pub enum AppError {
    /// A runtime or thread could not be made.
    #[error("cannot start a runtime: {0}")]
    Runtime(io::Error),
    /// One of our own ports is taken.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Signals cannot be caught.
    #[error("cannot catch signals: {0}")]
    Signals(io::Error),
    /// A setting that only shows to be wrong when it is used.
    #[error("{0}")]
    Setting(String),
}

/// Runs until a signal or `/quitquitquit`; returns when everything is drained and flushed.
///
/// # Errors
/// Only before anything is served.
pub fn run(settings: Settings) -> Result<(), AppError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AppError::Runtime)?;
    runtime.block_on(async {
        let mut process = Process::start(settings).await?;
        process.wait_for_end().await;
        process.end().await;
        Ok(())
    })
}

struct Process {
    settings: Settings,
    telemetry: Arc<Telemetry>,
    readiness: Arc<Readiness>,
    drain: Drain,
    workers: Option<Workers>,
    terminate: Signal,
    interrupt: Signal,
    quit: Arc<Notify>,
}

impl Process {
    async fn start(settings: Settings) -> Result<Self, AppError> {
        let published = Arc::new(Published::default());
        let tls = Arc::new(MeshTls::new());
        let accepted = Arc::new(arc_swap::ArcSwap::from_pointee(crate::tls::verify::PeerMatcher::trust_domains([settings
            .node
            .trust_domain
            .as_str()])));
        let secrets = Arc::new(Secrets::default());
        let originator = Arc::new(Originator::new(Arc::clone(&tls), Arc::clone(&secrets)));
        let node = node_of(&settings)?;
        let introduction = Introduction::of(&settings.node);
        let dialer = collector::dialer(&tls, &accepted, &originator, &introduction);
        let telemetry = Telemetry::new(
            telemetry_settings(&settings, &node),
            tokio::runtime::Handle::current(),
            collector::connector(&published, &dialer),
        );
        let readiness = Arc::new(Readiness::new(settings.ready_with_refused));
        let (drain, drain_watch) = drain();
        let quit = Arc::new(Notify::new());
        let (addresses, addresses_watch) = watch::channel(Vec::new());
        let share = WorkerShare {
            published: Arc::clone(&published),
            tls: Arc::clone(&tls),
            accepted: Arc::clone(&accepted),
            originator,
            introduction: Arc::clone(&introduction),
            telemetry: Arc::clone(&telemetry),
            readiness: Arc::clone(&readiness),
            drain: drain_watch,
            addresses: addresses_watch,
        };
        let workers = Workers::start(&settings, share)?;
        let (key_sets, key_sets_view) = JwksKeeper::new(Arc::clone(&published), dialer, telemetry.registry());
        let identities = Arc::new(Identities::new(tls, &settings.node.trust_domain));
        let start = DiscoveryStart {
            published: Arc::clone(&published),
            telemetry: Arc::clone(&telemetry),
            readiness: Arc::clone(&readiness),
            identities: Arc::clone(&identities),
            accepted,
            introduction,
            addresses,
            flush: workers.flush(),
            secrets,
            resolver: Arc::new(Resolver::new(&settings.dns)),
            on_refused_policy: settings.on_refused_policy,
            skipped_filters: settings.skipped_filters.clone(),
            key_sets,
        };
        let discovery = Discovery::new(start);
        tokio::spawn(rest(discovery.applied()));
        tokio::spawn(watch_files(discovery.keeper()));
        tokio::spawn(crate::state::outlier::run(published));
        let admin = Arc::new(admin_of(&discovery, &telemetry, (&readiness, &key_sets_view), &quit));
        listen_locally(&settings, &admin).await?;
        tokio::spawn(ca::run(ca_settings(&settings)?, CertificateObserver { identities, readiness: Arc::clone(&readiness) }));
        tokio::spawn(xds_client::ads::stream::run(ads_settings(&settings, node)?, discovery));
        tokio::spawn(reopen_logs(signal(SignalKind::user_defined1()).map_err(AppError::Signals)?, Arc::clone(&telemetry)));
        let terminate = signal(SignalKind::terminate()).map_err(AppError::Signals)?;
        let interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signals)?;
        Ok(Self { settings, telemetry, readiness, drain, workers: Some(workers), terminate, interrupt, quit })
    }

    async fn wait_for_end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = self.interrupt.recv() => tracing::info!("SIGINT: draining"),
            () = self.quit.notified() => tracing::info!("asked to quit: draining"),
        }
    }

    async fn end(&mut self) {
        self.readiness.draining();
        self.telemetry.set_draining(true);
        let deadline = Instant::now() + self.settings.drain_deadline();
        self.drain.begin(deadline);
        // Clients learn of our end later than we do; until then they are served, as with pilot-agent and Envoy.
        tokio::time::sleep(self.settings.drain_duration_min()).await;
        match self.drain.wait_idle(deadline).await {
            Ok(()) => tracing::info!("drained"),
            Err(open) => tracing::warn!(open, "drain deadline reached; closing what is still open"),
        }
        self.drain.stop();
        if let Some(workers) = self.workers.take() {
            workers.join();
        }
        self.telemetry.shutdown(FLUSH_TIMEOUT).await;
    }
}

/// Lets go of what only applying configuration needs, whenever nothing was applied for a while.
async fn rest(applied: Arc<Notify>) {
    loop {
        applied.notified().await;
        while tokio::time::timeout(REST_AFTER, applied.notified()).await.is_ok() {}
        // Elsewhere for the same reason as the applying itself; a failure would be a panic in it, which is logged.
        let _ = tokio::task::spawn_blocking(xds_proto::release_descriptors).await;
    }
}

/// SIGUSR1: access logs were rotated, as Envoy is told too.
async fn reopen_logs(mut asked: Signal, telemetry: Arc<Telemetry>) {
    while asked.recv().await.is_some() {
        tracing::info!("SIGUSR1: opening access logs anew");
        telemetry.reopen_logs();
    }
}

/// Reads certificates again when their files have changed.
async fn watch_files(keeper: Arc<Mutex<Keeper>>) {
    loop {
        tokio::time::sleep(FILES_EVERY).await;
        keeper.lock().look_at_files();
    }
}

fn telemetry_settings(settings: &Settings, node: &Node) -> TelemetrySettings {
    TelemetrySettings {
        node_id: node.id().into(),
        node_cluster: settings.node.service_cluster.as_str().into(),
        node: node.encoded().into(),
        environment: settings.environment.clone().into(),
        hostname: Some(settings.node.pod_name.as_str().into()),
        istio_version: settings.node.istio_version.as_str().into(),
        histogram_bounds: settings.histogram_bounds.clone(),
        series_idle_max: settings.series_idle_max,
        log_refusals: settings.log_refusals,
        spans_of_tries: settings.spans_of_tries,
        semantic_names: settings.semantic_names,
        ..TelemetrySettings::default()
    }
}

fn dial_settings(server: &ServerAddress) -> DialSettings {
    let security = if server.plaintext { Security::Plaintext } else { Security::Tls { root_file: server.root_file.clone() } };
    let mut dial = DialSettings::new(format!("{}:{}", bracketed(&server.host), server.port), security);
    dial.server_name = Some(server.server_name.clone());
    dial
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn credentials(settings: &Settings, headers: &[(String, String)]) -> Result<CallCredentials, AppError> {
    CallCredentials::new(settings.token_file.clone(), &settings.node.cluster_id, headers)
        .map_err(|error| AppError::Setting(error.to_string()))
}

fn ca_settings(settings: &Settings) -> Result<CaSettings, AppError> {
    let node = &settings.node;
    let identity = model::identity::SpiffeId::new(&node.trust_domain, &node.namespace, &node.service_account);
    Ok(CaSettings {
        dial: dial_settings(&settings.ca),
        credentials: credentials(settings, &settings.ca_headers)?,
        identity: identity.map_err(|error| AppError::Setting(error.to_string()))?,
        lifetime: settings.certificate_ttl,
        cert_signer: settings.certificate_signer.clone(),
        request_timeout: CA_REQUEST_TIMEOUT,
        backoff: CaSettings::default_backoff(),
    })
}

fn node_of(settings: &Settings) -> Result<Node, AppError> {
    Node::new(discovery::node_settings(&settings.node)).map_err(|error| AppError::Setting(error.to_string()))
}

fn ads_settings(settings: &Settings, node: Node) -> Result<AdsSettings, AppError> {
    Ok(AdsSettings {
        dial: dial_settings(&settings.discovery),
        credentials: credentials(settings, &settings.discovery_headers)?,
        node,
        backoff: BackoffSettings::default(),
        response_bytes_max: RESPONSE_BYTES_MAX,
    })
}

fn admin_of(discovery: &Discovery, telemetry: &Arc<Telemetry>, state: (&Arc<Readiness>, &JwksView), quit: &Arc<Notify>) -> Admin {
    let (readiness, key_sets) = state;
    let (metrics, gauges, seen) = (Arc::clone(telemetry), discovery.gauges(), Arc::clone(telemetry));
    let (ages, page) = (key_sets.clone(), key_sets.clone());
    let (quit, drain) = (Arc::clone(quit), Arc::clone(quit));
    Admin {
        readiness: Arc::clone(readiness),
        metrics: Box::new(move |exposition, out| {
            gauges.refresh();
            ages.refresh();
            metrics.write_exposition(exposition, out)
        }),
        scrapes: Arc::default(),
        unsupported: discovery.unsupported(),
        clusters: discovery.clusters(),
        explain: discovery.explain(),
        refusals: Box::new(move || refusals::page(&seen.refusals())),
        jwks: Box::new(move || page.page()),
        drain: Box::new(move || drain.notify_one()),
        quit: Box::new(move || quit.notify_one()),
    }
}

async fn listen_locally(settings: &Settings, admin: &Arc<Admin>) -> Result<(), AppError> {
    let local = &settings.local;
    for (port, address) in
        [(Port::Status, local.status), (Port::Stats, local.stats), (Port::Agent, local.agent), (Port::Admin, local.admin)]
    {
        let listener = TcpListener::bind(address).await.map_err(|source| AppError::Listen { address, source })?;
        tokio::spawn(admin::serve(listener, port, Arc::clone(admin)));
    }
    Ok(())
}
