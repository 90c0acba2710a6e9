//! The commands as processes: certificates, a workload, load on it, and a comparison, each on a loopback address of its own.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn loadtest(dir: &Path, arguments: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments.split_whitespace()).current_dir(dir).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "loadtest {arguments}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Our own workload stands where the proxies would: it accepts a CONNECT to any target.
#[test]
fn a_comparison_starts_what_it_measures_and_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let binary = env!("CARGO_BIN_EXE_loadtest");
    let identities = ["client", "waypoint", "workload"].map(|name| format!("{name}=spiffe://cluster.local/ns/load/sa/{name}"));
    loadtest(dir.path(), &format!("certs --out certs {}", identities.join(" ")));
    let proxy = format!(
        "{binary} workload --listen 127.0.77.2:15008 --cert certs/waypoint.pem --key certs/waypoint.key --root certs/root-cert.pem"
    );
    let output = Command::new(binary)
        .args("compare --certs certs --workload 127.0.77.3:15008 --rounds 2 --duration 100ms --warmup 50ms --streams 4".split(' '))
        .args("--baseline ours --json result.json --ours address=127.0.77.2:15008,destination=10.0.0.1:80".split(' '))
        .args(["--ours-command", &proxy])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result = json(&dir.path().join("result.json"));
    let ours = &result["targets"][0];
    assert_eq!(ours["name"], "ours");
    assert_eq!(ours["rounds"].as_array().unwrap().len(), 2);
    assert_eq!(ours["failures"], serde_json::json!({}));
    assert!(ours["idle"]["rss_bytes"].as_u64().unwrap() > 0);
    assert!(result["ceiling_requests_per_second"]["median"].as_f64().unwrap() > 0.0);
    let pid = ours["rounds"][0]["processes"][0]["pid"].as_u64().unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the proxy it started is gone");
    assert!(std::net::TcpStream::connect("127.0.77.3:15008").is_err(), "and so is the workload");
}

#[test]
fn a_run_against_nothing_fails_and_says_where_it_dialled() {
    let dir = tempfile::tempdir().unwrap();
    loadtest(dir.path(), "certs --out certs client=spiffe://cluster.local/ns/load/sa/client");
    let arguments =
        "run --waypoint 127.0.77.4:15008 --target 10.0.0.1:80 --cert certs/client.pem --key certs/client.key --root certs/root-cert.pem";
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments.split(' ')).current_dir(dir.path()).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("127.0.77.4:15008"));
}
