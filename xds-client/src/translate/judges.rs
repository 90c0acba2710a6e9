//! The filters of a chain that let pass or refuse, put into the two parts in which they are asked.
//!
//! Invariant: their order stays; what stands before tokens are verified, or before an external service is asked, is judged there.

use envoy_types::pb::envoy::config::rbac::v3 as proto;
use model::chain::EarlyFilter;
use model::ext_authz::ExtAuthz;
use model::rbac::Rbac;

use super::ext_authz::SHADOW_PREFIX;
use super::rbac::{Place, rules};
use super::{Problem, Translated};

/// Those of a chain that were read so far.
#[derive(Default)]
pub(super) struct Judges {
    early: Vec<EarlyFilter>,
    /// Since the last that is certainly early.
    pending: Vec<EarlyFilter>,
}

impl Judges {
    pub(super) fn is_empty(&self) -> bool {
        self.early.is_empty() && self.pending.is_empty()
    }

    /// An RBAC filter. Shadow rules, with their prefix, are heard before its rules; they count where they may let a service be asked.
    pub(super) fn add_rbac(
        &mut self,
        enforced: Option<&proto::Rbac>,
        (shadow, prefix): (Option<&proto::Rbac>, &str),
        place: Place,
        path: &str,
    ) -> Translated<()> {
        if let Some(shadow) = shadow.filter(|_| prefix.starts_with(SHADOW_PREFIX)) {
            if prefix != SHADOW_PREFIX {
                return Err(Problem::new(format!("{path}.shadow_rules_stat_prefix"), format!("{prefix:?} is not known")));
            }
            self.pending.push(EarlyFilter::Shadow(rules(shadow, place, &format!("{path}.shadow_rules"))?));
        }
        if let Some(enforced) = enforced {
            self.pending.push(EarlyFilter::Rbac(rules(enforced, place, path)?));
        }
        Ok(())
    }

    /// An external service is asked, after all that came before.
    pub(super) fn add_external(&mut self, filter: ExtAuthz) {
        self.settle();
        self.early.push(EarlyFilter::External(Box::new(filter)));
    }

    /// What came so far is judged before what comes.
    pub(super) fn settle(&mut self) {
        self.early.append(&mut self.pending);
    }

    /// The early part, and the policies after it; shadow rules that nobody listens to any more are left out.
    pub(super) fn finish(self) -> (Box<[EarlyFilter]>, Vec<Rbac>) {
        let policies = self.pending.into_iter().filter_map(|filter| match filter {
            EarlyFilter::Rbac(policies) => Some(policies),
            EarlyFilter::Shadow(_) | EarlyFilter::External(_) => None,
        });
        (self.early.into(), policies.collect())
    }
}
