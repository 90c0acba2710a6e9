//! The filters of a chain that let pass or refuse, put into the two parts in which they are asked.
//!
//! Invariant: their order stays; what stands before tokens are verified, or before an external service is asked, is judged there.

use envoy_types::pb::envoy::config::rbac::v3 as proto;
use model::chain::EarlyFilter;
use model::ext_authz::ExtAuthz;
use model::rbac::Rbac;

use super::ext_authz::SHADOW_PREFIX;
use super::rbac::rules;
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

    /// An RBAC filter.
    pub(super) fn add_rbac(&mut self, enforced: Option<&proto::Rbac>, shadow: (Option<&proto::Rbac>, &str), path: &str) -> Translated<()> {
        self.pending.extend(read(enforced, shadow, path)?);
        Ok(())
    }

    /// An RBAC filter of connections, in which Envoy takes no conditions on headers: there are none, so a `not` would always hold.
    pub(super) fn add_network_rbac(
        &mut self,
        enforced: Option<&proto::Rbac>,
        (shadow, prefix): (Option<&proto::Rbac>, &str),
        path: &str,
    ) -> Translated<()> {
        for part in read(enforced, (shadow, prefix), path)? {
            if let EarlyFilter::Rbac(rbac) | EarlyFilter::Shadow(rbac) = &part
                && let Some(policy) = rbac.policies().iter().find(|policy| policy.reads_headers())
            {
                let path = format!("{path}.policies[{}]", policy.name);
                return Err(Problem::new(path, "a condition on headers is not for connections"));
            }
            self.pending.push(part);
        }
        Ok(())
    }

    /// Policies.
    pub(super) fn add(&mut self, policies: Rbac) {
        self.pending.push(EarlyFilter::Rbac(policies));
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
        (self.early.into(), self.pending.into_iter().filter_map(policies).collect())
    }
}

/// An RBAC filter, in the order in which its parts are judged. Its shadow rules are heard before its rules: with the prefix of external
/// authorization they count where they may let a service be asked, with any other they are a dry run.
fn read(enforced: Option<&proto::Rbac>, (shadow, prefix): (Option<&proto::Rbac>, &str), path: &str) -> Translated<Vec<EarlyFilter>> {
    let mut parts = Vec::new();
    if let Some(shadow) = shadow {
        let rules = rules(shadow, &format!("{path}.shadow_rules"))?;
        parts.push(match prefix {
            SHADOW_PREFIX => EarlyFilter::Shadow(rules),
            unknown if unknown.starts_with(SHADOW_PREFIX) => {
                return Err(Problem::new(format!("{path}.shadow_rules_stat_prefix"), format!("{prefix:?} is not known")));
            }
            _ => EarlyFilter::Rbac(rules.as_dry_run()),
        });
    }
    if let Some(enforced) = enforced {
        parts.push(EarlyFilter::Rbac(rules(enforced, path)?));
    }
    Ok(parts)
}

/// An RBAC filter behind which no service is asked any more.
pub(super) fn last_rbac(enforced: Option<&proto::Rbac>, shadow: (Option<&proto::Rbac>, &str), path: &str) -> Translated<Vec<Rbac>> {
    Ok(read(enforced, shadow, path)?.into_iter().filter_map(policies).collect())
}

fn policies(filter: EarlyFilter) -> Option<Rbac> {
    match filter {
        EarlyFilter::Rbac(policies) => Some(policies),
        EarlyFilter::Shadow(_) | EarlyFilter::External(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use model::rbac::{Mode, RbacAction};
    use prost::Message;
    use serde_json::json;

    use super::*;

    fn rules_of(action: &str, principal: &serde_json::Value) -> proto::Rbac {
        let json = json!({"action": action, "policies": {"p": {"permissions": [{"any": true}], "principals": [principal]}}});
        proto::Rbac::decode(&xds_proto::message_from_json("envoy.config.rbac.v3.RBAC", &json).unwrap()[..]).unwrap()
    }

    #[test]
    fn a_dry_run_stands_before_the_rules_that_count() {
        let (shadow, enforced) = (rules_of("DENY", &json!({"any": true})), rules_of("ALLOW", &json!({"any": true})));
        let read = |shadow, enforced| {
            let mut judges = Judges::default();
            judges.add_rbac(enforced, (shadow, "istio_dry_run_deny_"), "here").unwrap();
            let (early, policies) = judges.finish();
            assert!(early.is_empty());
            policies.iter().map(|rbac| (rbac.action, rbac.mode)).collect::<Vec<_>>()
        };
        let (dry_run, counts) = ((RbacAction::Deny, Mode::DryRun), (RbacAction::Allow, Mode::Enforced));
        assert_eq!(read(Some(&shadow), Some(&enforced)), [dry_run, counts]);
        assert_eq!((read(Some(&shadow), None), read(None, Some(&enforced))), (vec![dry_run], vec![counts]));
        assert_eq!(read(None, None), []);
    }

    #[test]
    fn a_dry_run_that_cannot_be_read_is_a_problem() {
        let unreadable = rules_of("DENY", &json!({}));
        let mut judges = Judges::default();
        let problem = judges.add_rbac(None, (Some(&unreadable), "istio_dry_run_allow_"), "here").unwrap_err();
        assert_eq!(problem.path, "here.shadow_rules.policies[p].principals[0]");
    }
}
