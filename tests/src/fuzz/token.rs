//! Tokens: what was not signed is not accepted, wherever in a request it is, and nothing of any of it panics.
//!
//! The first three bytes change a good token: which byte, and what it becomes; all others are a text that is put in every place.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use filters::jwt::{Authenticated, Fetched, Known, TokenCache, TokenProblem, Unmet, authenticate, without_parameter};
use http::{HeaderMap, HeaderValue};
use model::jwt::{Algorithm, Audiences, JwtAuthn, Key, KeyMaterial, KeySet, KeySource, Provider, Requirement, Rule, TokenPlace};
use model::route::{PathMatcher, RouteMatch};
use model::stream_view::RequestHead;

const NOW: u64 = 1_800_000_000;
const PARAMETER: &str = "access_token";

/// A filter that asks for a token, and one that it accepts.
struct Fixture {
    authn: JwtAuthn,
    good: String,
}

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("32 bytes are a seed");
        let public = pair.public_key().as_ref().try_into().expect("a public key has 32 bytes");
        let key = Key { id: "k".into(), algorithm: Some(Algorithm::EdDsa), material: KeyMaterial::Ed25519(public) };
        let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let payload = r#"{"iss":"i","sub":"alice","aud":["a","b"],"exp":1900000000,"scope":"read write","n":{"team":[1,true,null]}}"#;
        let signed = format!("{}.{}", encoded(r#"{"alg":"EdDSA","kid":"k"}"#), encoded(payload));
        let good = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes())));
        Fixture { authn: authn(key), good }
    })
}

fn authn(key: Key) -> JwtAuthn {
    let header = |name: &'static str, prefix: &str| TokenPlace::Header { name: http::HeaderName::from_static(name), prefix: prefix.into() };
    let provider = Provider {
        name: "p".into(),
        issuer: Some("i".into()),
        audiences: Audiences::new(["a"]),
        places: vec![
            header("authorization", "Bearer "),
            header("x-jwt", ""),
            TokenPlace::Parameter(PARAMETER.into()),
            TokenPlace::Cookie("session".into()),
        ],
        keys: KeySource::Given(Arc::new(KeySet { keys: vec![key] })),
        clock_skew_seconds: 60,
        forward: false,
        payload_header: Some((http::HeaderName::from_static("x-payload"), true)),
        claim_headers: Vec::new(),
        metadata_name: Some("payload".into()),
        list_claims: vec!["scope".into()],
        clear_route_cache: true,
    };
    let matches = RouteMatch::of(PathMatcher::Prefix("/".into()));
    let rules = vec![Rule { matches, requires: Some(Requirement::Provider { provider: 0, audiences: None }) }];
    JwtAuthn { providers: vec![provider], rules, bypass_cors_preflight: false, own_headers: Vec::new() }
}

fn judge(lines: &[(&'static str, &[u8])], path: &str, cache: &mut TokenCache) -> Result<Authenticated, Unmet> {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        // What is no header's value never comes this far.
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        headers.append(*name, value);
    }
    let head = RequestHead { method: "GET", path, authority: Some("a"), scheme: "http", headers: &headers };
    authenticate(&fixture().authn, &head, Known { cache, fetched: &|_| Fetched::Failed, now: NOW })
}

/// # Panics
/// Something was accepted that must not be, or changed otherwise than it must.
pub fn token(data: &[u8]) {
    let good = &fixture().good;
    let mut cache = TokenCache::default();
    let bearer = |token: &[u8]| [b"Bearer ", token].concat();
    assert!(judge(&[("authorization", &bearer(good.as_bytes()))], "/", &mut cache).is_ok(), "a good token");
    if let [high, low, byte, ..] = data {
        let signed_bytes = good.rfind('.').expect("a token has dots");
        let at = (usize::from(*high) << 8 | usize::from(*low)) % signed_bytes;
        let mut changed = good.clone().into_bytes();
        if changed[at] != *byte {
            changed[at] = *byte;
            assert!(judge(&[("x-jwt", &changed)], "/", &mut cache).is_err(), "byte {at} as {byte}");
        }
    }
    let text = data.get(3..).unwrap_or_default();
    let bearer = bearer(text);
    let cookie = [b"a=b; session=", text].concat();
    let lines: [(&'static str, &[u8]); 3] = [("authorization", &bearer), ("x-jwt", text), ("cookie", &cookie)];
    for line in lines {
        let alone = judge(&[line], "/", &mut cache).expect_err("nobody signed this");
        if alone != Unmet::Refused(TokenProblem::Missing) {
            let beside = judge(&[line, ("x-jwt", good.as_bytes())], "/", &mut cache);
            assert!(beside.is_err(), "a good token beside a bad one makes it no better: {line:?}");
        }
    }
    let query = String::from_utf8_lossy(text);
    let path = format!("/a?{query}&{PARAMETER}={query}");
    assert!(judge(&[], &path, &mut cache).is_err());
    if let Some(without) = without_parameter(&path, PARAMETER) {
        assert_eq!(without_parameter(&without, PARAMETER), None, "{path}");
        assert!(path.starts_with(without.split('?').next().unwrap_or_default()));
    }
}
