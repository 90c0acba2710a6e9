//! Our own suites: what the official one tests of meshes, with more asserted, and what it tests of gateways, for a service.
//!
//! Tests are data (`tests/conformance/{mesh,gateway}.yaml`, whose heads say how they are read); routes go through the real API server and
//! istiod, requests through HBONE as ztunnel sends them. Invariant: a test undoes what it applied, and a failing one stops no other.

mod call;
mod case;
mod check;
mod mesh;
mod routes;

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

use crate::report::{Outcome, Suite};
use crate::stage::Stage;
use case::{Case, Test};
use mesh::Mesh;
pub use mesh::objects;

/// Suites by name.
pub const SUITES: [(&str, &str); 2] =
    [("mesh", include_str!("../../../conformance/mesh.yaml")), ("gateway", include_str!("../../../conformance/gateway.yaml"))];

/// A case has to be answered as expected so many times in a row, as in the official suite.
const SUCCESSES: usize = 3;
/// What istiod, its debounce and the waypoint may take until a test's routes have their effect.
const EFFECT_DEADLINE: Duration = Duration::from_secs(15);
/// For a case of a test in which another one has failed.
const IMPATIENT_DEADLINE: Duration = Duration::from_secs(1);
/// Between two tries of a case.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// One case until it holds, or why it does not.
async fn hold(mesh: &Mesh, case: &Case, deadline: Duration) -> Result<()> {
    let end = Instant::now() + deadline;
    let wanted = if case.expect.is_statistical() { 1 } else { SUCCESSES };
    let mut in_a_row = 0;
    while in_a_row < wanted {
        match check::check(mesh, case).await {
            Ok(()) => in_a_row += 1,
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => {
                in_a_row = 0;
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
    Ok(())
}

/// Every case of a test; what failed, or nothing.
async fn hold_all(mesh: &Mesh, test: &Test) -> Vec<String> {
    let mut failures = Vec::new();
    for (number, case) in test.cases.iter().enumerate() {
        let deadline = if failures.is_empty() { EFFECT_DEADLINE } else { IMPATIENT_DEADLINE };
        if let Err(error) = hold(mesh, case, deadline).await {
            failures.push(format!("case {}, {}: {error:#}", number + 1, case.send));
        }
    }
    failures
}

async fn run_test(stage: &Stage, mesh: &Mesh, test: &Test) -> Result<Outcome> {
    if let Some(why) = &test.skip {
        return Ok(Outcome::Skipped(why.clone()));
    }
    let routes = routes::apply(stage, test).await;
    let failures = match (&routes, &test.refused_by_istiod) {
        (Ok(()), Some(reason)) => {
            routes::delete(stage, test).await?;
            return Ok(Outcome::Skipped(format!("istiod refuses such routes: {reason}")));
        }
        (Ok(()), None) => hold_all(mesh, test).await,
        (Err(error), _) => vec![format!("{error:#}")],
    };
    routes::delete(stage, test).await?;
    Ok(if failures.is_empty() { Outcome::Passed } else { Outcome::Failed(failures.join("\n")) })
}

/// Runs a suite, or those of its tests whose name contains one of the words.
pub async fn run(stage: &Stage, (name, text): (&'static str, &str), words: &[String]) -> Result<Suite> {
    let tests: Vec<Test> = serde_yaml_ng::from_str(text).with_context(|| format!("{name}.yaml"))?;
    let mesh = Mesh::start(stage).await?;
    let mut suite = Suite { name, tests: Vec::new() };
    for test in tests.iter().filter(|test| words.is_empty() || words.iter().any(|word| test.name.contains(word.as_str()))) {
        let outcome = run_test(stage, &mesh, test).await.with_context(|| test.name.clone())?;
        suite.add(test.name.as_str(), outcome);
    }
    Ok(suite)
}
