//! External authorization: whether a service is asked, what it is told, and what its answer means.
//!
//! Not for: asking it, time limits, bodies; `waypoint` does that, and hands in what came of it. Source: Envoy's `ext_authz`.
//! Invariants: what is no answer lets nothing pass; no answer changes how a message is framed, where it goes, or a pseudo-header.

mod answer;
mod change;
mod check;
mod wire;

use std::sync::Arc;

use model::chain::EarlyFilter;
use model::ext_authz::{ExtAuthz, Gate};

use crate::rbac::{self, Decisions, Denial, RbacInput, RbacVerdict};

pub use self::answer::{Answer, Refusal, read_grpc, read_http};
pub use self::change::{Allowed, Header, How, Unusable, apply};
pub use self::check::{Facts, HttpFacts, Peer, Shown, grpc_call, http_call};

/// What comes next on the way through the early part of a chain.
#[derive(Clone, Debug)]
pub enum Step<'a> {
    /// A policy refuses it.
    Denied(Denial<'a>),
    /// The service has to be asked, because of this policy.
    Ask(&'a ExtAuthz, Option<Arc<str>>),
    /// It is not asked, and what it is not asked about is refused.
    Unasked(&'a ExtAuthz),
    /// Nothing more.
    Passed,
}

/// How far a request or connection has come.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    left: std::slice::Iter<'a, EarlyFilter>,
    /// Of the last shadow rules that matched.
    policy: Option<Arc<str>>,
    /// What there is to tell of policies since it was last taken.
    pub decisions: Decisions<'a>,
}

impl<'a> Progress<'a> {
    /// At the beginning.
    #[must_use]
    pub fn new(early: &'a [EarlyFilter]) -> Self {
        Self { left: early.iter(), policy: None, decisions: Decisions::new() }
    }

    /// Goes on to where somebody else has to say something. `input`: as it is now, since an answer may have changed it.
    pub fn next(&mut self, input: &RbacInput<'_>, mut draw: impl FnMut() -> u64) -> Step<'a> {
        for filter in self.left.by_ref() {
            match filter {
                EarlyFilter::Rbac(policies) => {
                    if let RbacVerdict::Deny(by) = rbac::decide(policies, input, &mut self.decisions) {
                        return Step::Denied(by);
                    }
                }
                EarlyFilter::Shadow(rules) => {
                    if let Some(matched) = rbac::matching(rules, input) {
                        self.policy = Some(Arc::clone(&matched.name));
                    }
                }
                EarlyFilter::External(filter) => {
                    let policy = self.policy.as_deref();
                    let is_on = filter.gate.as_ref().is_none_or(|gate| opens(gate, policy)) && filter.share.includes(draw());
                    match (is_on, filter.denies_unasked) {
                        (true, _) => return Step::Ask(filter, self.policy.clone()),
                        (false, true) => return Step::Unasked(filter),
                        (false, false) => {}
                    }
                }
            }
        }
        Step::Passed
    }
}

/// `policy`: of the shadow rules so far.
fn opens(gate: &Gate, policy: Option<&str>) -> bool {
    policy.is_some_and(|policy| gate.test.matches(policy.as_bytes())) != gate.invert
}

#[cfg(test)]
mod tests;
