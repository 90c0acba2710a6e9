//! Which protocols requests may change to, by `upgrade` or an extended CONNECT.
//!
//! Not for: what a change is (`waypoint::http::upgrade`). A protocol that nobody names is refused.

/// What a chain or a route says of protocols; letters of either case are alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upgrades(Box<[(Box<str>, bool)]>);

impl Upgrades {
    /// Of protocols like `websocket`, and whether they are allowed.
    #[must_use]
    pub fn new(named: impl Iterator<Item = (Box<str>, bool)>) -> Self {
        Self(named.collect())
    }

    /// Whether `protocol` is allowed; none if it is not named.
    #[must_use]
    pub fn say(&self, protocol: &[u8]) -> Option<bool> {
        self.0.iter().find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(protocol)).map(|(_, is_allowed)| *is_allowed)
    }

    /// Whether a request may change to `protocol` where a route has these and its chain `of_chain`.
    #[must_use]
    pub fn allow(&self, protocol: &[u8], of_chain: &Self) -> bool {
        self.say(protocol).or_else(|| of_chain.say(protocol)).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table in Envoy's "HTTP upgrades".
    #[test]
    fn what_a_route_says_of_an_upgrade_counts_before_what_its_chain_says() {
        let says = |named: &[(&str, bool)]| Upgrades::new(named.iter().map(|(name, is_allowed)| ((*name).into(), *is_allowed)));
        let (on, off, silent) = (says(&[("websocket", true)]), says(&[("WebSocket", false)]), Upgrades::default());
        for (chain, route, allowed) in
            [(&on, &silent, true), (&on, &off, false), (&off, &on, true), (&off, &silent, false), (&silent, &on, true)]
        {
            assert_eq!(route.allow(b"webSocket", chain), allowed, "{chain:?} {route:?}");
        }
        assert!(!silent.allow(b"websocket", &silent) && !silent.allow(b"web", &on));
    }
}
