//! Which tokens requests carry, who issued them, and with which keys they are verified: Envoy's `jwt_authn`, compiled.
//!
//! Not for: verifying; `filters::jwt` does. Invariants: keys are in the order of their set; where a key comes from and what it can verify
//! is fixed when it is read, so no token chooses an algorithm for a key of another kind.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};

use crate::route::RouteMatch;

/// Clock skew that Envoy allows unless told otherwise, in seconds.
pub const CLOCK_SKEW_SECONDS_DEFAULT: u64 = 60;

/// The hash of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// `alg` of a token (RFC 7518, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// `RS…`: RSA, PKCS #1 v1.5.
    Rs(Hash),
    /// `PS…`: RSA, PSS.
    Ps(Hash),
    /// `ES…`: ECDSA on the curve that belongs to the hash.
    Es(Hash),
    /// `HS…`: a shared secret.
    Hs(Hash),
    /// `EdDSA` with Ed25519.
    EdDsa,
}

impl Algorithm {
    /// Reads an `alg`; `none` and unknown ones are none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hash = match text.get(2..)? {
            "256" => Hash::Sha256,
            "384" => Hash::Sha384,
            "512" => Hash::Sha512,
            _ => return (text == "EdDSA").then_some(Self::EdDsa),
        };
        match &text[..2] {
            "RS" => Some(Self::Rs(hash)),
            "PS" => Some(Self::Ps(hash)),
            "ES" => Some(Self::Es(hash)),
            "HS" => Some(Self::Hs(hash)),
            _ => None,
        }
    }
}

/// What a key is made of.
#[derive(Clone, PartialEq, Eq)]
pub enum KeyMaterial {
    /// Modulus and exponent, big-endian, without leading zeros.
    Rsa {
        /// `n`.
        modulus: Box<[u8]>,
        /// `e`.
        exponent: Box<[u8]>,
    },
    /// A point, uncompressed; the curve by the hash that belongs to it.
    Ec {
        /// P-256, P-384 or P-521.
        curve: Hash,
        /// `04 || x || y`.
        point: Box<[u8]>,
    },
    /// Ed25519.
    Ed25519([u8; 32]),
    /// A shared secret.
    Secret(Box<[u8]>),
}

impl std::fmt::Debug for KeyMaterial {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Rsa { .. } => "Rsa",
            Self::Ec { .. } => "Ec",
            Self::Ed25519(_) => "Ed25519",
            Self::Secret(_) => "Secret",
        })
    }
}

/// One key of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// `kid`; empty if it has none.
    pub id: Box<str>,
    /// `alg`; none if it has none.
    pub algorithm: Option<Algorithm>,
    /// The key.
    pub material: KeyMaterial,
}

/// A JWKS: those of its keys that can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    /// In order.
    pub keys: Vec<Key>,
}

/// Where a key set is fetched, and how. Who asks for the same in the same way shares the keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteKeys {
    /// What it is called in metrics, logs and pages: its URL without user and query, which may be secrets.
    pub name: Arc<str>,
    /// The cluster that is asked.
    pub cluster: Arc<str>,
    /// Of the URL.
    pub host: HeaderValue,
    /// Of the URL.
    pub path: PathAndQuery,
    /// How long a fetch may take, repetitions included; none is not limited by configuration.
    pub timeout: Option<Duration>,
    /// How long keys are good.
    pub cache_duration: Duration,
    /// How soon it is tried again after a failure.
    pub failed_pause: Duration,
    /// Whether a fetch that fails is repeated at once.
    pub retries: Option<FetchRetries>,
}

/// Repetitions within one fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FetchRetries {
    /// How many.
    pub count: u32,
    /// Pause before the first; it doubles.
    pub pause_first: Duration,
    /// The longest pause.
    pub pause_max: Duration,
}

/// Where the keys of an issuer are from.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// They came with the configuration.
    Given(Arc<KeySet>),
    /// The proxy fetches them.
    Fetched(Arc<RemoteKeys>),
}

/// Where a token may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// In each line of a header, behind a prefix that may be anywhere in it.
    Header {
        /// Its name.
        name: HeaderName,
        /// `Bearer `; may be empty.
        prefix: Box<str>,
    },
    /// In a query parameter, the first of its name.
    Parameter(Box<str>),
    /// In a cookie, the first of its name.
    Cookie(Box<str>),
}

/// A claim that is copied to a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimHeader {
    /// The header.
    pub name: HeaderName,
    /// Names of members, outermost first.
    pub claim: Vec<Box<str>>,
}

/// Audiences, one of which a token must be for; none means any. Kept without scheme and trailing slash, as they are compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audiences(Vec<Box<str>>);

impl Audiences {
    /// Of these.
    pub fn new<'a>(audiences: impl IntoIterator<Item = &'a str>) -> Self {
        Self(audiences.into_iter().map(|audience| bare_audience(audience).into()).collect())
    }

    /// Whether a token for these audiences is accepted.
    pub fn allow<'a>(&self, mut of_token: impl Iterator<Item = &'a str>) -> bool {
        self.0.is_empty() || of_token.any(|audience| self.0.iter().any(|known| **known == *bare_audience(audience)))
    }
}

/// Envoy compares audiences without `http://`, `https://` and a trailing slash.
fn bare_audience(audience: &str) -> &str {
    let bare = audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://")).unwrap_or(audience);
    bare.strip_suffix('/').unwrap_or(bare)
}

/// One issuer of tokens.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Its name, `origins-0`.
    pub name: Arc<str>,
    /// `iss` of its tokens; none is any.
    pub issuer: Option<Box<str>>,
    /// For whom they must be.
    pub audiences: Audiences,
    /// Where they are, in Envoy's order, of which the last is verified first.
    pub places: Vec<TokenPlace>,
    /// With which keys.
    pub keys: KeySource,
    /// How far clocks may differ, in seconds.
    pub clock_skew_seconds: u64,
    /// Whether the token stays in the request.
    pub forward: bool,
    /// Where its payload goes, still encoded, and whether it is padded.
    pub payload_header: Option<(HeaderName, bool)>,
    /// Claims that go to headers.
    pub claim_headers: Vec<ClaimHeader>,
    /// Under which name policies and routes find the payload.
    pub metadata_name: Option<Arc<str>>,
    /// Claims whose text is a list separated by spaces to them.
    pub list_claims: Vec<Box<str>>,
    /// Whether routes see claims.
    pub clear_route_cache: bool,
}

/// What a request must carry.
#[derive(Clone, Debug)]
pub enum Requirement {
    /// Tokens of this provider, all of them valid.
    Provider {
        /// Its index.
        provider: usize,
        /// Audiences that stand in for the provider's.
        audiences: Option<Audiences>,
    },
    /// One of these.
    Any {
        /// These.
        of: Vec<Requirement>,
        /// Or no token at all.
        allow_missing: bool,
    },
    /// All of these.
    All(Vec<Requirement>),
}

/// Which requests must carry what.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which.
    pub matches: RouteMatch,
    /// What; none is nothing.
    pub requires: Option<Requirement>,
}

/// The filter.
#[derive(Clone, Debug)]
pub struct JwtAuthn {
    /// In name order.
    pub providers: Vec<Provider>,
    /// The first that matches counts.
    pub rules: Vec<Rule>,
    /// CORS preflights need no token.
    pub bypass_cors_preflight: bool,
    /// Headers that only a verified token may set.
    pub own_headers: Vec<HeaderName>,
}

impl JwtAuthn {
    /// The keys that have to be fetched.
    pub fn remote_keys(&self) -> impl Iterator<Item = &Arc<RemoteKeys>> {
        self.providers.iter().filter_map(|provider| match &provider.keys {
            KeySource::Given(_) => None,
            KeySource::Fetched(remote) => Some(remote),
        })
    }
}

/// A change that a verified token makes to its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenEdit {
    /// All lines of a header go.
    RemoveHeader(HeaderName),
    /// A line comes.
    AddHeader(HeaderName, HeaderValue),
    /// A query parameter goes.
    RemoveParameter(Box<str>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_are_those_that_envoy_has() {
        assert_eq!(Algorithm::parse("ES384"), Some(Algorithm::Es(Hash::Sha384)));
        assert_eq!(Algorithm::parse("EdDSA"), Some(Algorithm::EdDsa));
        for none in ["none", "None", "", "RS", "RS255", "rs256", "XS256", "ES256K", "é256"] {
            assert_eq!(Algorithm::parse(none), None, "{none}");
        }
    }

    #[test]
    fn audiences_are_compared_without_scheme_and_last_slash() {
        let known = Audiences::new(["https://shop.example/", "web"]);
        assert!(known.allow(["x", "http://shop.example"].into_iter()) && known.allow(["web/"].into_iter()));
        assert!(!known.allow(["shop"].into_iter()) && !known.allow(std::iter::empty()));
        assert!(Audiences::default().allow(std::iter::empty()));
    }
}
