//! The same requests through the waypoint and through a stock Envoy with the same configuration: both write the same lines and export
//! the same spans, but for what is drawn or measured anew, and for [`EXCEPTIONS`].
//!
//! Not for: metrics of Istio and labels of peers, which a stock Envoy has not (`docs/envoy-oracle.md`).
//! Invariants: a line belongs to its request by the caller's port, a span by the trace of its line; an exception that excuses nothing fails.

mod cases;
mod exceptions;
mod masks;
mod operators;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use http::StatusCode;
use serde_json::Value;
use tests::envoy::Envoy;
use tests::otlp::Span;
use tests::peer::Connection;
use tests::process::Lines;
use tests::scenario::Mesh;
use tests::wait::{Look, until};
use tests::workload::{App, Record};

use cases::{CASES, Case, VARIABLES, configuration};
use exceptions::{EXCEPTIONS, Exception, RACES};
use masks::{masked_line, masked_span};

/// Lines are a second late, spans five.
const REPORT_DEADLINE: Duration = Duration::from_secs(20);

/// What one side reported of one request: fields by name, `line.…` and `span.…`.
type Report = BTreeMap<String, Value>;

/// Sends all cases to one proxy, one after the other; their connections, which stay open, so that each has a port of its own.
async fn send_all(mesh: &Mesh, proxy: SocketAddr, side: &str, web: &Record) -> Result<Vec<Connection>> {
    let peer = mesh.peer("frontend-0")?;
    let mut connections = Vec::new();
    for case in CASES {
        let connection = peer.connect(proxy).await?;
        case.send(&connection, side, web).await.with_context(|| format!("{side}: {}", case.name))?;
        connections.push(connection);
    }
    Ok(connections)
}

fn parsed(output: &Lines) -> Vec<Value> {
    output.all().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The lines of each caller, and those of nobody. Waits until every caller has one.
async fn lines(output: &Lines, callers: &[Connection], side: &str) -> Result<(Vec<Vec<Value>>, Vec<Value>)> {
    until(&format!("the lines of {side}"), REPORT_DEADLINE, async || {
        let (mut own, mut others) = (vec![Vec::new(); callers.len()], Vec::new());
        for line in parsed(output) {
            match callers
                .iter()
                .map(|caller| caller.local.to_string())
                .position(|caller| line["remote"] == caller || line["case"] == caller)
            {
                Some(at) => own[at].push(line),
                None => others.push(line),
            }
        }
        let missing: Vec<_> = own.iter().zip(CASES).filter(|(lines, _)| lines.is_empty()).map(|(_, case)| case.name).collect();
        Ok(if missing.is_empty() {
            Look::Done((own, others))
        } else {
            Look::NotYet(format!("no line of {missing:?}; of nobody: {others:#?}"))
        })
    })
    .await
}

/// All that one side reported of a request. A second line of the same caller is a field of its own.
fn report(lines: &[Value], spans: &[Span], side: &str) -> Report {
    let mut report = Report::new();
    for (at, line) in lines.iter().enumerate() {
        let prefix = if at == 0 { "line".to_owned() } else { format!("line{}", at + 1) };
        for (key, value) in masked_line(line, side).as_object().into_iter().flatten() {
            report.insert(format!("{prefix}.{key}"), value.clone());
        }
    }
    let trace_id = lines[0]["trace_id"].as_str().unwrap_or_default();
    let of_trace: Vec<_> = spans.iter().filter(|span| span.trace_id == trace_id && masks::is_of(span, side)).collect();
    report.insert("spans".to_owned(), of_trace.len().into());
    for span in of_trace {
        report.extend(masked_span(span, side));
    }
    report
}

/// Fields that are not alike, as text; what `exceptions` excuse is left out, and noted in `used`.
fn differences(case: &Case, ours: &Report, theirs: &Report, used: &mut BTreeSet<&'static str>) -> Vec<String> {
    let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let mut found = Vec::new();
    for name in names {
        let (mine, other) = (ours.get(name), theirs.get(name));
        if mine == other {
            continue;
        }
        let excused: Vec<&Exception> = EXCEPTIONS.iter().filter(|exception| exception.excuses(case, name, mine, other)).collect();
        used.extend(excused.iter().map(|exception| exception.name));
        if excused.is_empty() {
            let text = |value: Option<&Value>| value.map_or_else(|| "absent".to_owned(), Value::to_string);
            found.push(format!("{}: {name}\n    ours   {}\n    theirs {}", case.name, text(mine), text(other)));
        }
    }
    found
}

/// Waits until the span of the last case is there, from either side; spans of one side come in order.
async fn spans(mesh: &Mesh, last: [&Value; 2]) -> Result<Vec<Span>> {
    for line in last {
        let trace_id = line["trace_id"].as_str().context("the last request has no trace")?;
        mesh.spans.wait_for("the span of the last request", REPORT_DEADLINE, |span| span.trace_id == trace_id).await?;
    }
    Ok(mesh.spans.spans())
}

#[tokio::test(flavor = "multi_thread")]
async fn e04_lines_and_spans_are_those_of_a_real_envoy() -> Result<()> {
    let builder = Mesh::builder("07-telemetry")?.edit(configuration)?.proxy_config("concurrency", 1.into()).quiet();
    let mesh = VARIABLES.iter().fold(builder, |builder, (name, value)| builder.environment(name, Some(value))).start().await?;
    let variables = VARIABLES.iter().map(|(name, value)| format!("{name}={value}"));
    let envoy = Envoy::beside(&mesh).runner(std::iter::once("env".to_owned()).chain(variables).collect()).start().await?;
    let (web, refusing) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("web-v1-2", App::Http).await?);
    let _http = (mesh.pod("ratings-v1-1", App::Http).await?, mesh.pod("reviews-v1-1", App::Http).await?);
    let _tcp = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
    refusing.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
    let ours = send_all(&mesh, mesh.hbone(), "ours", web.record());
    let theirs = send_all(&mesh, envoy.hbone(), "them", web.record());
    let (ours, theirs) = tokio::try_join!(ours, theirs)?;
    let (our_lines, our_others) = lines(mesh.waypoint.output_lines(), &ours, "ours").await?;
    let (their_lines, their_others) = lines(envoy.output(), &theirs, "them").await?;
    let last = CASES.len() - 1;
    let spans = spans(&mesh, [&our_lines[last][0], &their_lines[last][0]]).await?;

    let (mut found, mut used) = (Vec::new(), BTreeSet::new());
    for (at, case) in CASES.iter().enumerate() {
        let (mine, other) = (report(&our_lines[at], &spans, "ours"), report(&their_lines[at], &spans, "them"));
        found.extend(differences(case, &mine, &other, &mut used));
    }
    assert!(found.is_empty(), "{} differences\n{}", found.len(), found.join("\n"));
    assert_eq!(our_others, [Value::Null; 0], "lines of no request");
    let is_of_a_hop = |line: &Value| {
        line["cluster_raw"] == "connect_originate" && line["response_flags"].as_str().is_some_and(|flags| flags.contains("UF"))
    };
    assert!(their_others.iter().all(is_of_a_hop), "other lines than those of hbone-connect-failure: {their_others:#?}");
    let certain = EXCEPTIONS.iter().map(|exception| exception.name).filter(|name| !RACES.contains(name));
    let unused: Vec<_> = certain.filter(|name| !used.contains(name)).collect();
    assert!(unused.is_empty(), "these excuse nothing any more: {unused:?}");
    Ok(())
}

#[test]
fn every_exception_stands_in_a_document() -> Result<()> {
    for exception in EXCEPTIONS {
        let document = std::fs::read_to_string(format!("{}/../docs/{}", env!("CARGO_MANIFEST_DIR"), exception.document))?;
        assert!(document.contains(&format!("| `{}` |", exception.name)), "{} has no {}", exception.document, exception.name);
    }
    Ok(())
}
