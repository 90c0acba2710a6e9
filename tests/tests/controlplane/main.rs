//! The whole job against a real control plane: an unmodified istiod renders and configures our waypoint, its CA signs every certificate,
//! and requests are sent through.
//!
//! ```text
//! cargo test -p tests --test controlplane [-- WORD…]     the steps whose name contains one of the words; without, all
//! ```
//!
//! Not here: what a scripted istiod shows as well (`tests/it`). Steps run one after the other on one mesh; each says in its name what it
//! shows, undoes what it applied, and a failing one does not stop the others.

mod authorization;
mod drop_in;
mod endpoints;
mod load;
mod parity;
mod policy;
mod stage;
mod telemetry;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use futures_util::future::LocalBoxFuture;
use stage::Stage;
use tests::{istiod, net, process};

/// Longest that one step may take; none takes a quarter of it on an idle machine.
const STEP_DEADLINE: Duration = Duration::from_secs(120);

/// A step's name, which says what it shows, and how.
type Step = (&'static str, for<'a> fn(&'a mut Stage) -> LocalBoxFuture<'a, Result<()>>);

/// In this order: the last one ends the waypoint.
const STEPS: &[Step] = &[
    ("the pod of the rendered Deployment is ready with nothing else", |stage| Box::pin(drop_in::runs_as_rendered(stage))),
    ("a request has Istio's 25 labels on both ports", |stage| Box::pin(telemetry::a_request_is_counted(stage))),
    ("Telemetry brings the log line and the span that it names", |stage| Box::pin(telemetry::a_request_is_logged_and_traced(stage))),
    ("an HTTPRoute routes by header, edits headers and splits by weight", |stage| Box::pin(policy::a_route_takes_effect(stage))),
    ("an AuthorizationPolicy admits one identity and denies another", |stage| Box::pin(policy::a_policy_takes_effect(stage))),
    ("AuthorizationPolicies of every attribute decide as they say", |stage| Box::pin(authorization::policies_decide(stage))),
    ("RequestAuthentication and policies on claims decide as they say", |stage| Box::pin(authorization::tokens_decide(stage))),
    ("a CUSTOM AuthorizationPolicy asks its provider and obeys it", |stage| Box::pin(policy::a_custom_policy_takes_effect(stage))),
    ("waypoint parity names objects as kubectl does, with its exit code", |stage| Box::pin(parity::objects_are_named(stage))),
    ("a service's Telemetry object that is changed counts on open connections", |stage| {
        Box::pin(telemetry::a_services_telemetry_follows_its_object(stage))
    }),
    ("labels, metrics, interval and log format of a Telemetry object change on open connections", |stage| {
        Box::pin(telemetry::metrics_and_lines_follow_the_object(stage))
    }),
    ("a deleted Telemetry object ends the log lines", |stage| Box::pin(telemetry::deleting_telemetry_ends_logging(stage))),
    ("a pod drained under load loses no request", |stage| Box::pin(endpoints::a_drained_pod_loses_nothing(stage))),
    ("a pod killed under load fails only what it had, once", |stage| Box::pin(endpoints::a_killed_pod_fails_only_its_own(stage))),
    ("an istiod restarted under load loses no request", |stage| Box::pin(endpoints::an_istiod_restart_loses_nothing(stage))),
    ("SIGTERM ends it in time, with exit code 0, and finishes requests", |stage| Box::pin(drop_in::terminates_in_time(stage))),
];

async fn run_step(stage: &mut Stage, (name, step): Step) -> bool {
    let since = Instant::now();
    let outcome = match tokio::time::timeout(STEP_DEADLINE, step(stage)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(anyhow!("not finished within {STEP_DEADLINE:?}")),
    };
    let seconds = since.elapsed().as_secs_f64();
    match outcome {
        Ok(()) => println!("ok      {seconds:5.1} s  {name}"),
        Err(error) => {
            println!("FAILED  {seconds:5.1} s  {name}\n{error:#}");
            stage.print_logs();
            return false;
        }
    }
    true
}

async fn run(words: &[String]) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let since = Instant::now();
    let mut stage = Stage::start(folder.path()).await.context("setting the stage")?;
    println!("ready   {:5.1} s  etcd, kube-apiserver, istiod, workloads and the waypoint", since.elapsed().as_secs_f64());
    let (mut n_passed, mut n_failed) = (0, 0);
    for step in STEPS.iter().filter(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))) {
        if run_step(&mut stage, *step).await {
            n_passed += 1;
        } else {
            n_failed += 1;
        }
    }
    if n_failed > 0 {
        println!("logs are kept in {}", folder.keep().display());
    }
    println!("controlplane: {n_passed} passed, {n_failed} failed");
    Ok(n_failed == 0 && n_passed > 0)
}

fn main() -> ExitCode {
    // The options of the usual test harness mean nothing here.
    let words: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let prepared = if net::is_inside() { Ok(()) } else { istiod::build().and_then(|()| process::binary().map(drop)) };
    if let Err(error) = prepared {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    net::enter_or_reexec(&[(stage::NETWORK, stage::ADDRESS)]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.context("a runtime").and_then(|runtime| runtime.block_on(run(&words))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            println!("controlplane: 0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}
