//! Which route a request takes, and which of several clusters.
//!
//! Source: Envoy's router: virtual hosts by exact domain, then the longest suffix, the longest prefix, `*`;
//! routes in order; paths without query and fragment.

use std::sync::Arc;

use model::claims::TokenMetadata;
use model::route::{ClusterChoice, PathMatcher, QueryMatcher, Route, RouteMatch, WeightedCluster};
use model::route_table::{Domain, RouteTable, VirtualHost};
use model::stream_view::RequestHead;
use model::turns::Turns;

use crate::header_match::{self, path_only, query_only};

/// The route of a request, and the virtual host it is in; none is a 404.
#[must_use]
pub fn select<'a>(table: &'a RouteTable, head: &RequestHead<'_>) -> Option<(&'a VirtualHost, &'a Arc<Route>)> {
    select_with(table, head, None)
}

/// As [`select`], with what verified tokens say.
#[must_use]
pub fn select_with<'a>(
    table: &'a RouteTable,
    head: &RequestHead<'_>,
    claims: Option<&TokenMetadata>,
) -> Option<(&'a VirtualHost, &'a Arc<Route>)> {
    let host = virtual_host(table, head.authority.unwrap_or_default())?;
    let path = path_only(head.path);
    let route = host.routes.candidates(path).find(|route| matches(&route.matches, head, path, claims))?;
    Some((host, route))
}

fn virtual_host<'a>(table: &'a RouteTable, authority: &str) -> Option<&'a VirtualHost> {
    if let [only] = table.virtual_hosts.as_slice()
        && only.domains == [Domain::Any]
    {
        return Some(only);
    }
    let authority = authority.to_ascii_lowercase();
    let rank = |domain: &Domain| match domain {
        Domain::Exact(host) => (**host == *authority).then_some((3, host.len())),
        Domain::Suffix(suffix) => (authority.len() > suffix.len() && authority.ends_with(&**suffix)).then_some((2, suffix.len())),
        Domain::Prefix(prefix) => (authority.len() > prefix.len() && authority.starts_with(&**prefix)).then_some((1, prefix.len())),
        Domain::Any => Some((0, 0)),
    };
    let best = |host: &&'a VirtualHost| host.domains.iter().filter_map(rank).max();
    table.virtual_hosts.iter().filter(|host| best(host).is_some()).max_by_key(best)
}

/// Whether a request is what a route asks for; `path` is its path without a query, found once for all routes.
pub(crate) fn matches(wanted: &RouteMatch, head: &RequestHead<'_>, path: &str, claims: Option<&TokenMetadata>) -> bool {
    path_matches(&wanted.path, wanted.case_sensitive, path)
        && (!wanted.grpc_only || is_grpc_content(head.headers))
        && wanted.headers.iter().all(|matcher| header_match::matches(matcher, head))
        && wanted.claims.iter().all(|matcher| matcher.matches(claims))
        && wanted.query.iter().all(|matcher| query_matches(matcher, query_only(head.path).unwrap_or_default()))
}

/// Whether the headers' content type is gRPC's: `application/grpc`, alone or with `+` and a format.
#[must_use]
pub fn is_grpc_content(headers: &http::HeaderMap) -> bool {
    let content_type = headers.get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    content_type.and_then(|value| value.strip_prefix(b"application/grpc")).is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
}

fn path_matches(wanted: &PathMatcher, case_sensitive: bool, path: &str) -> bool {
    let begins = |prefix: &str| match path.as_bytes().get(..prefix.len()) {
        Some(head) if case_sensitive => head == prefix.as_bytes(),
        Some(head) => head.eq_ignore_ascii_case(prefix.as_bytes()),
        None => false,
    };
    match wanted {
        PathMatcher::Prefix(prefix) => begins(prefix),
        PathMatcher::SeparatedPrefix(prefix) => begins(prefix) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/')),
        PathMatcher::Exact(exact) => path.len() == exact.len() && begins(exact),
        PathMatcher::Regex(regex) => regex.matches(path.as_bytes()),
    }
}

fn query_matches(wanted: &QueryMatcher, query: &str) -> bool {
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let found = pairs.find(|(name, _)| *name == &*wanted.name);
    match (&wanted.value, found) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(test), Some((_, value))) => test.matches(value.as_bytes()),
    }
}

/// The cluster whose turn it is. `draw`: 64 random bits.
#[must_use]
pub fn choose_cluster(choice: &ClusterChoice, draw: u64) -> (&Arc<str>, Option<&WeightedCluster>) {
    chosen(choice, |turns| turns.take(draw))
}

/// The cluster whose turn would be next.
#[must_use]
pub fn next_cluster(choice: &ClusterChoice, draw: u64) -> &Arc<str> {
    chosen(choice, |turns| turns.peek(draw)).0
}

fn chosen(choice: &ClusterChoice, turn: impl FnOnce(&Turns) -> usize) -> (&Arc<str>, Option<&WeightedCluster>) {
    match choice {
        ClusterChoice::One(name) => (name, None),
        ClusterChoice::Weighted(all, turns) => {
            let one = &all[turn(turns)];
            (&one.name, Some(one))
        }
    }
}

/// The index that a draw falls on, each in proportion to its weight; the first if all are zero.
pub fn weighted(weights: impl Iterator<Item = u32> + Clone, draw: u64) -> usize {
    let total: u64 = weights.clone().map(u64::from).sum();
    let mut left = draw % total.max(1);
    for (index, weight) in weights.enumerate() {
        if left < u64::from(weight) {
            return index;
        }
        left -= u64::from(weight);
    }
    0
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use http::HeaderMap;
    use model::matcher::StringMatcher;
    use model::route::{DirectResponse, HeaderMatcher, HeaderTest, MatchedHeader, RouteAction};
    use model::route_table::Routes;
    use proptest::bool::ANY as any_bool;
    use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn is_wanted(wanted: &RouteMatch, head: &RequestHead<'_>) -> bool {
        matches(wanted, head, path_only(head.path), None)
    }

    fn head<'a>(path: &'a str, headers: &'a HeaderMap) -> RequestHead<'a> {
        RequestHead { method: "GET", path, authority: Some("Web.shop:80"), scheme: "http", headers }
    }

    fn route(name: &str, matches: RouteMatch) -> Arc<Route> {
        Arc::new(Route {
            name: Some(name.into()),
            matches,
            external: Box::default(),
            first_filters: Box::default(),
            filters: Box::default(),
            action: RouteAction::Direct(DirectResponse { status: 200, body: Box::default() }),
            request_headers: Box::default(),
            response_headers: Box::default(),
            operation: None,
        })
    }

    fn takes(path: PathMatcher, request: &str) -> bool {
        is_wanted(&RouteMatch::of(path), &head(request, &HeaderMap::new()))
    }

    #[test]
    fn a_separated_prefix_ends_at_a_slash() {
        let old = || PathMatcher::SeparatedPrefix("/old".into());
        assert!(takes(old(), "/old") && takes(old(), "/old/x") && takes(old(), "/old?q=/older"));
        assert!(!takes(old(), "/older") && !takes(old(), "/ol") && !takes(old(), "/OLD"));
    }

    #[test]
    fn paths_are_matched_without_query_and_fragment() {
        assert!(takes(PathMatcher::Exact("/full".into()), "/full?a=1#b"));
        assert!(!takes(PathMatcher::Exact("/full".into()), "/full/"));
        assert!(takes(PathMatcher::Regex(StringMatcher::regex("/v[0-9]").unwrap()), "/v1?x"));
    }

    #[test]
    fn lines_of_one_header_are_matched_each_for_itself_and_a_missing_header_matches_no_text() {
        let text = |invert, missing_as_empty| HeaderMatcher {
            name: MatchedHeader::Name("x-group".parse().unwrap()),
            test: HeaderTest::Text(StringMatcher::Exact((*b"b").into())),
            invert,
            missing_as_empty,
        };
        let mut headers = HeaderMap::new();
        assert!(!header_match::matches(&text(false, false), &head("/", &headers)));
        assert!(!header_match::matches(&text(true, false), &head("/", &headers)));
        assert!(header_match::matches(&text(true, true), &head("/", &headers)));
        headers.append("x-group", "a".parse().unwrap());
        assert!(!header_match::matches(&text(false, false), &head("/", &headers)));
        headers.append("x-group", "b".parse().unwrap());
        assert!(header_match::matches(&text(false, false), &head("/", &headers)));
        assert!(!header_match::matches(&text(true, false), &head("/", &headers)), "a line that is meant is there");
    }

    #[test]
    fn the_first_query_parameter_of_a_name_counts() {
        let with = |value: Option<&str>| {
            let value = value.map(|text| StringMatcher::Exact(text.as_bytes().into()));
            RouteMatch { query: vec![QueryMatcher { name: "debug".into(), value }], ..RouteMatch::of(PathMatcher::Prefix("/".into())) }
        };
        let headers = HeaderMap::new();
        assert!(is_wanted(&with(Some("1")), &head("/?x=2&debug=1&debug=2", &headers)));
        assert!(!is_wanted(&with(Some("2")), &head("/?debug=1&debug=2", &headers)));
        assert!(is_wanted(&with(None), &head("/?debug", &headers)) && !is_wanted(&with(None), &head("/?debugging", &headers)));
    }

    #[test]
    fn routes_are_tried_in_order_in_the_virtual_host_that_fits_best() {
        let route = |name, prefix: &str| route(name, RouteMatch::of(PathMatcher::Prefix(prefix.into())));
        let host = |name: &str, domains: Vec<Domain>, routes| VirtualHost { name: name.into(), domains, routes: Vec::into(routes) };
        let table = RouteTable {
            name: "t".into(),
            virtual_hosts: vec![
                host("any", vec![Domain::Any], vec![route("any", "/")]),
                host("suffix", vec![Domain::Suffix(".shop:80".into())], vec![route("a", "/a"), route("second", "/a"), route("rest", "/")]),
                host("other", vec![Domain::Exact("other".into())], vec![route("other", "/")]),
            ],
        };
        let headers = HeaderMap::new();
        let name = |path| select(&table, &head(path, &headers)).and_then(|(_, route)| route.name.as_deref());
        assert_eq!((name("/a"), name("/b")), (Some("a"), Some("rest")));
    }

    /// Short paths of few segments, so that many are equal or begin with each other.
    fn some_path() -> impl Strategy<Value = String> {
        "(/(a|b|ab|A)?){0,3}"
    }

    fn some_route() -> impl Strategy<Value = RouteMatch> {
        let regex = |expression: String| PathMatcher::Regex(StringMatcher::regex(&expression).unwrap());
        let path = (some_path(), some_path(), 0..10).prop_map(move |(text, other, kind)| match kind {
            0 => PathMatcher::Exact(text.into()),
            1 => PathMatcher::Prefix(text.into()),
            2 => PathMatcher::SeparatedPrefix(text.into()),
            3 => regex(format!("{text}.*")),
            4 => regex(format!("{text}[ab/]*")),
            5 => regex(format!("{text}|{other}[ab]+")),
            6 => regex(format!("(?i){text}[ab]?")),
            7 => regex(format!("({text}){{0,2}}{other}[a-b]")),
            8 => regex(format!("({text})(?:{other})([ab]|)")),
            _ => regex(format!("[/ab]?{text}")),
        });
        (path, proptest::bool::weighted(0.8), any_bool).prop_map(|(path, case_sensitive, grpc_only)| RouteMatch {
            case_sensitive,
            grpc_only,
            ..RouteMatch::of(path)
        })
    }

    proptest! {
        #[test]
        fn the_candidates_of_a_path_hold_the_first_route_that_matches(
            routes in proptest::collection::vec(some_route(), 0..40),
            path in some_path(),
        ) {
            let routes: Routes = routes.into_iter().enumerate().map(|(at, wanted)| route(&at.to_string(), wanted)).collect();
            let headers = HeaderMap::new();
            let head = head(&path, &headers);
            let position = |found: &Arc<Route>| routes.iter().position(|route| Arc::ptr_eq(route, found)).unwrap();
            let tried: Vec<usize> = routes.candidates(&path).map(position).collect();
            prop_assert!(tried.is_sorted_by(|one, next| one < next), "{tried:?}");
            let matching = |found: &&Arc<Route>| matches(&found.matches, &head, &path, None);
            prop_assert_eq!(routes.candidates(&path).filter(matching).map(position).collect::<Vec<_>>(),
                routes.iter().filter(matching).map(position).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_thousand_other_paths_are_not_tried() {
        let expression = |at| PathMatcher::Regex(StringMatcher::regex(&format!("/v1/r-{at}(/[a-z]+)?")).unwrap());
        let path = |at: u32| PathMatcher::SeparatedPrefix(format!("/v1/r-{at}").into());
        let either_case = |at: u32| PathMatcher::SeparatedPrefix(format!("/V1/R-{at}").into());
        let kinds: [(&dyn Fn(u32) -> PathMatcher, bool); 3] = [(&path, true), (&either_case, false), (&expression, true)];
        for (kind, case_sensitive) in kinds {
            let wanted = |at| RouteMatch { case_sensitive, ..RouteMatch::of(kind(at)) };
            let routes: Routes = (0..1000).map(|at| route(&at.to_string(), wanted(at))).collect();
            let tried: Vec<_> = routes.candidates("/v1/r-999/x").map(|route| route.name.as_deref().unwrap_or_default()).collect();
            assert_eq!(tried, ["9", "99", "999"], "{:?}", kind(999));
        }
    }

    #[test]
    fn weights_are_exact_over_one_round_of_draws() {
        let mut counts = [0; 3];
        for draw in 0..100 {
            counts[weighted([70, 0, 30].into_iter(), draw)] += 1;
        }
        assert_eq!(counts, [70, 0, 30]);
    }
}
