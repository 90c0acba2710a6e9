//! Those who read what a waypoint reports, unmodified: Prometheus with promtool, and Jaeger in the place of Tempo.
//!
//! Not for: what is asked of them, which is the tests' business. Invariant: none outlives its handle.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::istiod::exchange;
use crate::istiod::process::Server;

const BUILD_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/consumers/build.sh");
const BUILT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.build/consumers");
/// How long one may take until it answers.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Prometheus' port.
const PROMETHEUS_PORT: u16 = 9090;
/// Where Jaeger answers.
const JAEGER_QUERY_PORT: u16 = 16686;
const JAEGER_GRPC_PORT: u16 = 16685;

/// One of the binaries, built if it is not there. Blocks.
fn binary(name: &str) -> Result<PathBuf> {
    static BUILDING: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let build = || {
        let status = Command::new("bash").arg(BUILD_SCRIPT).status().with_context(|| format!("bash {BUILD_SCRIPT}"))?;
        ensure!(status.success(), "Prometheus and Jaeger could not be built; see above");
        anyhow::Ok(())
    };
    let built = BUILDING.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(|error| anyhow!(error))?;
    Ok(Path::new(BUILT).join(name))
}

async fn binary_of(name: &'static str) -> Result<PathBuf> {
    tokio::task::spawn_blocking(move || binary(name)).await?
}

/// What `promtool check metrics` says of a page of metrics, line by line. A page that it cannot read is an error.
///
/// # Errors
/// See there.
pub async fn check_metrics(page: String) -> Result<Vec<String>> {
    /// promtool's status for a page that it can read and does not like.
    const DISLIKED: i32 = 3;
    let promtool = binary_of("promtool").await?;
    let output = tokio::task::spawn_blocking(move || {
        let mut child = Command::new(promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // It reads all before it says anything.
        std::io::Write::write_all(&mut child.stdin.take().context("no standard input")?, page.as_bytes())?;
        anyhow::Ok(child.wait_with_output()?)
    })
    .await??;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        Some(0 | DISLIKED) => Ok(said.lines().map(str::to_owned).collect()),
        _ => bail!("promtool cannot read the page, {}:\n{said}", output.status),
    }
}

/// Has `promtool check rules` read a file of rules.
///
/// # Errors
/// It does not like it; its words.
pub async fn check_rules(path: PathBuf) -> Result<()> {
    let promtool = binary_of("promtool").await?;
    let output = tokio::task::spawn_blocking(move || Command::new(promtool).args(["check", "rules"]).arg(path).output()).await??;
    let said = [output.stderr, output.stdout].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    ensure!(output.status.success(), "promtool, {}:\n{said}", output.status);
    Ok(())
}

/// A series of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its labels; none of a scalar.
    pub labels: BTreeMap<String, String>,
    /// Its value, at the time of the query.
    pub value: f64,
}

/// A Prometheus that scrapes one waypoint.
#[derive(Debug)]
pub struct Prometheus {
    _server: Server,
    address: SocketAddr,
    _folder: TempDir,
}

impl Prometheus {
    /// Listens on `address`, and scrapes `target` each second as Istio's sample configuration scrapes pods.
    ///
    /// # Errors
    /// It cannot be built, does not start, or is not ready in time.
    pub async fn start(address: IpAddr, target: SocketAddr) -> Result<Self> {
        Self::start_with(address, target, &json!({})).await
    }

    /// The same, and takes native histograms beside the classic ones.
    ///
    /// # Errors
    /// The same.
    pub async fn start_native(address: IpAddr, target: SocketAddr) -> Result<Self> {
        Self::start_with(address, target, &json!({"scrape_native_histograms": true, "always_scrape_classic_histograms": true})).await
    }

    async fn start_with(address: IpAddr, target: SocketAddr, more: &Value) -> Result<Self> {
        let (binary, folder) = (binary_of("prometheus").await?, tempfile::tempdir()?);
        let labels = json!({"namespace": "shop", "pod": "waypoint-0", "gateway_networking_k8s_io_gateway_name": "waypoint"});
        let mut job = json!({
            "job_name": "kubernetes-pods",
            "honor_labels": true,
            "metrics_path": "/stats/prometheus",
            "static_configs": [{"targets": [target.to_string()], "labels": labels}],
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            job[name] = value.clone();
        }
        let configuration = json!({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]});
        // JSON is YAML.
        let path = folder.path().join("prometheus.yml");
        std::fs::write(&path, configuration.to_string())?;
        let address = SocketAddr::new(address, PROMETHEUS_PORT);
        let mut command = Command::new(binary);
        command.arg("--config.file").arg(&path).arg("--storage.tsdb.path").arg(folder.path().join("data"));
        command.args(["--web.listen-address", &address.to_string(), "--enable-feature", "exemplar-storage"]);
        let mut server = Server::start("prometheus", folder.path(), &mut command)?;
        server.ready(&format!("http://{address}/-/ready"), READY_DEADLINE).await?;
        Ok(Self { _server: server, address, _folder: folder })
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let pairs: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let answer = exchange::get(&format!("http://{}{path}?{}", self.address, pairs.join("&"))).await?;
        let text = String::from_utf8_lossy(&answer.body);
        let mut answer: Value = serde_json::from_str(&text).with_context(|| format!("{path} was answered {text}"))?;
        ensure!(answer["status"] == "success", "{parameters:?}: {text}");
        Ok(answer["data"].take())
    }

    /// What a query answers now.
    ///
    /// # Errors
    /// It is refused.
    pub async fn query(&self, query: &str) -> Result<Vec<Series>> {
        let data = self.get("/api/v1/query", &[("query", query)]).await?;
        let value = |sample: &Value| sample[1].as_str().and_then(|text| text.parse().ok()).context("no value");
        if data["resultType"] == "scalar" {
            return Ok(vec![Series { labels: BTreeMap::new(), value: value(&data["result"])? }]);
        }
        let series = data["result"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|series| Ok(Series { labels: serde_json::from_value(series["metric"].clone())?, value: value(&series["value"])? }));
        series.collect()
    }

    /// Traces that exemplars of a metric's series name, in the last minutes.
    ///
    /// # Errors
    /// The query is refused.
    pub async fn traces_of(&self, query: &str) -> Result<Vec<String>> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let (start, end) = ((now - 600).to_string(), (now + 60).to_string());
        let data = self.get("/api/v1/query_exemplars", &[("query", query), ("start", &start), ("end", &end)]).await?;
        let exemplars = data.as_array().into_iter().flatten().flat_map(|series| series["exemplars"].as_array().into_iter().flatten());
        Ok(exemplars.filter_map(|exemplar| exemplar["labels"]["trace_id"].as_str().map(str::to_owned)).collect())
    }

    /// Why the target's last scrape failed; none if it did not. `None` while there was no scrape.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn last_error(&self) -> Result<Option<String>> {
        let data = self.get("/api/v1/targets", &[]).await?;
        let target = &data["activeTargets"][0];
        let was_scraped = target["health"] != "unknown";
        Ok(was_scraped.then(|| target["lastError"].as_str().unwrap_or_default().to_owned()))
    }
}

/// A parameter's value for a URL.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A Jaeger that takes spans by OTLP/gRPC, keeps them in memory, and finds them.
#[derive(Debug)]
pub struct Jaeger {
    _server: Server,
    query: SocketAddr,
    _folder: TempDir,
}

impl Jaeger {
    /// Takes spans on `otlp`, and answers on the same address.
    ///
    /// # Errors
    /// It cannot be built, does not start, or is not ready in time.
    pub async fn start(otlp: SocketAddr) -> Result<Self> {
        let (binary, folder) = (binary_of("jaeger").await?, tempfile::tempdir()?);
        let at = |port| SocketAddr::new(otlp.ip(), port);
        let configuration = json!({
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            },
            "extensions": {
                "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 10000}}}},
                "jaeger_query": {
                    "storage": {"traces": "memory"},
                    "http": {"endpoint": at(JAEGER_QUERY_PORT).to_string()},
                    "grpc": {"endpoint": at(JAEGER_GRPC_PORT).to_string()},
                },
            },
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": otlp.to_string()}}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        });
        let path = folder.path().join("jaeger.yaml");
        std::fs::write(&path, configuration.to_string())?;
        let mut command = Command::new(binary);
        command.arg("--config").arg(&path);
        let mut server = Server::start("jaeger", folder.path(), &mut command)?;
        let query = at(JAEGER_QUERY_PORT);
        server.ready(&format!("http://{query}/api/services"), READY_DEADLINE).await?;
        Ok(Self { _server: server, query, _folder: folder })
    }

    /// The spans of a trace; none if it is not known.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn trace(&self, trace_id: &str) -> Result<Vec<Value>> {
        let answer = exchange::get(&format!("http://{}/api/traces/{trace_id}", self.query)).await?;
        let mut answer: Value = serde_json::from_slice(&answer.body)?;
        let traces = answer["data"].take();
        Ok(traces.as_array().into_iter().flatten().flat_map(|trace| trace["spans"].as_array().cloned().unwrap_or_default()).collect())
    }
}
