//! What holds of all policies and all requests, on generated ones that come close to matching.

use http::HeaderMap;
use model::matcher::UriTemplate;
use proptest::prelude::*;

use super::*;
use crate::explain;

/// One generated request.
#[derive(Clone, Debug)]
struct Ask {
    identity: Option<String>,
    path: Option<String>,
    method: &'static str,
}

impl Ask {
    fn judged_by<T>(&self, judge: impl FnOnce(&RbacInput<'_>) -> T) -> T {
        let headers = HeaderMap::new();
        let head = |path| RequestHead { method: self.method, path, authority: Some("web.shop"), scheme: "http", headers: &headers };
        judge(&RbacInput {
            head: self.path.as_deref().map(head),
            peer_principal: self.identity.as_deref(),
            peer_address: IpAddr::from([10, 244, 9, 1]),
            forwarded_for: None,
            destination: Some(SocketAddr::from(([10, 96, 1, 1], 80))),
            destination_port: 80,
            server_name: "",
            claims: None,
        })
    }
}

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "ns", "sa"])
}

fn identities() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (name(), name()).prop_map(|(namespace, account)| format!("spiffe://td/ns/{namespace}/sa/{account}")),
        2 => prop::collection::vec(prop::sample::select(vec!["spiffe:", "", "td", "ns", "sa", "a", "b", "\n"]), 0..20)
            .prop_map(|parts| parts.join("/")),
    ]
}

fn paths() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["/a", "/b", "/", "b", "?a", "#", "*"]), 1..4).prop_map(|parts| parts.concat())
}

fn asks() -> impl Strategy<Value = Ask> {
    let method = prop::sample::select(vec!["GET", "POST"]);
    (prop::option::weighted(0.9, identities()), prop::option::weighted(0.9, paths()), method).prop_map(|(identity, path, method)| Ask {
        identity,
        path,
        method,
    })
}

fn text(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}

fn principals() -> impl Strategy<Value = Principal> {
    let regex = |expression: String| Principal::PeerPrincipal(StringMatcher::regex(&expression).expect("istiod's form"));
    let leaf = prop_oneof![
        Just(Principal::Any),
        identities().prop_map(|identity| Principal::PeerPrincipal(StringMatcher::Exact(text(&identity)))),
        name().prop_map(|namespace| Principal::PeerPrincipal(StringMatcher::Prefix(text(&format!("spiffe://td/ns/{namespace}"))))),
        name().prop_map(|account| Principal::PeerPrincipal(StringMatcher::Suffix(text(&format!("/sa/{account}"))))),
        name().prop_map(move |namespace| regex(format!(".*/ns/{namespace}/.*"))),
        (name(), name()).prop_map(move |(namespace, account)| regex(format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?"))),
        Just(regex(".+".to_owned())),
        paths().prop_map(|path| Principal::UrlPath(StringMatcher::Exact(text(&path)))),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Principal::And),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Principal::Or),
            inner.prop_map(|one| Principal::Not(Box::new(one))),
        ]
    })
}

fn permissions() -> impl Strategy<Value = Permission> {
    let method = |method: &'static str| {
        let test = HeaderTest::Text(StringMatcher::Exact(text(method)));
        Permission::Header(HeaderMatcher { name: MatchedHeader::Method, test, invert: false, missing_as_empty: false })
    };
    let template = |template: &'static str| Permission::UriTemplate(UriTemplate::new(template).expect("a template"));
    let leaf = prop_oneof![
        Just(Permission::Any),
        paths().prop_map(|path| Permission::UrlPath(StringMatcher::Exact(text(&path)))),
        paths().prop_map(|path| Permission::UrlPath(StringMatcher::Prefix(text(&path)))),
        paths().prop_map(|path| Permission::UrlPath(StringMatcher::Suffix(text(&path)))),
        prop::sample::select(vec!["/a/*", "/*/b", "/a/**", "/**"]).prop_map(template),
        prop::sample::select(vec!["GET", "POST"]).prop_map(method),
        Just(Permission::DestinationPort(80)),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Permission::And),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Permission::Or),
            inner.prop_map(|one| Permission::Not(Box::new(one))),
        ]
    })
}

fn policies(count: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<Policy>> {
    let one = (prop::collection::vec(permissions(), 0..3), prop::collection::vec(principals(), 0..3));
    prop::collection::vec(one, count).prop_map(|all| {
        let named = |(at, (permissions, principals))| Policy::new(&format!("ns[shop]-policy[p{at}]-rule[0]"), permissions, principals);
        all.into_iter().enumerate().map(named).collect()
    })
}

fn passes(filters: &[Rbac], ask: &Ask) -> bool {
    ask.judged_by(|input| filters.iter().all(|rbac| matches!(decide(rbac, input, &mut Decisions::new()), RbacVerdict::Pass)))
}

#[test]
fn an_identity_of_many_parts_is_tried_with_all_policies() {
    let account = "spiffe://.+/ns/a/(.+/|)sa/b(/.+)?";
    let principal = Principal::PeerPrincipal(StringMatcher::regex(account).expect("istiod's form"));
    let policy = Policy::new("ns[shop]-policy[p]-rule[0]", vec![Permission::Any], vec![principal]);
    let rbac = Rbac::new(RbacAction::Allow, vec![policy; 8]);
    assert!(rbac.index().is_some());
    for parts in [0, 5, 20, 1000] {
        let identity = Some(format!("spiffe://td/ns/a/{}sa/b", "x/".repeat(parts)));
        assert!(Ask { identity, path: None, method: "GET" }.judged_by(|input| matching(&rbac, input).is_some()), "{parts}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn looking_policies_up_finds_the_one_that_trying_all_of_them_finds(
        policies in policies(8..40),
        asks in prop::collection::vec(asks(), 1..20),
        action in prop::sample::select(vec![RbacAction::Allow, RbacAction::Deny]),
    ) {
        let rbac = Rbac::new(action, policies);
        prop_assert!(rbac.index().is_some());
        for ask in asks {
            let (found, tried) = ask.judged_by(|input| {
                let tried = rbac.policies().iter().find(|policy| policy_matches(policy, input, must_hold(action)));
                (matching(&rbac, input).map(|policy| policy.name.clone()), tried.map(|policy| policy.name.clone()))
            });
            prop_assert_eq!(found, tried, "{:?}", ask);
        }
    }

    #[test]
    fn a_policy_matches_exactly_when_each_of_the_conditions_that_are_told_is_met(
        policies in policies(1..6),
        asks in prop::collection::vec(asks(), 1..20),
        action in prop::sample::select(vec![RbacAction::Allow, RbacAction::Deny]),
    ) {
        let rbac = Rbac::new(action, policies);
        for ask in asks {
            ask.judged_by(|input| {
                let told: Vec<_> = explain::policies(&rbac, input).collect();
                for one in &told {
                    let is_possible = !one.policy.permissions.is_empty() && !one.policy.principals.is_empty();
                    prop_assert_eq!(one.matches, is_possible && one.conditions.iter().all(|condition| condition.is_met), "{:?}", ask);
                }
                let first = told.iter().find(|one| one.matches).map(|one| &one.policy.name);
                prop_assert_eq!(first, matching(&rbac, input).map(|policy| &policy.name), "{:?}", ask);
                Ok(())
            })?;
        }
    }

    #[test]
    fn one_more_deny_never_lets_more_through(
        all in policies(2..20),
        allow in policies(0..12),
        asks in prop::collection::vec(asks(), 1..20),
    ) {
        let allow = Rbac::new(RbacAction::Allow, allow);
        let with = [Rbac::new(RbacAction::Deny, all.clone()), allow.clone()];
        let without = [Rbac::new(RbacAction::Deny, all[1..].to_vec()), allow.clone()];
        for ask in &asks {
            prop_assert!(!passes(&with, ask) || passes(&without, ask));
            prop_assert!(!passes(&without, ask) || passes(std::slice::from_ref(&allow), ask), "nor does the first");
        }
    }

    #[test]
    fn one_more_allow_beside_others_never_lets_less_through(
        all in policies(2..20),
        deny in policies(0..12),
        asks in prop::collection::vec(asks(), 1..20),
    ) {
        let deny = Rbac::new(RbacAction::Deny, deny);
        let with = [deny.clone(), Rbac::new(RbacAction::Allow, all.clone())];
        let without = [deny, Rbac::new(RbacAction::Allow, all[1..].to_vec())];
        for ask in &asks {
            prop_assert!(passes(&with, ask) || !passes(&without, ask));
        }
    }
}
