//! What a hundred policies of ten rules add to a request that the last one matches; printed, and in an optimised build (`make verify`) held to
//! what it may be.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::*;

const POLICIES: usize = 100;
const RULES: usize = 10;
const REQUESTS: u32 = 20_000;
/// Rounds, of which the fastest counts: the others were disturbed.
const ROUNDS: usize = 9;
const BUDGET: Duration = Duration::from_micros(3);

/// A rule of a policy as istiod writes it: a third each by namespace, by service account and by path. Only the last matches.
fn rule(at: usize) -> Policy {
    let is_last = at + 1 == POLICIES * RULES;
    let who = |expression: String| {
        let any_of = Principal::Or(vec![Principal::PeerPrincipal(StringMatcher::regex(&expression).unwrap())]);
        (Permission::And(vec![Permission::Any]), Principal::And(vec![any_of]))
    };
    let (permission, principal) = match at % 3 {
        _ if is_last => who("spiffe://.+/ns/clients/(.+/|)sa/frontend(/.+)?".to_owned()),
        0 => who(format!(".*/ns/team-{at}/.*")),
        1 => who(format!("spiffe://.+/ns/clients/(.+/|)sa/account-{at}(/.+)?")),
        _ => {
            let path = Permission::UrlPath(text(&format!("/v1/resource-{at}")));
            (Permission::And(vec![Permission::Or(vec![path])]), Principal::And(vec![Principal::Any]))
        }
    };
    let name = format!("ns[shop]-policy[policy-{}]-rule[{}]", at / RULES, at % RULES);
    Policy::new(&name, vec![permission], vec![principal])
}

#[test]
fn the_last_of_a_thousand_rules_is_found_in_microseconds() {
    let rbac = Rbac::new(RbacAction::Allow, (0..POLICIES * RULES).map(rule).collect());
    let ask = Ask::new(&[("accept", "*/*")]);
    let last = matching(&rbac, &ask.input()).unwrap();
    assert_eq!(&*last.name, "ns[shop]-policy[policy-99]-rule[9]");
    let of_round = || {
        let began = Instant::now();
        for _ in 0..REQUESTS {
            assert!(passes(black_box(&rbac), &ask));
        }
        began.elapsed() / REQUESTS
    };
    let fastest = (0..ROUNDS).map(|_| of_round()).min().unwrap();
    println!("the last of {} rules {fastest:?}", POLICIES * RULES);
    assert!(cfg!(debug_assertions) || fastest < BUDGET, "{fastest:?} of {BUDGET:?}");
}
