//! Issuers of tokens: a key pair, its JWKS, and tokens signed with it, good or bad.
//!
//! Independent of the waypoint's code. Not for: serving keys.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// One that signs with ES256.
#[derive(Debug)]
pub struct Issuer {
    pair: EcdsaKeyPair,
    key_id: String,
}

impl Issuer {
    /// With a new key of this id.
    pub fn new(key_id: &str) -> Result<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| anyhow!("no key"))?;
        Ok(Self { pair, key_id: key_id.to_owned() })
    }

    /// Its key set.
    #[must_use]
    pub fn jwks(&self) -> String {
        let point = self.pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        let encoded = |bytes| URL_SAFE_NO_PAD.encode(bytes);
        let key = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self.key_id, "x": encoded(x), "y": encoded(y)});
        json!({"keys": [key]}).to_string()
    }

    /// A token of these claims.
    pub fn token(&self, claims: &Value) -> Result<String> {
        self.token_with(&json!({"alg": "ES256", "kid": self.key_id}), claims)
    }

    /// A token with a header of its own.
    pub fn token_with(&self, header: &Value, claims: &Value) -> Result<String> {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|_| anyhow!("no signature"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// Seconds since 1970, and so many more.
pub fn seconds_from_now(more: i64) -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())? + more)
}
