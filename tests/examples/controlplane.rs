//! Shows that the pieces of the control plane fit: network, servers, the manifests that operators apply, the Deployment that
//! istiod renders from them, and a container started from it. Not the test of the waypoint: the container here is a script that
//! prints what it was given.
//!
//! ```text
//! cargo run -p tests --example controlplane [-- --dual-stack]
//! cargo run -p tests --example controlplane -- exec COMMAND...     the mesh alone, for a command: kubectl, a debugger, a shell
//! ```
//!
//! The command finds KUBECONFIG, RUN (the folder of logs), ISTIOD, ROOT_CERT (a file) and TOKEN (of shop/waypoint, audience istio-ca) in its
//! environment.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::istiod::{self, ControlPlane, MESH_CONFIG, Options};
use tests::net;
use tests::pod::{Placement, Pod, Start};

/// The namespace that the manifests are applied to, and its waypoint's address.
const NAMESPACE: &str = "fresh";
const ADDRESS: &str = "10.244.0.110";

const NAMESPACE_YAML: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: fresh, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}}
";

/// An image for one waypoint that wins over the class defaults, as k8s/manifests/README.md describes it.
const ONE_WAYPOINT_PARAMETERS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: waypoint-parameters}
data:
  deployment: |
    spec: {template: {spec: {containers: [{name: istio-proxy, image: 'IMAGE'}]}}}
";

const ONE_WAYPOINT_REFERENCE: &str = "
  infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: waypoint-parameters}}
";

const PRINTER: &str = r#"#!/bin/sh
echo "== arguments"; for argument in "$@"; do echo "$argument"; done
echo "== environment"; env
echo "== place"; id; pwd; hostname -I 2>/dev/null || true; cat /etc/hosts
grep CapEff /proc/self/status
touch /written 2>/dev/null && echo "root is writable" || echo "root is read-only"
touch /var/lib/istio/data/written && echo "data is writable"
echo "== files"; for file in /etc/istio/pod/labels /etc/istio/pod/annotations /var/run/secrets/istio/root-cert.pem /var/run/secrets/tokens/istio-token; do echo "$file $(wc -c <$file) bytes"; done
cat /etc/istio/pod/labels
echo to-dev-stdout >/dev/stdout
trap 'echo terminated; exit 3' TERM
while :; do read -r _ </dev/zero & wait $!; done
"#;

fn manifest(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s/manifests/base").join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The image of a Deployment's only container.
fn image(deployment: &Value) -> Option<&str> {
    deployment.pointer("/spec/template/spec/containers/0/image").and_then(Value::as_str)
}

/// The mesh configuration of the manifests, which must define the log format that the tests use.
fn mesh_config_of_manifests() -> Result<String> {
    let values: Value = serde_yaml_ng::from_str(&manifest("mesh/mesh-config.yaml")?)?;
    let tested: Value = serde_yaml_ng::from_str(MESH_CONFIG)?;
    let provider = |config: &Value| {
        let providers = config["extensionProviders"].as_array().cloned().unwrap_or_default();
        providers.into_iter().find(|provider| provider["name"] == "access-log-json")
    };
    let (ours, theirs) = (provider(&values["meshConfig"]), provider(&tested));
    ensure!(ours.is_some() && ours == theirs, "the log formats of manifests and tests differ: {ours:?} {theirs:?}");
    Ok(values["meshConfig"].to_string())
}

async fn shows_images(plane: &ControlPlane) -> Result<Value> {
    let ours = "registry.example/waypoint:0.1.0";
    let rendered = plane.rendered_deployment(NAMESPACE, "waypoint", |deployment| image(deployment) == Some(ours)).await?;
    println!("class defaults: {NAMESPACE}/waypoint runs {ours}");
    plane.delete("v1", "ConfigMap", "istio-system", "waypoint-class-defaults").await?;
    plane.rendered_deployment(NAMESPACE, "waypoint", |deployment| image(deployment) != Some(ours)).await?;
    println!("without class defaults: Istio's own image");
    let one = "registry.example/waypoint:one";
    let gateway = manifest("namespace/gateway.yaml")?;
    let annotated = gateway.replace("  # annotations:", "  annotations:").replace("  #   sidecar", "    sidecar").replace(ours, one);
    plane.apply_in(NAMESPACE, &annotated).await?;
    plane.rendered_deployment(NAMESPACE, "waypoint", |deployment| image(deployment) == Some(one)).await?;
    println!("annotation: {NAMESPACE}/waypoint runs {one}");
    plane.apply(&manifest("mesh/class-defaults.yaml")?).await?;
    plane.rendered_deployment(NAMESPACE, "waypoint", |deployment| image(deployment) == Some(ours)).await?;
    println!("both: class defaults win");
    let own = "registry.example/waypoint:own";
    let parameters = ONE_WAYPOINT_PARAMETERS.replace("IMAGE", own);
    let referring = format!("{}{ONE_WAYPOINT_REFERENCE}", gateway.trim_end());
    plane.apply_in(NAMESPACE, &parameters).await?;
    plane.apply_in(NAMESPACE, &referring).await?;
    plane.rendered_deployment(NAMESPACE, "waypoint", |deployment| image(deployment) == Some(own)).await?;
    println!("the Gateway's own parameters: {NAMESPACE}/waypoint runs {own}, whatever the class defaults say");
    Ok(rendered)
}

async fn starts_a_container(plane: &ControlPlane, deployment: &Value) -> Result<()> {
    let binary = plane.run().join("printer");
    std::fs::write(&binary, PRINTER)?;
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755))?;
    let placement =
        Placement { name: "waypoint-0".to_owned(), address: ADDRESS.parse()?, node_name: "node-a".to_owned(), node_address: net::NODE };
    let start = Start { deployment, network: "fresh-waypoint", binary: &binary, extra_environment: &[("EXTRA", "yes")], placement };
    let mut pod = Pod::start(plane, start).await?;
    tests::wait::until("the container has printed everything", Duration::from_secs(10), async || {
        if let Some(status) = pod.exit_status()? {
            anyhow::bail!("it ended with {status}: {}{}", pod.stdout()?, pod.stderr()?);
        }
        let output = pod.stdout()?;
        Ok(if output.contains("to-dev-stdout") { tests::wait::Look::Done(()) } else { tests::wait::Look::NotYet(output) })
    })
    .await?;
    pod.signal(nix::sys::signal::Signal::SIGTERM)?;
    let status = pod.wait_exit(Duration::from_secs(10)).await?;
    println!("{}{}", pod.stdout()?, pod.stderr()?);
    ensure!(status.code() == Some(3), "SIGTERM did not reach the container: {status}");
    let output = pod.stdout()?;
    ensure!(output.contains("fresh.svc.cluster.local") && output.contains("root is read-only") && output.contains("data is writable"));
    Ok(())
}

async fn run(folder: &Path) -> Result<()> {
    let dual_stack = std::env::args().any(|argument| argument == "--dual-stack");
    let options = Options { mesh_config: mesh_config_of_manifests()?, dual_stack, ..Options::default() };
    let mut plane = ControlPlane::start(folder, options).await?;
    for (step, took) in plane.steps() {
        println!("{step}: {:.1} s", took.as_secs_f64());
    }
    let shop = plane.rendered_deployment("shop", "waypoint", |_| true).await?;
    println!("shop/waypoint is rendered with {}", image(&shop).unwrap_or_default());
    plane.apply(NAMESPACE_YAML).await?;
    plane.apply(&manifest("mesh/class-defaults.yaml")?).await?;
    plane.apply_in(NAMESPACE, &manifest("namespace/gateway.yaml")?).await?;
    plane.apply_in(NAMESPACE, &manifest("namespace/telemetry.yaml")?).await?;
    let pod_monitor = istiod::kube::documents(&manifest("mesh/podmonitor.yaml")?)?;
    ensure!(matches!(pod_monitor.as_slice(), [one] if one["kind"] == "PodMonitor"), "not one PodMonitor");
    let deployment = shows_images(&plane).await?;
    let service = plane.get("v1", "Service", NAMESPACE, "waypoint").await?.unwrap_or_default();
    let addresses = service["spec"]["clusterIPs"].as_array().map_or(0, Vec::len);
    println!("the Service that istiod rendered has {addresses} addresses: {}", service["spec"]["clusterIPs"]);
    ensure!(addresses == if dual_stack { 2 } else { 1 }, "the Service has the wrong addresses: {service}");
    starts_a_container(&plane, &deployment).await?;
    let (root, since) = (plane.root_cert().to_owned(), Instant::now());
    plane.restart_istiod().await?;
    let kept = plane.get("v1", "ConfigMap", "istio-system", "istio-ca-root-cert").await?.unwrap_or_default();
    ensure!(kept["data"]["root-cert.pem"] == *root, "istiod has another root after a restart");
    println!("istiod restarted in {:.1} s, with the same root", since.elapsed().as_secs_f64());
    plane.delete_yaml("{apiVersion: telemetry.istio.io/v1, kind: Telemetry, metadata: {name: waypoint, namespace: fresh}}").await?;
    ensure!(plane.get("telemetry.istio.io/v1", "Telemetry", NAMESPACE, "waypoint").await?.is_none(), "Telemetry is still there");
    Ok(())
}

/// Runs a command beside the mesh.
async fn run_beside(folder: &Path, command: &[String]) -> Result<()> {
    let plane = ControlPlane::start(folder, Options::default()).await?;
    plane.rendered_deployment("shop", "waypoint", |_| true).await?;
    let root_cert = plane.run().join("root-cert.pem");
    std::fs::write(&root_cert, plane.root_cert())?;
    let (program, arguments) = command.split_first().context("exec needs a command")?;
    let status = Command::new(program)
        .args(arguments)
        .env("KUBECONFIG", plane.run().join("kubeconfig"))
        .env("RUN", plane.run())
        .env("ISTIOD", plane.istiod_ads_address().to_string())
        .env("ROOT_CERT", root_cert)
        .env("TOKEN", plane.token("shop", "waypoint").await?)
        .status()
        .with_context(|| program.clone())?;
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}

fn main() -> ExitCode {
    if !net::is_inside()
        && let Err(error) = istiod::build()
    {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    net::enter_or_reexec(&[("fresh-waypoint", ADDRESS)]);
    let outcome = tempfile::tempdir().map_err(anyhow::Error::from).and_then(|folder| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        match arguments.split_first() {
            Some((word, command)) if word == "exec" => runtime.block_on(run_beside(folder.path(), command)),
            _ => runtime.block_on(run(folder.path())),
        }
    });
    match outcome {
        Ok(()) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
