//! Which web pages may read a route's answers.
//!
//! Not for: telling them; `filters::cors` does.

use http::HeaderValue;

use crate::fraction::Fraction;
use crate::matcher::StringMatcher;

/// A list in a header that is sent to browsers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsList {
    /// `*`: whatever the browser asks for.
    Asked,
    /// These.
    These(HeaderValue),
}

/// `CorsPolicy`, those of table, virtual host and route in one.
#[derive(Clone, Debug)]
pub struct CorsPolicy {
    /// For which share of requests there is a policy at all.
    pub enabled: Fraction,
    /// Origins that are allowed.
    pub origins: Vec<StringMatcher>,
    /// `access-control-allow-methods`.
    pub methods: Option<CorsList>,
    /// `access-control-allow-headers`.
    pub headers: Option<CorsList>,
    /// `access-control-expose-headers`.
    pub exposed: Option<HeaderValue>,
    /// `access-control-max-age`.
    pub max_age: Option<HeaderValue>,
    /// `access-control-allow-credentials`.
    pub credentials: bool,
    /// `access-control-allow-private-network`.
    pub private_network: bool,
    /// A preflight from another origin goes to the application.
    pub forwards_others: bool,
}

impl CorsPolicy {
    /// Whether pages of this origin may read answers. A matcher that takes `*` takes all (Envoy).
    #[must_use]
    pub fn allows(&self, origin: &[u8]) -> bool {
        self.origins.iter().any(|allowed| allowed.matches(b"*") || allowed.matches(origin))
    }
}
