//! Authorization policies, compiled: Envoy's RBAC as istiod generates it for waypoints.
//!
//! Not for: deciding; `filters::rbac` does.
//! Invariants: policies are kept in name order, in which Envoy evaluates them; what could not be compiled is not here
//! (its chain was refused), so evaluating fails closed by construction.

mod index;

use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;

use crate::claims::ClaimMatcher;
use crate::matcher::{StringMatcher, UriTemplate};
use crate::refusal::PolicyRule;
use crate::route::HeaderMatcher;

pub use self::index::Index;

/// What a matched policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RbacAction {
    /// Only what a policy matches may pass.
    Allow,
    /// What a policy matches may not pass.
    Deny,
    /// Nothing is refused.
    Log,
}

impl RbacAction {
    /// As AuthorizationPolicies call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Log => "AUDIT",
        }
    }
}

/// Whether policies count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// They do.
    #[default]
    Enforced,
    /// They are tried and told about, and refuse nothing: shadow rules.
    DryRun,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Permission {
    /// Anything.
    Any,
    /// All of these.
    And(Vec<Permission>),
    /// One of these.
    Or(Vec<Permission>),
    /// Not this.
    Not(Box<Permission>),
    /// A header; every line of it is seen.
    Header(HeaderMatcher),
    /// The path without query and fragment.
    UrlPath(StringMatcher),
    /// The address asked for.
    DestinationIp(IpNet),
    /// The port asked for.
    DestinationPort(u16),
    /// The port asked for, from the first up to the last, which is left out.
    DestinationPortRange(Range<i32>),
    /// The path without query and fragment.
    UriTemplate(UriTemplate),
    /// The name in a ClientHello, in lower case; an empty one where there is none.
    ServerName(StringMatcher),
    /// What verified tokens say.
    Claim(ClaimMatcher),
}

/// Who asks.
#[derive(Clone, Debug)]
pub enum Principal {
    /// Anyone.
    Any,
    /// All of these.
    And(Vec<Principal>),
    /// One of these.
    Or(Vec<Principal>),
    /// Not this.
    Not(Box<Principal>),
    /// `io.istio.peer_principal`: the verified identity of the HBONE client.
    PeerPrincipal(StringMatcher),
    /// The HBONE client's address.
    DirectRemoteIp(IpNet),
    /// The address that `x-forwarded-for` names, by Envoy's rules.
    RemoteIp(IpNet),
    /// A header; every line of it is seen.
    Header(HeaderMatcher),
    /// The path without query and fragment.
    UrlPath(StringMatcher),
    /// What verified tokens say.
    Claim(ClaimMatcher),
}

impl Permission {
    /// Whether it is, or is made of, such a condition.
    fn has(&self, is_it: fn(&Self) -> bool) -> bool {
        match self {
            Self::And(all) | Self::Or(all) => all.iter().any(|one| one.has(is_it)),
            Self::Not(one) => one.has(is_it),
            condition => is_it(condition),
        }
    }
}

impl Principal {
    /// As [`Permission::has`].
    fn has(&self, is_it: fn(&Self) -> bool) -> bool {
        match self {
            Self::And(all) | Self::Or(all) => all.iter().any(|one| one.has(is_it)),
            Self::Not(one) => one.has(is_it),
            condition => is_it(condition),
        }
    }
}

/// One policy rule, `ns[shop]-policy[web-allow]-rule[0]`.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its name, as Envoy prints it.
    pub name: Arc<str>,
    /// What istiod made it of.
    pub rule: PolicyRule,
    /// One of these must match.
    pub permissions: Vec<Permission>,
    /// And one of these.
    pub principals: Vec<Principal>,
}

impl Policy {
    /// A rule of this name.
    #[must_use]
    pub fn new(name: &str, permissions: Vec<Permission>, principals: Vec<Principal>) -> Self {
        Self { name: name.into(), rule: PolicyRule::of(name), permissions, principals }
    }

    /// Whether some condition is about a header.
    #[must_use]
    pub fn reads_headers(&self) -> bool {
        let is_asked = |permission: &Permission| matches!(permission, Permission::Header(_));
        let is_known = |principal: &Principal| matches!(principal, Principal::Header(_));
        self.permissions.iter().any(|one| one.has(is_asked)) || self.principals.iter().any(|one| one.has(is_known))
    }
}

/// One RBAC filter.
#[derive(Clone, Debug)]
pub struct Rbac {
    /// What a match does.
    pub action: RbacAction,
    /// Whether it counts.
    pub mode: Mode,
    /// In name order.
    policies: Vec<Policy>,
    /// Where there are so many that it is worth it.
    index: Option<Box<Index>>,
}

/// Policies from which on they are looked up by what they need, since trying fewer costs no more.
const INDEXED_FROM: usize = 8;

impl Rbac {
    /// A filter of policies in name order.
    #[must_use]
    pub fn new(action: RbacAction, policies: Vec<Policy>) -> Self {
        let index = (policies.len() >= INDEXED_FROM).then(|| Box::new(Index::new(&policies)));
        Self { action, mode: Mode::Enforced, policies, index }
    }

    /// A filter that refuses everything, by a policy of this name.
    #[must_use]
    pub fn denying(policy: &str) -> Self {
        Self::new(RbacAction::Deny, vec![Policy::new(policy, vec![Permission::Any], vec![Principal::Any])])
    }

    /// Whether some condition is about the name in a ClientHello.
    #[must_use]
    pub fn reads_server_name(&self) -> bool {
        let is_it = |permission: &Permission| matches!(permission, Permission::ServerName(_));
        self.policies.iter().flat_map(|policy| &policy.permissions).any(|one| one.has(is_it))
    }

    /// The same, to be told about only.
    #[must_use]
    pub fn as_dry_run(self) -> Self {
        Self { mode: Mode::DryRun, ..self }
    }

    /// Its policies, in the order in which they are tried.
    #[must_use]
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// Finds those that can match; none where all are to be tried.
    #[must_use]
    pub fn index(&self) -> Option<&Index> {
        self.index.as_deref()
    }
}

/// What came of one filter.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// The filter.
    pub rbac: &'a Rbac,
    /// The first of its policies that matched.
    pub matched: Option<&'a Policy>,
}

impl Decision<'_> {
    /// Whether it refuses, or would if it counted.
    #[must_use]
    pub fn refuses(&self) -> bool {
        match self.rbac.action {
            RbacAction::Allow => self.matched.is_none(),
            RbacAction::Deny => self.matched.is_some(),
            RbacAction::Log => false,
        }
    }

    /// Whether it is counted: a policy matched, or one would have had to.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.matched.is_some() || self.refuses()
    }

    /// Whether there is anything to tell: dry runs tell what they come to in any case.
    #[must_use]
    pub fn is_telling(&self) -> bool {
        self.counts() || self.rbac.mode == Mode::DryRun
    }
}
