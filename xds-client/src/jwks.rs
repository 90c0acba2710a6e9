//! Key sets (RFC 7517), as Envoy reads them: a key that cannot be used is left out.
//!
//! A set without any key that can be used is no error: istiod sends a useless one for an issuer that it cannot reach, and no token passes it.
//! Invariant: what is kept has the form that its kind of key must have.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use model::jwt::{Algorithm, Hash, Key, KeyMaterial, KeySet};
use serde_json::Value;

const BASE64URL: GeneralPurpose =
    GeneralPurpose::new(&URL_SAFE, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));
/// The exponents of RSA keys that Envoy takes.
const EXPONENTS: [&[u8]; 2] = [&[3], &[1, 0, 1]];

/// Reads a set.
///
/// # Errors
/// The text is no JSON with a list `keys`.
pub fn key_set(text: &[u8]) -> Result<KeySet, String> {
    let set: Value = serde_json::from_slice(text).map_err(|error| format!("is no JSON: {error}"))?;
    let keys = set.get("keys").and_then(Value::as_array).ok_or("has no list of [keys]")?;
    Ok(KeySet { keys: keys.iter().filter_map(key).collect() })
}

fn key(value: &Value) -> Option<Key> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let named = text("alg").filter(|algorithm| !algorithm.is_empty());
    let algorithm = named.map(Algorithm::parse);
    // A key for an algorithm that nobody knows is of no use.
    if algorithm == Some(None) {
        return None;
    }
    let algorithm = algorithm.flatten();
    let material = match (text("kty")?, algorithm) {
        ("RSA", None | Some(Algorithm::Rs(_) | Algorithm::Ps(_))) => rsa(&text)?,
        ("EC", None | Some(Algorithm::Es(_))) => ec(&text, algorithm)?,
        ("OKP", None | Some(Algorithm::EdDsa)) if text("crv") == Some("Ed25519") => {
            KeyMaterial::Ed25519(bytes(text("x")?)?.try_into().ok()?)
        }
        ("oct", None | Some(Algorithm::Hs(_))) => KeyMaterial::Secret(Some(bytes(text("k")?)?).filter(|secret| !secret.is_empty())?.into()),
        _ => return None,
    };
    Some(Key { id: text("kid").unwrap_or_default().into(), algorithm, material })
}

fn rsa<'a>(text: &impl Fn(&str) -> Option<&'a str>) -> Option<KeyMaterial> {
    let number = |name: &str| {
        let bytes = bytes(text(name)?)?;
        let start = bytes.iter().position(|byte| *byte != 0)?;
        Some(Box::<[u8]>::from(&bytes[start..]))
    };
    let (modulus, exponent) = (number("n")?, number("e")?);
    EXPONENTS.contains(&&*exponent).then_some(KeyMaterial::Rsa { modulus, exponent })
}

/// The curve is that of `crv`, else that of `alg`, else P-256; both have to agree.
fn ec<'a>(text: &impl Fn(&str) -> Option<&'a str>, algorithm: Option<Algorithm>) -> Option<KeyMaterial> {
    let of_algorithm = match algorithm {
        Some(Algorithm::Es(hash)) => Some(hash),
        _ => None,
    };
    let curve = match text("crv") {
        None | Some("") => of_algorithm.unwrap_or(Hash::Sha256),
        Some("P-256") => Hash::Sha256,
        Some("P-384") => Hash::Sha384,
        Some("P-521") => Hash::Sha512,
        Some(_) => return None,
    };
    if of_algorithm.is_some_and(|of_algorithm| of_algorithm != curve) {
        return None;
    }
    let length: usize = match curve {
        Hash::Sha256 => 32,
        Hash::Sha384 => 48,
        Hash::Sha512 => 66,
    };
    let mut point = vec![4];
    for name in ["x", "y"] {
        let coordinate = bytes(text(name)?)?;
        let start = coordinate.iter().position(|byte| *byte != 0)?;
        let coordinate = &coordinate[start..];
        point.resize(point.len() + length.checked_sub(coordinate.len())?, 0);
        point.extend_from_slice(coordinate);
    }
    Some(KeyMaterial::Ec { curve, point: point.into() })
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    BASE64URL.decode(text).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn kinds(keys: &str) -> Vec<String> {
        let set = key_set(format!("{{\"keys\":[{keys}]}}").as_bytes()).unwrap();
        set.keys.iter().map(|key| format!("{:?} {}", key.material, key.id)).collect()
    }

    #[test]
    fn keys_that_cannot_be_used_are_left_out() {
        let ec = r#""kty":"EC","x":"qHsgLxmTVKvRMLsMXlogQPm71tlG8lCyB6KwcfYUHSQ","y":"p3MR1H6xOcJPlPwb7Va5VurknoweHAvLw4av30zoDVM""#;
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let good = format!(
            r#"{{{ec},"crv":"P-256","kid":"a"}},{{{ec},"alg":"ES256","kid":"b"}},{{"kty":"OKP","crv":"Ed25519","x":"{x}"}},
               {{"kty":"RSA","n":"AQAB","e":"AQAB"}},{{"kty":"oct","k":"AA"}}"#
        );
        assert_eq!(kinds(&good), ["Ec a", "Ec b", "Ed25519 ", "Rsa ", "Secret "]);
        let bad = format!(
            r#"{{{ec},"crv":"P-256","alg":"ES384"}},{{{ec},"alg":"RS256"}},{{{ec},"crv":"secp256k1"}},{{{ec},"alg":"none"}},
               {{"kty":"OKP","crv":"Ed448","x":"{x}"}},{{"kty":"OKP","crv":"Ed25519","x":"AA"}},{{"kty":"RSA","n":"AQAB","e":"Ag"}},
               {{"kty":"RSA","e":"AQAB"}},{{"kty":"oct","k":""}},{{"kty":"oct","k":"AA","alg":"RS256"}},{{"kty":"what"}},{{}},1"#
        );
        assert_eq!(kinds(&bad), [""; 0]);
    }

    #[test]
    fn a_text_that_is_no_key_set_is_an_error() {
        for wrong in ["", "{}", "[]", r#"{"keys":{}}"#] {
            assert!(key_set(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
