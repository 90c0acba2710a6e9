//! Why a request or connection was refused: for operators, in logs, spans and on the admin port.
//!
//! Not for: clients, who are told nothing of it, or finding the reason; `filters::explain` does.
//! Invariant: what is said of a policy is what its author wrote; nothing of a token, and no value of a header, is in it.

use std::borrow::Cow;
use std::sync::Arc;

use crate::rbac::RbacAction;

/// A rule of a policy as `kubectl` shows it: rule 0 of `shop/web`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// `NAMESPACE/NAME`, or the whole name of a policy that is not named as istiod names them.
    pub policy: Arc<str>,
    /// Which of its rules, from 0.
    pub rule: Option<u32>,
}

impl PolicyRule {
    /// Reads `ns[shop]-policy[web]-rule[0]`, which istiod may put between a provider's name and a remark; or a path that has it.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self::parse(name).unwrap_or_else(|| Self { policy: name.into(), rule: None })
    }

    fn parse(name: &str) -> Option<Self> {
        let (before, rest) = name.split_once("]-policy[")?;
        // Nearest to it: the path that a name stands in has fields that end alike, `filter_chains[`.
        let (_, namespace) = before.rsplit_once("ns[")?;
        let (policy, rest) = rest.split_once("]-rule[")?;
        let (rule, _) = rest.split_once(']')?;
        Some(Self { policy: format!("{namespace}/{policy}").into(), rule: Some(rule.parse().ok()?) })
    }
}

/// Who refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBy {
    /// A DENY policy matched.
    DenyPolicy,
    /// There are ALLOW policies, and none matched.
    NoAllowPolicy,
    /// A token is missing or not accepted.
    Token,
    /// A service that a CUSTOM policy asks.
    External,
}

impl RefusedBy {
    /// The word in logs and spans.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DenyPolicy => "deny_policy",
            Self::NoAllowPolicy => "no_allow_policy",
            Self::Token => "token",
            Self::External => "external",
        }
    }
}

/// The ALLOW policy that most nearly matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// Which.
    pub rule: PolicyRule,
    /// The first of its conditions that is not met, in words.
    pub failed: String,
}

/// Why it was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Who refused.
    pub by: RefusedBy,
    /// By which policy.
    pub rule: Option<PolicyRule>,
    /// Of an ALLOW that is missing.
    pub nearest: Option<Nearest>,
    /// What else is known: what is wrong with a token, what a service said.
    pub detail: Option<Cow<'static, str>>,
}

impl Refusal {
    /// A refusal of which nothing more is known.
    #[must_use]
    pub const fn new(by: RefusedBy) -> Self {
        Self { by, rule: None, nearest: None, detail: None }
    }

    /// What is known, in a fixed order.
    pub fn fields(&self) -> impl Iterator<Item = (RefusalField, Cow<'_, str>)> {
        RefusalField::ALL.into_iter().filter_map(|field| Some((field, self.field(field)?)))
    }

    /// One thing of it.
    #[must_use]
    pub fn field(&self, field: RefusalField) -> Option<Cow<'_, str>> {
        let nearest = self.nearest.as_ref();
        let number = |rule: &PolicyRule| rule.rule.map(|rule| Cow::Owned(rule.to_string()));
        match field {
            RefusalField::By => Some(Cow::Borrowed(self.by.as_str())),
            RefusalField::Policy => self.rule.as_ref().map(|rule| Cow::Borrowed(&*rule.policy)),
            RefusalField::Rule => self.rule.as_ref().and_then(number),
            RefusalField::NearestPolicy => nearest.map(|nearest| Cow::Borrowed(&*nearest.rule.policy)),
            RefusalField::NearestRule => nearest.and_then(|nearest| number(&nearest.rule)),
            RefusalField::FailedCondition => nearest.map(|nearest| Cow::Borrowed(nearest.failed.as_str())),
            RefusalField::Detail => self.detail.as_deref().map(Cow::Borrowed),
        }
    }
}

/// What a dry run of one action came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRun {
    /// Of these policies.
    pub action: RbacAction,
    /// The one that matched, as Envoy names it.
    pub policy: Option<Arc<str>>,
    /// Why it would have been refused; none if it would not.
    pub refusal: Option<Refusal>,
}

/// A part of what Envoy's RBAC filter keeps of a dry run, as metadata of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DryRunField {
    action: RbacAction,
    is_policy: bool,
}

impl DryRunField {
    /// From the filter's name and the key, `istio_dry_run_allow_shadow_engine_result`.
    #[must_use]
    pub fn parse(filter: &str, key: &str) -> Option<Self> {
        if !matches!(filter, "envoy.filters.http.rbac" | "envoy.filters.network.rbac") {
            return None;
        }
        let (action, field) = key.strip_prefix("istio_dry_run_")?.split_once("_shadow_")?;
        let action = match action {
            "allow" => RbacAction::Allow,
            "deny" => RbacAction::Deny,
            _ => return None,
        };
        let is_policy = match field {
            "effective_policy_id" => true,
            "engine_result" => false,
            _ => return None,
        };
        Some(Self { action, is_policy })
    }

    /// What it says, of all dry runs of a request or connection.
    #[must_use]
    pub fn of(self, all: &[DryRun]) -> Option<&str> {
        let one = all.iter().find(|one| one.action == self.action)?;
        match self.is_policy {
            true => one.policy.as_deref(),
            false => Some(if one.refusal.is_some() { "denied" } else { "allowed" }),
        }
    }
}

/// What can be asked of a refusal: keys of `%DYNAMIC_METADATA(waypoint.refusal:KEY)%`, and attributes of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the part of `Refusal` of the same name")]
pub enum RefusalField {
    By,
    Policy,
    Rule,
    NearestPolicy,
    NearestRule,
    FailedCondition,
    Detail,
}

impl RefusalField {
    /// All, in the order in which they print.
    pub const ALL: [Self; 7] =
        [Self::By, Self::Policy, Self::Rule, Self::NearestPolicy, Self::NearestRule, Self::FailedCondition, Self::Detail];

    /// Its key.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::By => "by",
            Self::Policy => "policy",
            Self::Rule => "rule",
            Self::NearestPolicy => "nearest_policy",
            Self::NearestRule => "nearest_rule",
            Self::FailedCondition => "failed_condition",
            Self::Detail => "detail",
        }
    }

    /// The name of the attribute of a span.
    #[must_use]
    pub const fn attribute(self) -> &'static str {
        match self {
            Self::By => "waypoint.refusal.by",
            Self::Policy => "waypoint.refusal.policy",
            Self::Rule => "waypoint.refusal.rule",
            Self::NearestPolicy => "waypoint.refusal.nearest_policy",
            Self::NearestRule => "waypoint.refusal.nearest_rule",
            Self::FailedCondition => "waypoint.refusal.failed_condition",
            Self::Detail => "waypoint.refusal.detail",
        }
    }

    /// Reads a key.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.key() == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_named_as_kubectl_shows_them() {
        let rule = |policy: &str, rule| PolicyRule { policy: policy.into(), rule };
        for (name, expected) in [
            ("ns[shop]-policy[web]-rule[0]", rule("shop/web", Some(0))),
            ("ns[shop]-policy[web.v1]-rule[12]", rule("shop/web.v1", Some(12))),
            ("istio-ext-authz-opa-ns[shop]-policy[auto]-rule[1]", rule("shop/auto", Some(1))),
            ("ns[shop]-policy[auto]-rule[0]-deny-due-to-bad-CUSTOM-action", rule("shop/auto", Some(0))),
            ("filter_chains[x].rules.policies[ns[shop]-policy[web]-rule[2]].permissions[0]", rule("shop/web", Some(2))),
            ("default-deny-all-due-to-bad-CUSTOM-action", rule("default-deny-all-due-to-bad-CUSTOM-action", None)),
            ("ns[shop]-policy[web]-rule[x]", rule("ns[shop]-policy[web]-rule[x]", None)),
        ] {
            assert_eq!(PolicyRule::of(name), expected);
        }
    }

    #[test]
    fn only_what_is_known_is_told() {
        let denied = Refusal { rule: Some(PolicyRule::of("ns[shop]-policy[web]-rule[0]")), ..Refusal::new(RefusedBy::DenyPolicy) };
        let told: Vec<_> = denied.fields().map(|(field, value)| format!("{}={value}", field.key())).collect();
        assert_eq!(told, ["by=deny_policy", "policy=shop/web", "rule=0"]);
    }
}
