//! A token taken apart (RFC 7515, RFC 7519), and nothing of it believed yet.
//!
//! Invariants: a name that comes twice in an object refuses the token, so no two readers of it see two values; what is read has types; nothing
//! is read of a token longer than [`TOKEN_BYTES_MAX`].

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use model::claims::Claim;
use model::jwt::Algorithm;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::problem::TokenProblem;

/// Length of a token; a longer one is not of the form of one.
pub const TOKEN_BYTES_MAX: usize = 64 * 1024;

/// Padding may be there, and bits beyond the last byte, as in Envoy.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true),
);

/// A token's parts.
#[derive(Debug)]
pub struct Token {
    /// `alg`.
    pub algorithm: Algorithm,
    /// `kid`; empty if there is none.
    pub key_id: Box<str>,
    /// `iss`; empty if there is none.
    pub issuer: Box<str>,
    /// `aud`, one or several.
    pub audiences: Vec<Box<str>>,
    /// `nbf` in seconds; 0 if there is none.
    pub not_before: u64,
    /// `exp` in seconds; 0 if there is none.
    pub expires: u64,
    /// The payload.
    pub payload: Arc<Claim>,
    /// Where the payload is in the text.
    pub payload_range: std::ops::Range<usize>,
    /// What is signed ends here.
    pub signed_bytes: usize,
    /// The signature.
    pub signature: Vec<u8>,
}

impl Token {
    /// Takes a token apart.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order in which Envoy looks.
    pub fn parse(text: &str) -> Result<Self, TokenProblem> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenProblem::Form);
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(TokenProblem::Form);
        };
        if header.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(TokenProblem::Form);
        }
        let payload_range = header.len() + 1..header.len() + 1 + payload.len();
        let header = object(header, TokenProblem::HeaderBase64, TokenProblem::HeaderJson)?;
        let algorithm = header.get("alg").and_then(Claim::as_text).ok_or(TokenProblem::NoAlgorithm)?;
        let algorithm = Algorithm::parse(algorithm).ok_or(TokenProblem::UnknownAlgorithm)?;
        let key_id = text_of(&header, "kid", TokenProblem::KeyId)?.into();
        let has_extensions = header.get("crit").is_some();
        let payload = object(payload, TokenProblem::PayloadBase64, TokenProblem::PayloadJson)?;
        let issuer = text_of(&payload, "iss", TokenProblem::NotText("iss"))?.into();
        text_of(&payload, "sub", TokenProblem::NotText("sub"))?;
        seconds_of(&payload, "iat")?;
        let not_before = seconds_of(&payload, "nbf")?;
        let expires = seconds_of(&payload, "exp")?;
        text_of(&payload, "jti", TokenProblem::NotText("jti"))?;
        let audiences = audiences_of(&payload)?;
        let signature = BASE64URL.decode(signature).map_err(|_| TokenProblem::SignatureBase64)?;
        // What has to be understood, by name, is not understood (RFC 7515 §4.1.11).
        if has_extensions {
            return Err(TokenProblem::Verification);
        }
        let signed_bytes = payload_range.end;
        Ok(Self {
            algorithm,
            key_id,
            issuer,
            audiences,
            not_before,
            expires,
            payload: Arc::new(payload),
            payload_range,
            signed_bytes,
            signature,
        })
    }
}

fn object(part: &str, encoding: TokenProblem, json: TokenProblem) -> Result<Claim, TokenProblem> {
    let bytes = BASE64URL.decode(part).map_err(|_| encoding)?;
    match serde_json::from_slice::<Json>(&bytes) {
        Ok(Json(object @ Claim::Object(_))) => Ok(object),
        _ => Err(json),
    }
}

fn text_of<'a>(object: &'a Claim, name: &str, problem: TokenProblem) -> Result<&'a str, TokenProblem> {
    match object.get(name) {
        None => Ok(""),
        Some(Claim::Text(text)) => Ok(text),
        Some(_) => Err(problem),
    }
}

/// Whole seconds; a fraction is cut, as in Envoy.
fn seconds_of(object: &Claim, name: &'static str) -> Result<u64, TokenProblem> {
    match object.get(name) {
        None => Ok(0),
        Some(Claim::Number(number)) => whole(*number).ok_or(TokenProblem::OutOfRange(name)),
        Some(_) => Err(TokenProblem::NotNumber(name)),
    }
}

/// The integer part of a number from 0 up to 2⁶⁴.
pub(super) fn whole(number: f64) -> Option<u64> {
    const FRACTION_BITS: u64 = 52;
    const EXPONENT_BIAS: u64 = 1023;
    if !(0.0..18_446_744_073_709_551_616.0).contains(&number) {
        return None;
    }
    if number < 1.0 {
        return Some(0);
    }
    // The bits of a double (IEEE 754) are an exponent and the digits behind a leading 1; a conversion of number types would saturate unseen.
    let bits = number.abs().to_bits();
    let exponent = (bits >> FRACTION_BITS) - EXPONENT_BIAS;
    let digits = bits & ((1 << FRACTION_BITS) - 1) | (1 << FRACTION_BITS);
    Some(if exponent < FRACTION_BITS { digits >> (FRACTION_BITS - exponent) } else { digits << (exponent - FRACTION_BITS) })
}

fn audiences_of(payload: &Claim) -> Result<Vec<Box<str>>, TokenProblem> {
    match payload.get("aud") {
        None => Ok(Vec::new()),
        Some(Claim::Text(one)) => Ok(vec![one.clone()]),
        Some(Claim::List(all)) => all.iter().map(|one| one.as_text().map(Box::from).ok_or(TokenProblem::Audience)).collect(),
        Some(_) => Err(TokenProblem::Audience),
    }
}

/// JSON as a claim. Depth is bounded by the parser (128).
struct Json(Claim);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor).map(Self)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Claim;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Claim, E> {
        Ok(Claim::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Claim, E> {
        Ok(Claim::Bool(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Claim, E> {
        Ok(Claim::Number(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Claim, E> {
        let size = nearest(value.unsigned_abs());
        Ok(Claim::Number(if value < 0 { -size } else { size }))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Claim, E> {
        Ok(Claim::Number(nearest(value)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Claim, E> {
        Ok(Claim::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Claim, A::Error> {
        let mut all = Vec::new();
        while let Some(Json(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Claim::List(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Claim, A::Error> {
        let mut all: Vec<(Box<str>, Claim)> = Vec::new();
        while let Some((name, Json(value))) = members.next_entry::<Box<str>, Json>()? {
            all.push((name, value));
        }
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        if all.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(A::Error::custom("a name comes twice"));
        }
        Ok(Claim::Object(all))
    }
}

/// An integer as the nearest double, which is all that protobuf's `Value` has: both halves are exact, so that only their sum is rounded.
fn nearest(value: u64) -> f64 {
    let half = |bits| f64::from(u32::try_from(bits & u64::from(u32::MAX)).expect("32 bits are left"));
    half(value >> 32) * 4_294_967_296.0 + half(value)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn token(header: &str, payload: &str) -> String {
        format!("{}.{}.AA", BASE64URL.encode(header), BASE64URL.encode(payload))
    }

    fn with(payload: &str) -> Result<Token, TokenProblem> {
        Token::parse(&token(r#"{"alg":"RS256"}"#, payload))
    }

    #[test]
    fn a_token_is_three_parts_and_none_of_them_empty() {
        for wrong in ["", ".", "..", "a.b", "a.b.", ".b.c", "a..c", "a.b.c.d", "a.b.c."] {
            assert_eq!(Token::parse(wrong).unwrap_err(), TokenProblem::Form, "{wrong}");
        }
    }

    #[test]
    fn a_token_that_is_too_long_is_none() {
        let long = |length: usize| with(&format!(r#"{{"a":"{}"}}"#, "x".repeat(length))).map(|_| ());
        assert_eq!(long(TOKEN_BYTES_MAX / 4 * 3 - 100), Ok(()));
        assert_eq!(long(TOKEN_BYTES_MAX / 4 * 3), Err(TokenProblem::Form));
    }

    #[test]
    fn headers_that_are_none_are_named() {
        for (header, problem) in [
            ("[]", TokenProblem::HeaderJson),
            ("{", TokenProblem::HeaderJson),
            ("{}", TokenProblem::NoAlgorithm),
            (r#"{"alg":1}"#, TokenProblem::NoAlgorithm),
            (r#"{"alg":"none"}"#, TokenProblem::UnknownAlgorithm),
            (r#"{"alg":"RS256","kid":1}"#, TokenProblem::KeyId),
            (r#"{"alg":"RS256","alg":"HS256"}"#, TokenProblem::HeaderJson),
            (r#"{"alg":"RS256","crit":["exp"],"exp":1}"#, TokenProblem::Verification),
            (r#"{"alg":"RS256","crit":[]}"#, TokenProblem::Verification),
        ] {
            assert_eq!(Token::parse(&token(header, "{}")).unwrap_err(), problem, "{header}");
        }
        assert_eq!(Token::parse("a+b.e30.AA").unwrap_err(), TokenProblem::HeaderBase64);
        assert_eq!(Token::parse("eyJhbGciOiJSUzI1NiJ9.e3-+.AA").unwrap_err(), TokenProblem::PayloadBase64);
        assert_eq!(Token::parse("eyJhbGciOiJSUzI1NiJ9.e30.A").unwrap_err(), TokenProblem::SignatureBase64);
    }

    #[test]
    fn claims_of_other_types_than_they_have_are_named() {
        for (payload, problem) in [
            (r#""text""#, TokenProblem::PayloadJson),
            (r#"{"a":1,"a":2}"#, TokenProblem::PayloadJson),
            (r#"{"n":{"a":1,"a":2}}"#, TokenProblem::PayloadJson),
            (r#"{"iss":1}"#, TokenProblem::NotText("iss")),
            (r#"{"sub":[]}"#, TokenProblem::NotText("sub")),
            (r#"{"exp":"1"}"#, TokenProblem::NotNumber("exp")),
            (r#"{"exp":null}"#, TokenProblem::NotNumber("exp")),
            (r#"{"nbf":-1}"#, TokenProblem::OutOfRange("nbf")),
            (r#"{"exp":1e30}"#, TokenProblem::OutOfRange("exp")),
            (r#"{"iat":true}"#, TokenProblem::NotNumber("iat")),
            (r#"{"jti":{}}"#, TokenProblem::NotText("jti")),
            (r#"{"aud":1}"#, TokenProblem::Audience),
            (r#"{"aud":["a",1]}"#, TokenProblem::Audience),
        ] {
            assert_eq!(with(payload).unwrap_err(), problem, "{payload}");
        }
        assert!(with(&format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200))).is_err(), "depth is bounded");
    }

    #[test]
    fn integers_become_the_nearest_double_and_doubles_their_integer_part() {
        let beside = [
            0,
            1,
            2,
            (1 << 32) - 1,
            1 << 32,
            (1 << 53) - 1,
            1 << 53,
            (1 << 53) + 1,
            (1 << 53) + 3,
            (1 << 63) + 1025,
            u64::MAX - 1024,
            u64::MAX,
        ];
        for value in beside {
            assert_eq!(nearest(value), value.to_string().parse::<f64>().unwrap(), "{value}");
        }
        for (number, integer) in [
            (-0.0, Some(0)),
            (f64::MIN_POSITIVE, Some(0)),
            (0.999, Some(0)),
            (1.0, Some(1)),
            (1.999, Some(1)),
            (4_503_599_627_370_495.5, Some(4_503_599_627_370_495)),
            (9_007_199_254_740_992.0, Some(1 << 53)),
            (18_446_744_073_709_549_568.0, Some(u64::MAX - 2047)),
            (18_446_744_073_709_551_616.0, None),
            (-0.001, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(whole(number), integer, "{number}");
        }
        assert_eq!(with(r#"{"n":-9007199254740993}"#).unwrap().payload.get("n"), Some(&Claim::Number(-9_007_199_254_740_992.0)));
    }

    #[test]
    fn times_audiences_and_nested_claims_are_read() {
        let token = with(r#"{"iss":"i","aud":["a","b"],"exp":1700000000.9,"nbf":5,"n":{"t":["x",null,true,2]}}"#).unwrap();
        assert_eq!((&*token.issuer, token.expires, token.not_before), ("i", 1_700_000_000, 5));
        assert_eq!(token.audiences, [Box::from("a"), "b".into()]);
        let nested = token.payload.get("n").and_then(|n| n.get("t")).unwrap();
        assert_eq!(*nested, Claim::List(vec![Claim::Text("x".into()), Claim::Null, Claim::Bool(true), Claim::Number(2.0)]));
    }
}
