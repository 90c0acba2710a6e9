//! An issuer with a key of every family, and tokens signed with them, good and bad.
//!
//! Independent of the waypoint's code. Not for: an issuer with one key ([`crate::tokens`]).

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// All algorithms that [`Keyring::token`] signs with.
pub const ALGORITHMS: [&str; 10] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"];

/// An issuer with one key of each family, named `rsa`, `ec256`, `ec384`, `ec521` and `ed`.
#[derive(Debug)]
pub struct Keyring {
    rsa: RsaKeyPair,
    elliptic: [EcdsaKeyPair; 3],
    ed25519: Ed25519KeyPair,
}

/// Base64url without padding.
#[must_use]
pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Keyring {
    /// One with new keys.
    ///
    /// # Errors
    /// No keys can be made.
    pub fn new() -> Result<Self> {
        let elliptic = |algorithm: &'static EcdsaSigningAlgorithm| EcdsaKeyPair::generate(algorithm).context("a key on a curve");
        Ok(Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).context("an RSA key")?,
            elliptic: [
                elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING)?,
                elliptic(&ECDSA_P384_SHA384_FIXED_SIGNING)?,
                elliptic(&ECDSA_P521_SHA512_FIXED_SIGNING)?,
            ],
            ed25519: Ed25519KeyPair::generate().context("an Ed25519 key")?,
        })
    }

    /// Its public keys, as JSON Web Keys.
    #[must_use]
    pub fn keys(&self) -> Vec<Value> {
        let public = self.rsa.public_key();
        let (n, e) = (public.modulus().big_endian_without_leading_zero(), public.exponent().big_endian_without_leading_zero());
        let mut keys = vec![json!({"kty": "RSA", "kid": "rsa", "use": "sig", "n": base64url(n), "e": base64url(e)})];
        for (pair, (id, curve)) in self.elliptic.iter().zip([("ec256", "P-256"), ("ec384", "P-384"), ("ec521", "P-521")]) {
            let point = &pair.public_key().as_ref()[1..];
            let (x, y) = point.split_at(point.len() / 2);
            keys.push(json!({"kty": "EC", "kid": id, "use": "sig", "crv": curve, "x": base64url(x), "y": base64url(y)}));
        }
        keys.push(json!({"kty": "OKP", "kid": "ed", "use": "sig", "crv": "Ed25519", "x": base64url(self.ed25519.public_key())}));
        keys
    }

    /// Its set of keys.
    #[must_use]
    pub fn key_set(&self) -> String {
        json!({"keys": self.keys()}).to_string()
    }

    /// The RSA key as a file would hold it: what a confused verifier takes for a shared secret.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn rsa_public_der(&self) -> Result<Vec<u8>> {
        let der = AsDer::<PublicKeyX509Der<'_>>::as_der(self.rsa.public_key())?;
        Ok(der.as_ref().to_vec())
    }

    /// A token with these claims, by this algorithm and its key's id.
    ///
    /// # Errors
    /// There is no such algorithm.
    pub fn token(&self, algorithm: &str, claims: &Value) -> Result<String> {
        let key = match algorithm {
            "ES256" => "ec256",
            "ES384" => "ec384",
            "ES512" => "ec521",
            "EdDSA" => "ed",
            _ => "rsa",
        };
        self.signed(&json!({"alg": algorithm, "typ": "JWT", "kid": key}), claims.to_string(), algorithm)
    }

    /// A token with this header and payload, signed by an algorithm that the header need not name.
    ///
    /// # Errors
    /// There is no such algorithm.
    pub fn signed(&self, header: &Value, payload: impl AsRef<[u8]>, algorithm: &str) -> Result<String> {
        let message = format!("{}.{}", base64url(header.to_string()), base64url(payload));
        let signature = self.signature(algorithm, message.as_bytes())?;
        Ok(format!("{message}.{}", base64url(signature)))
    }

    fn signature(&self, algorithm: &str, message: &[u8]) -> Result<Vec<u8>> {
        let random = SystemRandom::new();
        let encoding: &'static dyn RsaEncoding = match algorithm {
            "RS256" => &signature::RSA_PKCS1_SHA256,
            "RS384" => &signature::RSA_PKCS1_SHA384,
            "RS512" => &signature::RSA_PKCS1_SHA512,
            "PS256" => &signature::RSA_PSS_SHA256,
            "PS384" => &signature::RSA_PSS_SHA384,
            "PS512" => &signature::RSA_PSS_SHA512,
            "ES256" => return Ok(self.elliptic[0].sign(&random, message)?.as_ref().to_vec()),
            "ES384" => return Ok(self.elliptic[1].sign(&random, message)?.as_ref().to_vec()),
            "ES512" => return Ok(self.elliptic[2].sign(&random, message)?.as_ref().to_vec()),
            "EdDSA" => return Ok(self.ed25519.sign(message).as_ref().to_vec()),
            other => return Err(anyhow!("no key signs by {other}")),
        };
        let mut signature = vec![0; self.rsa.public_modulus_len()];
        self.rsa.sign(encoding, &random, message, &mut signature)?;
        Ok(signature)
    }
}

/// A token signed with a shared secret.
#[must_use]
pub fn with_secret(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let message = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    let tag = aws_lc_rs::hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", base64url(tag))
}
