//! Which faults a request meets.
//!
//! Not for: waiting and answering. Source: Envoy's fault filter: a request may be delayed and then aborted, each drawn for itself.

use std::time::Duration;

use model::route::{Abort, Fault};
use model::stream_view::RequestHead;

use crate::header_match;

/// What happens to a request, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// It waits.
    pub delay: Option<Duration>,
    /// It is answered.
    pub abort: Option<Abort>,
}

/// Draws the faults of a request; `draw` gives 64 random bits.
#[must_use]
pub fn draw(fault: &Fault, head: &RequestHead<'_>, mut draw: impl FnMut() -> u64) -> Injected {
    if !fault.headers.iter().all(|matcher| header_match::matches(matcher, head)) {
        return Injected::default();
    }
    let delay = fault.delay.filter(|(_, share)| share.includes(draw())).map(|(delay, _)| delay);
    let abort = fault.abort.filter(|(_, share)| share.includes(draw())).map(|(abort, _)| abort);
    Injected { delay, abort }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use http::HeaderMap;
    use model::fraction::Fraction;
    use model::route::{HeaderMatcher, HeaderTest, MatchedHeader};

    use super::*;

    #[test]
    fn delays_and_aborts_are_drawn_apart_for_requests_that_are_meant() {
        let half = Fraction { numerator: 50, denominator: 100 };
        let second = Duration::from_secs(1);
        let matcher = HeaderMatcher {
            name: MatchedHeader::Name("x-test".parse().unwrap()),
            test: HeaderTest::Present(true),
            invert: false,
            missing_as_empty: false,
        };
        let fault = Fault { delay: Some((second, half)), abort: Some((Abort::Http(503), half)), headers: vec![matcher] };
        let mut headers = HeaderMap::new();
        let drawn = |headers: &HeaderMap, draws: [u64; 2]| {
            let mut draws = draws.into_iter();
            let head = RequestHead { method: "GET", path: "/", authority: None, scheme: "http", headers };
            draw(&fault, &head, || draws.next().unwrap())
        };
        assert_eq!(drawn(&headers, [0, 0]), Injected::default());
        headers.insert("x-test", "1".parse().unwrap());
        for (draws, delay, abort) in [([0, 0], true, true), ([49, 50], true, false), ([50, 149], false, true), ([99, 99], false, false)] {
            let expected = Injected { delay: delay.then_some(second), abort: abort.then_some(Abort::Http(503)) };
            assert_eq!(drawn(&headers, draws), expected, "{draws:?}");
        }
    }
}
