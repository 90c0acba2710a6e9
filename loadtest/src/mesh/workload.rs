//! `loadtest workload`: a pod of the mesh. Terminates HBONE as ztunnel does and serves the built-in app inside.
//!
//! Any `host:port` is accepted as CONNECT target (a pod's ztunnel would check it), so that a workload can also stand where
//! a waypoint is expected. Not here: the app (`app.rs`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::app::App;
use crate::hbone::server::{self, Connect};
use crate::tls::TlsFiles;

/// Plain connections served at a time; more wait in the kernel's accept queue.
const PLAIN_CONNECTIONS_MAX: usize = 4096;

/// `loadtest workload`
#[derive(Debug, clap::Args)]
pub struct WorkloadArgs {
    /// HBONE address (repeatable); port 15008 is the mesh's
    #[arg(long, required = true)]
    pub listen: Vec<SocketAddr>,
    /// Plain TCP address of the same app (repeatable)
    #[arg(long)]
    pub plain: Vec<SocketAddr>,
    #[command(flatten)]
    pub tls: TlsFiles,
    /// What answers inside a tunnel
    #[arg(long, value_enum, default_value = "echo")]
    pub app: AppKind,
    /// Value of the response header x-workload
    #[arg(long, default_value = "workload")]
    pub name: String,
    #[command(flatten)]
    pub refusal: Refusal,
}

/// The apps there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AppKind {
    Echo,
}

/// Which CONNECTs are refused.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Refusal {
    /// Refuse only the first N CONNECTs (with --connect-status, else 503)
    #[arg(long)]
    pub refuse_first: Option<u64>,
    /// Refuse CONNECTs with this status; all of them unless --refuse-first is given
    #[arg(long, value_parser = parse_refusal)]
    pub connect_status: Option<StatusCode>,
}

fn parse_refusal(text: &str) -> Result<StatusCode, String> {
    match text.parse::<StatusCode>() {
        Ok(status) if status.as_u16() >= 300 => Ok(status),
        _ => Err("expected a status from 300 to 999".to_owned()),
    }
}

impl Refusal {
    /// The answer to CONNECT number `index` (from 0), `None` to accept.
    fn of(&self, index: u64) -> Option<StatusCode> {
        let status = self.connect_status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        match (self.refuse_first, self.connect_status) {
            (Some(count), _) => (index < count).then_some(status),
            (None, refused) => refused,
        }
    }
}

/// A workload: its app and whom it refuses.
#[derive(Debug)]
pub struct Workload {
    app: App,
    refusal: Refusal,
    connects: AtomicU64,
}

impl Workload {
    pub fn new(app: App, refusal: Refusal) -> Arc<Self> {
        Arc::new(Self { app, refusal, connects: AtomicU64::new(0) })
    }

    /// Serves HBONE on `listener` for ever.
    pub async fn serve_hbone(self: Arc<Self>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
        server::serve(listener, tls, move |connect| Arc::clone(&self).answer(connect)).await;
    }

    async fn answer(self: Arc<Self>, connect: Connect) {
        let index = self.connects.fetch_add(1, Ordering::Relaxed);
        if let Some(status) = self.refusal.of(index) {
            self.app.counts().connects_refused.fetch_add(1, Ordering::Relaxed);
            // A caller that is already gone needs no answer.
            let _gone = connect.refuse(status);
            return;
        }
        self.app.counts().connects_accepted.fetch_add(1, Ordering::Relaxed);
        if let Ok((stream, caller)) = connect.accept() {
            // How a client leaves is the client's business; load runs end by cutting their streams.
            let _ended = self.app.serve(stream, Some(caller)).await;
        }
    }

    /// Serves the app over plain TCP on `listener` for ever.
    pub async fn serve_plain(self: Arc<Self>, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(PLAIN_CONNECTIONS_MAX));
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            let Some((tcp, _peer)) = crate::accept::next(&listener).await else { continue };
            let workload = Arc::clone(&self);
            tokio::spawn(async move {
                let _slot = slot;
                let _ended = workload.app.serve(tcp, None).await;
            });
        }
    }
}

/// Serves until SIGINT or SIGTERM. Prints `ready …` on stdout once all addresses listen.
pub async fn run(args: WorkloadArgs) -> anyhow::Result<()> {
    let AppKind::Echo = args.app;
    let workload = Workload::new(App::new(&args.name).context("--name must be a header value")?, args.refusal.clone());
    let tls = args.tls.server_config()?;
    for address in &args.listen {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        tokio::spawn(Arc::clone(&workload).serve_hbone(listener, Arc::clone(&tls)));
    }
    for address in &args.plain {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        tokio::spawn(Arc::clone(&workload).serve_plain(listener));
    }
    println!("ready workload {} hbone {:?} plain {:?}", args.name, args.listen, args.plain);
    crate::signals::terminated().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuse_first_refuses_so_many_and_then_accepts() {
        let refusal = Refusal { refuse_first: Some(2), connect_status: None };
        assert_eq!([0, 1, 2].map(|n| refusal.of(n)), [Some(StatusCode::SERVICE_UNAVAILABLE), Some(StatusCode::SERVICE_UNAVAILABLE), None]);
    }

    #[test]
    fn a_connect_status_alone_refuses_all() {
        let refusal = Refusal { refuse_first: None, connect_status: Some(StatusCode::UNAUTHORIZED) };
        assert_eq!(refusal.of(1_000_000), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(Refusal::default().of(0), None);
    }
}
