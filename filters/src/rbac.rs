//! Whether authorization policies let a request or connection pass.
//!
//! Not for: where identities come from; the caller passes what it has verified.
//! Invariant: a header that comes on several lines never lets more through. Where a match refuses, one line is enough to match;
//! where a match permits, every line must match, and so must all lines joined (what Envoy sees).

use std::net::{IpAddr, SocketAddr};

use model::chain::{Chain, ChainKind, HttpFilter};
use model::claims::TokenMetadata;
use model::matcher::StringMatcher;
use model::rbac::{Decision, Mode, Permission, Policy, Principal, Rbac, RbacAction};
use model::route::{HeaderMatcher, HeaderTest, MatchedHeader};
use model::stream_view::RequestHead;
use smallvec::SmallVec;

use crate::header_match::{self, path_only};

/// What is known of who asks for what.
#[derive(Clone, Copy, Debug)]
pub struct RbacInput<'a> {
    /// The request; none for TCP.
    pub head: Option<RequestHead<'a>>,
    /// The identity of the HBONE client's verified certificate.
    pub peer_principal: Option<&'a str>,
    /// The HBONE client's address.
    pub peer_address: IpAddr,
    /// The client that `x-forwarded-for` named last when the request came, whatever filters made of it since.
    pub forwarded_for: Option<IpAddr>,
    /// The address that was asked for; none of a service that was asked for by its name.
    pub destination: Option<SocketAddr>,
    /// The port that was asked for.
    pub destination_port: u16,
    /// The name in the connection's ClientHello; empty without one.
    pub server_name: &'a str,
    /// What the verified tokens of the request say; none without one.
    pub claims: Option<&'a TokenMetadata>,
}

/// What there is to tell of the filters of a chain: one for each in most chains.
pub type Decisions<'a> = SmallVec<[Decision<'a>; 4]>;

/// What a filter says.
#[derive(Clone, Copy, Debug)]
pub enum RbacVerdict<'a> {
    /// Go on.
    Pass,
    /// Refused.
    Deny(Denial<'a>),
}

/// Who refuses.
#[derive(Clone, Copy, Debug)]
pub enum Denial<'a> {
    /// This policy of a DENY filter, which matched.
    Matched(&'a Policy),
    /// This ALLOW filter, no policy of which matched.
    NoneMatched(&'a Rbac),
    /// A chain that is not obeyed.
    Rejected,
}

impl<'a> Denial<'a> {
    /// The one that comes of a decision, if it is one.
    #[must_use]
    pub fn of(decision: &Decision<'a>) -> Option<Self> {
        match decision.matched {
            _ if !decision.refuses() => None,
            Some(policy) => Some(Self::Matched(policy)),
            None => Some(Self::NoneMatched(decision.rbac)),
        }
    }

    /// The policy as Envoy names it: none if none matched.
    #[must_use]
    pub fn policy(&self) -> Option<&str> {
        match self {
            Self::Matched(policy) => Some(&policy.name),
            Self::NoneMatched(_) | Self::Rejected => None,
        }
    }
}

/// Judges one filter, and adds what there is to tell of it.
pub fn decide<'a>(rbac: &'a Rbac, input: &RbacInput<'_>, decisions: &mut Decisions<'a>) -> RbacVerdict<'a> {
    let decision = Decision { rbac, matched: matching(rbac, input) };
    if decision.is_telling() {
        decisions.push(decision);
    }
    match (rbac.mode, Denial::of(&decision)) {
        (Mode::Enforced, Some(denial)) => RbacVerdict::Deny(denial),
        _ => RbacVerdict::Pass,
    }
}

/// The first policy of a filter that matches.
#[must_use]
pub fn matching<'a>(rbac: &'a Rbac, input: &RbacInput<'_>) -> Option<&'a Policy> {
    let must_hold = must_hold(rbac.action);
    let policies = rbac.policies();
    let Some(index) = rbac.index() else {
        return policies.iter().find(|policy| policy_matches(policy, input, must_hold));
    };
    let first = index.first(input.peer_principal, path_of(input), |at| policy_matches(&policies[at], input, must_hold));
    first.map(|at| &policies[at])
}

/// The path that conditions see.
pub(crate) fn path_of<'a>(input: &RbacInput<'a>) -> Option<&'a str> {
    input.head.map(|head| path_only(head.path))
}

/// Whether a match of this action permits.
pub(crate) fn must_hold(action: RbacAction) -> bool {
    action == RbacAction::Allow
}

/// The first refusal of a chain's filters, in their order; what there is to tell is added.
#[must_use]
pub fn decide_chain<'a>(chain: &'a Chain, input: &RbacInput<'_>, decisions: &mut Decisions<'a>) -> RbacVerdict<'a> {
    let mut refuses = |rbac: &'a Rbac| Some(decide(rbac, input, decisions)).filter(|verdict| matches!(verdict, RbacVerdict::Deny(_)));
    let refused = match &chain.kind {
        ChainKind::Http(http) => http.filters.iter().find_map(|HttpFilter::Rbac(rbac)| refuses(rbac)),
        ChainKind::Tcp(tcp) => tcp.rbac.iter().find_map(&mut refuses),
        ChainKind::Refused { .. } => Some(RbacVerdict::Deny(Denial::Rejected)),
    };
    refused.unwrap_or(RbacVerdict::Pass)
}

pub(crate) fn policy_matches(policy: &Policy, input: &RbacInput<'_>, must_hold: bool) -> bool {
    policy.permissions.iter().any(|permission| permits(permission, input, must_hold))
        && policy.principals.iter().any(|principal| is_principal(principal, input, must_hold))
}

/// `must_hold`: the answer permits, so every line of a header has to meet a condition; below a `not` it is the other way round.
pub(crate) fn permits(permission: &Permission, input: &RbacInput<'_>, must_hold: bool) -> bool {
    match permission {
        Permission::Any => true,
        Permission::And(all) => all.iter().all(|one| permits(one, input, must_hold)),
        Permission::Or(all) => all.iter().any(|one| permits(one, input, must_hold)),
        Permission::Not(one) => !permits(one, input, !must_hold),
        Permission::Header(matcher) => header(matcher, input, must_hold),
        Permission::UrlPath(matcher) => url_path(matcher, input),
        // What is not known never lets more through: it refuses where a match refuses, and permits nothing.
        Permission::DestinationIp(range) => input.destination.map_or(!must_hold, |address| range.contains(&address.ip())),
        Permission::DestinationPort(port) => input.destination_port == *port,
        Permission::DestinationPortRange(ports) => ports.contains(&i32::from(input.destination_port)),
        Permission::UriTemplate(template) => input.head.is_some_and(|head| template.matches(path_only(head.path))),
        Permission::ServerName(matcher) => matcher.matches(input.server_name.as_bytes()),
        Permission::Claim(matcher) => matcher.matches(input.claims),
    }
}

pub(crate) fn is_principal(principal: &Principal, input: &RbacInput<'_>, must_hold: bool) -> bool {
    match principal {
        Principal::Any => true,
        Principal::And(all) => all.iter().all(|one| is_principal(one, input, must_hold)),
        Principal::Or(all) => all.iter().any(|one| is_principal(one, input, must_hold)),
        Principal::Not(one) => !is_principal(one, input, !must_hold),
        Principal::PeerPrincipal(matcher) => input.peer_principal.is_some_and(|id| matcher.matches(id.as_bytes())),
        Principal::DirectRemoteIp(range) => range.contains(&input.peer_address),
        Principal::RemoteIp(range) => range.contains(&input.forwarded_for.unwrap_or(input.peer_address)),
        Principal::Header(matcher) => header(matcher, input, must_hold),
        Principal::UrlPath(matcher) => url_path(matcher, input),
        Principal::Claim(matcher) => matcher.matches(input.claims),
    }
}

fn url_path(matcher: &StringMatcher, input: &RbacInput<'_>) -> bool {
    input.head.is_some_and(|head| matcher.matches(path_only(head.path).as_bytes()))
}

fn header(matcher: &HeaderMatcher, input: &RbacInput<'_>, must_hold: bool) -> bool {
    let Some(head) = &input.head else { return false };
    let whole = header_match::matches_joined(matcher, head);
    let (HeaderTest::Text(test), MatchedHeader::Name(name)) = (&matcher.test, &matcher.name) else { return whole };
    let mut lines = head.headers.get_all(name).iter();
    let line_matches = |line: &http::HeaderValue| test.matches(line.as_bytes()) != matcher.invert;
    if must_hold { whole && lines.all(line_matches) } else { whole || lines.any(line_matches) }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod properties;
