//! Why policies refuse, clause by clause: found by the code that decides, only once something was refused or asked about.
//!
//! Not for: deciding. Invariant: what is looked at for one refusal is bounded, however many policies there are.

mod words;

use model::rbac::{Permission, Policy, Principal, Rbac};
use model::refusal::{Nearest, Refusal, RefusedBy};
use smallvec::SmallVec;

use crate::rbac::{Denial, RbacInput, is_principal, must_hold, path_of, permits, policy_matches};

pub use self::words::{Values, words};

/// Policies that are looked at to find which came nearest.
pub const NEAREST_POLICIES_MAX: usize = 64;
/// Bytes of the text of a condition that was not met.
pub const CONDITION_BYTES_MAX: usize = 256;

/// What one condition of a policy is about.
#[derive(Clone, Copy, Debug)]
pub enum Clause<'a> {
    /// Who asks.
    Principal(&'a Principal),
    /// What is asked for.
    Permission(&'a Permission),
}

impl Clause<'_> {
    /// Whether it asks for nothing.
    fn is_any(self) -> bool {
        matches!(self, Self::Principal(Principal::Any) | Self::Permission(Permission::Any))
    }
}

/// One condition of a policy.
#[derive(Clone, Copy, Debug)]
pub struct Condition<'a> {
    /// What it is about.
    pub clause: Clause<'a>,
    /// Whether the request meets it.
    pub is_met: bool,
}

/// The conditions of a policy, all of which must be met: of several alternatives those that are nearest to it. None if it can never match.
#[must_use]
pub fn conditions<'a>(policy: &'a Policy, permits_if_met: bool, input: &RbacInput<'_>) -> Option<Vec<Condition<'a>>> {
    let who = policy.principals.iter().map(|principal| {
        let all = if let Principal::And(all) = principal { all.as_slice() } else { std::slice::from_ref(principal) };
        let met = |one| Condition { clause: Clause::Principal(one), is_met: is_principal(one, input, permits_if_met) };
        all.iter().map(met).collect()
    });
    let what = policy.permissions.iter().map(|permission| {
        let all = if let Permission::And(all) = permission { all.as_slice() } else { std::slice::from_ref(permission) };
        let met = |one| Condition { clause: Clause::Permission(one), is_met: permits(one, input, permits_if_met) };
        all.iter().map(met).collect()
    });
    let mut all: Vec<_> = who.min_by_key(n_failed)?;
    all.extend(what.min_by_key(n_failed)?);
    Some(all)
}

/// What one policy says of a request.
#[derive(Clone, Debug)]
pub struct Verdict<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Whether it matches.
    pub matches: bool,
    /// Its conditions, as [`conditions`] has them; none of one that can never match.
    pub conditions: Vec<Condition<'a>>,
}

/// What each policy of a filter says, in their order.
pub fn policies<'a>(rbac: &'a Rbac, input: &RbacInput<'_>) -> impl Iterator<Item = Verdict<'a>> {
    let permits_if_met = must_hold(rbac.action);
    rbac.policies().iter().map(move |policy| Verdict {
        policy,
        matches: policy_matches(policy, input, permits_if_met),
        conditions: conditions(policy, permits_if_met, input).unwrap_or_default(),
    })
}

fn n_failed(conditions: &Vec<Condition<'_>>) -> usize {
    conditions.iter().filter(|one| !one.is_met).count()
}

/// Why something is refused, for operators. `finds_nearest`: also which policy came nearest, where none matched; that is what costs.
#[must_use]
pub fn refusal(denial: &Denial<'_>, input: &RbacInput<'_>, finds_nearest: impl FnOnce() -> bool) -> Refusal {
    match denial {
        Denial::Matched(policy) => Refusal { rule: Some(policy.rule.clone()), ..Refusal::new(RefusedBy::DenyPolicy) },
        Denial::NoneMatched(rbac) => {
            let nearest = finds_nearest().then(|| nearest(rbac, input)).flatten();
            Refusal { nearest, ..Refusal::new(RefusedBy::NoAllowPolicy) }
        }
        Denial::Rejected => Refusal { detail: Some("config_rejected".into()), ..Refusal::new(RefusedBy::NoAllowPolicy) },
    }
}

/// The policy with the fewest conditions that are not met; of several, the one with the most that are; then the first.
fn nearest(rbac: &Rbac, input: &RbacInput<'_>) -> Option<Nearest> {
    let policies = rbac.policies();
    let mut numbers: SmallVec<[usize; NEAREST_POLICIES_MAX]> = SmallVec::new();
    if let Some(index) = rbac.index() {
        // They have something in common with the request, the others may have nothing.
        index.visit(input.peer_principal, path_of(input), |found| {
            numbers.extend(found.iter().copied().take(NEAREST_POLICIES_MAX - numbers.len()));
        });
    }
    numbers.extend((0..policies.len()).take(NEAREST_POLICIES_MAX - numbers.len()));
    let looked_at = numbers.into_iter().filter_map(|at| {
        let policy = &policies[at];
        let conditions = conditions(policy, must_hold(rbac.action), input)?;
        let failed = conditions.iter().find(|one| !one.is_met)?.clause;
        let n_failed = n_failed(&conditions);
        let n_met = conditions.iter().filter(|one| one.is_met && !one.clause.is_any()).count();
        Some(((n_failed, std::cmp::Reverse(n_met), at), policy, failed))
    });
    let (_, policy, failed) = looked_at.min_by_key(|(distance, ..)| *distance)?;
    Some(Nearest { rule: policy.rule.clone(), failed: words(failed, Values::Hidden, CONDITION_BYTES_MAX) })
}

#[cfg(test)]
mod tests;
