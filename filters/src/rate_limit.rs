//! Which limits of a rate concern a request, and whether they let it pass.
//!
//! Source: Envoy's local rate limit (`LocalRateLimiterImpl`) and the actions of `config.route.v3.RateLimit`. Not for: the buckets (`model`).

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use model::matcher::{MatchedHeader, QueryMatcher};
use model::rate_limit::descriptors::{Absent, Action, Descriptor, Rule};
use model::rate_limit::{RateLimit, Taken};
use model::stream_view::RequestHead;
use smallvec::SmallVec;

use crate::header_match::{self, decoded, query_only};

/// What a limit said of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// Whether it passes.
    pub allowed: bool,
    /// What the bucket that counts has left, and how many tokens it holds; none where none was asked.
    pub told: Option<(Taken, u32)>,
}

/// Asks a limit about a request from `remote`: its buckets by descriptors, those that fill most slowly first, then, if none was found or
/// it is always asked, the bucket of all requests.
#[must_use]
pub fn take(limit: &RateLimit, rules: &[Rule], (head, remote): (&RequestHead<'_>, IpAddr), now: Instant) -> Limited {
    let mut found = SmallVec::<[_; 4]>::new();
    for descriptor in rules.iter().filter_map(|rule| descriptor(rule, head, remote)) {
        // Exactly before openly, whatever their order is (Envoy).
        let of = |is_open| limit.descriptors.iter().filter(move |one| one.is_open() == is_open).find_map(|one| one.bucket_of(&descriptor));
        found.extend(of(false).or_else(|| of(true)));
    }
    found.sort_by_key(|bucket| std::cmp::Reverse(bucket.token_interval()));
    let for_all = (found.is_empty() || limit.always_asks_for_all).then_some(&limit.bucket);
    let mut told = None;
    for bucket in found.iter().map(|bucket| &**bucket).chain(for_all) {
        let taken = bucket.take(now);
        if !taken.allowed {
            return Limited { allowed: false, told: Some((taken, bucket.tokens_max())) };
        }
        told.get_or_insert((taken, bucket.tokens_max()));
    }
    Limited { allowed: true, told }
}

/// The descriptor that a rule makes of a request; none if one of its actions finds nothing.
fn descriptor<'a>(rule: &'a Rule, head: &RequestHead<'a>, remote: IpAddr) -> Option<Descriptor<'a>> {
    let mut entries = Descriptor::new();
    for action in &rule.0 {
        let (key, value) = match action {
            Action::Nothing => return None,
            Action::Fixed(key, value) => (&**key, Some(Cow::Borrowed(&**value))),
            Action::Header(key, name, absent) => match (first_line(head, name), absent) {
                (None, Absent::IsSkipped) => continue,
                (found, _) => (&**key, found),
            },
            Action::Query(key, name, absent) => match (parameter(head, name), absent) {
                (None, Absent::IsSkipped) => continue,
                (found, _) => (&**key, found),
            },
            Action::RemoteAddress => ("remote_address", Some(remote.to_canonical().to_string().into())),
            Action::MaskedAddress(v4, v6) => ("masked_remote_address", masked(remote.to_canonical(), *v4, *v6)),
            Action::HeaderMatch(key, value, expected, headers) => {
                let is_met = headers.iter().all(|matcher| header_match::matches(matcher, head));
                (&**key, (is_met == *expected).then_some(Cow::Borrowed(&**value)))
            }
            Action::QueryMatch(key, value, expected, parameters) => {
                let is_met = parameters.iter().all(|matcher| is_asked(matcher, head));
                (&**key, (is_met == *expected).then_some(Cow::Borrowed(&**value)))
            }
        };
        entries.push((key, value?));
    }
    Some(entries)
}

fn first_line<'a>(head: &RequestHead<'a>, name: &MatchedHeader) -> Option<Cow<'a, str>> {
    match name {
        MatchedHeader::Method => Some(head.method.into()),
        MatchedHeader::Authority => head.authority.map(Into::into),
        MatchedHeader::Path => Some(head.path.into()),
        MatchedHeader::Scheme => Some(head.scheme.into()),
        MatchedHeader::Name(name) => head.headers.get(name).map(|line| String::from_utf8_lossy(line.as_bytes())),
    }
}

fn parameter<'a>(head: &RequestHead<'a>, name: &str) -> Option<Cow<'a, str>> {
    let pairs = query_only(head.path)?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut named = pairs.filter(|(found, _)| decoded(found) == name);
    named.next().map(|(_, value)| decoded(value))
}

fn is_asked(matcher: &QueryMatcher, head: &RequestHead<'_>) -> bool {
    parameter(head, &matcher.name).is_some_and(|found| matcher.value.as_ref().is_none_or(|test| test.matches(found.as_bytes())))
}

fn masked(address: IpAddr, v4: u8, v6: u8) -> Option<Cow<'static, str>> {
    let bits = if address.is_ipv4() { v4 } else { v6 };
    Some(IpNet::new(address, bits).ok()?.trunc().to_string().into())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use http::HeaderMap;

    use super::*;

    #[test]
    fn an_action_that_finds_nothing_makes_no_descriptor_unless_it_is_skipped() {
        let headers = HeaderMap::from_iter([(http::header::ACCEPT, "x".parse().unwrap())]);
        let head = RequestHead { method: "GET", path: "/a?b=%63&b=d", authority: None, scheme: "http", headers: &headers };
        let made = |actions: Vec<Action>| {
            let rule = Rule(actions.into());
            let made = descriptor(&rule, &head, [10, 1, 2, 3].into());
            made.map(|entries| entries.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" "))
        };
        let name = |name: &'static str| MatchedHeader::Name(http::HeaderName::from_static(name));
        let header = |of, absent| Action::Header("h".into(), name(of), absent);
        let query = |of: &str, absent| Action::Query("q".into(), of.into(), absent);
        let all = vec![header("accept", Absent::Fails), query("b", Absent::Fails), Action::MaskedAddress(16, 0), Action::RemoteAddress];
        assert_eq!(made(all).as_deref(), Some("h=x q=c masked_remote_address=10.1.0.0/16 remote_address=10.1.2.3"));
        assert_eq!(made(vec![header("accept", Absent::Fails), query("c", Absent::Fails)]), None);
        assert_eq!(made(vec![header("via", Absent::IsSkipped), query("c", Absent::IsSkipped)]).as_deref(), Some(""));
    }
}
