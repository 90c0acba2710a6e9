//! The unmodified Gateway API suite: its test program, and the pods it calls from and to.
//!
//! The suite runs commands in pods through the API server and the kubelet in `tests/conformance/conformance_test.go`, which asks here. A
//! command is Istio's echo client, run in a network namespace of the calling pod; what it dials is taken over as ztunnel would: a service's
//! address goes through the waypoint, a pod's straight to that pod. Back ends are Istio's echo server, one process for a pod.
//! Invariant: no process outlives its owner here.

mod capture;
mod pods;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use regex::Regex;
use tests::net;

use crate::objects::NAMESPACE_LABELS;
use crate::report::{Outcome, Suite};
use crate::stage::Stage;
pub use pods::{CLIENTS, objects};

/// The suite's name here.
pub const NAME: &str = "gateway-api";

/// Where the build script puts the programs.
const BUILT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.build/conformance");
const BUILD_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/conformance/build.sh");
/// The kubelet's port, as in the Node's status.
pub const KUBELET_PORT: u16 = 10250;
/// All tests together; they take a tenth of it.
const TIMEOUT: &str = "20m";

/// What a report tells of a failure; the log has the rest.
const REASON_CHARACTERS_MAX: usize = 400;

/// Both profiles, and every feature that a mesh test asks for and istiod can express: all but `MeshConsumerRoute`.
const PROFILES: &str = "MESH-HTTP,MESH-GRPC";
const FEATURES: [&str; 13] = [
    "MeshClusterIPMatching",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteParentRefPort",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
];

/// Builds the programs if that is not done yet. Call it outside the mesh's network: inside, no module proxy can be reached.
pub fn build() -> Result<()> {
    let status = Command::new("bash").arg(BUILD_SCRIPT).status().with_context(|| format!("bash {BUILD_SCRIPT}"))?;
    if !status.success() {
        bail!("the Gateway API suite could not be built; see above");
    }
    Ok(())
}

fn built(program: &str) -> PathBuf {
    Path::new(BUILT).join(program)
}

/// A child that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the child is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn suite_command(stage: &Stage, pods_url: &str, folder: &Path, words: &[String]) -> Result<Command> {
    let labels: Vec<String> = NAMESPACE_LABELS.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut command = Command::new(built("suite"));
    command
        .args(["-test.v", &format!("-test.timeout={TIMEOUT}"), "-test.run=TestConformance"])
        .arg(format!("-conformance-profiles={PROFILES}"))
        .arg(format!("-supported-features={}", FEATURES.join(",")))
        .arg(format!("-namespace-labels={}", labels.join(",")))
        .arg(format!("-report-output={}", folder.join("gateway-api-report.yaml").display()))
        .args(["-organization=waypoint", "-project=waypoint", "-url=https://example.org/waypoint", "-contact=none"])
        .arg(format!("-version={}", env!("CARGO_PKG_VERSION")))
        // Everything goes with the API server.
        .arg("-cleanup-base-resources=false")
        .env("KUBECONFIG", stage.plane.run().join("kubeconfig"))
        .env("CONFORMANCE_KUBELET", format!("{}:{KUBELET_PORT}", net::NODE))
        .env("CONFORMANCE_PODS", pods_url);
    match words {
        [] => {}
        [test] => drop(command.arg(format!("-run-test={test}"))),
        _ => bail!("the official suite runs all its tests, or one: {words:?}"),
    }
    Ok(command)
}

/// What a line of `go test -v` says of a test of meshes.
fn outcome_of(line: &str, verdict: &Regex) -> Option<(String, String)> {
    let found = verdict.captures(line)?;
    Some((found[2].to_owned(), found[1].to_owned()))
}

/// The last thing that the log says was wrong in a test.
fn reason(log: &[String], test: &str) -> String {
    let begins = |line: &&String| line.trim_start() == format!("=== RUN   TestConformance/{test}");
    let ends = |line: &&String| line.trim_start().strip_prefix("=== RUN   TestConformance/").is_none_or(|name| name.contains('/'));
    let of_test = log.iter().skip_while(|line| !begins(line)).skip(1).take_while(ends);
    let wrong = ["not ready yet: ", "Request failed", "Error:", "Traffic distribution test failed", "panic:"];
    let found = of_test.filter(|line| wrong.iter().any(|word| line.contains(word))).last();
    found.map_or_else(|| "see the log".to_owned(), |line| line.trim().chars().take(REASON_CHARACTERS_MAX).collect())
}

/// Runs the suite; a line of output for each test when it is known. Its own report and log are left in `folder`.
fn run_suite(mut command: Command, folder: &Path, suite: &mut Suite) -> Result<()> {
    let log_file = folder.join("gateway-api.log");
    let mut file = std::fs::File::create(&log_file)?;
    command.stdout(Stdio::piped()).stderr(file.try_clone()?);
    let mut child = Process(command.spawn().with_context(|| built("suite").display().to_string())?);
    let output = child.0.stdout.take().context("no standard output")?;
    let verdict = Regex::new(r"^\s{0,4}--- (PASS|FAIL|SKIP): TestConformance/(Mesh\w+) ")?;
    let mut log = Vec::new();
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        writeln!(file, "{line}")?;
        if let Some((test, word)) = outcome_of(&line, &verdict) {
            found.insert(test, word);
        }
        log.push(line);
    }
    let status = child.0.wait()?;
    for (test, word) in found {
        if word == "SKIP" && log.iter().any(|line| line.contains(&format!("Skipping {test}: test explicitly skipped"))) {
            continue; // another one was asked for
        }
        let outcome = match word.as_str() {
            "PASS" => Outcome::Passed,
            "SKIP" => Outcome::Skipped(reason_of_skip(&log, &test)),
            _ => Outcome::Failed(reason(&log, &test)),
        };
        suite.add(test, outcome);
    }
    if suite.tests.is_empty() {
        suite.add("TestConformance", Outcome::Failed(format!("{status}, and no test ran: see {}", log_file.display())));
    }
    Ok(())
}

fn reason_of_skip(log: &[String], test: &str) -> String {
    let line = log.iter().find(|line| line.contains(&format!("Skipping {test}:")));
    line.and_then(|line| line.split_once(&format!("Skipping {test}: "))).map_or_else(|| "see the log".to_owned(), |(_, why)| why.to_owned())
}

/// Everything: pods, capture, suite.
pub async fn run(stage: &Stage, folder: &Path, words: &[String]) -> Result<Suite> {
    let _servers = pods::start_servers(stage).await?;
    let _capture = capture::start(stage).await?;
    let pods_url = pods::serve_commands().await?;
    let command = suite_command(stage, &pods_url, folder, words)?;
    println!("runs     {NAME}, some two minutes when nothing fails");
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut suite = Suite { name: NAME, tests: Vec::new() };
        run_suite(command, &folder, &mut suite)?;
        Ok(suite)
    })
    .await?
}
