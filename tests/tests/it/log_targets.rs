//! Where lines go, through the binary: when they are there, files that are rotated, targets that are full, stuck or gone.
//!
//! Not for: what lines say. Invariant of all: a target that takes no lines costs lines, which are counted, and no request.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::{Method, StatusCode};
use nix::sys::signal::{self, Signal};
use nix::sys::stat::Mode;
use nix::unistd::{self, Pid};
use serde_json::json;
use tests::peer::{Http, empty};
use tests::process::exit_code;
use tests::scenario::{Mesh, MeshBuilder, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};

const DEADLINE: Duration = Duration::from_secs(20);
/// A line is on disk within a second of its request's end; what is above is for a busy machine.
const ON_DISK: Duration = Duration::from_millis(1500);
/// Of each line by which buffers are filled.
const AGENT_BYTES: usize = 16 * 1024;

/// The lines of `web` go there; the chain answers by itself.
fn log_to(scenario: &mut Scenario, path: &str) -> Result<()> {
    scenario.http(WEB_CHAIN)?["access_log"][0]["typed_config"]["path"] = path.into();
    Ok(())
}

fn builder(path: &str) -> Result<MeshBuilder> {
    Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            let answer = json!({"direct_response": {"status": 200}, "match": {"prefix": "/"}, "name": "answered"});
            scenario.add_routes(WEB_CHAIN, vec![answer])?;
            log_to(scenario, path)
        })
        .map(|builder| builder.proxy_config("concurrency", 1.into()))
}

async fn http(mesh: &Mesh) -> Result<Http> {
    mesh.connect("frontend-0").await?.http1(WEB).await
}

async fn get(http: &mut Http, path: &str) -> Result<()> {
    let status = http.get(path).await?.status;
    anyhow::ensure!(status == StatusCode::OK, "{path}: {status}");
    Ok(())
}

/// Requests with long lines, more than what is kept of them.
async fn fill(http: &mut Http, n_requests: usize) -> Result<()> {
    let agent = "a".repeat(AGENT_BYTES);
    for _ in 0..n_requests {
        let request = http.request(Method::GET, "/long").header("user-agent", &agent).body(empty())?;
        assert_eq!(http.send(request).await?.status, StatusCode::OK);
    }
    Ok(())
}

async fn count(mesh: &Mesh, metric: &str, is_enough: impl Fn(u64) -> bool) -> Result<u64> {
    let value = |line: &str| line.strip_prefix(metric)?.rsplit_once(' ')?.1.parse::<u64>().ok();
    let line = mesh.waypoint.metric(metric, |line| value(line).is_some_and(&is_enough)).await?;
    value(&line).context("no value")
}

const WRITTEN: &str = "waypoint_access_log_lines_total";
const DROPPED: &str = "waypoint_access_log_lines_dropped_total";

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn has(path: &Path, request: &str) -> bool {
    lines(path).iter().any(|line| line.contains(&format!("\"path\":\"{request}\"")))
}

#[tokio::test(flavor = "multi_thread")]
async fn l24_a_line_is_on_disk_within_a_second_and_a_rotated_file_is_opened_anew() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (current, rotated) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let mesh = builder(current.to_str().context("a path")?)?.start().await?;
    let mut http = http(&mesh).await?;
    for lone in ["/first", "/second"] {
        get(&mut http, lone).await?;
        let ended = Instant::now();
        until(&format!("the line of {lone}"), DEADLINE, async || {
            Ok(if has(&current, lone) { Look::Done(()) } else { Look::NotYet(format!("{:?}", lines(&current))) })
        })
        .await?;
        assert!(ended.elapsed() <= ON_DISK, "{lone}: {:?}", ended.elapsed());
    }
    fs::rename(&current, &rotated)?;
    get(&mut http, "/renamed").await?;
    until("a line in the renamed file", DEADLINE, async || {
        Ok(if has(&rotated, "/renamed") { Look::Done(()) } else { Look::NotYet(format!("{:?}", lines(&rotated))) })
    })
    .await?;
    assert!(!current.exists(), "nobody said that the file was renamed");
    signal::kill(Pid::from_raw(i32::try_from(mesh.waypoint.pid())?), Signal::SIGUSR1)?;
    let mut n_sent = 0;
    until("lines in a new file", DEADLINE, async || {
        get(&mut http, &format!("/after/{n_sent}")).await?;
        n_sent += 1;
        Ok(if lines(&current).is_empty() { Look::NotYet("no line".to_owned()) } else { Look::Done(()) })
    })
    .await?;
    let last = format!("/after/{}", n_sent - 1);
    until("the last line", DEADLINE, async || {
        Ok(if has(&current, &last) { Look::Done(()) } else { Look::NotYet(format!("{:?}", lines(&current))) })
    })
    .await?;
    let all: Vec<String> = lines(&rotated).into_iter().chain(lines(&current)).collect();
    assert_eq!(all.len(), 3 + n_sent, "lines are lost: {all:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_lines_that_are_counted_and_no_request() -> Result<()> {
    let mut mesh = builder("/dev/full")?.start().await?;
    let mut http = http(&mesh).await?;
    for _ in 0..20 {
        get(&mut http, "/full").await?;
    }
    assert_eq!(count(&mesh, DROPPED, |count| count >= 20).await?, 20);
    mesh.waypoint.log_line("access log lines are lost").await?;
    // A target that takes lines gets them.
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("access.log");
    let name = path.to_str().context("a path")?.to_owned();
    mesh.push_accepted(|scenario| log_to(scenario, &name)).await?;
    get(&mut http, "/room").await?;
    until("a line in a file", DEADLINE, async || {
        Ok(if has(&path, "/room") { Look::Done(()) } else { Look::NotYet(format!("{:?}", lines(&path))) })
    })
    .await?;
    assert_eq!(count(&mesh, DROPPED, |_| true).await?, 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_output_that_nobody_reads_costs_lines_that_are_counted_and_no_request() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let fifo = folder.path().join("output");
    unistd::mkfifo(&fifo, Mode::S_IRWXU)?;
    // Opened for both, so that opening does not wait for a reader: there is room for 64 KiB, and then nothing.
    let shell = format!("exec \"$@\" 1<>{}", fifo.display());
    let runner = ["sh", "-c", &shell, "sh"].map(str::to_owned).to_vec();
    let mut mesh = builder("/dev/stdout")?.runner(runner).start().await?;
    let mut http = http(&mesh).await?;
    // 4 MiB are kept for a target that is stuck.
    fill(&mut http, 400).await?;
    count(&mesh, DROPPED, |count| count > 0).await?;
    get(&mut http, "/still").await?;
    drop(http);
    mesh.waypoint.terminate()?;
    assert_eq!(exit_code(mesh.waypoint.exited(DEADLINE).await?), Some(0), "it ends although its lines go nowhere");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_output_whose_reader_is_gone_costs_lines_that_are_counted_and_no_request() -> Result<()> {
    let runner = ["bash", "-c", "exec \"$@\" > >(:)", "bash"].map(str::to_owned).to_vec();
    let mesh = builder("/dev/stdout")?.runner(runner).start().await?;
    let mut http = http(&mesh).await?;
    for _ in 0..20 {
        get(&mut http, "/gone").await?;
    }
    let dropped = count(&mesh, DROPPED, |count| count >= 20).await?;
    assert_eq!((dropped, count(&mesh, WRITTEN, |_| true).await?), (20, 0));
    get(&mut http, "/still").await
}
