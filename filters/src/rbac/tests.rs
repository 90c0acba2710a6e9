#![expect(clippy::unwrap_used, reason = "tests")]

use http::HeaderMap;
use model::stream_view::forwarded_for;

use super::*;

mod cost;

const FRONTEND: &str = "spiffe://cluster.local/ns/clients/sa/frontend";

fn text(exact: &str) -> StringMatcher {
    StringMatcher::Exact(exact.as_bytes().into())
}

fn named(name: &str, test: StringMatcher) -> HeaderMatcher {
    let name = match name {
        ":method" => MatchedHeader::Method,
        ":authority" => MatchedHeader::Authority,
        name => MatchedHeader::Name(name.parse().unwrap()),
    };
    HeaderMatcher { name, test: HeaderTest::Text(test), invert: false, missing_as_empty: false }
}

fn rbac(action: RbacAction, permission: Permission, principal: Principal) -> Rbac {
    Rbac::new(action, vec![Policy::new("p", vec![permission], vec![principal])])
}

struct Ask {
    method: &'static str,
    path: &'static str,
    headers: HeaderMap,
}

impl Ask {
    fn new(lines: &[(&'static str, &str)]) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        Self { method: "GET", path: "/reviews/1?x=/forbidden", headers }
    }

    fn input(&self) -> RbacInput<'_> {
        let head =
            RequestHead { method: self.method, path: self.path, authority: Some("web.shop"), scheme: "http", headers: &self.headers };
        RbacInput {
            head: Some(head),
            peer_principal: Some(FRONTEND),
            peer_address: "10.244.9.1".parse().unwrap(),
            forwarded_for: forwarded_for(head.headers),
            destination: Some("10.96.1.1:80".parse().unwrap()),
            destination_port: 80,
            server_name: "",
            claims: None,
        }
    }
}

fn passes(rbac: &Rbac, ask: &Ask) -> bool {
    matches!(decide(rbac, &ask.input(), &mut Decisions::new()), RbacVerdict::Pass)
}

fn is_denied_by_none(rbac: &Rbac, input: &RbacInput<'_>) -> bool {
    matches!(decide(rbac, input, &mut Decisions::new()), RbacVerdict::Deny(Denial::NoneMatched(_)))
}

fn allows(permission: Permission, ask: &Ask) -> bool {
    passes(&rbac(RbacAction::Allow, permission, Principal::Any), ask)
}

fn denies(permission: Permission, ask: &Ask) -> bool {
    !passes(&rbac(RbacAction::Deny, permission, Principal::Any), ask)
}

#[test]
fn an_allow_filter_refuses_what_no_policy_matches_and_names_none() {
    let ask = Ask::new(&[]);
    let other = rbac(RbacAction::Allow, Permission::Any, Principal::PeerPrincipal(text("spiffe://cluster.local/ns/x/sa/y")));
    assert!(is_denied_by_none(&other, &ask.input()));
    assert!(is_denied_by_none(&Rbac::new(RbacAction::Allow, Vec::new()), &ask.input()));
    assert!(passes(&rbac(RbacAction::Allow, Permission::Any, Principal::PeerPrincipal(text(FRONTEND))), &ask));
}

#[test]
fn a_deny_filter_names_the_policy_and_an_audit_filter_refuses_nothing() {
    let ask = Ask::new(&[]);
    let deny = rbac(RbacAction::Deny, Permission::UrlPath(text("/reviews/1")), Principal::Any);
    assert!(matches!(decide(&deny, &ask.input(), &mut Decisions::new()), RbacVerdict::Deny(by) if by.policy() == Some("p")));
    assert!(passes(&Rbac::new(RbacAction::Log, deny.policies().to_vec()), &ask));
}

#[test]
fn paths_are_judged_without_their_query() {
    let ask = Ask::new(&[]);
    assert!(!denies(Permission::UrlPath(StringMatcher::Suffix((*b"/forbidden").into())), &ask));
    assert!(allows(Permission::UrlPath(StringMatcher::Prefix((*b"/reviews/").into())), &ask));
}

#[test]
fn methods_hosts_ports_and_addresses_are_seen() {
    let ask = Ask::new(&[]);
    assert!(allows(Permission::Header(named(":method", text("GET"))), &ask));
    assert!(allows(Permission::Header(named(":authority", StringMatcher::ExactIgnoreCase((*b"WEB.shop").into()))), &ask));
    assert!(allows(Permission::DestinationPort(80), &ask) && !allows(Permission::DestinationPort(81), &ask));
    assert!(allows(Permission::DestinationIp("10.96.0.0/16".parse().unwrap()), &ask));
    assert!(!passes(&rbac(RbacAction::Allow, Permission::Any, Principal::DirectRemoteIp("10.244.9.2/32".parse().unwrap())), &ask));
}

#[test]
fn ports_are_seen_in_ranges_whose_end_is_left_out() {
    let ask = Ask::new(&[]);
    let range = |ports| Permission::DestinationPortRange(ports);
    assert!(allows(range(80..81), &ask) && allows(range(-1..70_000), &ask));
    assert!(!allows(range(79..80), &ask) && !allows(range(81..90), &ask) && !allows(range(80..80), &ask));
}

#[test]
fn path_templates_see_no_query() {
    let ask = Ask::new(&[]);
    let template = |text| Permission::UriTemplate(model::matcher::UriTemplate::new(text).unwrap());
    assert!(allows(template("/reviews/*"), &ask) && allows(template("/**"), &ask));
    assert!(!allows(template("/reviews/*/x"), &ask) && !denies(template("/*"), &ask));
}

#[test]
fn inside_http_nobody_asks_for_a_server_by_name() {
    let ask = Ask::new(&[]);
    assert!(!allows(Permission::ServerName(text("a.example")), &ask));
    assert!(!allows(Permission::ServerName(StringMatcher::regex(".+").unwrap()), &ask));
    assert!(denies(Permission::Not(Box::new(Permission::ServerName(text("a.example")))), &ask));
}

#[test]
fn no_second_line_of_a_header_hides_the_first() {
    let is_evil = || Permission::Header(named("x-role", text("evil")));
    let is_good = || Permission::Header(named("x-role", text("good")));
    for lines in [[("x-role", "good"), ("x-role", "evil")], [("x-role", "evil"), ("x-role", "good")]] {
        let ask = Ask::new(&lines);
        assert!(denies(is_evil(), &ask), "one line is enough to be refused");
        assert!(!allows(is_good(), &ask), "every line has to permit");
        assert!(!allows(Permission::Not(Box::new(is_evil())), &ask), "one line is enough to fail a `not`");
        assert!(denies(Permission::Not(Box::new(is_good())), &ask));
    }
    let joined = Ask::new(&[("x-role", "a"), ("x-role", "b")]);
    assert!(denies(Permission::Header(named("x-role", text("a,b"))), &joined), "what Envoy refuses is refused");
}

#[test]
fn the_remote_address_is_the_last_that_was_forwarded() {
    let remote = |range: &str| Principal::RemoteIp(range.parse().unwrap());
    let ask = Ask::new(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2, 203.0.113.7")]);
    assert!(passes(&rbac(RbacAction::Allow, Permission::Any, remote("203.0.113.7/32")), &ask));
    assert!(!passes(&rbac(RbacAction::Allow, Permission::Any, remote("1.1.1.1/32")), &ask));
    let direct = Ask::new(&[("x-forwarded-for", "garbage")]);
    assert!(passes(&rbac(RbacAction::Allow, Permission::Any, remote("10.244.9.1/32")), &direct));
}

#[test]
fn nested_conditions_mean_what_they_say() {
    let ask = Ask::new(&[]);
    let get = || Permission::Header(named(":method", text("GET")));
    let post = || Permission::Header(named(":method", text("POST")));
    assert!(allows(Permission::Or(vec![post(), get()]), &ask) && !allows(Permission::And(vec![post(), get()]), &ask));
    assert!(!allows(Permission::Or(Vec::new()), &ask), "an empty choice matches nothing");
}

#[test]
fn a_connection_without_a_request_matches_no_http_condition() {
    let ask = Ask::new(&[]);
    let input = RbacInput { head: None, ..ask.input() };
    let allow = rbac(RbacAction::Allow, Permission::Header(named(":method", text("GET"))), Principal::Any);
    assert!(is_denied_by_none(&allow, &input));
    let without_identity = RbacInput { peer_principal: None, ..input };
    let anyone = rbac(RbacAction::Allow, Permission::Any, Principal::PeerPrincipal(StringMatcher::regex(".+").unwrap()));
    assert!(is_denied_by_none(&anyone, &without_identity));
}

#[test]
fn a_dry_run_refuses_nothing_and_is_told_of_as_if_it_counted() {
    let ask = Ask::new(&[]);
    let get = || Permission::Header(named(":method", text("GET")));
    let post = || Permission::Header(named(":method", text("POST")));
    for (action, permission, told) in [
        (RbacAction::Deny, get(), Some(true)),
        (RbacAction::Deny, post(), None),
        (RbacAction::Allow, get(), Some(false)),
        (RbacAction::Allow, post(), Some(true)),
        (RbacAction::Log, get(), Some(false)),
        (RbacAction::Log, post(), None),
    ] {
        let enforced = rbac(action, permission, Principal::Any);
        let shadow = enforced.clone().as_dry_run();
        let (mut decisions, mut dry_run) = (Decisions::new(), Decisions::new());
        let passes = matches!(decide(&enforced, &ask.input(), &mut decisions), RbacVerdict::Pass);
        assert_eq!(decisions.first().map(Decision::refuses), told, "{action:?}");
        assert_eq!(passes, told != Some(true));
        assert!(matches!(decide(&shadow, &ask.input(), &mut dry_run), RbacVerdict::Pass));
        assert_eq!(dry_run.iter().find(|decision| decision.counts()).map(Decision::refuses), told, "{action:?}");
        assert_eq!(dry_run.len(), 1, "what it came to is told in any case");
    }
}

#[test]
fn a_service_that_is_asked_for_by_its_name_has_a_port_and_no_address_that_would_let_more_through() {
    let ask = Ask::new(&[]);
    let by_name = RbacInput { destination: None, destination_port: 22, ..ask.input() };
    let passes = |action, permission| {
        let filter = rbac(action, permission, Principal::Any);
        matches!(decide(&filter, &by_name, &mut Decisions::new()), RbacVerdict::Pass)
    };
    let (port, range) = (|| Permission::DestinationPort(22), || Permission::DestinationPortRange(20..23));
    let ip = || Permission::DestinationIp("10.96.1.1/32".parse().unwrap());
    let not = |permission| Permission::Not(Box::new(permission));
    for known in [port(), range()] {
        assert!(!passes(RbacAction::Deny, known.clone()) && passes(RbacAction::Allow, known.clone()));
        assert!(passes(RbacAction::Deny, not(known.clone())) && !passes(RbacAction::Allow, not(known)));
    }
    for unknown in [ip(), not(ip())] {
        assert!(!passes(RbacAction::Deny, unknown.clone()) && !passes(RbacAction::Allow, unknown));
    }
}
