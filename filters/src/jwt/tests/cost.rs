//! What a token costs: the first time, with its signature verified, and again. Prints both, and what the signature alone takes, which is AWS-LC's
//! and the machine's; in an optimised build (`make verify`) holds both to what they may take.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};

use super::*;

const TOKENS: u64 = 500;
/// Tokens of one round the first time: a few milliseconds, which pass undisturbed sooner or later.
const TOKENS_AT_ONCE: u64 = 50;
/// Rounds, of which the fastest counts: the others were disturbed.
const ROUNDS: u64 = 100;
/// Rounds over all tokens, likewise.
const ROUNDS_AGAIN: u64 = 20;
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

/// What is signed of a request's token, and the signature.
fn signed(headers: &HeaderMap) -> (Vec<u8>, Vec<u8>) {
    let token = headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap();
    let (text, signature) = token.rsplit_once('.').unwrap();
    (text.into(), URL_SAFE_NO_PAD.decode(signature).unwrap())
}

/// The time of one of `count`, in the fastest round.
fn time_of_one(rounds: u64, count: u64, mut round: impl FnMut(u64)) -> Duration {
    let of_round = |number| {
        let began = Instant::now();
        round(number);
        began.elapsed().div_f64(f64::from(u32::try_from(count).unwrap()))
    };
    (0..rounds).map(of_round).min().unwrap()
}

/// Those of a round: others than in the round before.
fn of_round<T>(all: &[T], number: u64) -> &[T] {
    let n_groups = TOKENS / TOKENS_AT_ONCE;
    let at = usize::try_from(number % n_groups * TOKENS_AT_ONCE).unwrap();
    &all[at..at + usize::try_from(TOKENS_AT_ONCE).unwrap()]
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
    // The key is ready, as it is for all but the first token that a worker sees.
    let first = time_of_one(ROUNDS, TOKENS_AT_ONCE, |number| {
        let next = of_round(&requests, number);
        if number % (TOKENS / TOKENS_AT_ONCE) == 0 {
            cache = TokenCache::default();
        }
        next.iter().for_each(|headers| judge(headers, &mut cache));
    });
    requests.iter().for_each(|headers| judge(headers, &mut cache));
    let again = time_of_one(ROUNDS_AGAIN, TOKENS, |_| requests.iter().for_each(|headers| judge(headers, &mut cache)));
    let signed: Vec<_> = requests.iter().map(signed).collect();
    let KeyMaterial::Ec { point, .. } = &signer.key.material else { panic!("another kind of key") };
    let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).unwrap();
    let signature = time_of_one(ROUNDS, TOKENS_AT_ONCE, |number| {
        of_round(&signed, number).iter().for_each(|(text, signature)| key.verify_sig(black_box(text), signature).unwrap());
    });
    println!("token_first {first:?}, its signature alone {signature:?}, token_again {again:?}");
    if !cfg!(debug_assertions) {
        assert!(first < FIRST_BUDGET, "{first:?} of {FIRST_BUDGET:?}, of which {signature:?} are the signature's");
        assert!(again < AGAIN_BUDGET, "{again:?} of {AGAIN_BUDGET:?}");
    }
}
