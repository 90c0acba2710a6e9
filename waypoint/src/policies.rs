//! What is told of policies' decisions: counted, and kept with what they decided about.
//!
//! Not for: deciding. Invariants: what passes everything costs no more than its counts; a flood of refusals, or of what a dry run
//! would refuse, costs no more than a bounded number of explanations.

use std::sync::Arc;
use std::time::Instant;

use filters::explain;
use filters::rbac::{Decisions, Denial, RbacInput};
use model::rbac::Mode;
use model::refusal::DryRun;
use telemetry::record::StreamRecord;

use crate::worker::Worker;

/// Counts decisions, and notes why something is refused or would be.
pub fn note(decisions: &Decisions<'_>, input: &RbacInput<'_>, stream: &mut StreamRecord, worker: &Worker) {
    if decisions.is_empty() {
        return;
    }
    worker.with_telemetry(|telemetry| telemetry.count_decisions(decisions));
    for decision in decisions {
        let refusal =
            Denial::of(decision).map(|denial| explain::refusal(&denial, input, || worker.explanations.take(Instant::now()).allowed));
        match (decision.rbac.mode, refusal) {
            (Mode::DryRun, refusal) => {
                let policy = decision.matched.map(|policy| Arc::clone(&policy.name));
                stream.dry_runs.push(DryRun { action: decision.rbac.action, policy, refusal });
            }
            (Mode::Enforced, Some(refusal)) => stream.refusal = Some(Box::new(refusal)),
            (Mode::Enforced, None) => {}
        }
    }
}

/// Counts what an authorization service decided that was asked because of this policy. Without a policy nothing is counted: an
/// `ext_authz` filter that no policy asks for has no name to count by.
pub fn note_external(policy: Option<&Arc<str>>, refuses: bool, worker: &Worker) {
    if let Some(policy) = policy {
        worker.with_telemetry(|telemetry| telemetry.count_external_decision(policy, refuses));
    }
}
