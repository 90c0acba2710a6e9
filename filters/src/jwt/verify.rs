//! Whether a token is signed by one of a provider's keys.
//!
//! AWS-LC verifies, which TLS has in the process anyway. No JWT library stands between: Envoy's order of checks, its choice of keys, its texts
//! and payloads of any form would be ours to write over it, and what is left of such a library is the call below.
//! Invariant: a key verifies with algorithms of its own kind only; the token chooses no more than the hash among them.

use aws_lc_rs::signature::{self, UnparsedPublicKey};
use aws_lc_rs::{hmac, rsa};
use model::jwt::{Algorithm, Hash, Key, KeyMaterial};

use super::problem::TokenProblem;
use super::ready::ReadySet;
use super::token::Token;

/// Keys that are tried for a token which names none of them; one that needs more of them does not pass.
pub const KEYS_TRIED_MAX: usize = 16;
/// Bytes of an Ed25519 signature.
const ED25519_SIGNATURE_BYTES: usize = 64;

/// Checks the signature of a token, whose text this is.
///
/// # Errors
/// No key has the token's `kid` and `alg`, or none of those that have verifies it.
pub(super) fn verify(token: &Token, text: &str, keys: &ReadySet) -> Result<(), TokenProblem> {
    if keys.keys().next().is_none() {
        return Err(TokenProblem::NoKeys);
    }
    let signed = text.get(..token.signed_bytes).ok_or(TokenProblem::Form)?.as_bytes();
    let mut is_known = false;
    let mut tried = 0;
    for (key, ready) in keys.keys().filter(|(key, _)| may_have_signed(key, token)) {
        is_known = true;
        if matches!(key.material, KeyMaterial::Ed25519(_)) && token.signature.len() != ED25519_SIGNATURE_BYTES {
            return Err(TokenProblem::SignatureLength);
        }
        tried += usize::from(is_of_kind(&key.material, token.algorithm));
        if tried > KEYS_TRIED_MAX {
            return Err(TokenProblem::Verification);
        }
        let is_good = match (&key.material, token.algorithm) {
            (KeyMaterial::Ec { curve, .. }, Algorithm::Es(hash)) => {
                *curve == hash && ready.is_some_and(|key| key.verify_sig(signed, &token.signature).is_ok())
            }
            (material, algorithm) => verifies(material, algorithm, signed, &token.signature),
        };
        if is_good {
            return Ok(());
        }
    }
    Err(if is_known { TokenProblem::Verification } else { TokenProblem::NoKey })
}

/// An id or algorithm that one of both does not name is no reason against.
fn may_have_signed(key: &Key, token: &Token) -> bool {
    (token.key_id.is_empty() || key.id.is_empty() || key.id == token.key_id)
        && key.algorithm.is_none_or(|algorithm| algorithm == token.algorithm)
}

/// Whether a key is tried at all with an algorithm; others cost nothing.
fn is_of_kind(key: &KeyMaterial, algorithm: Algorithm) -> bool {
    match (key, algorithm) {
        (KeyMaterial::Rsa { .. }, Algorithm::Rs(_) | Algorithm::Ps(_))
        | (KeyMaterial::Ed25519(_), Algorithm::EdDsa)
        | (KeyMaterial::Secret(_), Algorithm::Hs(_)) => true,
        (KeyMaterial::Ec { curve, .. }, Algorithm::Es(hash)) => *curve == hash,
        _ => false,
    }
}

/// With a key that is on no curve.
fn verifies(key: &KeyMaterial, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
    match (key, algorithm) {
        (KeyMaterial::Rsa { modulus, exponent }, Algorithm::Rs(_) | Algorithm::Ps(_)) => {
            let key = rsa::PublicKeyComponents { n: modulus, e: exponent };
            let parameters = match algorithm {
                Algorithm::Rs(Hash::Sha256) => &signature::RSA_PKCS1_2048_8192_SHA256,
                Algorithm::Rs(Hash::Sha384) => &signature::RSA_PKCS1_2048_8192_SHA384,
                Algorithm::Rs(Hash::Sha512) => &signature::RSA_PKCS1_2048_8192_SHA512,
                Algorithm::Ps(Hash::Sha256) => &signature::RSA_PSS_2048_8192_SHA256,
                Algorithm::Ps(Hash::Sha384) => &signature::RSA_PSS_2048_8192_SHA384,
                _ => &signature::RSA_PSS_2048_8192_SHA512,
            };
            key.verify(parameters, signed, signature).is_ok()
        }
        (KeyMaterial::Ed25519(key), Algorithm::EdDsa) => UnparsedPublicKey::new(&signature::ED25519, key).verify(signed, signature).is_ok(),
        (KeyMaterial::Secret(secret), Algorithm::Hs(hash)) => {
            let algorithm = match hash {
                Hash::Sha256 => hmac::HMAC_SHA256,
                Hash::Sha384 => hmac::HMAC_SHA384,
                Hash::Sha512 => hmac::HMAC_SHA512,
            };
            hmac::verify(&hmac::Key::new(algorithm, secret), signed, signature).is_ok()
        }
        _ => false,
    }
}
