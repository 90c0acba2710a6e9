#![expect(clippy::unwrap_used, reason = "tests")]

mod cost;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use aws_lc_rs::{hmac, rsa};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use model::jwt::{Algorithm, ClaimHeader, Hash, Key, KeyMaterial, KeySet, Rule};
use model::route::{PathMatcher, RouteMatch};
use proptest::prelude::*;

use super::cache::VERIFIERS_MAX;
use super::verify::KEYS_TRIED_MAX;
use super::*;

const NOW: u64 = 1_800_000_000;

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// A key pair and what it signs with.
struct Signer {
    key: Key,
    sign: Sign,
    algorithm: &'static str,
}

fn ec(curve: Hash, algorithm: &'static str) -> Signer {
    let (parameters, length) = match curve {
        Hash::Sha256 => (&signature::ECDSA_P256_SHA256_FIXED_SIGNING, 65),
        Hash::Sha384 => (&signature::ECDSA_P384_SHA384_FIXED_SIGNING, 97),
        Hash::Sha512 => (&signature::ECDSA_P521_SHA512_FIXED_SIGNING, 133),
    };
    let pair = EcdsaKeyPair::generate(parameters).unwrap();
    let point: Box<[u8]> = pair.public_key().as_ref().into();
    assert_eq!(point.len(), length);
    let key = Key { id: "ec".into(), algorithm: Algorithm::parse(algorithm), material: KeyMaterial::Ec { curve, point } };
    Signer { key, sign: Box::new(move |text| pair.sign(&SystemRandom::new(), text).unwrap().as_ref().to_vec()), algorithm }
}

fn rsa(algorithm: &'static str) -> Signer {
    let pair = RsaKeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
    let public = pair.public_key();
    let (modulus, exponent) = (public.modulus(), public.exponent());
    let material = KeyMaterial::Rsa {
        modulus: modulus.big_endian_without_leading_zero().into(),
        exponent: exponent.big_endian_without_leading_zero().into(),
    };
    let encoding: &'static dyn signature::RsaEncoding = match algorithm {
        "RS256" => &signature::RSA_PKCS1_SHA256,
        "RS384" => &signature::RSA_PKCS1_SHA384,
        "RS512" => &signature::RSA_PKCS1_SHA512,
        "PS256" => &signature::RSA_PSS_SHA256,
        "PS384" => &signature::RSA_PSS_SHA384,
        _ => &signature::RSA_PSS_SHA512,
    };
    let sign = move |text: &[u8]| {
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(encoding, &SystemRandom::new(), text, &mut signature).unwrap();
        signature
    };
    Signer { key: Key { id: "rsa".into(), algorithm: None, material }, sign: Box::new(sign), algorithm }
}

fn ed25519() -> Signer {
    let pair = Ed25519KeyPair::generate().unwrap();
    let material = KeyMaterial::Ed25519(pair.public_key().as_ref().try_into().unwrap());
    let key = Key { id: "ed".into(), algorithm: Some(Algorithm::EdDsa), material };
    Signer { key, sign: Box::new(move |text| pair.sign(text).as_ref().to_vec()), algorithm: "EdDSA" }
}

fn secret(algorithm: &'static str, secret: &'static [u8]) -> Signer {
    let hash = match algorithm {
        "HS256" => hmac::HMAC_SHA256,
        "HS384" => hmac::HMAC_SHA384,
        _ => hmac::HMAC_SHA512,
    };
    let key = Key { id: "oct".into(), algorithm: None, material: KeyMaterial::Secret(secret.into()) };
    Signer { key, sign: Box::new(move |text| hmac::sign(&hmac::Key::new(hash, secret), text).as_ref().to_vec()), algorithm }
}

impl Signer {
    fn token(&self, payload: &str) -> String {
        self.token_with(&format!(r#"{{"alg":"{}","kid":"{}"}}"#, self.algorithm, self.key.id), payload)
    }

    fn token_with(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode((self.sign)(signed.as_bytes())))
    }
}

fn provider(keys: Vec<Key>, issuer: &str, header: &str) -> Provider {
    Provider {
        name: issuer.into(),
        issuer: Some(issuer.into()),
        audiences: Audiences::default(),
        places: vec![TokenPlace::Header { name: header.parse().unwrap(), prefix: "Bearer ".into() }],
        keys: KeySource::Given(Arc::new(KeySet { keys })),
        clock_skew_seconds: 60,
        forward: true,
        payload_header: None,
        claim_headers: Vec::new(),
        metadata_name: Some("payload".into()),
        list_claims: vec!["scope".into()],
        clear_route_cache: true,
    }
}

/// As istiod requires tokens of several providers.
fn requires(n_providers: usize) -> Requirement {
    let one = |provider| Requirement::Provider { provider, audiences: None };
    if n_providers == 1 {
        return Requirement::Any { of: vec![one(0)], allow_missing: true };
    }
    let optional = |provider| Requirement::Any { of: vec![one(provider)], allow_missing: true };
    let mut of: Vec<_> = (0..n_providers).map(one).collect();
    of.push(Requirement::All((0..n_providers).map(optional).collect()));
    Requirement::Any { of, allow_missing: false }
}

fn authn(providers: Vec<Provider>) -> JwtAuthn {
    let matches = RouteMatch::of(PathMatcher::Prefix("/".into()));
    let rules = vec![Rule { matches, requires: Some(requires(providers.len())) }];
    JwtAuthn { providers, rules, bypass_cors_preflight: true, own_headers: vec!["x-sub".parse().unwrap()] }
}

fn ask(authn: &JwtAuthn, lines: &[(&'static str, &str)], cache: &mut TokenCache, now: u64) -> Result<Authenticated, TokenProblem> {
    let judged = ask_with(authn, lines, Known { cache, fetched: &|_| Fetched::Failed, now });
    judged.map_err(|unmet| match unmet {
        Unmet::Refused(problem) => problem,
        Unmet::Needs(remote) => panic!("needs {remote:?}"),
    })
}

fn ask_with(authn: &JwtAuthn, lines: &[(&'static str, &str)], known: Known<'_>) -> Result<Authenticated, Unmet> {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, value.parse().unwrap());
    }
    let head = RequestHead { method: "OPTIONS", path: "/a", authority: Some("web"), scheme: "http", headers: &headers };
    authenticate(authn, &head, known)
}

fn with(authn: &JwtAuthn, token: &str) -> Result<Authenticated, TokenProblem> {
    ask(authn, &[("authorization", &format!("Bearer {token}"))], &mut TokenCache::default(), NOW)
}

#[test]
fn every_algorithm_verifies_its_own_signature_and_no_changed_one() {
    let mut signers = vec![ed25519(), ec(Hash::Sha256, "ES256"), ec(Hash::Sha384, "ES384"), ec(Hash::Sha512, "ES512")];
    signers.extend(["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"].map(rsa));
    signers.extend(["HS256", "HS384", "HS512"].map(|algorithm| secret(algorithm, b"shared")));
    for signer in signers {
        let name = signer.algorithm;
        let authn = authn(vec![provider(vec![signer.key.clone()], "i", "authorization")]);
        let token = signer.token(r#"{"iss":"i","sub":"alice"}"#);
        let passed = with(&authn, &token).unwrap_or_else(|problem| panic!("{name}: {problem}"));
        let sub = passed.metadata.as_ref().and_then(|metadata| metadata.at(&["payload".into(), "sub".into()])).and_then(Claim::as_text);
        assert_eq!(sub, Some("alice"), "{name}");
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = signed.split_once('.').unwrap();
        let forged = format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(r#"{"iss":"i","sub":"admin"}"#));
        assert_eq!(with(&authn, &forged).unwrap_err(), TokenProblem::Verification, "{name}");
        let short = format!("{signed}.AA");
        let expected = if name == "EdDSA" { TokenProblem::SignatureLength } else { TokenProblem::Verification };
        assert_eq!(with(&authn, &short).unwrap_err(), expected, "{name}");
    }
}

#[test]
fn a_token_chooses_no_algorithm_for_a_key_of_another_kind() {
    let signer = rsa("RS256");
    let KeyMaterial::Rsa { modulus, .. } = &signer.key.material else { panic!("RSA") };
    let authn = authn(vec![provider(vec![signer.key.clone()], "i", "authorization")]);
    // RS/HS confusion: the public key, which everybody has, as the secret.
    let secret: &'static [u8] = Box::leak(modulus.clone());
    let confused = self::secret("HS256", secret).token_with(r#"{"alg":"HS256","kid":"rsa"}"#, r#"{"iss":"i"}"#);
    assert_eq!(with(&authn, &confused).unwrap_err(), TokenProblem::Verification);
    for header in [r#"{"alg":"ES256","kid":"rsa"}"#, r#"{"alg":"EdDSA"}"#, r#"{"alg":"PS256"}"#, r#"{"alg":"RS384"}"#] {
        assert_eq!(with(&authn, &signer.token_with(header, r#"{"iss":"i"}"#)).unwrap_err(), TokenProblem::Verification, "{header}");
    }
    for header in [r#"{"alg":"none"}"#, r#"{"alg":"NONE"}"#] {
        assert_eq!(with(&authn, &signer.token_with(header, r#"{"iss":"i"}"#)).unwrap_err(), TokenProblem::UnknownAlgorithm, "{header}");
    }
    let unsigned = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(r#"{"iss":"i"}"#));
    assert_eq!(with(&authn, &unsigned).unwrap_err(), TokenProblem::Form);
}

#[test]
fn keys_are_chosen_by_id_and_algorithm_where_both_are_named() {
    let (one, other) = (ec(Hash::Sha256, "ES256"), ec(Hash::Sha256, "ES256"));
    let named = |id: &str, key: &Key| Key { id: id.into(), ..key.clone() };
    let authn = authn(vec![provider(vec![named("a", &one.key), named("b", &other.key)], "i", "authorization")]);
    let id = |id: &str| format!(r#"{{"alg":"ES256","kid":"{id}"}}"#);
    let payload = r#"{"iss":"i"}"#;
    assert!(with(&authn, &other.token_with(&id("b"), payload)).is_ok());
    assert!(with(&authn, &other.token_with(r#"{"alg":"ES256"}"#, payload)).is_ok(), "all keys are tried for a token without an id");
    assert_eq!(with(&authn, &other.token_with(&id("a"), payload)).unwrap_err(), TokenProblem::Verification);
    assert_eq!(with(&authn, &other.token_with(&id("c"), payload)).unwrap_err(), TokenProblem::NoKey);
    let none = self::authn(vec![provider(Vec::new(), "i", "authorization")]);
    assert_eq!(with(&none, &other.token_with(&id("b"), payload)).unwrap_err(), TokenProblem::NoKeys);
}

#[test]
fn issuer_audience_and_time_are_judged_with_a_minute_of_skew() {
    let signer = ed25519();
    let mut provider = provider(vec![signer.key.clone()], "i", "authorization");
    provider.audiences = Audiences::new(["shop"]);
    let authn = authn(vec![provider]);
    let judged = |payload: String| with(&authn, &signer.token(&payload)).map(|_| ());
    let times = |claim: &str, at: u64| judged(format!(r#"{{"iss":"i","aud":"shop","{claim}":{at}}}"#));
    assert_eq!(times("exp", NOW - 60), Ok(()));
    assert_eq!(times("exp", NOW - 61), Err(TokenProblem::Expired));
    assert_eq!(times("nbf", NOW + 60), Ok(()));
    assert_eq!(times("nbf", NOW + 61), Err(TokenProblem::NotYetValid));
    assert_eq!(judged(r#"{"iss":"x","aud":"shop"}"#.into()), Err(TokenProblem::UnknownIssuer));
    assert_eq!(judged(r#"{"aud":"shop"}"#.into()), Err(TokenProblem::UnknownIssuer));
    assert_eq!(judged(r#"{"iss":"i","aud":["a","shop"]}"#.into()), Ok(()));
    for aud in [r#","aud":"other""#, ""] {
        assert_eq!(judged(format!(r#"{{"iss":"i"{aud}}}"#)), Err(TokenProblem::AudienceNotAllowed));
    }
    assert_eq!((TokenProblem::AudienceNotAllowed.status(), TokenProblem::Expired.status()), (403, 401));
}

#[test]
fn a_bad_token_beside_a_good_one_is_refused_and_none_passes() {
    let signer = ed25519();
    let authn = authn(vec![provider(vec![signer.key.clone()], "i", "x-token")]);
    let good = format!("Bearer {}", signer.token(r#"{"iss":"i"}"#));
    let bad = format!("Bearer {}", ed25519().token(r#"{"iss":"i"}"#));
    for lines in [[("x-token", &*good), ("x-token", &*bad)], [("x-token", &*bad), ("x-token", &*good)]] {
        assert_eq!(ask(&authn, &lines, &mut TokenCache::default(), NOW).unwrap_err(), TokenProblem::Verification);
    }
    assert!(ask(&authn, &[], &mut TokenCache::default(), NOW).unwrap().metadata.is_none());
    let basic = [("x-token", "Basic a")];
    assert!(ask(&authn, &basic, &mut TokenCache::default(), NOW).is_ok());
}

#[test]
fn so_many_keys_are_tried_for_a_token_that_names_none() {
    let signers: Vec<_> = (0..=KEYS_TRIED_MAX).map(|_| ed25519()).collect();
    let keys = signers.iter().enumerate().map(|(at, signer)| Key { id: at.to_string().into(), ..signer.key.clone() });
    // Keys of other kinds do not count.
    let keys = std::iter::once(ec(Hash::Sha256, "ES256").key).chain(keys).collect();
    let authn = authn(vec![provider(keys, "i", "authorization")]);
    let judged = |at: usize, header: &str| with(&authn, &signers[at].token_with(header, r#"{"iss":"i"}"#)).map(|_| ());
    let nameless = r#"{"alg":"EdDSA"}"#;
    assert_eq!(judged(KEYS_TRIED_MAX - 1, nameless), Ok(()));
    assert_eq!(judged(KEYS_TRIED_MAX, nameless), Err(TokenProblem::Verification));
    assert_eq!(judged(KEYS_TRIED_MAX, &format!(r#"{{"alg":"EdDSA","kid":"{KEYS_TRIED_MAX}"}}"#)), Ok(()));
}

#[test]
fn so_many_tokens_are_verified_and_no_more() {
    let signer = ed25519();
    let authn = authn(vec![provider(vec![signer.key.clone()], "i", "x-token")]);
    let good = format!("Bearer {}", signer.token(r#"{"iss":"i"}"#));
    let judged = |count| ask(&authn, &vec![("x-token", &*good); count], &mut TokenCache::default(), NOW).map(|_| ());
    assert_eq!((judged(TOKENS_MAX), judged(TOKENS_MAX + 1)), (Ok(()), Err(TokenProblem::Verification)));
}

#[test]
fn of_several_providers_one_is_enough_and_what_is_worst_is_said() {
    let (one, other) = (ed25519(), ed25519());
    let authn = authn(vec![provider(vec![one.key.clone()], "one", "x-one"), provider(vec![other.key.clone()], "two", "x-two")]);
    let of = |signer: &Signer, issuer: &str| format!("Bearer {}", signer.token(&format!(r#"{{"iss":"{issuer}"}}"#)));
    let judged = |lines: &[(&'static str, &str)]| ask(&authn, lines, &mut TokenCache::default(), NOW).map(|_| ());
    assert_eq!(judged(&[]), Ok(()));
    assert_eq!(judged(&[("x-one", &of(&one, "one"))]), Ok(()));
    assert_eq!(judged(&[("x-two", &of(&other, "two"))]), Ok(()));
    assert_eq!(judged(&[("x-one", &of(&one, "what"))]), Err(TokenProblem::UnknownIssuer));
    assert_eq!(judged(&[("x-one", &of(&one, "what")), ("x-two", &of(&one, "two"))]), Err(TokenProblem::Verification));
}

#[test]
fn a_verified_token_is_known_until_it_expires_or_its_keys_change() {
    let signer = ed25519();
    let keys = vec![signer.key.clone()];
    let first = authn(vec![provider(keys.clone(), "i", "authorization")]);
    let token = format!("Bearer {}", signer.token(&format!(r#"{{"iss":"i","exp":{NOW}}}"#)));
    let lines = [("authorization", &*token)];
    let mut cache = TokenCache::default();
    assert!(ask(&first, &lines, &mut cache, NOW).is_ok());
    let text = token.trim_start_matches("Bearer ");
    let is_known = |cache: &mut TokenCache, authn: &JwtAuthn| {
        let KeySource::Given(keys) = &authn.providers[0].keys else { panic!("given") };
        cache.get(text).is_some_and(|known| known.is_verified_by(keys))
    };
    assert!(is_known(&mut cache, &first));
    assert_eq!(ask(&first, &lines, &mut cache, NOW + 61).unwrap_err(), TokenProblem::Expired);
    // Equal keys that were read anew are other keys, and so are others.
    let again = authn(vec![provider(keys, "i", "authorization")]);
    assert!(!is_known(&mut cache, &again));
    let rotated = authn(vec![provider(vec![Key { ..ed25519().key }], "i", "authorization")]);
    assert_eq!(ask(&rotated, &lines, &mut cache, NOW).unwrap_err(), TokenProblem::Verification);
}

#[test]
fn what_is_cached_is_bounded() {
    let keys = Arc::new(KeySet::default());
    let mut cache = TokenCache::default();
    let signer = ed25519();
    let token = Arc::new(Token::parse(&signer.token(r#"{"iss":"i"}"#)).unwrap());
    for number in 0..5 * CACHED_TOKENS_MAX {
        cache.insert(&number.to_string(), &keys, &token);
    }
    let kept = (0..5 * CACHED_TOKENS_MAX).filter(|number| cache.get(&number.to_string()).is_some()).count();
    assert!(kept <= 2 * CACHED_TOKENS_MAX && kept > 0, "{kept}");
    let long = "a".repeat(CACHED_TOKEN_BYTES_MAX + 1);
    cache.insert(&long, &keys, &token);
    assert!(cache.get(&long).is_none());
}

#[test]
fn headers_that_tokens_set_are_taken_from_every_request_and_set_by_verified_ones() {
    let signer = ed25519();
    let mut provider = provider(vec![signer.key.clone()], "i", "authorization");
    provider.forward = false;
    provider.payload_header = Some(("x-payload".parse().unwrap(), false));
    provider.claim_headers = vec![ClaimHeader { name: "x-sub".parse().unwrap(), claim: vec!["n".into(), "team".into()] }];
    let authn = authn(vec![provider]);
    let taken = TokenEdit::RemoveHeader("x-sub".parse().unwrap());
    let spoofed = ask(&authn, &[("x-sub", "admin")], &mut TokenCache::default(), NOW).unwrap();
    assert_eq!(spoofed.edits, std::slice::from_ref(&taken));
    let preflight = [("x-sub", "admin"), ("origin", "a"), ("access-control-request-method", "GET"), ("authorization", "Bearer x")];
    assert_eq!(ask(&authn, &preflight, &mut TokenCache::default(), NOW).unwrap().edits, [taken]);
    let payload = r#"{"iss":"i","n":{"team":"blue"},"scope":"read  write"}"#;
    let passed = with(&authn, &signer.token(payload)).unwrap();
    let add = |name: &str, value: &str| TokenEdit::AddHeader(name.parse().unwrap(), value.parse().unwrap());
    let gone = TokenEdit::RemoveHeader("authorization".parse().unwrap());
    assert_eq!(passed.edits, [add("x-payload", &URL_SAFE_NO_PAD.encode(payload)), add("x-sub", "blue"), gone]);
    let metadata = passed.metadata.unwrap();
    let words = vec![Claim::Text("read".into()), Claim::Text("write".into())];
    assert_eq!(metadata.at(&["payload".into(), "scope".into()]), Some(&Claim::List(words)));
    assert!(metadata.is_seen_by_routes);
}

fn remote(uri: &str) -> Arc<RemoteKeys> {
    Arc::new(RemoteKeys {
        name: uri.into(),
        cluster: "keys".into(),
        host: HeaderValue::from_static("issuer"),
        path: http::uri::PathAndQuery::from_static("/"),
        timeout: None,
        cache_duration: std::time::Duration::from_secs(300),
        failed_pause: std::time::Duration::from_secs(1),
        retries: None,
    })
}

#[test]
fn keys_are_asked_for_only_for_a_token_that_they_could_make_good() {
    let signer = ed25519();
    let mut provider = provider(Vec::new(), "i", "authorization");
    provider.keys = KeySource::Fetched(remote("https://i/keys"));
    provider.audiences = Audiences::new(["shop"]);
    let authn = authn(vec![provider]);
    let keys = Arc::new(KeySet { keys: vec![signer.key.clone()] });
    let judged = |token: &str, fetched: Fetched| {
        let line = format!("Bearer {token}");
        let known = Known { cache: &mut TokenCache::default(), fetched: &|_| fetched.clone(), now: NOW };
        ask_with(&authn, &[("authorization", &line)], known).map(|_| ())
    };
    let good = signer.token(r#"{"iss":"i","aud":"shop"}"#);
    let stranger = ed25519().token(r#"{"iss":"i","aud":"shop"}"#);
    assert_eq!(judged(&good, Fetched::NotYet), Err(Unmet::Needs(remote("https://i/keys"))));
    assert_eq!(judged(&good, Fetched::Failed), Err(TokenProblem::FetchFailed.into()));
    assert_eq!(judged(&good, Fetched::Keys(Arc::clone(&keys))), Ok(()));
    assert_eq!(judged(&stranger, Fetched::Keys(keys)), Err(TokenProblem::Verification.into()));
    for (payload, problem) in [
        (r#"{"iss":"x","aud":"shop"}"#, TokenProblem::UnknownIssuer),
        (r#"{"iss":"i","aud":"bank"}"#, TokenProblem::AudienceNotAllowed),
        (r#"{"iss":"i","aud":"shop","exp":1}"#, TokenProblem::Expired),
    ] {
        assert_eq!(judged(&signer.token(payload), Fetched::NotYet), Err(problem.into()), "{payload}");
    }
    assert_eq!(judged("x", Fetched::NotYet), Err(TokenProblem::Form.into()));
}

#[test]
fn a_token_is_known_for_each_key_set_that_verified_it_and_for_no_other() {
    let (signer, other) = (ed25519(), ed25519());
    let mut cache = TokenCache::default();
    let text = signer.token(r#"{"iss":"i"}"#);
    let token = Arc::new(Token::parse(&text).unwrap());
    let set = |signer: &Signer| Arc::new(KeySet { keys: vec![signer.key.clone()] });
    let sets: Vec<_> = (0..=VERIFIERS_MAX).map(|_| set(&signer)).collect();
    for keys in &sets[..VERIFIERS_MAX] {
        cache.insert(&text, keys, &token);
    }
    let mut known_by = |keys: &Arc<KeySet>| cache.get(&text).unwrap().is_verified_by(keys);
    assert!(sets[..VERIFIERS_MAX].iter().all(&mut known_by) && !known_by(&set(&other)));
    cache.insert(&text, &sets[VERIFIERS_MAX], &token);
    let by: Vec<_> = sets.iter().map(|keys| cache.get(&text).unwrap().is_verified_by(keys)).collect();
    assert_eq!(by, [false, true, true, true, true], "the oldest is forgotten");
}

proptest! {
    #[test]
    fn a_token_changed_in_one_byte_is_never_accepted(at in any::<prop::sample::Index>(), other in 0x21_u8..0x7f) {
        let signer = ed25519();
        let authn = authn(vec![provider(vec![signer.key.clone()], "i", "authorization")]);
        let mut token = signer.token(r#"{"iss":"i","groups":["admin"],"exp":1900000000}"#).into_bytes();
        // The last character of a signature has bits that mean nothing, as in Envoy.
        let at = at.index(token.len() - 1);
        prop_assume!(token[at] != other);
        token[at] = other;
        prop_assert!(with(&authn, std::str::from_utf8(&token).unwrap()).is_err());
    }
}
