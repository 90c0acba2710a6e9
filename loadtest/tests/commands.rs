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

/// A process of a test, ended with it.
struct Started(std::process::Child);

impl Drop for Started {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn workload(dir: &Path, address: &str, name: &str) -> Started {
    let files = format!("--cert certs/{name}.pem --key certs/{name}.key --root certs/root-cert.pem");
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(["workload", "--listen", address]).args(files.split(' ')).current_dir(dir).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert!(line.starts_with("ready"), "{line}");
    Started(child)
}

/// Targets and workload belong to the caller, who keeps them through comparisons of every kind.
#[test]
fn targets_and_workload_that_run_are_compared_in_every_kind() {
    let dir = tempfile::tempdir().unwrap();
    let identities = ["client", "waypoint", "workload"].map(|name| format!("{name}=spiffe://cluster.local/ns/load/sa/{name}"));
    loadtest(dir.path(), &format!("certs --out certs {}", identities.join(" ")));
    let [ours, envoy] = ["127.0.77.5:15008", "127.0.77.6:15008"].map(|address| (address, workload(dir.path(), address, "waypoint")));
    let pod = workload(dir.path(), "127.0.77.7:15008", "workload");
    let spec = |name: &str, (address, process): &(&str, Started)| {
        format!("--target name={name},pid={},address={address},destination=10.0.0.1:80,host=web", process.0.id())
    };
    let common = format!(
        "compare --certs certs --workload 127.0.77.7:15008 --workload-running --workload-pid {} --rounds 2 --baseline envoy {} {}",
        pod.0.id(),
        spec("ours", &ours),
        spec("envoy", &envoy)
    );
    for (kind, load, metric) in [
        ("requests", "protocol = 'http2'\nduration = '100ms'\nwarmup = '50ms'", "requests_per_second"),
        ("idle", "hold = '100ms'", "rss_bytes_per_stream"),
        ("stalled", "path = '/bytes/100000000'\nhold = '100ms'", "rss_bytes"),
    ] {
        let file = format!("question = 'What does {kind} cost?'\nkind = '{kind}'\nstreams = 4\n{load}\n");
        std::fs::write(dir.path().join(format!("{kind}.toml")), file).unwrap();
        loadtest(dir.path(), &format!("{common} --scenario {kind}.toml --json {kind}.json --markdown {kind}.md --connections 2"));
        let result = json(&dir.path().join(format!("{kind}.json")));
        assert_eq!((&result["scenario"]["name"], &result["scenario"]["parameters"]["connections"]), (&kind.into(), &2.into()));
        assert!(result["machine"]["cores"].as_u64().unwrap() > 0 && result["commit"].is_null(), "{result}");
        for target in result["targets"].as_array().unwrap() {
            let rounds = target["rounds"].as_array().unwrap();
            let sent: u64 = rounds.iter().map(|round| round["requests_sent"].as_u64().unwrap()).sum();
            assert_eq!((rounds.len(), target["requests_sent_total"].as_u64()), (2, Some(sent)), "{kind}: {target}");
            assert!(target[metric]["median"].is_number() && target["failures"] == serde_json::json!({}), "{kind}: {target}");
            assert_eq!(rounds[0]["processes"][0]["pid"], target["pid"]);
        }
        assert!(result["targets"][0]["rss_ratio"]["min"].is_number() && result["targets"][1]["rss_ratio"].is_null());
        assert_eq!(result["direct"][0]["processes"][0]["pid"].as_u64(), Some(pod.0.id().into()));
        let markdown = std::fs::read_to_string(dir.path().join(format!("{kind}.md"))).unwrap();
        assert!(markdown.contains(&format!("What does {kind} cost?")) && markdown.contains(&format!("`{kind}.json`")), "{markdown}");
    }
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
