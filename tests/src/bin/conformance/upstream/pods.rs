//! The official suite's pods: Istio's echo server behind an HBONE server each, and its echo client where the suite runs one.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tests::net;
use tests::workload::{App, Workload};
use tokio::net::TcpListener;

use super::{Process, built};
use crate::objects::{CONSUMER_NAMESPACE, NAMESPACE, PodSpec, Port, ServiceSpec, pod, service};
use crate::stage::Stage;

/// The port on which commands are taken.
const COMMANDS_PORT: u16 = 10260;
/// A command is a few flags.
const COMMAND_BYTES_MAX: usize = 64 * 1024;

/// Ports of each service, as in the suite's own manifest.
pub const PORTS: &[Port] = &[
    ("http", 80, 8080, Some("http")),
    ("http-alt", 8080, 8080, Some("http")),
    ("https", 443, 8443, None),
    ("tcp", 9090, 9090, None),
    ("grpc", 7070, 7070, Some("grpc")),
];

/// A name has the parts that a Deployment's pod has: the suite cuts off two to find the back end.
const ECHO_V1: PodSpec =
    PodSpec { namespace: NAMESPACE, name: "echo-v1-5b7d8c9f66-x2x7k", address: "10.244.20.1", app: "echo", version: "v1" };
const ECHO_V2: PodSpec =
    PodSpec { namespace: NAMESPACE, name: "echo-v2-7c6f5d4b88-p9q4m", address: "10.244.20.2", app: "echo", version: "v2" };
const CONSUMER: PodSpec =
    PodSpec { namespace: CONSUMER_NAMESPACE, name: "echo-v1-5b7d8c9f66-h5j6k", address: "10.244.20.3", app: "echo", version: "v1" };
pub const PODS: [PodSpec; 3] = [ECHO_V1, ECHO_V2, CONSUMER];

/// Network namespaces in which commands run, with their addresses, in the order of [`PODS`]: the pods' own addresses are their servers'.
pub const CLIENTS: [(&str, &str); 3] =
    [("echo-client-1", "10.244.28.1"), ("echo-client-2", "10.244.28.2"), ("echo-client-3", "10.244.28.3")];

/// Services of the suite.
pub fn services() -> [ServiceSpec<'static>; 3] {
    [
        ServiceSpec { name: "echo", address: "10.96.20.1", ports: PORTS, pods: vec![ECHO_V1, ECHO_V2] },
        ServiceSpec { name: "echo-v1", address: "10.96.20.2", ports: PORTS, pods: vec![ECHO_V1] },
        ServiceSpec { name: "echo-v2", address: "10.96.20.3", ports: PORTS, pods: vec![ECHO_V2] },
    ]
}

/// Pods, services and endpoints. The suite applies its services again; the API server keeps their addresses.
pub fn objects() -> Vec<Value> {
    PODS.iter().map(pod).chain(services().iter().flat_map(service)).collect()
}

/// The servers of all pods.
pub struct Servers {
    _programs: Vec<Process>,
    _workloads: Vec<Workload>,
}

/// The echo server of a pod, on an address of loopback, under the pod's name.
fn start_program(pod: &PodSpec, address: &str) -> Result<Process> {
    let ports = ["8080", "7070", "9090"];
    let server = built("server");
    let script = "echo \"$0\" >/proc/sys/kernel/hostname && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--uts", "--kill-child", "--fork", "sh", "-c", script, pod.name]).arg(&server);
    command.args([format!("--port={}", ports[0]), format!("--grpc={}", ports[1]), format!("--tcp={}", ports[2])]);
    command.arg(format!("--bind-ip={}", ports.join(","))).arg(format!("--version={}", pod.version));
    command.env("INSTANCE_IPS", address).env("NAMESPACE", pod.namespace).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Process(command.spawn().with_context(|| server.display().to_string())?))
}

/// Starts them; the suite itself waits until they answer.
pub async fn start_servers(stage: &Stage) -> Result<Servers> {
    let (mut programs, mut workloads) = (Vec::new(), Vec::new());
    for (number, pod) in PODS.iter().enumerate() {
        let address = format!("127.20.0.{}", number + 1);
        programs.push(start_program(pod, &address)?);
        let app = App::Program(SocketAddr::new(address.parse()?, 0));
        workloads.push(Workload::hbone(pod.name, pod.address.parse()?, stage.called(pod.namespace)?, app).await?);
    }
    let mut hosts = OpenOptions::new().append(true).open("/etc/hosts").context("/etc/hosts")?;
    for service in services() {
        writeln!(hosts, "{} {} {}.{NAMESPACE}", service.address, service.name, service.name)?;
    }
    Ok(Servers { _programs: programs, _workloads: workloads })
}

/// Runs the echo client with these arguments where this pod's commands run; what it wrote on standard output.
fn run_command(namespace: &str, name: &str, command: &[String]) -> Result<Vec<u8>> {
    let place = PODS.iter().position(|pod| pod.namespace == namespace && pod.name == name);
    let (network, _) = CLIENTS[place.with_context(|| format!("no pod {namespace}/{name}"))?];
    let [program, arguments @ ..] = command else { bail!("an empty command") };
    if program != "client" {
        bail!("{program}: no such program in {name}");
    }
    let output = Command::new("ip").args(["netns", "exec", network]).arg(built("client")).args(arguments).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

/// POST /NAMESPACE/POD with a command as a JSON list.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let run = async {
        let path = request.uri().path().to_owned();
        let (namespace, name) = path.trim_start_matches('/').split_once('/').context("no pod is named")?;
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let body = Limited::new(request.into_body(), COMMAND_BYTES_MAX).collect().await.map_err(|error| anyhow::anyhow!("{error}"))?;
        let command: Vec<String> = serde_json::from_slice(&body.to_bytes())?;
        tokio::task::spawn_blocking(move || run_command(&namespace, &name, &command)).await?
    };
    Ok(match run.await {
        Ok(output) => Response::new(Full::new(output.into())),
        Err(error) => {
            let mut response = Response::new(Full::new(format!("{error:#}").into()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    })
}

/// Takes the kubelet's commands from now on; its URL.
pub async fn serve_commands() -> Result<String> {
    let address = SocketAddr::new(net::NODE, COMMANDS_PORT);
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // A kubelet that goes away asks no more.
            tokio::spawn(async move { drop(http1::Builder::new().serve_connection(TokioIo::new(tcp), service_fn(answer)).await) });
        }
    });
    Ok(format!("http://{address}"))
}
