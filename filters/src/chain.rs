//! The order in which a request meets the filters: the specification, and its test.
//!
//! | step | filter | source |
//! | --- | --- | --- |
//! | 1 | the route is chosen, so that a refusal still names its cluster | Envoy's filter manager |
//! | | filters of step 5 that stand before all policies and tokens; they do not change the route | istiod, EnvoyFilter |
//! | 2 | CUSTOM: `rbac` with shadow rules and `ext_authz`, [`crate::ext_authz`], and all policies before the last of them or before tokens | istiod |
//! | 3 | `envoy.filters.http.jwt_authn`, [`crate::jwt`]: it changes the request, and the route is chosen anew with what tokens say | istiod |
//! | 4 | `envoy.filters.http.rbac`, in the order sent: AUDIT, DENY, ALLOW | istiod |
//! | 5 | `envoy.filters.http.fault`, `envoy.filters.http.cors` and others, as the route says, with policies behind them: [`model::route::RouteFilter`] | istiod, EnvoyFilter |
//! | 6 | the route's action | `envoy.filters.http.router` |
//!
//! Not for: steps that need another server's answer, which is step 2: [`crate::ext_authz::Progress`] leads through it.

use std::sync::Arc;

use model::chain::{Chain, ChainKind};
use model::route::Route;
use model::route_table::VirtualHost;

use crate::rbac::{self, Decisions, Denial, RbacInput, RbacVerdict};
use crate::route;

/// What the filters say of a request.
#[derive(Clone, Debug)]
pub enum Outcome<'a> {
    /// It goes where its route says.
    Route(&'a VirtualHost, &'a Arc<Route>),
    /// No route matches: 404.
    NoRoute,
    /// Refused: 403. The route is the one it would have taken.
    Denied {
        /// By whom.
        by: Denial<'a>,
        /// For the cluster's name in metrics and logs.
        route: Option<&'a Arc<Route>>,
    },
    /// The chain is not obeyed: 503 `config_rejected`.
    Rejected,
}

/// A route and its virtual host, if there is one for a request.
pub type Selected<'a> = Option<(&'a VirtualHost, &'a Arc<Route>)>;

/// Judges a request; what there is to tell of policies is added. `chosen`: the route that was chosen before the chain changed the
/// request, which stays unless tokens choose another.
pub fn judge<'a>(chain: &'a Chain, input: &RbacInput<'_>, chosen: Option<Selected<'a>>, decisions: &mut Decisions<'a>) -> Outcome<'a> {
    let (ChainKind::Http(http), Some(head)) = (&chain.kind, &input.head) else { return Outcome::Rejected };
    let selected = match (input.claims.filter(|claims| claims.is_seen_by_routes), chosen) {
        (None, Some(chosen)) => chosen,
        (claims, _) => route::select_with(&http.routes, head, claims),
    };
    match (rbac::decide_chain(chain, input, decisions), selected) {
        (RbacVerdict::Deny(by), selected) => Outcome::Denied { by, route: selected.map(|(_, route)| route) },
        (RbacVerdict::Pass, Some((host, route))) => Outcome::Route(host, route),
        (RbacVerdict::Pass, None) => Outcome::NoRoute,
    }
}
