//! Whether a case holds now: sends it, and compares what came back, what the back end saw, and who got how many.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use http::HeaderMap;
use tests::wait::{Look, until};

use super::call::{self, Answered, call};
use super::case::{Case, Expect, Headers, OneOf, Protocol, Send};
use super::mesh::Mesh;

/// Requests of which shares are counted, how many of them are under way at once, by how many percent a share may be off, and how often it is
/// tried: as in the official suite.
const REQUESTS: usize = 500;
const AT_ONCE: usize = 10;
const TOLERANCE_PERCENT: f64 = 5.0;
const TRIES: usize = 10;
/// How long a copy may take to arrive: nobody waits for it.
const MIRROR_DEADLINE: Duration = Duration::from_secs(3);

/// Spaces after commas are all the same.
fn squeezed(value: &str) -> String {
    value.replace(", ", ",")
}

fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Vec<String> = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// Compares headers with what they have to be.
fn compare_headers(what: &str, wanted: &Headers, found: impl Fn(&str) -> Option<String>) -> Result<()> {
    for (name, wanted) in wanted {
        match (wanted, found(name).map(|value| squeezed(&value))) {
            (None, None) => {}
            (Some(wanted), Some(found)) if wanted.allows(&found) => {}
            (wanted, found) => bail!("the {what}'s {name} is {found:?}, not {wanted:?}"),
        }
    }
    Ok(())
}

/// What the back end was asked: by default, what was sent.
fn compare_request(send: &Send, expect: &Expect, path: &str, answered: &Answered) -> Result<()> {
    let told = |name: &str| answered.echo[name].as_str().unwrap_or_default();
    let (path, host) = (expect.path.as_deref().unwrap_or(path), expect.host.clone().unwrap_or_else(|| send.host()));
    ensure!(told("path") == path, "the back end was asked for path {}, not {path}", told("path"));
    ensure!(told("authority") == host, "the back end was asked for host {}, not {host}", told("authority"));
    ensure!(told("method") == send.method(), "the back end was asked to {}, not {}", told("method"), send.method());
    if let Some(version) = &expect.version {
        ensure!(told("version") == version, "the back end was spoken to in {}, not {version}", told("version"));
    }
    compare_headers("request", &expect.request, |name| answered.seen(name))
}

/// Compares one answer with everything that one answer can show.
fn compare(send: &Send, expect: &Expect, path: &str, answered: &Answered) -> Result<()> {
    let status = answered.status.as_u16();
    ensure!(expect.status.allows(&status), "answered {status} by {:?}, not {:?}", answered.pod(), expect.status);
    if let Some(wanted) = expect.grpc_status {
        let found = joined(&answered.trailers, "grpc-status").or_else(|| joined(&answered.headers, "grpc-status"));
        ensure!(found == Some(wanted.to_string()), "grpc-status is {found:?}, not {wanted}");
    }
    match &expect.backend {
        Some(backend) => {
            ensure!(answered.pod().starts_with(backend.as_str()), "answered by {:?}, not {backend}", answered.pod());
            compare_request(send, expect, path, answered)?;
        }
        None if expect.attempts.is_none() && matches!(expect.status, OneOf::One(300..)) => {
            ensure!(answered.pod().is_empty(), "answered {status} by {}, where no back end should be asked", answered.pod());
        }
        None => {}
    }
    if let Some(wanted) = &expect.location {
        let found = joined(&answered.headers, "location").unwrap_or_default();
        ensure!(wanted.allows(&found), "Location is {found:?}, not {wanted:?}");
    }
    if let Some(limit) = expect.at_most_ms {
        ensure!(answered.took <= Duration::from_millis(limit), "answered after {:?}, not within {limit} ms", answered.took);
    }
    compare_headers("response", &expect.response, |name| joined(&answered.headers, name))
}

fn percent(part: u64) -> f64 {
    let (part, all) = (u32::try_from(part).unwrap_or(u32::MAX), u32::try_from(REQUESTS).unwrap_or(u32::MAX));
    100.0 * f64::from(part) / f64::from(all)
}

fn compare_shares(what: &str, wanted: &BTreeMap<String, f64>, found: &BTreeMap<String, u64>) -> Result<()> {
    for (pod, wanted) in wanted {
        let share = percent(found.get(pod).copied().unwrap_or(0));
        ensure!((share - wanted).abs() <= TOLERANCE_PERCENT, "{pod} {what} {share:.1} % of {REQUESTS} requests, not {wanted} %");
    }
    Ok(())
}

/// Sends one after the other on a connection; who answered them.
async fn send_some(mesh: &Mesh, case: &Case, path: &str) -> Result<Vec<Answered>> {
    let (connection, authority) = mesh.connect(&case.send).await?;
    let mut answers = Vec::new();
    if case.send.protocol == Protocol::Tcp {
        for _ in 0..REQUESTS / AT_ONCE {
            call::call_tcp(&connection, &authority).await?;
        }
        return Ok(answers);
    }
    let mut http = call::http(mesh, &case.send, &connection, &authority).await?;
    for _ in 0..REQUESTS / AT_ONCE {
        let answered = call::exchange(&mut http, &case.send, path).await?;
        ensure!(case.expect.status.allows(&answered.status.as_u16()), "one was answered {}", answered.status);
        if let Some(name) = &case.expect.named_by {
            ensure!(
                answered.seen(name).as_deref() == Some(answered.pod()),
                "{} was told {name}: {:?}",
                answered.pod(),
                answered.seen(name)
            );
        }
        answers.push(answered);
    }
    Ok(answers)
}

async fn send_many(mesh: &Mesh, case: &Case, path: &str) -> Result<Vec<Answered>> {
    Ok(try_join_all((0..AT_ONCE).map(|_| send_some(mesh, case, path))).await?.into_iter().flatten().collect())
}

/// How many requests each pod got; of TCP, how many tunnels.
async fn shares(mesh: &Mesh, case: &Case) -> Result<BTreeMap<String, u64>> {
    let tunnels = |pod: &String| Ok(u64::try_from(mesh.record(pod)?.connects().len())?);
    let before: Vec<u64> = case.expect.split.keys().map(tunnels).collect::<Result<_>>()?;
    let answers = send_many(mesh, case, &case.send.path).await?;
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    if case.send.protocol == Protocol::Tcp {
        for (pod, before) in case.expect.split.keys().zip(before) {
            found.insert(pod.clone(), tunnels(pod)? - before);
        }
    }
    for answered in &answers {
        *found.entry(answered.pod().to_owned()).or_default() += 1;
    }
    Ok(found)
}

async fn check_split(mesh: &Mesh, case: &Case) -> Result<()> {
    let mut outcome = Ok(());
    for _ in 0..TRIES {
        let found = shares(mesh, case).await?;
        let stray = found.keys().find(|pod| !case.expect.split.contains_key(*pod));
        ensure!(stray.is_none(), "{stray:?} got some");
        outcome = compare_shares("got", &case.expect.split, &found);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Shares of copies: all requests have one path, by which the pods count them.
async fn check_mirrored_shares(mesh: &Mesh, case: &Case) -> Result<()> {
    let mut outcome = Ok(());
    for _ in 0..TRIES {
        let path = mesh.unique(&case.send.path);
        let answers = send_many(mesh, case, &path).await?;
        compare(&case.send, &case.expect, &path, answers.first().context("no answer")?)?;
        let counted = format!("{} {path}", case.send.method());
        outcome = until("the copies are as many as they should be", MIRROR_DEADLINE, async || {
            let mut found = BTreeMap::new();
            for pod in case.expect.mirrored.keys() {
                found.insert(pod.clone(), mesh.record(pod)?.requests(&counted));
            }
            Ok(match compare_shares("got copies of", &case.expect.mirrored, &found) {
                Ok(()) => Look::Done(()),
                Err(error) => Look::NotYet(error.to_string()),
            })
        })
        .await;
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Sends the case and says what is not as expected.
///
/// # Errors
/// The first difference.
pub async fn check(mesh: &Mesh, case: &Case) -> Result<()> {
    if !case.expect.split.is_empty() {
        return check_split(mesh, case).await;
    }
    if case.expect.is_statistical() {
        return check_mirrored_shares(mesh, case).await;
    }
    let path = mesh.unique(&case.send.path);
    let answered = call(mesh, &case.send, &path).await?;
    let counted = format!("{} {}", case.send.method(), path.split('?').next().unwrap_or_default());
    if let Some(wanted) = case.expect.attempts {
        let found = mesh.requests(&counted);
        ensure!(found == wanted, "answered {} by {:?} after {found} attempts, not {wanted}", answered.status, answered.pod());
    }
    compare(&case.send, &case.expect, &path, &answered)?;
    for pod in case.expect.mirrored.keys() {
        until(&format!("a copy arrives at {pod}"), MIRROR_DEADLINE, async || {
            let found = mesh.record(pod)?.requests(&counted);
            ensure!(found <= 1, "{pod} got {found} copies");
            Ok(if found == 1 { Look::Done(()) } else { Look::NotYet("none".to_owned()) })
        })
        .await?;
    }
    Ok(())
}
