//! What a token costs: the first time, with its signature verified, and again. Prints both; in an optimised build (`make verify`) holds them to
//! what they may take.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::*;

const TOKENS: u64 = 500;
/// Rounds, of which the fastest counts: the others were disturbed.
const ROUNDS: u64 = 9;
const FIRST_BUDGET: Duration = Duration::from_micros(60);
const AGAIN_BUDGET: Duration = Duration::from_micros(3);

/// A request with a token of this subject, as an identity provider writes it.
fn headers(signer: &Signer, subject: u64) -> HeaderMap {
    let token = signer.token(&format!(
        r#"{{"iss":"https://issuer.example","sub":"user-{subject}","aud":["shop","bank"],"iat":{NOW},"exp":{},"scope":"read write",
            "azp":"web","sid":"b5a2d6a8-4c0e-4f2a-9d63-1f0c3b8f7a51","groups":["dev","admin","on-call"],"realm":{{"roles":["user","editor"]}}}}"#,
        NOW + 600
    ));
    let mut headers = HeaderMap::new();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    headers.insert("accept", "*/*".parse().unwrap());
    headers
}

/// One provider as istiod writes it, with a payload and a claim in headers.
fn chain(signer: &Signer) -> JwtAuthn {
    let mut provider = provider(vec![signer.key.clone()], "https://issuer.example", "authorization");
    provider.audiences = Audiences::new(["shop"]);
    provider.list_claims = vec!["permission".into(), "scope".into()];
    provider.payload_header = Some(("x-payload".parse().unwrap(), false));
    provider.claim_headers = vec![ClaimHeader { name: "x-sub".parse().unwrap(), claim: vec!["sub".into()] }];
    authn(vec![provider])
}

/// The time of one of `count`, in the fastest round.
fn time_of_one(count: u64, mut round: impl FnMut(u64)) -> Duration {
    let of_round = |number| {
        let began = Instant::now();
        round(number);
        began.elapsed().div_f64(f64::from(u32::try_from(count).unwrap()))
    };
    (0..ROUNDS).map(of_round).min().unwrap()
}

#[test]
fn a_token_costs_a_signature_once_and_little_again() {
    let signer = ec(Hash::Sha256, "ES256");
    let authn = chain(&signer);
    let requests: Vec<_> = (0..TOKENS).map(|subject| headers(&signer, subject)).collect();
    let judge = |headers: &HeaderMap, cache: &mut TokenCache| {
        let head = RequestHead { method: "GET", path: "/a", authority: Some("web"), scheme: "http", headers };
        let passed = authenticate(&authn, black_box(&head), Known { cache, fetched: &|_| Fetched::Failed, now: NOW }).unwrap();
        assert!(passed.metadata.is_some());
    };
    let mut cache = TokenCache::default();
    let first = time_of_one(TOKENS, |_| {
        cache = TokenCache::default();
        requests.iter().for_each(|headers| judge(headers, &mut cache));
    });
    let again = time_of_one(20 * TOKENS, |_| {
        for _ in 0..20 {
            requests.iter().for_each(|headers| judge(headers, &mut cache));
        }
    });
    println!("token_first {first:?}, token_again {again:?}");
    if !cfg!(debug_assertions) {
        assert!(first < FIRST_BUDGET && again < AGAIN_BUDGET, "{first:?} of {FIRST_BUDGET:?}, {again:?} of {AGAIN_BUDGET:?}");
    }
}
