//! A stock Envoy as the waypoint of a recorded mesh: the oracle of tests that compare, and the other side of a benchmark.
//!
//! Its configuration is what istiod sent, edited as a test edited it, but for a short table ([`substitutions`]) of what a stock Envoy lacks
//! or would have to be told while it runs. Not for: what Istio's own extensions do (metrics, labels of peers).
//! Invariants: no child outlives its [`Envoy`]; what cannot be carried over is an error by name, never left out in silence.

mod bootstrap;
mod install;
mod substitution;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use bootstrap::TlsFiles;
pub use install::binary;
pub use substitution::{Subject, Substitution};

use crate::peer::plain_get;
use crate::pki::{Pki, spiffe};
use crate::process::{HBONE_PORT, Lines};
use crate::scenario::{Mesh, Scenario};
use crate::wait::{Look, until};

/// Where the admin page is.
pub const ADMIN_PORT: u16 = 15000;
/// The file that listeners come by.
const LISTENERS_FILE: &str = "listeners.json";
/// How long starting may take.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How long a line of an access log may stay in memory, in milliseconds: pilot-agent's choice.
const LOG_FLUSH_INTERVAL_MS: u32 = 1000;

/// What Envoy gets otherwise than istiod sent it, with the reasons.
#[must_use]
pub fn substitutions() -> &'static [Substitution] {
    substitution::SUBSTITUTIONS
}

/// How to start one.
#[derive(Debug)]
pub struct EnvoyBuilder {
    scenario: Scenario,
    pki: Arc<Pki>,
    hbone: SocketAddr,
    admin: SocketAddr,
    identity: String,
    concurrency: u32,
    log_level: String,
    access_log: Option<PathBuf>,
    counts_output: bool,
    standard_output: Option<Stdio>,
    listeners_by_file: bool,
    runner: Vec<String>,
}

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    child: Child,
    hbone: SocketAddr,
    admin: SocketAddr,
    output: Lines,
    log: Lines,
    access_log: Option<PathBuf>,
    /// Generations of listeners given to it.
    n_listeners: u64,
    folder: TempDir,
}

impl Envoy {
    /// One that acts as the waypoint of these resources on `address`.
    #[must_use]
    pub fn builder(scenario: &Scenario, pki: &Arc<Pki>, address: Ipv4Addr) -> EnvoyBuilder {
        EnvoyBuilder {
            scenario: scenario.clone(),
            pki: Arc::clone(pki),
            hbone: SocketAddr::new(IpAddr::V4(address), HBONE_PORT),
            admin: SocketAddr::new(IpAddr::V4(address), ADMIN_PORT),
            identity: spiffe("shop", "waypoint"),
            concurrency: 1,
            log_level: "error".to_owned(),
            access_log: None,
            counts_output: false,
            standard_output: None,
            listeners_by_file: false,
            runner: Vec::new(),
        }
    }

    /// One beside the waypoint of a mesh, from the same resources, at `10.244.0.101` of the recording.
    #[must_use]
    pub fn beside(mesh: &Mesh) -> EnvoyBuilder {
        Self::builder(mesh.scenario(), &mesh.pki, mesh.net.pod(0, 101))
    }

    /// Where it speaks HBONE.
    #[must_use]
    pub fn hbone(&self) -> SocketAddr {
        self.hbone
    }

    /// Its admin page.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output: the access log, unless that goes elsewhere.
    #[must_use]
    pub fn output(&self) -> &Lines {
        &self.output
    }

    /// What it wrote to standard error: its own log.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.all()
    }

    /// Gives it the listeners of these resources, as a push of istiod would. It was built with [`EnvoyBuilder::listeners_by_file`].
    ///
    /// # Errors
    /// As [`EnvoyBuilder::bootstrap`].
    pub fn replace_listeners(&mut self, scenario: &Scenario) -> Result<()> {
        self.n_listeners += 1;
        let tls = files_in(self.folder.path());
        let settings = bootstrap::Settings { hbone: self.hbone, admin: self.admin, tls: &tls, access_log: self.access_log.as_deref() };
        let mut bootstrap = bootstrap::bootstrap(scenario, &settings)?;
        write_listeners(&mut bootstrap, self.folder.path(), self.n_listeners)
    }

    async fn ready(&mut self) -> Result<()> {
        let (admin, log) = (self.admin, self.log.clone());
        until("a ready Envoy", READY_DEADLINE, async || {
            if let Some(status) = self.child.try_wait()? {
                bail!("Envoy ended, {status}:\n{}", log.all().join("\n"));
            }
            Ok(match plain_get(admin, "/ready").await {
                Ok(answer) if answer.status.is_success() => Look::Done(()),
                Ok(answer) => Look::NotYet(format!("{} {}", answer.status, answer.text())),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })
        .await
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // Nothing is left to do about a child that cannot be killed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl EnvoyBuilder {
    /// Edits what istiod sent, for this proxy only.
    pub fn edit(mut self, edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<Self> {
        edit(&mut self.scenario)?;
        Ok(self)
    }

    /// Where it listens instead of where `connect_terminate` says.
    #[must_use]
    pub fn hbone(mut self, address: SocketAddr) -> Self {
        self.hbone = address;
        self
    }

    /// Where its admin page is.
    #[must_use]
    pub fn admin(mut self, address: SocketAddr) -> Self {
        self.admin = address;
        self
    }

    /// The SPIFFE identity that it shows on both sides.
    #[must_use]
    pub fn identity(mut self, spiffe_id: &str) -> Self {
        spiffe_id.clone_into(&mut self.identity);
        self
    }

    /// Number of its worker threads.
    #[must_use]
    pub fn concurrency(mut self, n_workers: u32) -> Self {
        self.concurrency = n_workers;
        self
    }

    /// The level of its own log.
    #[must_use]
    pub fn log_level(mut self, level: &str) -> Self {
        level.clone_into(&mut self.log_level);
        self
    }

    /// Where every file access log goes instead of where istiod said.
    #[must_use]
    pub fn access_log(mut self, path: impl Into<PathBuf>) -> Self {
        self.access_log = Some(path.into());
        self
    }

    /// Counts the lines of standard output and keeps none.
    #[must_use]
    pub fn counting(mut self) -> Self {
        self.counts_output = true;
        self
    }

    /// Where standard output goes; [`Envoy::output`] stays empty then.
    #[must_use]
    pub fn standard_output(mut self, output: impl Into<Stdio>) -> Self {
        self.standard_output = Some(output.into());
        self
    }

    /// Listeners come by a file that can be replaced while it runs ([`Envoy::replace_listeners`]), not with the bootstrap.
    #[must_use]
    pub fn listeners_by_file(mut self) -> Self {
        self.listeners_by_file = true;
        self
    }

    /// A command that runs the binary, such as `taskset -c 1`; it has to become it.
    #[must_use]
    pub fn runner(mut self, runner: Vec<String>) -> Self {
        self.runner = runner;
        self
    }

    /// Its configuration, with these files as its identity.
    ///
    /// # Errors
    /// What istiod sent has a part that a stock Envoy does not know and [`substitutions`] does not name.
    pub fn bootstrap(&self, tls: &TlsFiles) -> Result<Value> {
        let settings = bootstrap::Settings { hbone: self.hbone, admin: self.admin, tls, access_log: self.access_log.as_deref() };
        bootstrap::bootstrap(&self.scenario, &settings)
    }

    /// Writes certificates and configuration to `folder`; returns the configuration's path.
    fn write(&self, folder: &Path) -> Result<PathBuf> {
        let identity = self.pki.member(&self.identity)?;
        let tls = files_in(folder);
        fs::write(&tls.certificate, identity.chain_pem())?;
        fs::write(&tls.key, identity.key_pem())?;
        fs::write(&tls.root, self.pki.root_pem())?;
        let path = folder.join("envoy.json");
        let mut bootstrap = self.bootstrap(&tls)?;
        if self.listeners_by_file {
            write_listeners(&mut bootstrap, folder, 0)?;
            let source = json!({ "path_config_source": { "path": folder.join(LISTENERS_FILE) }, "resource_api_version": "V3" });
            bootstrap["dynamic_resources"] = json!({ "lds_config": source });
        }
        fs::write(&path, serde_json::to_vec(&bootstrap)?).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    fn command(&self, binary: &Path, configuration: &Path) -> Command {
        let mut words = self.runner.iter().map(PathBuf::from).chain([binary.to_owned()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).arg("--config-path").arg(configuration);
        command.args(["--disable-hot-restart", "--log-level", &self.log_level, "--concurrency", &self.concurrency.to_string()]);
        command.args(["--file-flush-interval-msec", &LOG_FLUSH_INTERVAL_MS.to_string()]);
        command.stdin(Stdio::null());
        command
    }

    /// Lets Envoy judge the configuration without running it.
    ///
    /// # Errors
    /// What Envoy says of one that it does not accept.
    pub async fn validate(&self) -> Result<()> {
        let (binary, folder) = (tokio::task::spawn_blocking(binary).await??, tempfile::tempdir()?);
        let mut command = self.command(&binary, &self.write(folder.path())?);
        command.args(["--mode", "validate"]);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        if !output.status.success() {
            bail!("Envoy refuses the configuration, {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Starts it, and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be installed, has a configuration that it refuses, or is not ready in time.
    pub async fn start(mut self) -> Result<Envoy> {
        let (binary, folder) = (tokio::task::spawn_blocking(binary).await??, tempfile::tempdir()?);
        let mut command = self.command(&binary, &self.write(folder.path())?);
        let mut child = command
            .stdout(self.standard_output.take().unwrap_or_else(Stdio::piped))
            .stderr(Stdio::piped())
            .spawn()
            .context("starting Envoy")?;
        let (output, log) = (Lines::default(), Lines::default());
        match child.stdout.take() {
            Some(pipe) if self.counts_output => output.count(pipe),
            Some(pipe) => output.follow(pipe),
            None => {}
        }
        log.follow(child.stderr.take().context("no standard error")?);
        let mut envoy =
            Envoy { child, hbone: self.hbone, admin: self.admin, output, log, access_log: self.access_log, n_listeners: 0, folder };
        envoy.ready().await?;
        Ok(envoy)
    }
}

fn files_in(folder: &Path) -> TlsFiles {
    TlsFiles { certificate: folder.join("cert-chain.pem"), key: folder.join("key.pem"), root: folder.join("root-cert.pem") }
}

/// Takes the listeners out of a bootstrap and puts them in a file of their own, whole.
fn write_listeners(bootstrap: &mut Value, folder: &Path, version: u64) -> Result<()> {
    const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    let mut listeners = bootstrap["static_resources"]["listeners"].take();
    for listener in listeners.as_array_mut().context("no listeners")? {
        listener["@type"] = LISTENER.into();
    }
    let response = json!({ "version_info": version.to_string(), "resources": listeners });
    // Envoy watches for a file that is moved here.
    let next = folder.join("next");
    fs::write(&next, serde_json::to_vec(&response)?)?;
    Ok(fs::rename(&next, folder.join(LISTENERS_FILE))?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::fake_istiod::Kind;
    use crate::scenario::{Loopback, WEB_CHAIN};

    fn tls() -> TlsFiles {
        TlsFiles { certificate: "/c".into(), key: "/k".into(), root: "/r".into() }
    }

    fn oracle(edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<Value> {
        let net = Loopback::take()?;
        let scenario = Scenario::load("01-plain", &net)?;
        Envoy::builder(&scenario, &Arc::new(Pki::new()?), net.pod(0, 101)).edit(edit)?.bootstrap(&tls())
    }

    #[test]
    fn what_a_stock_envoy_does_not_know_is_refused_by_name_and_place() {
        let add = |filter: Value| oracle(|scenario| scenario.add_http_filters(WEB_CHAIN, vec![filter]));
        let add = |filter: Value| format!("{:#}", add(filter).unwrap_err());
        let plain = add(json!({ "name": "x", "typed_config": { "@type": "type.googleapis.com/istio.envoy.config.filter.http.alpn.X" } }));
        assert!(
            plain.starts_with("listener main_internal: filter_chains: [") && plain.contains(": http_filters: [0]: typed_config: "),
            "{plain}"
        );
        assert!(plain.contains("does not know istio.envoy.config.filter.http.alpn.X"), "{plain}");
        let wrapped = add(json!({ "name": "x", "typed_config": {
            "@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": "type.googleapis.com/io.istio.http.other.Config",
        } }));
        assert!(wrapped.contains("io.istio.http.other.Config"), "{wrapped}");
    }

    #[test]
    fn what_the_table_names_is_refused_where_it_cannot_be_left_out() {
        let stats = json!({ "istio.stats": { "@type": "type.googleapis.com/stats.PluginConfig" } });
        let error = oracle(|scenario| {
            scenario.http(WEB_CHAIN)?["route_config"]["virtual_hosts"][0]["typed_per_filter_config"] = stats;
            Ok(())
        });
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("typed_per_filter_config: istio.stats: a stock Envoy does not know stats.PluginConfig"), "{error}");
    }

    #[test]
    fn a_secret_without_a_file_is_refused() {
        let error = oracle(|scenario| {
            let cluster = scenario.resource(Kind::Cluster, "connect_originate")?;
            cluster["transport_socket"]["typed_config"]["common_tls_context"]["tls_certificate_sds_secret_configs"][0]["name"] =
                "kubernetes://secret".into();
            Ok(())
        });
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.starts_with("cluster connect_originate: ") && error.ends_with("\"kubernetes://secret\""), "{error}");
    }

    #[test]
    fn what_a_stock_envoy_knows_stays_as_it_was_sent() {
        let net = Loopback::take().unwrap();
        let mut scenario = Scenario::load("05-authz", &net).unwrap();
        let bootstrap = Envoy::builder(&scenario, &Arc::new(Pki::new().unwrap()), net.pod(0, 101)).bootstrap(&tls()).unwrap();
        let listeners = bootstrap["static_resources"]["listeners"].as_array().unwrap();
        let made = listeners.iter().find(|listener| listener["name"] == "main_internal").unwrap();
        let sent = scenario.resource(Kind::Listener, "main_internal").unwrap().clone();
        assert_eq!((&made["filter_chain_matcher"], &made["listener_filters"]), (&sent["filter_chain_matcher"], &sent["listener_filters"]));
        let chains = made["filter_chains"].as_array().unwrap();
        let made_web = &chains.iter().find(|chain| chain["name"] == WEB_CHAIN).unwrap()["filters"][0]["typed_config"];
        let mut sent_web = scenario.http(WEB_CHAIN).unwrap().clone();
        let is_istios = |filter: &Value| filter["name"] == "istio.stats" || filter["name"] == "waypoint_upstream_peer_metadata";
        sent_web["http_filters"].as_array_mut().unwrap().retain(|filter| !is_istios(filter));
        assert_eq!(made_web, &sent_web);
    }
}
