#![expect(clippy::unwrap_used, reason = "tests")]

use http::HeaderMap;
use model::claims::{ClaimMatcher, ClaimTest};
use model::matcher::StringMatcher;
use model::rbac::RbacAction;
use model::route::{HeaderMatcher, HeaderTest, MatchedHeader};
use model::stream_view::{RequestHead, forwarded_for};

use super::*;
use crate::rbac::{Decisions, RbacVerdict, decide};

fn text(exact: &str) -> StringMatcher {
    StringMatcher::Exact(exact.as_bytes().into())
}

fn header(name: MatchedHeader, exact: &str) -> Permission {
    Permission::Header(HeaderMatcher { name, test: HeaderTest::Text(text(exact)), invert: false, missing_as_empty: false })
}

fn namespace(name: &str) -> Principal {
    Principal::And(vec![Principal::Or(vec![Principal::PeerPrincipal(StringMatcher::regex(&format!(".*/ns/{name}/.*")).unwrap())])])
}

fn to(conditions: Vec<Permission>) -> Permission {
    Permission::And(conditions)
}

fn path(exact: &str) -> Permission {
    Permission::Or(vec![Permission::UrlPath(text(exact))])
}

fn policy(name: &str, permission: Permission, principal: Principal) -> Policy {
    Policy::new(&format!("ns[shop]-policy[{name}]-rule[0]"), vec![permission], vec![principal])
}

fn refused(action: RbacAction, policies: Vec<Policy>) -> Refusal {
    refused_with(action, policies, true)
}

fn refused_with(action: RbacAction, policies: Vec<Policy>, finds_nearest: bool) -> Refusal {
    let headers = HeaderMap::new();
    let head = RequestHead { method: "GET", path: "/a?x=1", authority: Some("web.shop"), scheme: "http", headers: &headers };
    let input = RbacInput {
        head: Some(head),
        peer_principal: Some("spiffe://cluster.local/ns/clients/sa/frontend"),
        peer_address: "10.244.9.1".parse().unwrap(),
        forwarded_for: forwarded_for(head.headers),
        destination: Some("10.96.1.1:80".parse().unwrap()),
        destination_port: 80,
        server_name: "",
        claims: None,
    };
    let rbac = Rbac::new(action, policies);
    let RbacVerdict::Deny(denial) = decide(&rbac, &input, &mut Decisions::new()) else { panic!("it passes") };
    refusal(&denial, &input, || finds_nearest)
}

#[test]
fn a_deny_names_its_policy_and_rule() {
    let refusal = refused(RbacAction::Deny, vec![policy("web", to(vec![path("/a")]), Principal::Any)]);
    assert_eq!((refusal.by, refusal.nearest), (RefusedBy::DenyPolicy, None));
    let rule = refusal.rule.unwrap();
    assert_eq!((&*rule.policy, rule.rule), ("shop/web", Some(0)));
}

#[test]
fn without_an_allow_the_nearest_policy_and_its_first_missing_condition_are_named() {
    let far = policy("far", to(vec![path("/b")]), namespace("other"));
    let anyone = policy("anyone", to(vec![path("/b")]), Principal::And(vec![Principal::Any]));
    let near = policy("near", to(vec![path("/a"), header(MatchedHeader::Method, "POST")]), namespace("clients"));
    let refusal = refused(RbacAction::Allow, vec![far, anyone, near]);
    let nearest = refusal.nearest.unwrap();
    assert_eq!((&*nearest.rule.policy, nearest.failed.as_str()), ("shop/near", "request.method is \"POST\""));
    assert_eq!((refusal.by, refusal.rule), (RefusedBy::NoAllowPolicy, None));
}

#[test]
fn without_leave_nothing_is_looked_for_and_the_reason_stays() {
    let policies = || vec![policy("web", to(vec![path("/b")]), namespace("clients"))];
    assert_eq!(refused_with(RbacAction::Allow, policies(), false), Refusal::new(RefusedBy::NoAllowPolicy));
    assert!(refused_with(RbacAction::Allow, policies(), true).nearest.is_some());
}

#[test]
fn who_asks_is_looked_at_before_what_is_asked_for() {
    let refusal = refused(RbacAction::Allow, vec![policy("web", to(vec![path("/b")]), namespace("other"))]);
    assert_eq!(refusal.nearest.unwrap().failed, "source.namespace is \"other\"");
}

#[test]
fn without_any_policy_there_is_no_nearest() {
    assert_eq!(refused(RbacAction::Allow, Vec::new()), Refusal::new(RefusedBy::NoAllowPolicy));
}

#[test]
fn values_of_headers_and_claims_are_not_told() {
    let claim = ClaimMatcher {
        path: vec!["payload".into(), "groups".into()],
        test: ClaimTest::OneOf(Box::new(ClaimTest::Text(text("secret")))),
        invert: false,
    };
    let secret = || header(MatchedHeader::Name("x-token".parse().unwrap()), "secret");
    let say = |permission: &Permission, values| words(Clause::Permission(permission), values, CONDITION_BYTES_MAX);
    assert_eq!(say(&secret(), Values::Hidden), "request.headers[x-token] has a value that is wanted");
    assert_eq!(say(&secret(), Values::Shown), "request.headers[x-token] is \"secret\"");
    assert_eq!(say(&Permission::Claim(claim.clone()), Values::Hidden), "request.auth[groups] has a value that is wanted");
    assert_eq!(say(&Permission::Claim(claim), Values::Shown), "request.auth[groups] has an item that is \"secret\"");
}

#[test]
fn a_long_condition_is_cut_between_characters() {
    let all = Permission::Or((0..100).map(|at| path(&format!("/é{at}"))).collect());
    for bytes_max in 0..40 {
        let text = words(Clause::Permission(&all), Values::Hidden, bytes_max);
        assert!(text.len() <= bytes_max + "…".len() && text.ends_with('…'), "{text}");
    }
}

#[test]
fn the_conditions_of_a_policy_are_met_exactly_when_it_matches() {
    let both = || policy("p", to(vec![path("/a"), path("/a")]), namespace("clients"));
    for (changed, matches) in [
        (both(), true),
        (Policy { principals: vec![namespace("other"), Principal::Any], ..both() }, true),
        (Policy { principals: Vec::new(), ..both() }, false),
        (Policy { permissions: vec![path("/b"), to(vec![path("/a"), Permission::Not(Box::new(path("/a")))])], ..both() }, false),
    ] {
        let headers = HeaderMap::new();
        let head = RequestHead { method: "GET", path: "/a", authority: None, scheme: "http", headers: &headers };
        let input = RbacInput {
            head: Some(head),
            peer_principal: Some("spiffe://cluster.local/ns/clients/sa/frontend"),
            peer_address: "10.244.9.1".parse().unwrap(),
            forwarded_for: forwarded_for(head.headers),
            destination: None,
            destination_port: 80,
            server_name: "",
            claims: None,
        };
        let met = conditions(&changed, true, &input).is_some_and(|all| all.iter().all(|one| one.is_met));
        let rbac = Rbac::new(RbacAction::Allow, vec![changed]);
        assert_eq!(met, matches!(decide(&rbac, &input, &mut Decisions::new()), RbacVerdict::Pass));
        assert_eq!(met, matches);
    }
}
